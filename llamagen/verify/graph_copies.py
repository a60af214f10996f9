"""Copies of exported graphs, in memory: products and caches in float32 so that they can be compared tightly, and more
outputs.

Fast kernels round activations to 8 bits as well, which moves logits by some hundredths of their spread. The same
operators with the same codes can multiply in float32; what differs then is a defect of the graph, not a rounding.
So it is with keys and values that are kept in codes.

A router is a TopK whose places other operators read, so that nothing can be fused across a new output: tests compare
the logits of copy and model bit by bit. A copy with an output a layer may be fused differently than its model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from llamagen.emit.onnx.emit import LAYER_MARK, PACKED_LAYER_MARK
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.verify.stored import graph_of
from llamagen.verify.witnesses import PACKED_TAP, ROUTER, TAP, OnnxWitness

FLOAT_PRODUCTS = 1
"""The accuracy level of MatMulNBits that multiplies in float32."""

_TAPS = {LAYER_MARK: TAP, PACKED_LAYER_MARK: PACKED_TAP}

_SHARED = frozenset(
    {
        *("k", "normalize_routing_weights", "activation_type", "activation_alpha"),
        *("activation_beta", "swiglu_fusion"),
    }
)
"""Attributes of QMoE that MoE has as well."""


def open_graph(
    file: Path,
    options: OpenOptions,
    *,
    routers: bool = False,
    layers: bool = False,
    decoded: bool = False,
    coded_cache: bool = False,
) -> tuple[OnnxWitness, bool, bool]:
    """A session of ``file``, whether products were made exact for it, and whether it tells something.

    With ``routers`` or ``layers`` it tells which experts were chosen, or what layers hand on; ``decoded`` are products
    ``in_eight_bits`` when it is opened; a ``coded_cache`` stays as it is. Raises LG711 to LG713.
    """
    model = graph_of(file)
    exact = make_exact(model.graph)
    floats = not coded_cache and make_cache_float(model.graph)
    if decoded:
        _replace(model.graph, lambda node: _decoded_product(node) if _is_slow(node) else None)
    tapped = (routers and _tap_routers(model.graph)) | (layers and _tap_layers(model.graph))
    if exact or floats or tapped or decoded:
        session = open_session(model.SerializeToString(), options, file.parent)
    else:
        session = open_session(file, options)
    return OnnxWitness(session, file=str(file), made_for=options.made_for), exact, tapped


def _tap_routers(graph: onnx.GraphProto) -> bool:
    """Give the places of every router as outputs; whether there is one."""
    packed = any(
        entry.key == PACKED_LAYER_MARK
        for value in graph.value_info
        for entry in value.metadata_props
    )
    routers = [
        node
        for node in graph.node
        if node.op_type == "TopK" and any(a.name == "axis" and a.i == -1 for a in node.attribute)
    ]
    for i, node in enumerate(routers):
        name = f"{PACKED_TAP if packed else TAP}{ROUTER}{i}"
        graph.node.append(helper.make_node("Identity", [node.output[1]], [name]))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    return bool(routers)


def _tap_layers(graph: onnx.GraphProto) -> bool:
    """Add a float32 output for every value marked as a layer; whether there is one."""
    marked = [
        (value.name, _TAPS[entry.key] + path)
        for value in (*graph.value_info, *graph.output)
        for entry in value.metadata_props
        if entry.key in _TAPS
        for path in entry.value.split()
    ]
    for name, output in marked:
        graph.node.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return bool(marked)


DEQUANTIZED = "dequantized"
"""How names of nodes end that multiply codes by scales: a runtime rounds these products to float32."""


def in_eight_bits(file: Path) -> int:
    """Weights of products with float32 in codes of eight bits: ONNX Runtime decodes all of them in every call."""
    model = graph_of(file)
    if {p.key: p.value for p in model.metadata_props}.get("llamagen.dtype") != "float32":
        return 0
    slow = [node for node in model.graph.node if _is_slow(node)]
    return sum(_whole(node, "N") * _whole(node, "K") for node in slow)


def _is_slow(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMulNBits" and _whole(node, "bits") == 8


def _whole(node: onnx.NodeProto, name: str) -> int:
    return next(int(a.i) for a in node.attribute if a.name == name)


def make_exact(graph: onnx.GraphProto) -> bool:
    """Let the quantised products of ``graph`` be in float32; whether there were any."""
    return _replace(graph, _exact)


_SCALES = 12, 13
"""Inputs of GroupQueryAttention that say what codes of its cache stand for."""
_CODES = frozenset({"kv_cache_bit_width", "k_quant_type", "v_quant_type"})


def make_cache_float(graph: onnx.GraphProto) -> bool:
    """Keep keys and values of ``graph`` as they are computed; whether they were codes."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    cached: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "GroupQueryAttention" and any(node.input[_SCALES[0] : _SCALES[1] + 1]):
            for place in _SCALES:
                node.input[place] = ""
            for attribute in [a for a in node.attribute if a.name in _CODES]:
                node.attribute.remove(attribute)
            cached |= dict.fromkeys((*node.input[3:5], *node.output[1:3]), types[node.output[0]])
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name in cached:
            value.type.tensor_type.elem_type = cached[value.name]
    return bool(cached)


