"""Block-wise weight quantisation to 4 or 8 bits in the layout of ONNX Runtime's MatMulNBits, and int8 by channel.

Rows of [out, in] weights are quantised as they are stored, some rows at a time. ONNX Runtime's own binding
(`quantize_matmul_4bits`) gives the same numbers but wants [in, out] and quantises 0.04e9 elements a second on one core
where this does 0.3e9, so it is no help here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llamagen.weights.tensors import WITH_POINTS

Bits: TypeAlias = Literal[4, 8]
Floats: TypeAlias = npt.NDArray[np.float32]

_STEP = 1 << 17
"""Elements at a time: the temporaries stay in the cache."""
_SEARCHED = 1 << 15
"""The same where scales are searched, with more of them."""
_STRIP = 256
FACTORS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
"""Of the scale that holds the largest weight of a block: which scales are tried."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Quantised rows: ``packed`` uint8 [n, blocks, block * bits / 8], ``scales`` [n, blocks], and ``zero_points`` uint8
    [n, ceil(blocks * bits / 8)] or None if all are the middle. Of two 4-bit values in a byte the first is the low half.
    """

    packed: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.floating]
    zero_points: npt.NDArray[np.uint8] | None
    minimums: npt.NDArray[np.floating] | None = None
    """[n, blocks], of weights that are code * scale + minimum."""


def quantize_rows(
    rows: Floats,
    bits: Bits,
    block: int,
    symmetric: bool,
    scale_dtype: npt.DTypeLike,
    importance: Floats | None = None,
) -> Blocks:
    """Quantise finite ``rows`` [n, K]; a last block that K does not fill is padded with zeros.

    Symmetric: the largest magnitude d of a block becomes the end of the range, scale = d / -2^(bits - 1), so that
    either sign can use the longer half. Asymmetric: the range of the block, widened to hold 0 exactly.

    With ``importance`` [K], mean squares of the inputs that the columns are multiplied with, a block gets the scale by
    which its products are wrong the least: sum of importance times squared error.
    """
    n, width = rows.shape
    blocks = -(-width // block)
    packed = np.empty((n, blocks, block * bits // 8), np.uint8)
    scales = np.empty((n, blocks), scale_dtype)
    points = None if symmetric else np.empty((n, -(-blocks * bits // 8)), np.uint8)
    step = max(1, (_STEP if importance is None else _SEARCHED) // (blocks * block))
    work = _Scratch(min(step, n) * blocks, block)
    if importance is not None:
        work.weigh(_blocked(importance[None], blocks, block)[0])
    for start in range(0, n, step):
        part = slice(start, start + step)
        x = _blocked(rows[part], blocks, block).reshape(-1, block)
        codes, scale, middle = work.codes(x, bits, symmetric, scales.dtype)
        shape = (-1, blocks)
        packed[part] = (_nibbles(codes) if bits == 4 else codes).reshape(*shape, packed.shape[-1])
        scales[part] = scale.reshape(shape)
        if points is not None:
            points[part] = _row_of_points(middle.astype(np.uint8).reshape(shape), bits)
    return Blocks(packed, scales, points)


def _blocked(rows: Floats, blocks: int, block: int) -> Floats:
    n, width = rows.shape
    if width == blocks * block:
        return rows.reshape(n, blocks, block)
    padded = np.zeros((n, blocks * block), np.float32)
    padded[:, :width] = rows
    return padded.reshape(n, blocks, block)


class _Scratch:
    """Temporaries of ``count`` blocks, allocated once: numpy's own would be mapped and faulted in at every step."""

    def __init__(self, count: int, block: int) -> None:
        self._across = np.empty((block, count), np.float32)
        self._q = np.empty((count, block), np.float32)
        self._codes = np.empty((count, block), np.uint8)
        self._weights: Floats | None = None

    def weigh(self, importance: Floats) -> None:
        """Search scales by the ``importance`` [blocks, block] of the columns."""
        rows = self._across.shape[1] // len(importance)
        # no input counts for nothing: a text of some hundred tokens has not seen all that may come
        largest = np.maximum(importance.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        even = importance / largest + np.float32(1e-6)
        self._weights = np.ascontiguousarray(np.tile(even, (rows, 1)).T)
        self._weighted, self._steps = np.empty_like(self._across), np.empty_like(self._across)

    def better(self, scale: Floats, low: Floats, high: Floats) -> Floats:
        """Of blocks in ``_across`` with codes from ``low`` to ``high`` [m]: scales near ``scale`` with least error.

        For codes q the best scale is sum(w x q) / sum(w q q), and takes sum(w x q)^2 / sum(w q q) off the error.
        """
        assert self._weights is not None
        m = len(scale)
        usable = np.abs(scale) > np.finfo(np.float32).tiny
        weights, x = self._weights[:, :m], self._across[:, :m]
        x /= np.where(usable, scale, np.float32(1))  # in steps, where nothing overflows
        weighted = np.multiply(x, weights, out=self._weighted[:, :m])
        q = self._steps[:, :m]
        most, best = np.zeros(m, np.float32), np.ones(m, np.float32)
        for factor in FACTORS:
            np.multiply(x, np.float32(1 / factor), out=q)
            np.rint(q, out=q)
            np.maximum(q, low, out=q)
            np.minimum(q, high, out=q)
            along = np.einsum("km,km->m", weighted, q)
            np.multiply(q, q, out=q)
            square = np.einsum("km,km->m", weights, q)
            fit = along / np.maximum(square, np.finfo(np.float32).tiny)
            gain = fit * along
            better = gain > most
            np.copyto(most, gain, where=better)
            np.copyto(best, fit, where=better)
        return np.where(usable, scale * best, scale)

    def extremes(self, x: Floats) -> tuple[Floats, Floats]:
        """Maxima and minima of the rows of ``x`` [m, block]: across columns numpy is ten times faster."""
        across = self._across[:, : len(x)]
        for start in range(0, len(x), _STRIP):
            across[:, start : start + _STRIP] = x[start : start + _STRIP].T
        return across.max(axis=0), across.min(axis=0)

    def codes(
        self, x: Floats, bits: Bits, symmetric: bool, scale_dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.floating], Floats]:
        """Codes [m, block], scales and zero points [m] of ``x`` [m, block]."""
        top, half = 2**bits - 1, 2 ** (bits - 1)
        high, low = self.extremes(x)
        if symmetric:
            scale = np.where(high > -low, high, low) * np.float32(-1 / half)
            middle = np.full(len(x), half, np.float32)
        else:
            high, low = np.maximum(high, 0), np.minimum(low, 0)
            # each end apart: their difference may be beyond float32
            scale = high * np.float32(1 / top) - low * np.float32(1 / top)
        # codes are chosen for the scale as it is rounded
        stored = scale.astype(scale_dtype)
        nothing = stored == 0
        if not symmetric:
            safe = np.where(nothing, np.float32(1), stored.astype(np.float32))
            middle = np.clip(np.rint(-low / safe), 0, top)
        if self._weights is not None:
            stored = self.better(scale, -middle, top - middle).astype(scale_dtype)
            nothing = stored == 0
        safe = np.where(nothing, np.float32(1), stored.astype(np.float32))
        q, codes = self._q[: len(x)], self._codes[: len(x)]
        # A subnormal scale has no finite reciprocal: divide.
        np.divide(x, safe[:, None], out=q)
        np.rint(q, out=q)
        q += np.float32(half) if symmetric else middle[:, None]
        np.clip(q, 0, top, out=q)
        if nothing.any():
            q[nothing] = middle[nothing, None]
        np.copyto(codes, q, casting="unsafe")
        return codes, stored, middle


