"""Models whose experts have codes: weights that are exactly what symmetric codes stand for, computed apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagen.emit.onnx.initializers import Encoding
from llamagen.emit.options import QuantizeOptions
from llamagen.ops.op import a_str
from tests.parity.models import RandomModel

INT4 = Encoding("blocks", 4, 16, symmetric=True, accuracy_level=1)
"""Products in float32, so that they can be compared tightly."""


OF_EXPERTS = QuantizeOptions("none", 16, accuracy_level=1, experts="int4")
"""The same of experts, and of nothing else."""


def on_codes(model: RandomModel, encoding: Encoding = INT4) -> RandomModel:
    """``model`` with experts that quantising does not change."""
    made = dict(model._made)
    for node in model.flat.nodes:
        if node.op == "experts":
            transposed = a_str(node.attrs, "layout") == "in_out"
            for path in node.parameters.values():
                weight = model.weight(path)
                rows = weight.swapaxes(1, 2) if transposed else weight
                near = nearest(rows, encoding)
                made[path] = near.swapaxes(1, 2) if transposed else near
    return RandomModel(model.resolved, model.seed, made)


def nearest(rows: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    """Each block [..., K] in steps of its largest number / -2^(bits - 1)."""
    half = 2 ** (encoding.bits - 1)
    found = np.empty_like(rows)
    for start in range(0, rows.shape[-1], encoding.block):
        block = rows[..., start : start + encoding.block]
        largest = np.take_along_axis(block, np.abs(block).argmax(-1, keepdims=True), -1)
        step = largest / np.float32(-half)
        codes = np.clip(np.rint(block / step), -half, half - 1)
        found[..., start : start + encoding.block] = codes * step
    return found
