"""Element types of checkpoint files, by their safetensors names.

Kept free of numpy: listing a checkpoint's headers must stay cheap.
"""

from __future__ import annotations

from math import prod
from types import MappingProxyType
from typing import Literal, get_args

WeightDType = Literal["F32", "F16", "BF16", "F8_E4M3"]
"""Types that a weight can be read from."""

TargetDType = Literal["F32", "F16", "BF16"]
"""Types that a weight can be written in."""

ITEM_SIZES = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "F8_E8M0": 1,
        "U16": 2,
        "I16": 2,
        "F16": 2,
        "BF16": 2,
        "U32": 4,
        "I32": 4,
        "F32": 4,
        "U64": 8,
        "I64": 8,
        "F64": 8,
        "C64": 8,
    }
)
"""Bytes per element of every dtype that a header may name.

Source: safetensors 0.8 `Dtype`, without its sub-byte types (F4, F6_*), which no LLaMA file uses.
"""

WEIGHT_DTYPES: tuple[WeightDType, ...] = get_args(WeightDType)


def element_count(shape: tuple[int, ...]) -> int:
    return prod(shape)


def as_weight_dtype(name: str) -> WeightDType | None:
    """`name` if it is a float type that we convert, else None."""
    for dtype in WEIGHT_DTYPES:
        if dtype == name:
            return dtype
    return None
