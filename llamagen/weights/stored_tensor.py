"""One tensor of a checkpoint, however many files hold its pieces."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.weights.dtypes import element_count
from llamagen.weights.safetensors_file import TensorEntry


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A name in the checkpoint: one piece, or one per model-parallel rank of equal shape.

    `shape` is that of a piece; how ranks join is a rule of the naming layout.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[TensorEntry, ...]
    scale: TensorEntry | None = None
    """What a float8 tensor is multiplied with."""
    swapped_scale: bool = False

    @property
    def read_as(self) -> str:
        """The dtype its values have when they are read."""
        return self.dtype if self.scale is None else "F32"

    @property
    def elements(self) -> int:
        """Elements of all pieces together."""
        return element_count(self.shape) * len(self.pieces)
