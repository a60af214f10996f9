"""Verification of an exported folder: what passes, what is found, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from llamagen.api import load, measure_quality, random_checkpoint, run
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions
from llamagen.verify.folder import CHOICES, ONE_ROW, verify_folder
from llamagen.verify.limits import difference
from llamagen.verify.report import EXACTLY
from llamagen.verify.scenarios import scenarios
from llamagen.verify.witnesses import OnnxWitness
from tests.parity.models import SPECS, RandomModel
from tests.parity.peers import PEERS, common

CASES = (
    "prefill", "decode", "left padding", "right padding", "cut anywhere", "rows exchanged", "far apart",
    "rows that wait", "rows cut anywhere",
)  # fmt: skip


def exported(name: str, out: Path, dtype: str = "float32") -> Path:
    load(f"foreign/{name}", roots=(SPECS,)).export(
        out, ExportOptions(dtype=dtype), random_weights=5
    )
    return out


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("mistral", tmp_path_factory.mktemp("verify") / "mistral")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_export_equals_its_witnesses(dtype: str, tmp_path: Path) -> None:
    report = verify_folder(exported("qwen3_moe", tmp_path / "out", dtype), steps=4)
    cases = (*CASES, *((CHOICES,) if dtype != "float32" else ()))
    exactly = [f"{case}{EXACTLY}" for case in CASES]
    assert [(r.witness, r.case, r.verdict) for r in report.rows] == [
        ("spec", "table /cos/inv_freq", "equal"),
        *(("spec", case, "equal") for case in exactly),
        *(("torch", case, "equal") for case in cases),
        *(("reference", case, "equal") for case in cases),
    ]
    assert report.passed
    shifts = {case.name: case.shift for case in report.facts.cases}
    assert shifts.pop("far apart") > 100 and set(shifts.values()) == {0}
    bounds = {(r.witness, r.case): r.tolerance for r in report.rows if r.case in CASES[:-1]}
    for (_, case), bound in bounds.items():
        reference = bounds["reference", case]
        assert bound is not None and reference is not None
        wider = 2**0.5 if dtype == "float32" else 1.0
        factor = 1.0 if bound is reference else wider
        assert bound.rule == "measured"
        assert bound.rms_over_std == pytest.approx(factor * reference.rms_over_std)


def test_a_folder_of_older_names_is_verified_and_run(tmp_path: Path) -> None:
    """0.1.0 called the data `model.onnx.data`, and dimensions by shorter names."""
    out = tmp_path / "out"
    model = load("foreign/mistral", roots=(SPECS,))
    model.export(out, ExportOptions(cache="bounded"), random_weights=5)
    proto = onnx.load(out / "model.onnx", load_external_data=False)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch_size":
                dim.dim_param = "batch"
            elif dim.dim_param:
                dim.dim_param = dim.dim_param.replace("sequence_length", "sequence")
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace("model.onnx_data", "model.onnx.data")
    (out / "model.onnx_data").rename(out / "model.onnx.data")
    onnx.save(proto, out / "model.onnx")
    assert any("past_sequence_" in str(one) for one in proto.graph.input)
    assert verify_folder(out, steps=2).passed
    generation = run(out, [1, 2, 3], max_new_tokens=2)
    list(generation)
    assert len(generation.tokens) == 2


def test_transformers_is_a_witness_of_a_hub_checkpoint(mistral: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mistral, tmp_path / "hub")
    spec = RandomModel.named("foreign/mistral").resolved.spec
    config = {**common(spec), **PEERS["mistral"].extra(spec), "model_type": "mistral"}
    (folder / "config.json").write_text(json.dumps(config))
    assert verify_folder(folder, ["transformers"], steps=4).passed
    config["sliding_window"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert not verify_folder(folder, ["transformers"], steps=4).passed


def test_a_wrong_epsilon_is_found(mistral: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mistral, tmp_path / "edited")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edited = 0
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f, edited = 1e-5, edited + 1
    assert edited
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    report = verify_folder(folder, steps=2)
    found = {row.case for row in report.rows if row.verdict == "different"}
    assert found >= {*CASES} - {"far apart"}  # whose bound has room for angles in float32
    assert not report.passed


def _edited(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def _different(folder: Path, **options: Any) -> set[str]:
    report = verify_folder(folder, ["reference"], steps=4, **options)
    return {row.case.removesuffix(EXACTLY) for row in report.rows if row.verdict == "different"}


def test_far_positions_show_a_wrong_frequency(mistral: Path, tmp_path: Path) -> None:
    def slower(model: onnx.ModelProto) -> None:
        (table,) = (t for t in model.graph.initializer if t.name.endswith("inv_freq"))
        values = onnx.numpy_helper.to_array(table).copy()
        values[-1] *= 1.02
        table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))

    folder = _edited(shutil.copytree(mistral, tmp_path / "slow"), slower)
    assert "far apart" in _different(folder)


def test_padding_taken_for_tokens_is_found_behind_tokens_only(
    mistral: Path, tmp_path: Path
) -> None:
    """Everything after the first token counts as one: true of left padding, wrong of holes."""

    def filled(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                if name == "attention_mask" and node.op_type != "Shape":
                    node.input[i] = "filled"
        make, numbers = onnx.helper.make_node, onnx.numpy_helper.from_array
        model.graph.initializer.append(numbers(np.array(1), "one"))
        model.graph.node.insert(0, make("CumSum", ["attention_mask", "one"], ["counted"]))
        model.graph.node.insert(1, make("Min", ["counted", "one"], ["filled"]))

    folder = _edited(shutil.copytree(mistral, tmp_path / "filled"), filled)
    assert _different(folder) == {"right padding", "rows that wait", "rows cut anywhere"}


def test_layers_show_where_an_error_begins(mistral: Path, tmp_path: Path) -> None:
    def second_norm(model: onnx.ModelProto) -> None:
        norms = [n for n in model.graph.node if "layers.1/post_attention" in n.output[0]]
        (epsilon,) = (a for a in norms[0].attribute if a.name == "epsilon")
        epsilon.f = 0.5

    folder = _edited(shutil.copytree(mistral, tmp_path / "second"), second_norm)
    report = verify_folder(folder, steps=2, layers=True)
    assert not report.passed
    for case in ("prefill", "left padding"):
        first, second = (row for row in report.layers if row.case == case)
        assert (first.path, second.path) == ("model.layers.0", "model.layers.1")
        assert first.onnx is not None and second.onnx is not None
        assert first.onnx.rms_over_std < 1.5e-6 < 1e-3 < second.onnx.rms_over_std
        assert second.torch is not None and second.torch.rms_over_std < 1.5e-6


DECODER = """
spec: 1
id: tests/decoder
extends: llama/2/7b
hyperparameters: {hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 16, intermediate_size: 24,
  vocab_size: 50, max_positions: 64}
