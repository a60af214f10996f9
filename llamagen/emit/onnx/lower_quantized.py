"""Linear parts and tables whose weights are quantised: operators of ONNX Runtime that compute with the codes."""

from __future__ import annotations

import onnx_ir as ir

from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.elements import Quantized
from llamagen.emit.onnx.initializer import BlockEncoding, ChannelEncoding, ExpertEncoding

FLOAT = ir.DataType.FLOAT


def linear(b: Builder, parts: Quantized, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    """``x`` [..., K] times the quantised weight, [..., N], in the model's dtype."""
    rows, columns = parts.shape
    match parts.encoding:
        case BlockEncoding(bits=bits, block=block, accuracy_level=level):
            return b.op(
                "MatMulNBits",
                *(b.to(x, b.model), parts.codes, parts.scales, parts.zero_points, None, bias),
                K=columns,
                N=rows,
                bits=bits,
                block_size=block,
                accuracy_level=level,
            )
        case ChannelEncoding():
            # The operator has no zero points of its own choice: codes are symmetric. It takes float32 only.
            wide = None if bias is None else b.to(bias, FLOAT)
            result = b.op(
                "DynamicQuantizeMatMul", b.to(x, FLOAT), parts.codes, parts.scales, None, wide
            )
            return b.to(result, b.model)
        case ExpertEncoding():
            raise ValueError("the weight of a linear part is no stack of experts")


def gather(b: Builder, parts: Quantized, ids: ir.Value) -> ir.Value:
    """Rows of a quantised table, dequantised, in the model's dtype."""
    assert isinstance(parts.encoding, BlockEncoding)
    assert parts.scales.dtype is not None
    found = b.op(
        "GatherBlockQuantized",
        *(parts.rows, ids, parts.scales, parts.zero_points),
        dtype=parts.scales.dtype,
        bits=parts.encoding.bits,
        block_size=parts.encoding.block,
        gather_axis=0,
        quantize_axis=1,
    )
    return b.to(found, b.model)
