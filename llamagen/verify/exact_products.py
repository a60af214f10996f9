"""A quantised model with its products in float32, so that it can be compared tightly.

Fast kernels round activations to 8 bits as well, which moves logits by some hundredths of their spread. The same
operators with the same codes can multiply in float32; what differs then is a defect of the graph, not a rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.emit.onnx.session import open_session

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

FLOAT_PRODUCTS = 1
"""The accuracy level of MatMulNBits that multiplies in float32."""


def open_exact(model_file: Path) -> tuple[ort.InferenceSession, bool]:
    """A session of ``model_file``, and whether products were made exact for it."""
    import onnx

    model = onnx.load(str(model_file), load_external_data=False)
    if not make_exact(model):
        return open_session(model_file), False
    return open_session(model.SerializeToString(), data_folder=model_file.parent), True


def make_exact(model: onnx.ModelProto) -> bool:
    """Let the quantised products of ``model`` be in float32; whether there were any."""
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in model.graph.node:
        made = _exact(node)
        changed = changed or made is not None
        nodes += [node] if made is None else made
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return changed


def _exact(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """What stands for ``node`` in the exact model; None for itself."""
    import onnx
    from onnx import helper

    if node.op_type == "MatMulNBits":
        level = next((a for a in node.attribute if a.name == "accuracy_level"), None)
        if level is None or level.i == FLOAT_PRODUCTS:
            return None
        level.i = FLOAT_PRODUCTS
        return [node]
    if node.op_type != "DynamicQuantizeMatMul":
        return None
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