def _nibbles(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    # As 16-bit words: low byte | high byte << 4, in one pass over contiguous memory.
    words = codes.view("<u2")
    packed: npt.NDArray[np.uint8] = (words | (words >> 4)).astype(np.uint8)
    return packed


def halves(
    codes: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Numbers of 8 bits [..., n] as their high and their low halves, each uint8 [..., ceil(n / 2)]."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    codes = np.ascontiguousarray(codes)
    return _nibbles(codes >> np.uint8(4)), _nibbles(codes & np.uint8(15))


def _row_of_points(points: npt.NDArray[np.uint8], bits: Bits) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return points
    even = np.zeros((points.shape[0], points.shape[1] + points.shape[1] % 2), np.uint8)
    even[:, : points.shape[1]] = points
    return _nibbles(even)


KEPT: Mapping[str, Bits] = MappingProxyType({"Q4_0": 4, "Q4_1": 4, "Q8_0": 8, WITH_POINTS: 4})
"""Types whose blocks of 32 weights MatMulNBits and GatherBlockQuantized hold exactly -> bits of a code."""


def repacked(rows: npt.NDArray[np.uint8], packing: str) -> Blocks:
    """The blocks of packed ``rows`` uint8 [n, bytes], bit by bit the same numbers.

    ggml-common.h: Q4_0 is a float16 scale d and 16 bytes, of which the low halves are the first 16 codes: d (q - 8).
    Q4_1 has a float16 minimum m after d, and means d q + m. Q8_0 is d and 32 signed codes: d q. WITH_POINTS has a zero
    point z after d, a byte, and means d (q - z).
    """
    bits = KEPT[packing]
    head = {"Q4_1": 4, WITH_POINTS: 3}.get(packing, 2)
    blocks = rows.reshape(len(rows), -1, head + 4 * bits)
    of_floats = np.ascontiguousarray(blocks[..., : head // 2 * 2]).view(np.float16)
    floats = np.ascontiguousarray(np.moveaxis(of_floats, -1, 0))
    codes = blocks[..., head:]
    if bits == 8:
        return Blocks(codes ^ np.uint8(0x80), floats[0], None)
    halves = np.concatenate([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1)
    packed = _nibbles(halves)
    if packing == WITH_POINTS:
        return Blocks(packed, floats[0], _row_of_points(blocks[..., 2], 4))
    return Blocks(packed, floats[0], None, None if packing == "Q4_0" else floats[1])


def quantize_channels(rows: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """``rows`` [n, K] as int8 with one scale a row [n], symmetric: codes from -127 to 127."""
    n, width = rows.shape
    codes = np.empty((n, width), np.int8)
    scales = np.empty(n, np.float32)
    step = max(1, _STEP // width)
    for start in range(0, n, step):
        x = rows[start : start + step]
        scale = np.maximum(x.max(axis=1), -x.min(axis=1)) * np.float32(1 / 127)
        safe = np.where(scale == 0, np.float32(1), scale)
        codes[start : start + step] = np.clip(np.rint(x / safe[:, None]), -127, 127)
        scales[start : start + step] = scale
    return codes, scales
