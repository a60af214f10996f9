"""Quantised rows against the definition, element by element, and at the ends of float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.weights import quantize
from llamagen.weights.quantize import Bits, quantize_channels, quantize_rows

Array = np.ndarray


def decoded(found: quantize.Blocks, bits: int, width: int) -> Array:
    """Every weight by the formula of MatMulNBits, one at a time, in float64."""
    rows, blocks, size = found.packed.shape
    block = size * 8 // bits
    result = np.zeros((rows, blocks * block))
    for n in range(rows):
        for b in range(blocks):
            zero = 2 ** (bits - 1)
            if found.zero_points is not None:
                zero = int(found.zero_points[n, b if bits == 8 else b // 2])
                if bits == 4:
                    zero = zero & 15 if b % 2 == 0 else zero >> 4
            for i in range(block):
                byte = int(found.packed[n, b, i if bits == 8 else i // 2])
                code = byte if bits == 8 else byte & 15 if i % 2 == 0 else byte >> 4
                result[n, b * block + i] = (code - zero) * float(found.scales[n, b])
    return result[:, :width]


def steps(scales: Array, block: int, width: int) -> Array:
    """The scale of every weight."""
    return np.repeat(np.abs(scales.astype(np.float64)), block, axis=1)[:, :width]


@settings(max_examples=60)
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64]),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 150),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    st.sampled_from(["normal", "positive", "negative", "outlier", "sparse"]),
)
def test_a_code_is_the_nearest(
    bits: Bits, block: int, symmetric: bool, n: int, width: int, seed: int, size: float, kind: str
) -> None:
    x = np.random.default_rng(seed).standard_normal((n, width)) * size
    match kind:
        case "positive" | "negative":
            x = np.abs(x) * (1 if kind == "positive" else -1)
        case "outlier":
            x[0, width // 2] *= 100
        case "sparse":
            x[:, ::3] = 0
            x[0] = 0
    rows = x.astype(np.float32)
    found = quantize_rows(rows, bits, block, symmetric, np.float32)
    assert (found.zero_points is None) is symmetric
    value, step = decoded(found, bits, width), steps(found.scales, block, width)
    error = np.abs(value - rows.astype(np.float64))
    # Half a step, and the rounding of a quotient of at most 2^bits. The end that is not in a symmetric
    # range is a step away.
    half = step * (0.5 + 2.0 ** (bits - 22))
    opposite = symmetric & (np.abs(rows) > (2 ** (bits - 1) - 0.5) * step * (1 - 1e-6))
    assert (error <= np.where(opposite, step * (1 + 1e-5), half)).all()
    assert (value[rows == 0] == 0).all(), "zero is exact"


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_of_a_symmetric_block_is_exact(bits: Bits) -> None:
    """Either sign gets the longer half of the range; with it no block is clipped at its own maximum."""
    rows = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    found = quantize_rows(rows, bits, 32, True, np.float32)
    value = decoded(found, bits, 64)
    for n in range(4):
        for b in range(2):
            part = slice(32 * b, 32 * b + 32)
            at = int(np.abs(rows[n, part]).argmax())
            assert value[n, part][at] == pytest.approx(float(rows[n, part][at]), rel=1e-6)
    assert (found.scales < 0).any() and (found.scales > 0).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_ends_of_float32(bits: Bits, symmetric: bool) -> None:
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    rows = np.zeros((4, 32), np.float32)
    rows[1] = smallest
    rows[2] = [largest, -largest] * 16
    rows[3, 0] = -largest
    found = quantize_rows(rows, bits, 32, symmetric, np.float32)
    value = decoded(found, bits, 32)
    assert np.isfinite(value).all()
    assert (value[0] == 0).all() and (np.abs(value[1]) <= 2 * smallest).all()
    assert (np.sign(value[2]) == np.sign(rows[2])).all()
    assert np.abs(value[2]).min() > 0.85 * largest


def test_codes_fit_the_scale_as_it_is_stored() -> None:
    """A scale in float16 is off by up to 5e-4; against that scale every code is still the nearest."""
    rows = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    found = quantize_rows(rows, 8, 32, False, np.float16)
    assert found.scales.dtype == np.float16
    value, step = decoded(found, 8, 256), steps(found.scales, 32, 256)
    inside = np.abs(value) < 120 * step
    assert (np.abs(value - rows)[inside] <= 0.5001 * step[inside]).all()
    tiny = quantize_rows(rows * np.float32(1e-9), 4, 32, True, np.float16)
    assert (tiny.scales == 0).all() and (decoded(tiny, 4, 256) == 0).all()


def test_the_steps_of_the_loop_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).standard_normal((37, 80)).astype(np.float32)
    whole = quantize_rows(rows, 4, 32, False, np.float32)
    monkeypatch.setattr(quantize, "_STEP", 200)
    monkeypatch.setattr(quantize, "_STRIP", 3)
    apart = quantize_rows(rows, 4, 32, False, np.float32)
    assert np.array_equal(whole.packed, apart.packed)
    assert np.array_equal(whole.scales, apart.scales)
    assert whole.zero_points is not None and np.array_equal(whole.zero_points, apart.zero_points)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(
    st.booleans(),
    st.sampled_from([16, 32, 64]),
    st.integers(1, 150),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-38, 1e-3, 1.0, 1e30]),
    st.sampled_from(["even", "spread", "one", "none", "vast"]),
)
def test_a_searched_scale_is_wrong_by_less(
    symmetric: bool, block: int, width: int, seed: int, size: float, kind: str
) -> None:
    """Never by more than the scale of the largest weight, as columns count."""
    random = np.random.default_rng(seed)
    rows = (random.standard_normal((6, width)) * size).astype(np.float32)
    rows[0] = 0
    counts = {
        "even": np.ones(width),
        "none": np.zeros(width),
        "one": np.arange(width) == width // 2,
    }
    importance = counts.get(kind, np.exp(3 * random.standard_normal(width)))
    importance = (importance * (1e30 if kind == "vast" else 1)).astype(np.float32)
    plain = quantize_rows(rows, 4, block, symmetric, np.float32)
    found = quantize_rows(rows, 4, block, symmetric, np.float32, importance)
    of_blocks = np.pad(importance.astype(np.float64), (0, -width % block)).reshape(-1, block)
    largest = np.maximum(of_blocks.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    weighted = (of_blocks / largest + 1e-6).reshape(-1)[:width]

    def wrong(of: quantize.Blocks) -> Array:
        return (weighted * np.square((decoded(of, 4, width) - rows) / size)).sum(axis=1)

    assert (wrong(found) <= wrong(plain) * (1 + 1e-3) + 1e-9).all()
    if kind == "spread" and width >= 2 * block and size >= 1e-3:
        assert wrong(found).sum() < 0.9 * wrong(plain).sum()


def test_channels() -> None:
    rows = np.random.default_rng(3).standard_normal((9, 50)).astype(np.float32)
    rows[4] = 0
    codes, scales = quantize_channels(rows)
    assert codes.dtype == np.int8 and codes.min() >= -127
    error = np.abs(codes * scales[:, None].astype(np.float64) - rows)
    assert (error <= 0.5001 * scales[:, None]).all()
    assert (np.abs(codes).max(axis=1)[np.arange(9) != 4] == 127).all()
