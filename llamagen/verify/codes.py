"""Quantised weights read back as numbers, written from ONNX Runtime's description of its operators.

MatMulNBits and GatherBlockQuantized: weight[n, k] = (code[n, k] - zero_point[n, k / block]) * scale[n, k / block]; two
4-bit codes share a byte, the first in the low half. QMoE: the same for each expert. DynamicQuantizeMatMul:
weight[n, k] = code[k, n] * scale[n].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.diagnostics import LlamagenError, quoted
from llamagen.emit.onnx.initializers import EncodingRecord


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are, and what they are."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def parts(self) -> tuple[Place, ...]:
        """Tensors of the file that are read."""
        return (self,)

    def read(self) -> NDArray[np.generic]:
        """The tensor's pages, mapped; nothing is copied. Raises LG622 where the file has no such bytes any more."""
        try:
            with files.open_file(self.file, files.DATA, within=self.file.parent) as file:
                found: NDArray[np.generic] = np.memmap(
                    file, self.dtype, mode="r", offset=self.offset, shape=self.shape
                )
        except (OSError, ValueError) as error:
            message = f"{quoted(str(self.file))} was changed while it was read: {error}"
            raise LlamagenError.of("LG622", message) from error
        return found


@dataclass(frozen=True, slots=True)
class CodedPlace:
    """A quantised parameter, [N, K] or experts: rows from ``first`` on of its codes, scales and zero points."""

    shape: tuple[int, ...]
    first: int
    record: EncodingRecord
    codes: Place
    scales: Place
    zero_points: Place | None

    @property
    def parts(self) -> tuple[Place, ...]:
        return tuple(p for p in (self.codes, self.scales, self.zero_points) if p is not None)

    def read(self) -> NDArray[np.float32]:
        """The numbers that the codes stand for, rounded to float32."""
        part = slice(self.first, self.first + self.shape[0])
        scales = self.scales.read()[part].astype(np.float32)
        if self.record.kind == "channels":
            return self.codes.read()[:, part].T.astype(np.float32) * scales[:, None]
        stored = self.codes.read()[part].reshape(*scales.shape, -1)
        codes = _numbers(stored, self.record.bits).astype(np.float32)
        points = np.full(scales.shape, 2.0 ** (self.record.bits - 1), np.float32)
        if self.zero_points is not None:
            numbers = _numbers(self.zero_points.read()[part], self.record.bits)
            points = numbers[..., : scales.shape[-1]].astype(np.float32)
        codes -= points[..., None]
        codes *= scales[..., None]
        return self._as_parameter(codes)

    def steps(self) -> NDArray[np.float32]:
        """How far apart the numbers are that neighbouring codes stand for, at each element."""
        part = slice(self.first, self.first + self.shape[0])
        scales = np.abs(self.scales.read()[part].astype(np.float32))
        if self.record.kind == "channels":
            return np.broadcast_to(scales[:, None], self.shape)
        assert self.record.block is not None
        shape = (*scales.shape, self.record.block)
        return self._as_parameter(np.broadcast_to(scales[..., None], shape))

    def _as_parameter(self, blocks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Elements [..., rows, blocks, elements of a block] in the parameter's order, without what fills up rows."""
        *before, count, size = blocks.shape
        inputs = self.shape[-2 if self.record.transposed else -1]
        found = blocks.reshape(*before, count * size)[..., :inputs]
        if self.record.paired:
            experts, rows = found.shape[:2]
            found = found.reshape(experts, rows // 2, 2, inputs).swapaxes(1, 2)
            found = found.reshape(experts, rows, inputs)
        return found.swapaxes(-1, -2) if self.record.transposed else found


def _numbers(stored: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """One number an element: of each byte first the low half, then the high one, where there are 4 bits."""
    plain = np.asarray(stored, np.uint8)
    if bits == 8:
        return plain
    return np.stack([plain & 15, plain >> 4], axis=-1).reshape(*plain.shape[:-1], -1)
