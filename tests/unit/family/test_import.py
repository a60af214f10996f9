"""`llamagen import`: known configurations are recognised, changed ones keep their changes, wrong ones are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llamagen import api
from llamagen.cli import main
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.config.checkpoint import import_path
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.table import CONFIG_FILE
from llamagen.emit.generate import identity_of
from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry
from llamagen.spec.schema import EveryPattern
from tests.unit.family.facts import configs, manifests, records
from tests.unit.family.importing import base, imported, imported_params, written


def refused(config: object) -> tuple[Diagnostic, ...]:
    with pytest.raises(LlamagenError) as caught:
        imported(config)
    return caught.value.diagnostics


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


@pytest.mark.parametrize("name", sorted(configs()))
def test_what_transformers_saves_again_is_recognised(name: str, tmp_path: Path) -> None:
    """It writes defaults out: rope_parameters, layer_types, every flag of no_rope_layers."""
    from transformers import AutoConfig, logging

    logging.set_verbosity_error()
    config = configs()[name]
    AutoConfig.for_model(**config).save_pretrained(tmp_path)
    made = import_path(tmp_path / CONFIG_FILE)
    assert records()[name]["id"] in made.alike
    assert not made.nearest.differences


FLAGS = [int((i + 1) % 4 != 0) for i in range(48)]
KINDS = ["chunked_attention" if flag else "full_attention" for flag in FLAGS]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    "written_out",
    [
        {"no_rope_layers": FLAGS},
        {"no_rope_layers": None, "moe_layers": None},
        {"no_rope_layers": [], "no_rope_layer_interval": 4},
        {"no_rope_layer_interval": 4},
        {"no_rope_layers": FLAGS, "moe_layers": "all", "layer_types": KINDS},
    ],
)
def test_layers_of_llama_4_in_full(step: int, written_out: dict[str, object]) -> None:
    """As files on the Hub write them: every flag, every layer with experts, null, or an interval."""
    name, spec_id = (
        ("llama-4-scout-17b-16e", "llama/4/scout"),
        ("llama-4-maverick-17b-128e", "llama/4/maverick"),
    )[step - 1]
    config = configs()[name]
    if written_out.get("moe_layers") == "all":
        written_out = {**written_out, "moe_layers": list(range(step - 1, 48, step))}
    text = {k: v for k, v in config["text_config"].items() if k != "no_rope_layers"}
    made = imported({**config, "text_config": {**text, **written_out}})
    assert spec_id in made.alike and not made.nearest.differences
    assert identity_of(build(made.resolved)) == identity_of(build(Registry().load(spec_id)))


def test_layer_types_that_contradict_the_flags_are_refused() -> None:
    config = configs()["llama-4-scout-17b-16e"]
    text = {**config["text_config"], "layer_types": ["full_attention"] * 48}
    (found,) = refused({**config, "text_config": text})
    assert found.code == "LG108"


def test_a_changed_number_is_the_only_thing_stated() -> None:
    made = imported(base(num_hidden_layers=5))
    assert [d.key for d in made.nearest.differences] == ["num_hidden_layers"]
    assert made.exact == made.alike == ()
    assert made.text == (
        "spec: 1\nid: imported/model\nextends: llama/3.2/1b\ntitle: null\nrelease: null\ntraining: null\n"
        "lineage: null\nhyperparameters:\n  num_layers: 5\n"
    ), "and that what is recorded of the model it resembles is not true of it"


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


PAIRS = [1.0 + i for i in range(32)]


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        | {"truncate": False, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 8.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": PAIRS, "long_factor": PAIRS}
        | {"original_max_position_embeddings": 4096},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scalings_come_back_as_they_were(scaling: dict[str, object]) -> None:
    assert written(imported(base(rope_scaling=scaling)))["rope_scaling"] == scaling


def test_what_says_no_more_than_its_absence_is_left_out() -> None:
    short = {"rope_type": "yarn", "factor": 4.0}
    long = {**short, "attention_factor": None, "beta_fast": 32, "beta_slow": 1, "truncate": True}
    context = {"original_max_position_embeddings": base()["max_position_embeddings"]}
    for scaling in (short, long, {**long, **context}):
        made = imported(base(rope_scaling=scaling))
        assert written(made)["rope_scaling"] == {**short, **context}


def test_the_context_of_the_configuration_counts_before_that_of_its_scaling() -> None:
    """As transformers reads files of Phi-3."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    made = imported(base(rope_scaling=scaling, original_max_position_embeddings=32))
    assert written(made)["rope_scaling"]["original_max_position_embeddings"] == 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"low_freq_factor": 8.0}, "low_freq_factor 8.0 is above high_freq_factor 4.0"),
        ({"rope_type": "dynamic"}, "which the kind `dynamic` does not know"),
        ({"rope_type": "proportional"}, "has the rope type `proportional`"),
    ],
)
def test_scalings_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    (found,) = refused(base(rope_scaling={**base()["rope_scaling"], **changes}))
    assert words in found.message
    assert found.span is not None and found.span.line > 1


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


