"""A quantised model with its products in float32, so that it can be compared tightly.

Fast kernels round activations to 8 bits as well, which moves logits by some hundredths of their spread. The same
operators with the same codes can multiply in float32; what differs then is a defect of the graph, not a rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.verify.stored import graph_of

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

FLOAT_PRODUCTS = 1
"""The accuracy level of MatMulNBits that multiplies in float32."""


def open_exact(model_file: Path, options: OpenOptions) -> tuple[ort.InferenceSession, bool]:
    """A session of ``model_file``, and whether products were made exact for it."""
    model = graph_of(model_file)
    if not make_exact(model.graph):
        return open_session(model_file, options), False
    return open_session(model.SerializeToString(), options, model_file.parent), True


def make_exact(graph: onnx.GraphProto) -> bool:
    """Let the quantised products of ``graph`` be in float32; whether there were any."""
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        made = _exact(node)
        changed = changed or made is not None
        nodes += [node] if made is None else made
    if changed:
        del graph.node[:]
        graph.node.extend(nodes)
    return changed


def _exact(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """What stands for ``node`` in the exact model; None for itself."""
    import onnx

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


def _float_products(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    level = next((a for a in node.attribute if a.name == "accuracy_level"), None)
    if level is None or level.i == FLOAT_PRODUCTS:
        return None
    level.i = FLOAT_PRODUCTS
    return [node]


def _float_experts(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """QMoE itself for 4 bits; its kernel for 8 rounds activations at every level, so that MoE takes its place."""
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes["expert_weight_bits"] == 4:
        return _float_products(node)
    made: list[onnx.NodeProto] = []
    x, logits, *rest = (*node.input, *("",) * 13)[:13]
    weights = [
        _decoded(f"{node.name}/{name}", codes, scales, points, attributes["block_size"], made)
        for name, codes, scales, points in (
            ("up", rest[0], rest[1], rest[9]),
            ("down", rest[3], rest[4], rest[10]),
        )
    ]
    kept = {name: value for name, value in attributes.items() if name in _SHARED}
    inputs = [x, logits, weights[0], "", weights[1]]
    moe = helper.make_node("MoE", inputs, list(node.output), domain=node.domain, **kept)
    return [*made, moe]


_SHARED = frozenset(
    {
        *("k", "normalize_routing_weights", "activation_type", "activation_alpha"),
        *("activation_beta", "swiglu_fusion"),
    }
)
"""Attributes that MoE has as well."""


def _decoded(
    name: str, codes: str, scales: str, points: str, block: int, made: list[onnx.NodeProto]
) -> str:
    """8-bit codes [E, N, K] as float32, by nodes that are added to ``made``; the name of the result."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    def add(op: str, *inputs: str) -> str:
        made.append(helper.make_node(op, list(inputs), [f"{name}/{len(made)}"]))
        found: str = made[-1].output[0]
        return found

    def constant(values: object, dtype: type[np.generic]) -> str:
        made.append(helper.make_node("Constant", [], [f"{name}/{len(made)}"]))
        made[-1].attribute.append(
            helper.make_attribute("value", numpy_helper.from_array(np.array(values, dtype)))
        )
        found: str = made[-1].output[0]
        return found

    def float32(value: str) -> str:
        found = add("Cast", value)
        made[-1].attribute.append(helper.make_attribute("to", onnx.TensorProto.FLOAT))
        return found

    numbers = float32(codes)
    blocks = add("Reshape", numbers, constant([0, 0, -1, block], np.int64))
    last = constant([3], np.int64)
    middle = constant(128.0, np.float32)
    if points:
        middle = add("Unsqueeze", float32(points), last)
    scaled = add("Mul", add("Sub", blocks, middle), add("Unsqueeze", scales, last))
    return add("Reshape", scaled, add("Shape", codes))


def _float_matmul(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    import onnx
    from onnx import helper

    x, codes, scales, _, bias = (*node.input, "", "")[:5]
    cast, weight, product = (f"{node.name}/{what}" for what in ("cast", "weight", "product"))
    result = product if bias else node.output[0]
    made = [  # not DequantizeLinear, which ONNX Runtime makes a quantised product again
        helper.make_node("Cast", [codes], [cast], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [cast, scales], [weight]),
        helper.make_node("MatMul", [x, weight], [result]),
    ]
    if bias:
        made.append(helper.make_node("Add", [product, bias], [node.output[0]]))
    return made
