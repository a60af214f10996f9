"""Images for Llama 3.2 Vision: a canvas of tiles for each, and which text may see which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from llamagen.images.pixels import Pixels, Size, Tiles, cut, normalized, padded, resized
from llamagen.images.recipe import CanvasRecipe


@dataclass(frozen=True, slots=True)
class CanvasImage:
    """``tiles`` [rows * columns, 3, side, side]; ``ratio_id`` is the canvas's place among all, from 1."""

    ratio_id: int
    tiles: Tiles


def on_canvas(image: Pixels, recipe: CanvasRecipe) -> CanvasImage:
    """Fitted into its canvas without distortion, padded, cut."""
    side = recipe.tile_size
    size = image.shape[0], image.shape[1]
    rows, columns = canvas_for(size, recipe)
    canvas = rows * side, columns * side
    fitted = padded(resized(image, fit(size, canvas, side)), canvas)
    ratio_id = recipe.aspect_ratios.index((rows, columns)) + 1
    return CanvasImage(ratio_id, cut(normalized(fitted, recipe), rows, columns))


def canvas_for(size: Size, recipe: CanvasRecipe) -> tuple[int, int]:
    """Rows and columns: the least enlargement, else the least reduction, and of equals the fewest tiles."""
    side = recipe.tile_size
    scales = [min(r * side / size[0], c * side / size[1]) for r, c in recipe.aspect_ratios]
    larger = [s for s in scales if s >= 1]
    chosen = min(larger) if larger else max(scales)
    return min(
        (
            ratio
            for ratio, scale in zip(recipe.aspect_ratios, scales, strict=True)
            if scale == chosen
        ),
        key=lambda ratio: ratio[0] * ratio[1],
    )


def fit(size: Size, canvas: Size, side: int) -> Size:
    """The size within ``canvas`` of the same shape, no larger than the image unless it is smaller than a tile."""
    (height, width), (most_tall, most_wide) = size, canvas
    tall, wide = min(max(height, side), most_tall), min(max(width, side), most_wide)
    down, across = tall / height, wide / width
    if across < down:
        return min(floor(height * across) or 1, tall), wide
    return tall, min(floor(width * down) or 1, wide)


@dataclass(frozen=True, slots=True)
class Packed:
    """Images of a batch of B rows, at most I a row and at most T tiles an image."""

    pixel_values: NDArray[np.float32]
    """[B, I, T, 3, side, side], zero where there is no tile."""
    aspect_ratio_ids: NDArray[np.int64]
    """[B, I], 0 where there is no image."""
    aspect_ratio_mask: NDArray[np.int64]
    """[B, I, T]; the first tile counts even where there is no image, as the model was trained."""


def packed(rows: Sequence[Sequence[CanvasImage]], recipe: CanvasRecipe) -> Packed:
    """Raises ValueError for a batch without an image."""
    count, side = max(map(len, rows)), recipe.tile_size
    if not count:
        raise ValueError("a batch with images has one at least")
    shape = (len(rows), count, recipe.max_tiles)
    pixels = np.zeros((*shape, 3, side, side), np.float32)
    ids, mask = np.zeros(shape[:2], np.int64), np.zeros(shape, np.int64)
    mask[:, :, 0] = 1
    for b, row in enumerate(rows):
        for i, image in enumerate(row):
            pixels[b, i, : len(image.tiles)] = image.tiles
            ids[b, i] = image.ratio_id
            mask[b, i, : len(image.tiles)] = 1
    return Packed(pixels, ids, mask)


def seen_by(
    rows: Sequence[Sequence[int]], tiles: Sequence[Sequence[int]], recipe: CanvasRecipe
) -> NDArray[np.int64]:
    """Which token sees which tile, [B, S, I, T], for ids of one length and the numbers of tiles of their images.

    An image is seen from its token on up to the next image's, the last of a sequence to its end; images that
    follow one another directly are seen together.
    """
    shape = (len(rows), len(rows[0]), max(map(len, tiles)), recipe.max_tiles)
    mask = np.zeros(shape, np.int64)
    for b, (ids, counts) in enumerate(zip(rows, tiles, strict=True)):
        places = [i for i, token in enumerate(ids) if token == recipe.image_token]
        ends = [*places[1:], len(ids)]
        for i in reversed(range(len(places) - 1)):
            if ends[i] == places[i] + 1:
                ends[i] = ends[i + 1]
        for i, (start, end, count) in enumerate(zip(places, ends, counts, strict=True)):
            mask[b, start:end, i, :count] = 1
    return mask
