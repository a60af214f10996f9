"""Names that ONNX gives to dtypes, dims and domains, and what stands for a weight in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.emit.onnx.initializer import Encoding, StorageDType
from llamagen.ir.dims import Dim

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

CONTRIB = frozenset(
    {
        "DynamicQuantizeMatMul",
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "MoE",
        "QuickGelu",
        "SkipSimplifiedLayerNormalization",
    }
)
"""Operators of ONNX Runtime's own domain."""

CONTRIB_DOMAIN = "com.microsoft"

DIM_NAMES: Mapping[str, str] = {
    "B": "batch",
    "S": "sequence",
    "P": "past_sequence",
    "P + S": "total_sequence",
    "I": "images",
}


def onnx_shape(dims: Sequence[Dim]) -> ir.Shape:
    """Fixed sizes as ints, ``B``, ``S``, ``P`` and ``P + S`` under their ONNX names, other sizes by their formula."""
    return ir.Shape([d.value if d.is_static else DIM_NAMES.get(str(d), str(d)) for d in dims])


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised weight [N, K]: its parts, and its codes as rows to gather."""

    encoding: Encoding
    shape: tuple[int, ...]
    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    rows: ir.Value


class Names:
    """Makes names unique in the whole model, in the order they are asked for."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def unique(self, name: str) -> str:
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        return name if count == 0 else self.unique(f"{name}_{count}")


def numpy_type(dtype: ir.DataType) -> npt.DTypeLike:
    """The numpy type of a model's element type."""
    return NUMPY_TYPES[dtype]
