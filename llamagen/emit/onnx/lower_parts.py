"""Lowerings of the ops that own parameters, whose initializers keep the checkpoint's names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from llamagen.emit.onnx import lower_quantized
from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.lower_basic import with_number
from llamagen.emit.onnx.site import Lowering, Site, Values
from llamagen.ir.optypes import a_float, a_int, a_str

FLOAT = ir.DataType.FLOAT


def _embedding(b: Builder, site: Site, x: Values) -> Values:
    """Rows are cast after they were picked: a table in another dtype is never cast as a whole."""
    parts = b.parts(site.parameters["weight"])
    if parts is not None:
        return (lower_quantized.gather(b, parts, x[0]),)
    return (b.to(b.op("Gather", b.stored(site.parameters["weight"]), x[0], axis=0), b.model),)


def _linear(b: Builder, site: Site, x: Values) -> Values:
    """Gemm reads the weight as stored, [out, in]: no transposed copy, and a tied embedding is one initializer."""
    parts = b.parts(site.parameters["weight"])
    if parts is not None:
        return (lower_quantized.linear(b, parts, x[0], site.parameters.get("bias")),)
    dims = site.dims()
    rows = b.flat(b.to(x[0], b.model), dims)
    bias = (site.parameters["bias"],) if "bias" in site.parameters else ()
    product = b.op("Gemm", rows, site.parameters["weight"], *bias, transB=1)
    if len(dims) == 2:
        return (product,)
    want = site.results[0].shape
    return (b.op("Reshape", product, b.shape(want)),)


def _conv2d(b: Builder, site: Site, x: Values) -> Values:
    bias = (site.parameters["bias"],) if "bias" in site.parameters else ()
    stride = a_int(site.attrs, "stride")
    weight = site.parameters["weight"]
    return (b.op("Conv", b.to(x[0], b.model), weight, *bias, strides=(stride, stride)),)


def _rms_norm(b: Builder, site: Site, x: Values) -> Values:
    """``before_weight`` is what RMSNormalization with stash_type 1 does: float32 inside, cast, then the gain."""
    dtype = b.element(site.results[0].dtype)
    eps, offset = a_float(site.attrs, "eps"), a_float(site.attrs, "offset")
    rounds_first = a_str(site.attrs, "cast") == "before_weight" and dtype is not FLOAT
    inside = dtype if rounds_first else FLOAT
    gain = b.to(site.parameters["weight"], inside)
    if offset:
        gain = with_number(b, "Add", gain, offset)
    if rounds_first and b.dtype in b.profile.widened:
        wide = b.op("RMSNormalization", b.to(x[0], FLOAT), b.ones(1), axis=-1, epsilon=eps)
        return (b.op("Mul", gain, b.to(wide, dtype)),)
    result = b.op("RMSNormalization", b.to(x[0], inside), gain, axis=-1, epsilon=eps, stash_type=1)
    return (b.to(result, dtype),)


def _layer_norm(b: Builder, site: Site, x: Values) -> Values:
    given = site.parameters
    weight = (
        b.to(given["weight"], FLOAT) if "weight" in given else b.ones(a_int(site.attrs, "features"))
    )
    bias = (b.to(given["bias"], FLOAT),) if "bias" in given else ()
    result = b.op(
        "LayerNormalization",
        b.to(x[0], FLOAT),
        weight,
        *bias,
        axis=-1,
        epsilon=a_float(site.attrs, "eps"),
    )
    return (b.to(result, b.element(site.results[0].dtype)),)


def _parameter(b: Builder, site: Site, x: Values) -> Values:
    return (site.parameters[""],)


PART_LOWERINGS: Mapping[str, Lowering] = {
    "embedding": _embedding,
    "linear": _linear,
    "conv2d": _conv2d,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "parameter": _parameter,
}
