"""Lowerings of experts that one operator evaluates: MoE, and QMoE where their weights are codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.elements import Quantized
from llamagen.emit.onnx.initializer import BlockEncoding, ExpertEncoding
from llamagen.emit.onnx.site import Given, Site, Values
from llamagen.ir.optypes import a_int, a_str

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT

_LEAST = 1e-37
"""A weight that rounds to 0 stays a number with a logarithm."""

_NOT_CHOSEN = -1e30
"""The logarithm of no weight at all; finite, so that no difference of two of them is undefined."""


def mixture(b: Builder, site: Site, x: Given) -> Values:
    routed = _routed(b, site, x)
    up, down = _stacked(b, site)
    inputs = (routed.tokens, routed.logits, up, None, down)
    return (_whole(b, site, routed, _swiglu(b, "MoE", inputs, site)),)


def quantized_mixture(b: Builder, site: Site, x: Given) -> Values:
    """In float32 whatever the model's dtype is: the CPU kernel has no faster way, and logarithms want the digits."""
    routed = _routed(b, site, x)
    up, down = (_parts(b, site, name) for name in ("gate_up_proj", "down_proj"))
    assert isinstance(up.encoding, ExpertEncoding)
    inputs = (
        *(routed.tokens, routed.logits, up.codes, b.to(up.scales, FLOAT), None),
        *(down.codes, b.to(down.scales, FLOAT), None, None, None, None),
        *(up.zero_points, down.zero_points),
    )
    return (_whole(b, site, routed, _swiglu(b, "QMoE", inputs, site, up.encoding.blocks)),)


def _swiglu(
    b: Builder, kind: str, inputs: Given, site: Site, blocks: BlockEncoding | None = None
) -> ir.Value:
    """Experts of silu(gate) * up, rows of gate and up in turns."""
    return b.op(
        kind,
        *inputs,
        k=a_int(site.attrs, "k"),
        normalize_routing_weights=1,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        expert_weight_bits=blocks.bits if blocks else None,
        block_size=blocks.block if blocks else None,
        accuracy_level=blocks.accuracy_level if blocks else None,
        weights_prepacked=0 if blocks else None,
    )


@dataclass(frozen=True, slots=True)
class _Routed:
    """What the operators get, float32: tokens [n, D] and logits [n, E]; ``factor`` [n, 1] multiplies their result."""

    tokens: ir.Value
    logits: ir.Value
    factor: ir.Value | None


def _routed(b: Builder, site: Site, x: Given) -> _Routed:
    """The operators' weights are softmax(logits) over its k largest, so log(w) gives w / sum(w).

    One expert has weight 1 there; its own weight goes to the side that the model scales.
    """
    tokens, chosen, weights = (b.flat(_there(t), site.dims(i)) for i, t in enumerate(x))
    experts, k = a_int(site.attrs, "num_experts"), a_int(site.attrs, "k")
    tokens, wide = b.to(tokens, FLOAT), b.to(weights, FLOAT)
    if k == 1:
        logs = b.op("Mul", wide, b.number(0.0, FLOAT))
    else:
        logs = b.op("Log", b.op("Max", wide, b.number(_LEAST, FLOAT)))
    count = b.op("Shape", chosen, dtype=INT64, start=0, end=1)
    shape = b.op("Concat", count, b.ints([experts]), axis=0)
    nothing = ir.Tensor(np.array([_NOT_CHOSEN], dtype=np.float32))
    empty = b.op("ConstantOfShape", shape, dtype=FLOAT, value=nothing)
    logits = b.op("ScatterElements", empty, chosen, logs, axis=1)
    if k == 1 and a_str(site.attrs, "scale") == "input":
        return _Routed(b.op("Mul", tokens, wide), logits, None)
    return _Routed(tokens, logits, b.op("ReduceSum", wide, b.ints([1]), keepdims=1))


def _whole(b: Builder, site: Site, routed: _Routed, result: ir.Value) -> ir.Value:
    """The result of the model's experts, in its dtype and shape."""
    if routed.factor is not None:
        result = b.op("Mul", result, routed.factor)
    result = b.to(result, b.element(site.results[0].dtype))
    dims = site.dims()
    return result if len(dims) == 2 else b.op("Reshape", result, b.shape(dims))


def _stacked(b: Builder, site: Site) -> Values:
    """[E, 2 F, D] with a gate row and an up row in turns, and [E, D, F]; folded when a session opens."""
    experts, features, width = (
        a_int(site.attrs, n) for n in ("num_experts", "features", "intermediate")
    )
    up, down = site.parameters["gate_up_proj"], site.parameters["down_proj"]
    if a_str(site.attrs, "layout") == "out_in":
        apart = b.op("Reshape", up, b.ints([experts, 2, width, features]))
        turns = b.op("Transpose", apart, perm=(0, 2, 1, 3))
    else:
        apart = b.op("Reshape", up, b.ints([experts, features, 2, width]))
        turns = b.op("Transpose", apart, perm=(0, 3, 2, 1))
        down = b.op("Transpose", down, perm=(0, 2, 1))
    return b.op("Reshape", turns, b.ints([experts, 2 * width, features])), down


def _parts(b: Builder, site: Site, name: str) -> Quantized:
    found = b.parts(site.parameters[name])
    assert found is not None
    return found


def _there(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
