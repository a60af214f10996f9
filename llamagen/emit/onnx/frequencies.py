"""Rotation frequencies of rope, in the float32 arithmetic that checkpoints were trained and are served with.

The steps are those of the formulas (facts 4.2, 4.3; arXiv 2309.00071 for yarn), each rounded to float32: at a position
of 100,000 a frequency that differs in its last bit turns the pair by 0.006 radians more.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from llamagen.ir.graph import Attrs
from llamagen.ir.optypes import a_float, a_int, a_str

Floats = npt.NDArray[np.float32]


def inverse_frequencies(attrs: Attrs) -> Floats:
    """``dim / 2`` frequencies in radians a token, from the attributes of ``rope_table``."""
    dim, theta = a_int(attrs, "dim"), a_float(attrs, "theta")
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # The power is taken in float64 and rounded once: float32 powers differ between libraries.
    wavelengths = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1.0) / wavelengths
    match a_str(attrs, "scaling"):
        case "default":
            return plain
        case "linear":
            return plain / np.float32(a_float(attrs, "factor"))
        case "llama3":
            return _llama3(plain, attrs)
        case "yarn":
            return _yarn(plain, wavelengths, attrs)
        case other:
            raise ValueError(f"rope_table has no scaling {other!r}")


def _llama3(plain: Floats, attrs: Attrs) -> Floats:
    """Long wavelengths divided by ``factor``, short ones kept, a linear blend in the frequency between."""
    factor = np.float32(a_float(attrs, "factor"))
    low, high = a_float(attrs, "low_freq_factor"), a_float(attrs, "high_freq_factor")
    original = a_int(attrs, "original_max_positions")
    # Quotients of a number and a tensor are reciprocals times the number, as PyTorch computes them.
    wavelength = (np.float32(1) / plain) * np.float32(2 * math.pi)
    scaled = np.where(wavelength > np.float32(original / low), plain / factor, plain)
    if low == high:  # Llama 4 Scout: a hard cut, nothing is blended
        return scaled
    rotations = (np.float32(1) / wavelength) * np.float32(original)
    blend = (rotations - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - blend) * plain / factor + blend * plain
    between = (wavelength >= np.float32(original / high)) & (
        wavelength <= np.float32(original / low)
    )
    return np.where(between, blended, scaled)


def _yarn(plain: Floats, wavelengths: Floats, attrs: Attrs) -> Floats:
    """Frequencies above ``beta_fast`` rotations in the original context kept, below ``beta_slow`` divided."""
    dim, theta = a_int(attrs, "dim"), a_float(attrs, "theta")
    original = a_int(attrs, "original_max_positions")

    def pair_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(a_float(attrs, "beta_fast"))), 0)
    last: float = min(math.ceil(pair_with(a_float(attrs, "beta_slow"))), dim - 1)
    if first == last:
        last += 0.001
    steps = (np.arange(dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    kept = np.float32(1) - np.clip(steps, 0, 1).astype(np.float32)
    divided = np.float32(1.0) / (np.float32(a_float(attrs, "factor")) * wavelengths)
    result: Floats = divided * (np.float32(1) - kept) + plain * kept
    return result
