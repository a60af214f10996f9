"""Random float8 checkpoints: projections as Meta's FP8 releases store them, everything else in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llamagen.weights.float8 import FLOAT8, SCALE_SUFFIX
from llamagen.weights.random import RandomTensor, random_rows
from llamagen.weights.safetensors_write import NewTensor

LARGEST = 448.0
"""The largest float8_e4m3fn."""
_ELEMENTS = 1 << 20
_HEAD = "lm_head.weight"


def is_projection(tensor: RandomTensor) -> bool:
    """What such releases store as float8: linear parts and experts, but not the head."""
    return (
        tensor.kind == "matrix" and len(tensor.shape) in (2, 3) and not tensor.name.endswith(_HEAD)
    )


@dataclass
class Float8Tensor:
    """One random tensor as float8 codes and, once those are written, a float32 scale for each output."""

    seed: int
    tensor: RandomTensor
    _scales: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def new(self) -> tuple[NewTensor, NewTensor]:
        """The codes and the scales, in the order in which they must be written."""
        name, shape = self.tensor.name, self.tensor.shape
        return (
            NewTensor(name, FLOAT8, shape),
            NewTensor(name + SCALE_SUFFIX, "F32", self._scale_shape),
        )

    @property
    def _scale_shape(self) -> tuple[int, ...]:
        match self.tensor.shape:
            case (out, _):
                return (out, 1)
            case (experts, _, out):
                swapped = self.tensor.name.endswith("down_proj")
                return (experts, out, 1) if swapped else (experts, 1, out)
            case other:
                raise ValueError(f"{self.tensor.name} has {len(other)} dimensions")

    def codes(self) -> Iterator[memoryview]:
        rows, width = self.tensor.shape[0], int(np.prod(self.tensor.shape[1:]))
        step = max(1, _ELEMENTS // width)
        for start in range(0, rows, step):
            x = random_rows(self.seed, self.tensor, start, min(start + step, rows))
            scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(LARGEST)
            scale[scale == 0] = 1
            self._scales.append(scale)
            yield (x / scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8).reshape(-1).data

    def scales(self) -> Iterator[memoryview]:
        whole = np.concatenate(self._scales).astype(np.float32)
        yield np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data
