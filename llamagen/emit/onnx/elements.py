"""Element types in ONNX and numpy, and what stands for a weight in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.emit.onnx.initializer import (
    BlockEncoding,
    ChannelEncoding,
    Encoding,
    ExpertEncoding,
    StorageDType,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder

ELEMENTS: Mapping[StorageDType, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
}

NUMPY_TYPES: Mapping[ir.DataType, npt.DTypeLike] = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.UINT8: np.uint8,
    ir.DataType.INT8: np.int8,
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised weight, [N, K] or a stack of experts: its parts, and its codes as rows to gather.

    Operators of ONNX Runtime compute with the codes.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    rows: ir.Value

    @property
    def blocks(self) -> BlockEncoding:
        """Of experts, or of a weight in blocks."""
        match self.encoding:
            case BlockEncoding():
                return self.encoding
            case ExpertEncoding(blocks=blocks):
                return blocks
            case ChannelEncoding():
                raise ValueError("a scale a row makes no blocks")

    def product(self, b: Builder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """``x`` [..., K] times the weight, [..., N], in the model's dtype."""
        rows, columns = self.shape
        match self.encoding:
            case BlockEncoding(bits=bits, block=block, accuracy_level=level):
                return b.op(
                    "MatMulNBits",
                    *(b.to(x, b.model), self.codes, self.scales, self.zero_points, None, bias),
                    K=columns,
                    N=rows,
                    bits=bits,
                    block_size=block,
                    accuracy_level=level,
                )
            case ChannelEncoding():
                # The operator has no zero points of its own choice: codes are symmetric. It takes float32 only.
                wide = None if bias is None else b.to(bias, b.FLOAT)
                result = b.op(
                    "DynamicQuantizeMatMul",
                    *(b.to(x, b.FLOAT), self.codes, self.scales, None, wide),
                )
                return b.to(result, b.model)
            case ExpertEncoding():
                raise ValueError("the weight of a linear part is no stack of experts")

    def gather(self, b: Builder, ids: ir.Value) -> ir.Value:
        """Rows of a table, dequantised, in the model's dtype."""
        found = b.op(
            "GatherBlockQuantized",
            *(self.rows, ids, self.scales, self.zero_points),
            dtype=self.scales.dtype,
            bits=self.blocks.bits,
            block_size=self.blocks.block,
            gather_axis=0,
            quantize_axis=1,
        )
        return b.to(found, b.model)


def numpy_type(dtype: ir.DataType) -> npt.DTypeLike:
    """The numpy type of a model's element type."""
    return NUMPY_TYPES[dtype]
