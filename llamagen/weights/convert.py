"""Float conversions on stored bits, round to nearest even, with the largest magnitude for free.

Magnitudes of IEEE-like floats order like their bits without the sign, so one integer maximum
finds NaN and infinity and predicts overflow in the target type.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llamagen.weights.dtypes import TargetDType, WeightDType
from llamagen.weights.reading import Bits

_STEP = 1 << 18
"""Elements converted at a time: the temporaries stay in the cache."""


@dataclass(frozen=True, slots=True)
class _Format:
    magnitude: int  # mask that removes the sign
    first_bad: int  # smallest magnitude that is infinity or NaN


_FORMATS: MappingProxyType[WeightDType, _Format] = MappingProxyType(
    {
        "F32": _Format(0x7FFFFFFF, 0x7F800000),
        "BF16": _Format(0x7FFF, 0x7F80),
        "F16": _Format(0x7FFF, 0x7C00),
        # e4m3fn: no infinities, all ones is NaN (OCP OFP8)
        "F8_E4M3": _Format(0x7F, 0x7F),
    }
)

NUMPY_TYPES: MappingProxyType[WeightDType, npt.DTypeLike] = MappingProxyType(
    {
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    }
)


def largest_magnitude(bits: Bits, dtype: WeightDType) -> int:
    """The largest sign-less bit pattern; `bits` is one-dimensional."""
    if not bits.size:
        return 0
    # Two maxima and no temporary: as unsigned integers the negative numbers are the largest, as signed
    # integers the positive ones.
    mask = _FORMATS[dtype].magnitude
    signed = bits.view(f"i{bits.itemsize}")
    largest = 0
    for start in range(0, bits.size, _STEP):
        negative = int(bits[start : start + _STEP].max())
        positive = int(signed[start : start + _STEP].max())
        largest = max(largest, positive, negative & mask if negative > mask else 0)
    return largest


def is_bad(magnitude: int, dtype: WeightDType) -> bool:
    """Whether a magnitude is infinity or NaN."""
    return magnitude >= _FORMATS[dtype].first_bad


def first_at_least(bits: Bits, dtype: WeightDType, magnitude: int) -> int:
    """Position of the first element of at least this magnitude; one exists."""
    mask = bits.dtype.type(_FORMATS[dtype].magnitude)
    return int(np.argmax(np.bitwise_and(bits, mask) >= magnitude))


def first_bad_magnitude(dtype: WeightDType) -> int:
    return _FORMATS[dtype].first_bad


def value_of(pattern: int, dtype: WeightDType) -> float:
    """The number that a bit pattern stands for."""
    numpy_type = np.dtype(NUMPY_TYPES[dtype])
    bits = np.array([pattern], dtype=f"<u{numpy_type.itemsize}")
    return float(bits.view(numpy_type)[0])


def overflow_magnitude(source: WeightDType, target: TargetDType) -> int | None:
    """Smallest magnitude of `source` that rounds to infinity in `target`, None if there is none.

    Half-way between the largest finite value and the next power of two: the tie goes to even, up.
    """
    match source, target:
        case "F32", "F16":
            return 0x477FF000  # 65520
        case "BF16", "F16":
            return 0x4780  # 65536; its predecessor 65280 is finite
        case "F32", "BF16":
            return 0x7F7F8000
        case _:
            return None


def convert(bits: Bits, source: WeightDType, target: TargetDType) -> npt.NDArray[np.generic]:
    """One-dimensional `bits` of type `source` as an array of type `target`, rounded once.

    Values beyond the target's range become infinite: compare with `overflow_magnitude` before.
    """
    typed = bits.view(NUMPY_TYPES[source])
    if source == target:
        return typed
    result: npt.NDArray[np.generic] = np.empty(bits.size, NUMPY_TYPES[target])
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, bits.size, _STEP):
            # ml_dtypes and numpy go through float32, in which every source is exact: one rounding
            part = typed[start : start + _STEP]
            np.copyto(result[start : start + _STEP], part, casting="unsafe")
    return result
