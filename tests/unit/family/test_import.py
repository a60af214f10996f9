"""`llamagen import`: known configurations are recognised, changed ones keep their changes, wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.config import CONFIG_FILE, config_files
from llamagen.emit.config.importing import import_path
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.params import read_params
from llamagen.emit.config.read import Imported, import_wanted, known_models
from llamagen.emit.config.wanted import read_config
from tests.unit.family.facts import REGISTRY, configs, records

MODELS = known_models(REGISTRY)
KINDS = ("llama", "llama4", "mllama")
TEXT = sorted(name for name, config in configs().items() if config["model_type"] == "llama")


def imported(config: object) -> Imported:
    source = parse_json(json.dumps(config, indent=2).encode(), "config.json")
    return import_wanted(read_config(source, KINDS), "imported/model", MODELS, REGISTRY)


def imported_params(params: object) -> Imported:
    source = parse_json(json.dumps(params, indent=2).encode(), "params.json")
    return import_wanted(read_params(source), "imported/model", MODELS, REGISTRY)


def refused(config: object) -> tuple[Diagnostic, ...]:
    with pytest.raises(LlamagenError) as caught:
        imported(config)
    return caught.value.diagnostics


def written(made: Imported) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(config_files(made.resolved)[CONFIG_FILE])
    return config


def base(name: str = "llama-3.2-1b", **changes: object) -> dict[str, Any]:
    return {**configs()[name], **changes}


@pytest.mark.parametrize("name", sorted(configs()))
def test_every_known_config_is_recognised_and_comes_back(name: str) -> None:
    made = imported(configs()[name])
    assert records()[name]["id"] in made.exact
    assert set(made.exact) <= set(made.alike)
    assert made.nearest.exact
    assert written(made) == configs()[name]
    assert "hyperparameters" not in made.text, "an exact copy states nothing"
    assert not made.dropped


@pytest.mark.parametrize("name", [n for n in sorted(records()) if "meta_params" in records()[n]])
def test_every_params_json_is_recognised(name: str) -> None:
    made = imported_params(records()[name]["meta_params"])
    assert records()[name]["id"] in made.alike
    assert not made.dropped


def test_a_changed_number_is_the_only_thing_stated() -> None:
    made = imported(base(num_hidden_layers=5))
    assert [d.key for d in made.nearest.differences] == ["num_hidden_layers"]
    assert made.exact == made.alike == ()
    assert made.text == (
        "spec: 1\nid: imported/model\nextends: llama/3.2/1b\nhyperparameters:\n  num_layers: 5\n"
    )


def test_a_formula_of_one_size_is_dropped_where_it_does_not_hold() -> None:
    made = imported(base(intermediate_size=5000))
    assert made.dropped == ("swiglu_width",)
    assert "swiglu_width: null" in made.text


def test_another_kind_of_rope_is_written_whole() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    made = imported(base(rope_scaling=scaling))
    rope = made.resolved.spec.hyperparameters.rope
    assert rope is not None
    assert rope.model_dump() == {
        "kind": "linear", "theta": 500000.0, "layout": "half", "partial": 1.0, "factor": 4.0,
    }  # fmt: skip
    assert written(made)["rope_scaling"] == scaling


def test_spellings_of_transformers_5_and_of_old_files() -> None:
    new = base()
    scaling = new.pop("rope_scaling")
    new["rope_parameters"] = {**scaling, "rope_theta": new.pop("rope_theta")}
    new["dtype"] = new.pop("torch_dtype")
    assert written(imported(new)) == configs()["llama-3.2-1b"]
    old = base("llama-7b")
    for key in ("num_key_value_heads", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias"):
        del old[key]
    assert "llama/1/7b" in imported(old).alike


def test_keys_are_reported_as_handled_or_ignored_with_a_reason() -> None:
    made = imported(base(_name_or_path="x", use_cache=False))
    assert "hidden_size" in made.handled
    assert "hidden_act" in made.handled
    assert made.ignored["_name_or_path"] == "where the file was saved from"
    assert set(made.handled).isdisjoint(made.ignored)
    assert len(made.handled) + len(made.ignored) == len(base()) - 1 + 1  # not model_type
    assert [mark.key for mark in made.nearest.marks] == ["use_cache"]
    assert written(made)["use_cache"] is False


WRONG: list[tuple[dict[str, object], str, str]] = [
    ({"hidden_size": 2**62}, "LG103", "hidden_size"),
    ({"hidden_size": 2**70}, "LG023", "hidden_size"),
    ({"vocab_size": -1}, "LG103", "vocab_size"),
    ({"vocab_size": 0}, "LG103", "vocab_size"),
    ({"vocab_size": "32000"}, "LG103", "vocab_size"),
    ({"vocab_size": True}, "LG103", "vocab_size"),
    ({"vocab_size": None}, "LG108", "vocab_size"),
    ({"rms_norm_eps": 0.0}, "LG103", "rms_norm_eps"),
    ({"rms_norm_eps": -1e-5}, "LG103", "rms_norm_eps"),
    ({"num_hidden_layers": 100_000}, "LG103", "num_hidden_layers"),
    ({"num_key_value_heads": 5}, "LG108", "num_key_value_heads"),
    ({"head_dim": 63}, "LG108", "head_dim"),
    ({"hidden_act": "gelu"}, "LG108", "hidden_act"),
    ({"architectures": ["MistralForCausalLM"]}, "LG108", "architectures"),
    ({"attention_bias": True}, "LG108", "attention_bias"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "LG108", "rope_scaling"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "x": 1}}, "LG108", "rope_scaling"),
    ({"rope_scaling": [1]}, "LG108", "rope_scaling"),
    ({"rope_theta": -1.0}, "LG103", "rope_theta"),
    ({"eos_token_id": "2"}, "LG108", "eos_token_id"),
    ({"sliding_windw": 1}, "LG107", "sliding_windw"),
    ({"model_type": "lama"}, "LG109", "model_type"),
    ({"model_type": "mamba"}, "LG109", "model_type"),
]


@pytest.mark.parametrize(("change", "code", "key"), WRONG)
def test_wrong_values_are_refused_at_their_place(
    change: dict[str, object], code: str, key: str
) -> None:
    config = base(**change)
    lines = json.dumps(config, indent=2).split("\n")
    line = next(i for i, text in enumerate(lines, 1) if text.startswith(f'  "{key}":'))
    found = refused(config)
    assert {one.code[: len(code)] for one in found} == {code}
    for one in found:
        assert one.span is not None
        assert (one.span.file, one.span.line) == ("config.json", line), one


@pytest.mark.parametrize(
    ("text", "line", "col"),
    [
        (b'{"rms_norm_eps": NaN}', 1, 18),
        (b'{"a": -Infinity}', 1, 7),
        (b'{"a": 1,\n "a": 2}', 2, 2),
        (b'{"a": 01}', 1, 8),
        (b'{"a": 1', 1, 8),
        (b'{"a": "x\n"}', 1, 7),
        (b'{"a": ' + b"[" * 100, 1, 23),
        (b"[1]", 1, 1),
        (b"{} 1", 1, 4),
        (b'{"a": 1e999}', 1, 7),
        (b'{"a": ' + b"9" * 100 + b"}", 1, 7),
    ],
)
def test_json_that_is_none_is_refused_at_its_place(text: bytes, line: int, col: int) -> None:
    with pytest.raises(LlamagenError) as caught:
        parse_json(text, "config.json")
    (found,) = caught.value.diagnostics
    assert found.code == "LG106"
    assert found.span is not None
    assert (found.span.line, found.span.col) == (line, col)


@pytest.mark.parametrize(
    "text", [b"\xff{}", b"{" + b" " * (1 << 20) + b"}"], ids=["not UTF-8", "too large"]
)
def test_files_that_are_no_text_are_refused(text: bytes) -> None:
    with pytest.raises(LlamagenError, match="LG106"):
        parse_json(text, "config.json")


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


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dim": -5}, "LG108"),
        ({"dim": True}, "LG108"),
        ({"n_heads": 0}, "LG108"),
        ({"multiple_of": 0}, "LG108"),
        ({"norm_eps": 0.0}, "LG103"),
        ({"n_kv_heads": 3}, "LG108"),
        ({"n_layres": 3}, "LG107"),
    ],
)
def test_wrong_params_are_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        imported_params({**records()["llama-3-8b"]["meta_params"], **change})
    assert {one.code for one in caught.value.diagnostics} == {code}
    assert all(one.span is not None for one in caught.value.diagnostics)


def test_params_lack_a_key() -> None:
    params = dict(records()["llama-3-8b"]["meta_params"])
    del params["dim"]
    with pytest.raises(LlamagenError, match="LG102"):
        imported_params(params)


def test_params_of_a_new_size_follow_metas_rule() -> None:
    params = {**records()["llama-3-8b"]["meta_params"], "dim": 1024, "n_heads": 8, "n_layers": 3}
    sizes = imported_params(params).resolved.spec.hyperparameters
    # int(1.3 * int(8 * 1024 / 3)) = 3549, up to a multiple of 1024
    assert (sizes.hidden_size, sizes.intermediate_size, sizes.head_dim) == (1024, 4096, 128)


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "My Model"
    folder.mkdir()
    with pytest.raises(LlamagenError, match="LG106"):
        import_path(folder)
    (folder / "config.json").write_text(json.dumps(base()))
    made = import_path(folder)
    assert made.resolved.spec.id == "imported/my-model"
    assert "llama/3.2/1b" in made.exact


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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(configs())),
    st.data(),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}),
)  # fmt: skip
def test_nonsense_is_imported_faithfully_or_refused(
    name: str, data: st.DataObject, nonsense: object
) -> None:
    config = configs()[name]
    group = data.draw(
        st.sampled_from([g for g in ("text_config", "vision_config") if g in config] or [None])
    )
    table = config if group is None else config[group]
    key = data.draw(st.sampled_from(sorted(table)))
    table[key] = nonsense
    made = imported_or_none(config)
    if made is None:
        return
    back = written(made)
    found = back if group is None else back[group]
    reasons = {ignored.rpartition(".")[2] for ignored in made.ignored}
    assert key in reasons or found.get(key) == nonsense or key in ("pad_token_id", "rope_scaling")