def _replace(
    graph: onnx.GraphProto, by: Callable[[onnx.NodeProto], Sequence[onnx.NodeProto] | None]
) -> bool:
    """Nodes for each node, or None for itself; whether there were any."""
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        others = by(node)
        changed = changed or others is not None
        nodes += [node] if others is None else others
    if changed:
        del graph.node[:]
        graph.node.extend(nodes)
    return changed


def _exact(node: onnx.NodeProto) -> Sequence[onnx.NodeProto] | None:
    """What stands for ``node`` in the exact model; None for itself."""
    match node.op_type:
        case "MatMulNBits":
            return _float_products(node)
        case "QMoE":
            return _float_experts(node)
        case "Scan" | "If":
            bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            changed = [make_exact(body) for body in bodies]
            return [node] if any(changed) else None
        case "DynamicQuantizeMatMul":
            return _float_matmul(node)
        case _:
            return None


def _float_products(node: onnx.NodeProto) -> Sequence[onnx.NodeProto] | None:
    level = next((a for a in node.attribute if a.name == "accuracy_level"), None)
    if level is None or level.i == FLOAT_PRODUCTS:
        return None
    level.i = FLOAT_PRODUCTS
    return [node]


def _float_experts(node: onnx.NodeProto) -> Sequence[onnx.NodeProto] | None:
    """QMoE itself for 4 bits; its kernel for 8 rounds activations at every level: MoE in float32 takes its place."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes["expert_weight_bits"] == 4:
        return _float_products(node)
    x, logits, *rest = (*node.input, *("",) * 13)[:13]
    nodes = _Nodes(node.name)
    blocks = (0, 0, -1, attributes["block_size"])
    up, down = (
        nodes.add(
            "Reshape", nodes.decoded(codes, scales, points, blocks), nodes.add("Shape", codes)
        )
        for codes, scales, points in ((rest[0], rest[1], rest[9]), (rest[3], rest[4], rest[10]))
    )
    kept = {name: value for name, value in attributes.items() if name in _SHARED}
    inputs = [nodes.wide(x), nodes.wide(logits), up, "", down]
    result = nodes.add("MoE", *inputs, domain=node.domain, **kept)
    return [*nodes.all, helper.make_node("CastLike", [result, x], list(node.output))]


def _decoded_product(node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
    """MatMulNBits of 8 bits with its weight as a constant that ONNX Runtime computes when it opens the model."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    count, width, block = (attributes[name] for name in ("N", "K", "block_size"))
    x, codes, scales, points, _, bias = (*node.input, "", "", "")[:6]
    nodes = _Nodes(node.name)
    decoded = nodes.decoded(codes, scales, points, (count, -1, block))
    weight = nodes.add("Reshape", decoded, nodes.constant([count, -1], np.int64))
    if width % block:
        ends = (nodes.constant([i], np.int64) for i in (0, width, 1))
        weight = nodes.add("Slice", weight, *ends)
    result = nodes.add("MatMul", x, nodes.add("Transpose", weight, perm=[1, 0]))
    result = nodes.add("Add", result, bias) if bias else result
    return [*nodes.all, helper.make_node("Identity", [result], list(node.output))]


class _Nodes:
    """Those that stand for the node called ``name``, in their order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.all: list[onnx.NodeProto] = []

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self.name}/{len(self.all)}"
        self.all.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, values: object, dtype: type[np.generic]) -> str:
        return self.add("Constant", value=numpy_helper.from_array(np.array(values, dtype)))

    def wide(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.FLOAT)

    def decoded(self, codes: str, scales: str, points: str, blocks: Sequence[int]) -> str:
        """8-bit codes, seen as ``blocks`` that end with the elements of a block, as float32."""
        of_blocks = self.constant([*blocks[:-1], 1], np.int64)
        middle = self.constant(128.0, np.float32)
        if points:
            middle = self.add("Reshape", self.wide(points), of_blocks)
        numbers = self.add("Reshape", self.wide(codes), self.constant(blocks, np.int64))
        factors = self.add("Reshape", self.wide(scales), of_blocks)
        name = f"{self.name}/{len(self.all)}/{DEQUANTIZED}"
        return self.add("Mul", self.add("Sub", numbers, middle), factors, name=name)


def _float_matmul(node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
    x, codes, scales, _, bias = (*node.input, "", "")[:5]
    cast, weight, product = (f"{node.name}/{what}" for what in ("cast", "weight", "product"))
    result = product if bias else node.output[0]
    nodes = [  # not DequantizeLinear, which ONNX Runtime makes a quantised product again
        helper.make_node("Cast", [codes], [cast], to=TensorProto.FLOAT),
        helper.make_node("Mul", [cast, scales], [weight], name=f"{node.name}/{DEQUANTIZED}"),
        helper.make_node("MatMul", [x, weight], [result]),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]]))
    return nodes
