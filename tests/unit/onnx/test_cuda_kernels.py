"""Graphs for the CUDA provider: it has a kernel for the types of every node, or the CPU takes the node over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import yaml

from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.onnx.profile import ONNX_DTYPES, OnnxDType
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from tests.parity.models import FOREIGN, SPECS, RandomModel

from .op_cases import CASES, Case
from .single import one_op

KERNELS = Path(__file__).parents[2] / "data/cuda_kernels.yaml"
FLOATS = {"float", "float16", "bfloat16"}
MIXED = {"Cast", "If", "Scan", "Where"}
"""They take floats of several types."""

CODES = {
    "exact": NOT_QUANTIZED,
    "int4": QuantizeOptions("int4", 16, asymmetric=True),
    "int8": QuantizeOptions("int8", 16, experts="int4"),
}
SMALL = "foreign/mixtral", "foreign/gpt_neox", "reduced/llama-3.2-1b", "reduced/llama-2-70b"


@cache
def table() -> Mapping[str, frozenset[str]]:
    stored = yaml.safe_load(KERNELS.read_text())
    cuda, cpu = stored["cuda"], stored["cpu"]
    return {op: frozenset([*cuda.get(op, ()), *cpu.get(op, ())]) for op in (*cuda, *cpu)}


def nodes(
    graph: Graph, dtype: OnnxDType, codes: QuantizeOptions = NOT_QUANTIZED
) -> Iterator[ir.Node]:
    options = ExportOptions("ort-cuda", dtype, max_context=64, quantize=codes)
    found = emit_onnx(graph, options)
    yield from ir.traversal.RecursiveGraphIterator(found.model.graph)


def is_constant(value: ir.Value) -> bool:
    """Axes and widths of padding, which kernels read on the host."""
    return value.const_value is not None and value.dtype is ir.DataType.INT64


def require_kernel(node: ir.Node) -> None:
    names = {"FLOAT": "float"}
    given = (
        value.dtype.name
        for value in node.inputs
        if value is not None and value.dtype is not None and not is_constant(value)
    )
    used = {names.get(name, name.lower()) for name in given}
    assert node.op_type in table(), f"no kernel of {node.op_type} for CUDA"
    assert used <= table()[node.op_type], (node.op_type, used)
    assert node.op_type in MIXED or len(used & FLOATS) <= 1, (node.op_type, used)


@pytest.mark.parametrize("dtype", ONNX_DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_op_has_kernels(case: Case, dtype: OnnxDType) -> None:
    for node in nodes(one_op(case.op, case.operands, case.attrs), dtype):
        require_kernel(node)


@pytest.mark.parametrize("dtype", ONNX_DTYPES)
@pytest.mark.parametrize("name", [*(f"foreign/{n}" for n in FOREIGN), *SMALL[2:]])
def test_every_node_of_a_model_has_a_kernel(name: str, dtype: OnnxDType) -> None:
    graph = RandomModel.named(name).graph
    for node in nodes(graph, dtype):
        require_kernel(node)


@pytest.mark.parametrize("dtype", ONNX_DTYPES)
@pytest.mark.parametrize("name", ["llama-4-scout", "llama-3.2-11b-vision"])
def test_every_node_of_graphs_for_images_has_a_kernel(name: str, dtype: OnnxDType) -> None:
    for graph in build_all(Registry().load(SPECS / "reduced" / f"{name}.yaml")).values():
        for node in nodes(graph, dtype):
            require_kernel(node)


@pytest.mark.parametrize("dtype", ONNX_DTYPES)
@pytest.mark.parametrize("codes", ["int4", "int8"])
@pytest.mark.parametrize("name", SMALL)
def test_every_node_of_a_quantised_model_has_a_kernel(
    name: str, codes: str, dtype: OnnxDType
) -> None:
    made = tuple(nodes(RandomModel.named(name).graph, dtype, CODES[codes]))
    assert any(node.op_type == "MatMulNBits" for node in made)
    for node in made:
        require_kernel(node)


def test_float32_has_no_fused_attention() -> None:
    graph = RandomModel.named("reduced/llama-2-70b").graph
    for dtype in ONNX_DTYPES:
        kinds = {node.op_type for node in nodes(graph, dtype)}
        assert ("GroupQueryAttention" in kinds) == (dtype != "float32")
