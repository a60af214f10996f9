"""Import under random change: what is accepted comes back, everything else is refused with a place."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.importing import Imported
from llamagen.emit.config.json_source import parse_json
from tests.unit.family.facts import REGISTRY, configs
from tests.unit.family.importing import imported, written

TEXT = sorted(name for name, config in configs().items() if config["model_type"] == "llama")
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


def _containers(below: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4)


@given(st.recursive(ATOMS, _containers, max_leaves=12))
def test_json_reads_as_the_standard_library_does(value: object) -> None:
    config = {"root": value}
    for indent in (None, 2):
        for ascii_only in (True, False):
            try:
                text = json.dumps(config, indent=indent, ensure_ascii=ascii_only).encode()
            except UnicodeEncodeError:
                continue  # a lone surrogate has no UTF-8
            assert parse_json(text, "x").value == config


SIZES = st.integers(1, 64)


@st.composite
def mutations(draw: st.DrawFn) -> dict[str, Any]:
    """A text model with some of its numbers changed to others that a Llama can have."""
    config = configs()[draw(st.sampled_from(TEXT))]
    groups, shared, width = draw(SIZES), draw(SIZES), 2 * draw(SIZES)
    changes: dict[str, st.SearchStrategy[Any]] = {
        "vocab_size": st.integers(1, 300_000),
        "num_hidden_layers": st.integers(1, 200),
        "intermediate_size": st.integers(1, 60_000),
        "max_position_embeddings": st.integers(1, 10**7),
        "rms_norm_eps": st.floats(1e-9, 1e-3),
        "rope_theta": st.floats(1.0, 1e8),
        "tie_word_embeddings": st.booleans(),
        "eos_token_id": st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=2, max_size=3),
        "bos_token_id": st.integers(0, 9),
        "rope_scaling": st.none()
        | st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": st.floats(1.0, 64.0)})
        | st.fixed_dictionaries(
            {
                "rope_type": st.just("llama3"),
                "factor": st.floats(1.0, 64.0),
                "low_freq_factor": st.floats(0.5, 2.0),
                "high_freq_factor": st.floats(3.0, 8.0),
                "original_max_position_embeddings": st.integers(64, 9000),
            }
        ),
        "torch_dtype": st.sampled_from(["float32", "bfloat16"]),
    }
    for key in draw(st.sets(st.sampled_from(sorted(changes)))):
        config[key] = draw(changes[key])
    if draw(st.booleans()):
        config["num_attention_heads"] = groups * shared
        config["num_key_value_heads"] = shared
        config["head_dim"] = width
        config["hidden_size"] = draw(st.sampled_from([groups * shared * width, 64 * width]))
    return config


@settings(max_examples=60)
@given(mutations())
def test_changed_configs_come_back(config: dict[str, Any]) -> None:
    made = imported(config)
    back = written(made)
    implied = config["hidden_size"] // config["num_attention_heads"]
    assert {"head_dim": implied, **back} == {"head_dim": implied, **config}
    again = REGISTRY.load_text(made.text)
    assert again.spec == made.resolved.spec
    assert again.warnings == (), "nothing is stated that is inherited"


def imported_or_none(config: object) -> Imported | None:
    """None where it is refused, with a place in every finding."""
    try:
        return imported(config)
    except LlamagenError as error:
        unplaced = [str(one) for one in error.diagnostics if one.span is None]
    assert unplaced == []
    return None


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(configs())),
    st.data(),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}),
)  # fmt: skip
def test_nonsense_is_imported_faithfully_or_refused(
    name: str, data: st.DataObject, nonsense: object
) -> None:
    config = configs()[name]
    groups = [g for g in ("text_config", "vision_config") if g in config]
    group = data.draw(st.sampled_from(groups) if groups else st.none())
    table = config if group is None else config[group]
    key = data.draw(st.sampled_from(sorted(table)))
    table[key] = nonsense
    made = imported_or_none(config)
    if made is None:
        return
    back = written(made)
    found = back if group is None else back[group]
    reasons = {ignored.rpartition(".")[2] for ignored in made.ignored}
    if key == "head_dim" and nonsense is None:  # LlamaConfig: as without the key
        nonsense = table["hidden_size"] // table["num_attention_heads"]
    assert key in reasons or found.get(key) == nonsense or key in ("pad_token_id", "rope_scaling")
