"""Element types in ONNX and numpy, and what stands for a weight in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.emit.onnx.initializer import Encoding, StorageDType

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
    """A quantised weight, [N, K] or a stack of experts: its parts, and its codes as rows to gather."""

    encoding: Encoding
    shape: tuple[int, ...]
    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    rows: ir.Value


def numpy_type(dtype: ir.DataType) -> npt.DTypeLike:
    """The numpy type of a model's element type."""
    return NUMPY_TYPES[dtype]