invariants: null
blocks:
"""
HEADS = {
    "narrow": "  CausalLM: {parts: {lm_head: 'linear(hidden_size, 3)'}}\n",
    "wide": "  CausalLM: {parts: {lm_head: 'linear(hidden_size, 90)'}}\n",
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
def test_ids_are_of_the_embedding_whatever_the_output_is(
    head: str, profile: str, tmp_path: Path
) -> None:
    (tmp_path / "decoder.yaml").write_text(DECODER + HEADS[head])
    load(tmp_path / "decoder.yaml").export(
        tmp_path / "out", ExportOptions(profile=profile), random_weights=5
    )
    report = verify_folder(tmp_path / "out", steps=3)
    assert report.passed
    compared = {row.case for row in report.rows if row.witness == "torch"}
    assert compared >= set(CASES)
    assert all(case.input_ids.max() < 50 for case in report.facts.cases)
    assert max(case.input_ids.max() for case in report.facts.cases) > 40


@pytest.mark.parametrize("cache", ["v = ", "k, v = cache(k, "])
def test_a_token_that_sees_every_token_sees_no_padding(cache: str) -> None:
    model = RandomModel.of_text(
        DECODER
        + f"""
  Attention:
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      {cache}split_heads(v_proj(x), num_kv_heads){")" if "cache" in cache else ""}
      return o_proj(merge_heads(attention(q, k, v, mask='none')))
