"""Rewritten models: what ONNX Runtime says of every node, limits, and numbers in the dtypes that the CPU runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from llamagen.analysis.rewrites import Export, rewrite, rewrite_rules
from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.data import attach_arrays, large_constants, serialize
from llamagen.emit.onnx.emit import DEFAULT_MAX_CONTEXT, OnnxModel, emit_onnx
from llamagen.emit.onnx.profile import CONTRIB, ORT_CPU, ORT_CUDA, OnnxDType, Profile
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from llamagen.verify.limits import TOLERANCES, difference, largest_of
from llamagen.verify.scenarios import FloatArray, Scenario, scenarios
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness
from tests.codes import OF_EXPERTS
from tests.parity.models import RandomModel
from tests.unit.analysis.models import overlaid, text

CONTEXT = 64
CASES = {name: rule.row.case.fires for name, rule in rewrite_rules().items()}
BASE = text(
    "t/base", vocab=32, hidden=32, layers=2, heads=4, kv=2, head_dim=16, ffn=48, positions=512,
    rope="{kind: default, theta: 100.0}",
)  # fmt: skip
CAPPED = """
blocks:
  Attention:
    parts: {sinks: "parameter(num_heads, kind='bias')"}
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal', window=3, softcap=2.0, scale=0.3, sinks=sinks)))
"""
EXTRAS = {
    "window, sinks, cap": CAPPED,
    "window, sinks": CAPPED.replace("softcap=2.0, ", ""),
    "interleaved, scaled": "hyperparameters: {rope: {kind: yarn, factor: 4.0, attention_factor: 1.2,"
    " theta: 50.0, original_max_positions: 64, layout: interleaved}}",
    "biases": "blocks: {Attention: {parts: {q_proj: 'linear(hidden_size, num_heads * head_dim, bias=true)',"
    " k_proj: 'linear(hidden_size, num_kv_heads * head_dim, bias=true)',"
    " v_proj: 'linear(hidden_size, num_kv_heads * head_dim, bias=true)',"
    " o_proj: 'linear(num_heads * head_dim, hidden_size, bias=true)'}}}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@cache
def model_of(name: str, folder: Path) -> RandomModel:
    overlay = EXTRAS.get(name) or CASES[name]
    base = BASE.replace("num_kv_heads: 2", "num_kv_heads: 4") if name == "packed-split" else BASE
    return RandomModel(overlaid(overlay, folder, base=base))


def emitted(
    model: RandomModel,
    profile: Profile,
    dtype: OnnxDType = "float32",
    codes: QuantizeOptions = NOT_QUANTIZED,
) -> OnnxModel:
    options = ExportOptions(profile.name, dtype, logits="all", max_context=CONTEXT, quantize=codes)
    return emit_onnx(model.graph, options)


def nodes(found: OnnxModel) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(found.model.graph)


@cache
def schemas() -> Mapping[str, binding.OpSchema]:
    return {s.name: s for s in binding.get_all_operator_schema() if s.domain == "com.microsoft"}


@pytest.mark.parametrize("name", [*CASES, *EXTRAS])
@pytest.mark.parametrize("profile", [ORT_CPU, ORT_CUDA], ids=lambda p: p.name)
def test_every_node_fits_its_schema(name: str, profile: Profile, folder: Path) -> None:
    """Of the installed runtime: inputs, outputs and attributes that it knows, and none that it wants is missing."""
    coded = name in CASES and rewrite_rules()[name].row.case.codes != "none"
    codes = OF_EXPERTS if coded else NOT_QUANTIZED
    made = tuple(nodes(emitted(model_of(name, folder), profile, "float16", codes)))
    if coded:
        kind = "QMoE" if profile is ORT_CPU else "MatMulNBits"
        assert any(node.op_type == kind for node in made)
    for node in made:
        if not node.domain:
            continue
        schema = schemas()[node.op_type]
        assert node.op_type in CONTRIB
        given = [i for i, value in enumerate(node.inputs) if value is not None]
        wanted = [
            i for i, formal in enumerate(schema.inputs) if str(formal.option).endswith("Single")
        ]
        assert set(wanted) <= set(given), node
        assert len(node.inputs) <= len(schema.inputs)
        assert len(node.outputs) <= len(schema.outputs)
        assert set(node.attributes) <= set(schema.attributes), node
        needed = {n for n, a in schema.attributes.items() if a.required}
        assert needed <= set(node.attributes), node


@pytest.mark.parametrize("name", [*CASES, *EXTRAS])
def test_the_checker_of_onnx_accepts_it(name: str, folder: Path) -> None:
    found = emitted(model_of(name, folder), ORT_CPU)
    attach_arrays(found, model_of(name, folder).weight)
    onnx.checker.check_model(onnx.load_from_string(serialize(found)), full_check=True)


def tokens_alone(scenario: Scenario, reference: ReferenceWitness) -> FloatArray:
    """Each row by itself: a window of the fused attention counts tokens, that of the mask padding between them too."""
    return np.concatenate([row.logits(reference) for row in scenario.alone()])


def one_row_with_holes(vocab_size: int) -> tuple[Scenario, ...]:
    """Padding in calls of several tokens behind a cache, which one row may have in every runtime."""
    ids = np.random.default_rng(5).integers(0, vocab_size, (1, 14), dtype=np.int64)
    mask, late = np.ones_like(ids), np.ones_like(ids)
    mask[0, [0, 1, 3, 6, 8, 9, 12]] = 0
    late[0, :6] = 0
    splits = (5, 3, 4, 1, 1)
    return (
        Scenario("holes", ids, mask, splits),
        Scenario("nothing in the first call", ids, late, splits),
    )


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize(
    ("profile", "dtype", "runtime"),
    [
        ("ort-cpu", "float16", None),
        ("ort-cpu", "bfloat16", None),
        ("ort-cuda", "float16", None),
        ("ort-cuda", "float16", "1.32"),
        ("ort-webgpu", "float16", None),
        ("ort-webgpu", "float16", "1.32"),
    ],
)
def test_low_precisions_agree(
    name: str,
    profile: Literal["ort-cpu", "ort-cuda", "ort-webgpu"],
    dtype: Literal["float16", "bfloat16"],
    runtime: str | None,
    folder: Path,
) -> None:
    """The float16 graphs for GPUs run on the CPU's kernels of the same operators."""
    model = model_of(name, folder)
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16

    def read(path: str) -> npt.NDArray[np.generic]:
        return model.weight(path).astype(kind)

    fused = rewrite(model.flat, Export(profile, dtype)).fired.get("pack-rows")
    if profile == "ort-webgpu" and "cap" in name:
        assert not fused
        return
    assert fused == 1
    witness = OnnxWitness.of_graph(
        model.graph,
        model.weight,
        ExportOptions(profile, dtype, logits="all", max_context=CONTEXT, runtime=runtime),
    )
    chunks = profile == "ort-cpu" or (profile, runtime) == ("ort-cuda", "1.32")
    for scenario in scenarios(model.vocab_size, 6, 3):
        if not scenario.shift and (chunks or not scenario.in_chunks):
            expected = tokens_alone(scenario, ReferenceWitness(model.flat, read))
            found = difference(scenario.logits(witness), expected)
            assert found.within(TOLERANCES[dtype]), (scenario.name, found)


