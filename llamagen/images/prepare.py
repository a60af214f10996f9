"""Images for a model: fitted and cut into tiles, normalised, and their places in a prompt.

Llama 4 cuts each into the grid of tiles that fits best, and tokens of the text stand for them. Llama 3.2 Vision puts
each on a canvas of tiles, and text attends to the images before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TypeAlias, assert_never

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagen.diagnostics import LlamagenError
from llamagen.images.recipe import CanvasRecipe, Recipe, RecipeBase, TilesRecipe

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
    from PIL import Image  # a session of text needs none

    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def padded(image: Pixels, size: Size) -> Pixels:
    """With black to the right and below."""
    (height, width), (tall, wide) = image.shape[:2], size
    return np.pad(image, ((0, tall - height), (0, wide - width), (0, 0)))


def normalized(image: Pixels, recipe: RecipeBase) -> NDArray[np.float32]:
    """[3, H, W]: ``(x / 255 - mean) / std``, each step rounded to the recipe's type."""
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


def fit(size: Size, canvas: Size, side: int, *, float32: bool = False) -> Size:
    """The size within ``canvas`` of the same shape, no larger than the image unless it is smaller than a tile.

    With ``float32`` a scale that the canvas limits is rounded so, as in the released processor of Llama 4; a size can
    depend on it.
    """
    limits = [min(max(have, side), most) for have, most in zip(size, canvas, strict=True)]
    scales = [
        np.float32(limit) / np.float32(have) if float32 and most < max(have, side) else limit / have
        for have, most, limit in zip(size, canvas, limits, strict=True)
    ]
    (height, width), (tall, wide), (down, across) = size, limits, scales
    if across < down:
        return max(min(floor(height * across), tall), 1), wide
    return tall, max(min(floor(width * down), wide), 1)


def _best(grids: Sequence[Size], scales: Sequence[float | np.float32]) -> Size:
    """Rows and columns: the least enlargement, else the least reduction, and of equals the fewest tiles."""
    larger = [scale for scale in scales if scale >= 1]
    chosen = min(larger) if larger else max(scales)
    equal = (grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen)
    return min(equal, key=lambda grid: grid[0] * grid[1])


# Llama 4


@dataclass(frozen=True, slots=True)
class TiledImage:
    """``tiles`` [rows * columns (+ 1), 3, side, side]; with more than one, the last is the whole image."""

    rows: int
    columns: int
    tiles: Tiles


def tiled(image: Pixels, recipe: TilesRecipe) -> TiledImage:
    """Fitted into its grid without distortion, padded, cut; the whole image is distorted to a tile."""
    side, size = recipe.tile_size, (image.shape[0], image.shape[1])
    rows, columns = grid_for(size, recipe)
    grid = rows * side, columns * side
    fitted = resized(image, fit(size, grid, side, float32=True))
    tiles = cut(normalized(padded(fitted, grid), recipe), rows, columns)
    if rows * columns > 1:
        whole = normalized(resized(image, (side, side)), recipe)
        tiles = np.concatenate([tiles, whole[None]])
    return TiledImage(rows, columns, tiles)


def grid_for(size: Size, recipe: TilesRecipe) -> Size:
    """Rows and columns of tiles; scales are compared in float32, as the released processor does."""
    side, most = recipe.tile_size, recipe.max_tiles
    grids = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    height, width = np.float32(size[0]), np.float32(size[1])
    scales = [min(np.float32(r * side) / height, np.float32(c * side) / width) for r, c in grids]
    return _best(grids, scales)


def layout(image: TiledImage, recipe: TilesRecipe) -> tuple[int, ...]:
    """The tokens that stand for an image: rows of tiles with their separators, then the whole image."""
    patches = (recipe.patch_token,) * recipe.tokens_per_tile
    row = (*patches, *((recipe.x_separator_token, *patches) * (image.columns - 1)))
    several = image.rows * image.columns > 1
    grid = (*row, recipe.y_separator_token) * image.rows if several else ()
    return (recipe.start_token, *grid, recipe.image_token, *patches, recipe.end_token)


# Llama 3.2 Vision


@dataclass(frozen=True, slots=True)
class CanvasImage:
    """``tiles`` [rows * columns, 3, side, side]; ``ratio_id`` is the canvas's place among all, from 1."""

    ratio_id: int
    tiles: Tiles


def on_canvas(image: Pixels, recipe: CanvasRecipe) -> CanvasImage:
    """Fitted into its canvas without distortion, padded, cut."""
    side, size = recipe.tile_size, (image.shape[0], image.shape[1])
    rows, columns = canvas_for(size, recipe)
    canvas = rows * side, columns * side
    fitted = padded(resized(image, fit(size, canvas, side)), canvas)
    ratio_id = recipe.aspect_ratios.index((rows, columns)) + 1
    return CanvasImage(ratio_id, cut(normalized(fitted, recipe), rows, columns))


