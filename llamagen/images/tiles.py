"""Images for Llama 4: the grid of tiles that fits best, a small whole image, and the tokens that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np

from llamagen.images.pixels import Pixels, Size, Tiles, cut, normalized, padded, resized
from llamagen.images.recipe import TilesRecipe


@dataclass(frozen=True, slots=True)
class TiledImage:
    """``tiles`` [rows * columns (+ 1), 3, side, side]; with more than one, the last is the whole image."""

    rows: int
    columns: int
    tiles: Tiles


def tiled(image: Pixels, recipe: TilesRecipe) -> TiledImage:
    """Fitted into its grid without distortion, padded, cut; the whole image is distorted to a tile."""
    side = recipe.tile_size
    rows, columns = grid_for(_size(image), recipe)
    fitted = resized(image, fit(_size(image), (rows * side, columns * side), side))
    grid = normalized(padded(fitted, (rows * side, columns * side)), recipe)
    tiles = cut(grid, rows, columns)
    if rows * columns > 1:
        whole = normalized(resized(image, (side, side)), recipe)
        tiles = np.concatenate([tiles, whole[None]])
    return TiledImage(rows, columns, tiles)


def grid_for(size: Size, recipe: TilesRecipe) -> tuple[int, int]:
    """Rows and columns: the least enlargement, else the least reduction, and of equals the fewest tiles.

    Scales are compared in float32, as the released processor does.
    """
    side, most = recipe.tile_size, recipe.max_tiles
    grids = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    height, width = np.float32(size[0]), np.float32(size[1])
    scales = [min(np.float32(r * side) / height, np.float32(c * side) / width) for r, c in grids]
    larger = [s for s in scales if s >= 1]
    chosen = min(larger) if larger else max(scales)
    return min(
        (grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen),
        key=lambda grid: grid[0] * grid[1],
    )


def fit(size: Size, canvas: Size, side: int) -> Size:
    """The size within ``canvas`` of the same shape, no larger than the image unless it is smaller than a tile.

    Where the canvas is the limit the released processor divides in float32, elsewhere in float64; a size can depend
    on it.
    """
    limits = [min(max(have, side), most) for have, most in zip(size, canvas, strict=True)]
    scales = [
        np.float32(limit) / np.float32(have) if most < max(have, side) else limit / have
        for have, most, limit in zip(size, canvas, limits, strict=True)
    ]
    (height, width), (tall, wide), (down, across) = size, limits, scales
    if across < down:
        return max(min(floor(height * across), tall), 1), wide
    return tall, max(min(floor(width * down), wide), 1)


def layout(image: TiledImage, recipe: TilesRecipe) -> tuple[int, ...]:
    """The tokens that stand for an image: rows of tiles with their separators, then the whole image."""
    patches = (recipe.patch_token,) * recipe.tokens_per_tile
    row = (*patches, *((recipe.x_separator_token, *patches) * (image.columns - 1)))
    several = image.rows * image.columns > 1
    grid = (*row, recipe.y_separator_token) * image.rows if several else ()
    return (recipe.start_token, *grid, recipe.image_token, *patches, recipe.end_token)


def _size(image: Pixels) -> Size:
    height, width = image.shape[:2]
    return height, width
