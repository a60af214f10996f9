"""Pixels: resized by Pillow, normalised, cut into tiles."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamagen.images.recipe import RecipeBase

Pixels: TypeAlias = NDArray[np.uint8]
"""[H, W, 3]."""
Tiles: TypeAlias = NDArray[np.float32]
"""[tiles, 3, side, side]."""
Size: TypeAlias = tuple[int, int]
"""Height and width."""


def resized(image: Pixels, size: Size) -> Pixels:
    """Bilinear with antialiasing, in Pillow's fixed point.

    The reference code and transformers' PIL backend do the same. Its torchvision backend differs by one level in at
    most 1% of values where torch has its kernels for bytes (AVX2, ARM), and in 20% where it has not.
    """
    if image.shape[:2] == size:
        return image
    from PIL import Image

    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def padded(image: Pixels, size: Size) -> Pixels:
    """With black to the right and below."""
    (height, width), (tall, wide) = image.shape[:2], size
    return np.pad(image, ((0, tall - height), (0, wide - width), (0, 0)))


def normalized(image: Pixels, recipe: RecipeBase) -> NDArray[np.float32]:
    """[3, H, W]: ``(x / 255 - mean) / std``, each step rounded to the recipe's type."""
    import ml_dtypes

    kind = np.dtype(np.float32 if recipe.pixel_dtype == "float32" else ml_dtypes.bfloat16)
    mean, std = (np.array(v, dtype=kind).astype(np.float32) for v in (recipe.mean, recipe.std))

    def rounded(x: NDArray[np.floating]) -> NDArray[np.float32]:
        return x.astype(kind).astype(np.float32)

    # 256 levels a colour: every step is done once for each of them
    levels = np.arange(256)
    if recipe.pixel_dtype == "float32":
        share = (levels.astype(np.float64) * (1 / 255)).astype(np.float32)
    else:
        share = rounded(levels.astype(np.float32) * np.float32(1 / 255))
    table = rounded(rounded(share[:, None] - mean) / std)
    return np.stack([table[:, c][image[..., c]] for c in range(3)])


def cut(image: NDArray[np.float32], rows: int, columns: int) -> Tiles:
    """[3, H, W] to tiles, row by row."""
    channels, height, width = image.shape
    grid = image.reshape(channels, rows, height // rows, columns, width // columns)
    tiles = grid.transpose(1, 3, 0, 2, 4)
    return tiles.reshape(rows * columns, channels, height // rows, width // columns)