def canvas_for(size: Size, recipe: CanvasRecipe) -> Size:
    """Rows and columns of tiles."""
    side = recipe.tile_size
    scales = [min(r * side / size[0], c * side / size[1]) for r, c in recipe.aspect_ratios]
    return _best(recipe.aspect_ratios, scales)


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
        seen = spans(places, len(ids))
        for i, ((start, end), count) in enumerate(zip(seen, counts, strict=True)):
            mask[b, start:end, i, :count] = 1
    return mask


def spans(places: Sequence[int], length: int) -> list[tuple[int, int]]:
    """From where to where text sees each image: from its token to the next image; neighbours end together, and the
    last is seen to the end (facts 4.7, ``create_vision_mask`` of the authors)."""
    ends = [*places, length][1:]
    for i in reversed(range(len(places) - 1)):
        if ends[i] == places[i] + 1:
            ends[i] = ends[i + 1]
    return list(zip(places, ends, strict=True))


# In a prompt

Values: TypeAlias = Mapping[str, NDArray[np.generic]]
"""Arrays by the names of graph inputs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of S tokens, for a batch of one."""

    input_ids: tuple[int, ...]
    images: Values
    """What is read once: ``pixel_values`` ..."""
    beside: Values
    """What is read beside the tokens, [1, S, ...]; a later token is as the last one."""


def prompt_of(
    ids: Sequence[int], pictures: Sequence[Pixels], recipe: Recipe, *, encoded: bool
) -> Prompt:
    """Every ``<|image|>`` of ``ids`` is the place of an image; without any, all images stand in front.

    ``encoded`` says that the ids come from a text: a tokenizer puts the begin-of-text token first, where Llama 3.2
    Vision wants the images that begin the text. Raises LG782 when places and images differ in number.
    """
    placed = with_places(ids, len(pictures), recipe, encoded=encoded)
    match recipe:
        case TilesRecipe():
            return _tiles(placed, [tiled(picture, recipe) for picture in pictures], recipe)
        case CanvasRecipe():
            images = [on_canvas(picture, recipe) for picture in pictures]
            prompt = packed([images], recipe)
            seen = seen_by([placed], [[len(image.tiles) for image in images]], recipe)
            read: Values = {
                "pixel_values": prompt.pixel_values,
                "aspect_ratio_ids": prompt.aspect_ratio_ids,
                "aspect_ratio_mask": prompt.aspect_ratio_mask,
            }
            return Prompt(placed, read, {"cross_attention_mask": seen})
        case _:
            assert_never(recipe)


def with_places(
    ids: Sequence[int], count: int, recipe: Recipe, *, encoded: bool
) -> tuple[int, ...]:
    """``ids`` with as many ``<|image|>`` as there are images. Raises LG782."""
    image, bos = recipe.image_token, recipe.bos_token
    places = sum(token == image for token in ids)
    front = (image,) * count
    if not places:
        after = isinstance(recipe, TilesRecipe) and ids[:1] and ids[0] == bos
        return (bos, *front, *ids[1:]) if after else (*front, *ids)
    if places != count:
        message = f"the prompt has {_places(places)} and {_images(count)} given"
        help = "give an image for each `<|image|>`, or none of these to put all images in front"
        raise LlamagenError.of("LG782", message, help=help)
    if encoded and isinstance(recipe, CanvasRecipe) and ids[0] == bos:
        leading = next((i for i, token in enumerate(ids[1:]) if token != image), len(ids) - 1)
        return (*ids[1 : 1 + leading], bos, *ids[1 + leading :])
    return tuple(ids)


def _tiles(ids: Sequence[int], images: Sequence[TiledImage], recipe: TilesRecipe) -> Prompt:
    pixels = np.concatenate([image.tiles for image in images])
    if recipe.patch_token in ids:
        _require_laid_out(ids, images, recipe)
        return Prompt(tuple(ids), {"pixel_values": pixels}, {})
    left = iter(images)

    def expanded() -> Iterator[int]:
        for token in ids:
            if token == recipe.image_token:
                yield from layout(next(left), recipe)
            else:
                yield token

    return Prompt(tuple(expanded()), {"pixel_values": pixels}, {})


def _require_laid_out(
    ids: Sequence[int], images: Sequence[TiledImage], recipe: TilesRecipe
) -> None:
    """Ids that hold patch tokens already must hold those of these images."""
    text = tuple(ids)
    start = 0
    for number, image in enumerate(images, 1):
        wanted = layout(image, recipe)
        places = range(start, len(text))
        place = next((i for i in places if text[i : i + len(wanted)] == wanted), None)
        if place is None:
            message = f"the patch tokens of the prompt are not those of image {number}"
            grid = f"{image.rows} x {image.columns} tiles, {len(wanted):,} tokens"
            help = f"it has {grid}; or give one `<|image|>` in place of all its tokens"
            raise LlamagenError.of("LG782", message, help=help)
        start = place + len(wanted)


def _places(count: int) -> str:
    return "1 place for an image" if count == 1 else f"{count} places for images"


def _images(count: int) -> str:
    return {0: "no image is", 1: "1 image is"}.get(count, f"{count} images are")