def test_the_interval_of_old_llama_4_files_is_a_switch() -> None:
    config = configs()["llama-4-scout-17b-16e"]
    config["text_config"]["attn_temperature_tuning"] = 4
    assert "llama/4/scout" in imported(config).alike


def test_layers_with_experts_come_in_steps() -> None:
    config = configs()["llama-4-scout-17b-16e"]
    config["text_config"]["interleave_moe_layer_step"] = 3
    assert imported(config).resolved.spec.patterns["feeds"] == EveryPattern(
        every=3, value="moe", otherwise="dense"
    )
    config["text_config"]["moe_layers"] = list(range(2, 48, 3))
    assert imported(config).resolved.spec.patterns["feeds"] == EveryPattern(
        every=3, value="moe", otherwise="dense"
    )
    for wrong in ([1, 2], list(range(1, 48, 2)), [5, 11], 7):
        config["text_config"]["moe_layers"] = wrong
        found = refused(config)
        assert {one.code for one in found} == {"LG108"}


def test_generic_keys_of_sub_configs_are_passed_over() -> None:
    config = configs()["llama-3.2-11b-vision"]
    config["text_config"] |= {"top_k": 50, "is_decoder": False, "pad_token_id": 128004}
    made = imported(config)
    assert made.ignored["text_config.top_k"] == "of generation"
    assert written(made) == configs()["llama-3.2-11b-vision"]


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
    ({"attention_bias": "yes"}, "LG103", "attention_bias"),
    ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "LG108", "rope_scaling"),
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
    change: dict[str, Any], code: str, key: str
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
        (b'{"a": "x\n"}', 1, 9),
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


TINY = """
spec: 1
id: imported/tiny
extends: llama/3.2/1b
hyperparameters:
  {vocab_size: 32, hidden_size: 16, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 4, intermediate_size: 24}
invariants: {swiglu_width: null}
"""


def test_a_checkpoint_folder_is_compared_with_its_config(tmp_path: Path) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text(TINY)
    folder = tmp_path / "weights"
    api.random_checkpoint(str(spec), folder)
    made = import_path(folder)
    assert made.resolved.digest == api.load(str(spec)).resolved.digest
    assert "tensors" in made.notes[-1]
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(LlamagenError) as caught:
        import_path(folder)
    assert all(one.code.startswith("LG6") for one in caught.value.diagnostics)


def test_weights_alone_are_recognised_or_refused(tmp_path: Path) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text(TINY)
    folder = tmp_path / "weights"
    api.random_checkpoint(str(spec), folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(LlamagenError, match="no known model"):
        import_path(folder)
    header = {
        name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 0]}
        for name, shape in manifests("hub")["llama-33b"].items()
    }
    sparse_safetensors(folder / "model.safetensors", header)
    made = import_path(folder)
    assert made.alike == ("llama/1/33b",)
    assert made.text == "spec: 1\nid: imported/weights\nextends: llama/1/33b\n"


def sparse_safetensors(path: Path, header: dict[str, dict[str, Any]]) -> None:
    """A file with the header of a large model and a hole instead of its data."""
    at = 0
    for entry in header.values():
        end = at + 2 * math.prod(entry["shape"])
        entry["data_offsets"] = [at, end]
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def test_for_a_program_it_is_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / CONFIG_FILE
    file.write_text(json.dumps({**configs()["llama-3.2-1b"], "rms_norm_eps": 1e-6}))
    assert main(["import", str(file), "--id", "my/model", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["nearest"]["id"], said["exact"]) == ("llama/3.2/1b", [])
    (change,) = said["nearest"]["differences"]
    assert (change["key"], change["here"], change["known"]) == ("rms_norm_eps", 1e-6, 1e-5)
    assert said["spec"]["hyperparameters"]["norm_eps"] == 1e-6
    assert api.imported(tmp_path).resolved.plain["blocks"] == said["spec"]["blocks"]