"""
    )
    padded = scenarios(50, 9, 4)[2]
    whole = replace(padded, splits=(13,))
    rows = np.concatenate([row.logits(model.reference) for row in whole.alone()])
    assert np.abs(whole.logits(model.reference) - rows).max() < 1e-12
    for profile in ("portable", "ort-cpu"):
        options = ExportOptions(profile=profile, logits="all")
        onnx_model = OnnxWitness.of_graph(model.graph, model.weight, options)
        for case in (whole, padded):
            exact = case.logits(model.reference)
            for witness in (onnx_model, model.torch):
                assert difference(case.logits(witness), exact).max_over_std < 1e-5


def test_graphs_that_no_case_reaches_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    scout = load(SPECS / "reduced" / "llama-4-scout.yaml")
    scout.export(folder, random_weights=5)

    def unknown(*_: object) -> None:
        raise ValueError("no case is known for graphs with several hand-overs")

    monkeypatch.setattr("llamagen.verify.folder.image_scenarios", unknown)
    report = verify_folder(folder, ["torch"], steps=1)
    (row,) = (row for row in report.rows if row.case == "all")
    assert row.verdict == "not compared" and not report.passed
    for name in ("several hand-overs", "vision_encoder", "--leave-out"):
        assert name in row.note
    beside = [file.stem for file in folder.glob("*.onnx") if file.stem != "model"]
    assert verify_folder(folder, ["torch"], steps=1, leave_out=beside).passed
    with pytest.raises(LlamagenError, match="no graph `vision_tower` to leave out"):
        verify_folder(folder, ["torch"], leave_out=["vision_tower"])


def test_a_model_too_large_for_the_reference_is_not_called_equal(
    mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamagen.verify.folder.MAX_REFERENCE_PARAMETERS", 10)
    report = verify_folder(mistral, ["reference"], steps=1)
    assert [(row.witness, row.verdict) for row in report.rows] == [
        ("spec", "equal"),
        ("spec", "equal"),
        ("reference", "skipped"),
    ]
    assert [row.case for row in report.rows] == ["table /cos/inv_freq", f"prefill{EXACTLY}", "all"]
    assert not report.passed
    monkeypatch.setattr("llamagen.verify.folder.MAX_READ_BACK", 10)
    (row,) = (r for r in verify_folder(mistral, ["torch"], steps=1).rows if EXACTLY in r.case)
    assert row.verdict == "skipped" and "too many" in row.note


@pytest.mark.parametrize(
    ("code", "file", "text"),
    [
        ("LG770", "model.onnx", None),
        ("LG770", "spec.yaml", None),
        ("LG772", "spec.yaml", ("sliding_window: 5", "sliding_window: 6")),
    ],
)
def test_refusals(
    code: str, file: str, text: tuple[str, str] | None, mistral: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(mistral, tmp_path / "broken")
    if text is None:
        (folder / file).unlink()
    else:
        before = (folder / file).read_text()
        assert text[0] in before
        (folder / file).write_text(before.replace(*text))
    with pytest.raises(LlamagenError) as caught:
        verify_folder(folder)
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_short_data_is_refused(mistral: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mistral, tmp_path / "short")
    with (folder / "model.onnx_data").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(LlamagenError, match="ends inside") as caught:
        verify_folder(folder)
    assert caught.value.diagnostics[0].code == "LG773"


def test_unknown_witness(mistral: Path) -> None:
    with pytest.raises(LlamagenError, match="no witness `pytorch`") as caught:
        verify_folder(mistral, ["pytorch"])
    assert caught.value.diagnostics[0].code == "LG771"


def test_transformers_needs_a_configuration(tmp_path: Path) -> None:
    report = verify_folder(exported("granite", tmp_path / "out"), ["transformers"])
    (row,) = [row for row in report.rows if row.witness == "transformers"]
    assert "no config.json" in row.note and row.verdict == "not compared" and not report.passed


def test_more_tokens_than_the_tables_cover_are_refused(tmp_path: Path) -> None:
    spec, out = tmp_path / "m.yaml", tmp_path / "out"
    text = (SPECS / "reduced" / "llama-3.1-8b.yaml").read_text()
    spec.write_text(
        text.replace("num_heads: 8", "num_heads: 4").replace("head_dim: 8", "head_dim: 16")
    )
    load(spec).export(out, ExportOptions(profile="ort-cpu", max_context=20), random_weights=1)
    for compare in (verify_folder, measure_quality):
        with pytest.raises(LlamagenError) as caught:
            compare(out)
        assert [d.code for d in caught.value.diagnostics] == ["LG764"]
    assert verify_folder(out, ["torch"], steps=8).passed


@pytest.mark.parametrize("runtime", ["1.31", "1.32"])
def test_what_a_runtime_cannot_do_is_said_and_the_rest_is_compared(
    runtime: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    load(SPECS / "reduced" / "llama-2-70b.yaml").export(
        out, ExportOptions(profile="ort-cpu", runtime=runtime), random_weights=1
    )
    done: list[tuple[int, int, str]] = []
    report = verify_folder(out, ["torch"], steps=4, progress=lambda *told: done.append(told))
    manifest = read_manifest(out)
    assert (manifest.runtime, manifest.batched_chunks) == (runtime, runtime == "1.32")
    verdicts = {row.case: row.verdict for row in report.rows if row.witness == "torch"}
    assert tuple(verdicts) == CASES and report.passed
    skipped = {"rows cut anywhere"} if runtime == "1.31" else set()
    assert {case for case, verdict in verdicts.items() if verdict != "equal"} == skipped
    assert {row.note for row in report.rows if row.case in skipped} == (
        {ONE_ROW} if skipped else set()
    )
    total = 2 * len(CASES) + 1
    assert done[-1] == (total, total, f"spec, prefill{EXACTLY}")


def test_a_dtype_that_no_weight_has_is_not_believed(mistral: Path, tmp_path: Path) -> None:
    """It would choose the tolerances."""
    out = shutil.copytree(mistral, tmp_path / "out")
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    (said,) = (p for p in model.metadata_props if p.key == "llamagen.dtype")
    said.value = "bfloat16"
    (out / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(LlamagenError, match="in bfloat16, its weights are float32"):
        verify_folder(out, ["torch"], steps=1)


def test_a_model_of_zeros_cannot_be_measured(tmp_path: Path) -> None:
    spec, checkpoint, out = (
        SPECS / "reduced" / "llama-3.1-8b.yaml",
        tmp_path / "c",
        tmp_path / "out",
    )
    random_checkpoint(spec, checkpoint)
    state = load_file(checkpoint / "model.safetensors")
    state["lm_head.weight"].zero_()
    save_file(state, checkpoint / "model.safetensors", {"format": "pt"})
    load(spec).export(out, checkpoint=checkpoint)
    with pytest.raises(LlamagenError) as caught:
        verify_folder(out, ["torch"], steps=2)
    assert [d.code for d in caught.value.diagnostics] == ["LG777"]


@pytest.mark.parametrize("cached", [False, True])
def test_without_an_order_a_model_is_compared_call_by_call(tmp_path: Path, cached: bool) -> None:
    """Other calls are other logits: without a cache what came before is not seen, with one what follows in the call."""
    kept = "      k, v = cache(k, v)\n" if cached else ""
    (tmp_path / "own.yaml").write_text(
        "spec: 1\nid: my/encoder\nextends: llama/3.2/1b\ntokenizer: null\ninvariants: null\n"
        "hyperparameters: {hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 16,\n"
        "  intermediate_size: 24, vocab_size: 60}\n"
        "blocks:\n  Attention:\n    forward: |\n"
        "      q = split_heads(q_proj(x), num_heads)\n      k = split_heads(k_proj(x), num_kv_heads)\n"
        f"      v = split_heads(v_proj(x), num_kv_heads)\n{kept}"
        "      return o_proj(merge_heads(attention(q, k, v, mask='none')))\n"
    )
    load(tmp_path / "own.yaml").export(tmp_path / "out", random_weights=1)
    report = verify_folder(tmp_path / "out", ["torch", "reference"], steps=2)
    assert {row.verdict for row in report.rows} == {"equal"} and report.passed