@pytest.mark.parametrize("runtime", ["1.27", "1.32"])
@pytest.mark.parametrize("name", EXTRAS)
def test_float32_agrees(name: str, runtime: str, folder: Path) -> None:
    model = model_of(name, folder)
    witness = OnnxWitness.of_graph(
        model.graph,
        model.weight,
        ExportOptions("ort-cpu", logits="all", max_context=CONTEXT, runtime=runtime),
    )
    for scenario in (*scenarios(model.vocab_size, 6, 3), *one_row_with_holes(model.vocab_size)):
        if scenario.in_chunks and runtime == "1.27":
            with pytest.raises(LlamagenError, match=r"LG714.*batch_size must be 1"):
                scenario.logits(witness)
        elif not scenario.shift:
            expected = tokens_alone(scenario, model.reference)
            found = difference(scenario.logits(witness), expected)
            bound = largest_of(TOLERANCES["float32"], found.count)
            assert found.within(bound), (scenario.name, found)


def test_tables_are_no_larger_than_the_context(folder: Path) -> None:
    graph = model_of("biases", folder).graph
    found = emitted(model_of("biases", folder), ORT_CPU)
    shapes = {n: v.shape for n, v in found.model.graph.initializers.items() if "rope" in n}
    assert {n: tuple(s.numpy()) for n, s in shapes.items() if s} == {
        "/rope/cos_cache": (CONTEXT, 8),
        "/rope/sin_cache": (CONTEXT, 8),
    }
    assert emit_onnx(graph, ExportOptions("ort-cpu", max_context=9)).max_context == 9
    assert emit_onnx(graph).max_context is None
    whole = emit_onnx(graph, ExportOptions("ort-cpu"))
    assert whole.max_context == 512 and not large_constants(whole)


def test_tables_have_the_values_of_the_models_dtype(folder: Path) -> None:
    """Wide because ONNX Runtime cannot read them otherwise, and rounded, as the checkpoint is served."""
    values = emit_onnx(
        model_of("biases", folder).graph, ExportOptions("ort-cpu", "bfloat16")
    ).model.graph
    for name in ("/rope/cos_cache", "/rope/sin_cache"):
        tensor = values.initializers[name].const_value
        assert tensor is not None and tensor.dtype is ir.DataType.FLOAT
        table = tensor.numpy()
        assert np.array_equal(table, table.astype(ml_dtypes.bfloat16).astype(np.float32))
        assert len(np.unique(table)) > 100


def test_a_context_of_ten_million_has_a_bounded_table(folder: Path) -> None:
    graph = model_of("biases", folder).graph
    long = replace(graph, constants={**graph.constants, "max_positions": 10_485_760})
    assert emit_onnx(long, ExportOptions("ort-cpu")).max_context == DEFAULT_MAX_CONTEXT


@pytest.mark.parametrize(
    ("logits", "context", "code"),
    [("none", None, "LG704"), (None, 0, "LG706"), (None, 513, "LG706")],
)
def test_choices_that_are_not_possible(
    logits: str | None, context: int | None, code: str, folder: Path
) -> None:
    with pytest.raises(LlamagenError) as caught:
        emit_onnx(
            model_of("biases", folder).graph,
            ExportOptions("ort-cpu", logits=logits, max_context=context),
        )
    assert caught.value.diagnostics[0].code == code


def test_the_kernel_refuses_what_lies_beyond_the_table(folder: Path) -> None:
    """Whoever runs the file: nothing is clamped."""
    model = model_of("biases", folder)
    found = emitted(model, ORT_CPU)
    attach_arrays(found, model.weight)
    session = open_session(serialize(found), OpenOptions(threads=1))
    ids = np.ones((1, CONTEXT + 1), np.int64)
    feeds = {"input_ids": ids, "attention_mask": ids}
    for value in session.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="cos_cache"):
        session.run(["logits"], feeds)
