"""Images in a prompt: where they stand, which tokens stand for them, and what the graphs read beside the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from llamagen.diagnostics import LlamagenError
from llamagen.images.canvas import on_canvas, packed, seen_by
from llamagen.images.pixels import Pixels
from llamagen.images.recipe import CanvasRecipe, Recipe, TilesRecipe
from llamagen.images.tiles import TiledImage, layout, tiled

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
            found = packed([images], recipe)
            seen = seen_by([placed], [[len(image.tiles) for image in images]], recipe)
            read: Values = {
                "pixel_values": found.pixel_values,
                "aspect_ratio_ids": found.aspect_ratio_ids,
                "aspect_ratio_mask": found.aspect_ratio_mask,
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
        found = next(
            (i for i in range(start, len(text)) if text[i : i + len(wanted)] == wanted), None
        )
        if found is None:
            message = f"the patch tokens of the prompt are not those of image {number}"
            grid = f"{image.rows} x {image.columns} tiles, {len(wanted):,} tokens"
            help = f"it has {grid}; or give one `<|image|>` in place of all its tokens"
            raise LlamagenError.of("LG782", message, help=help)
        start = found + len(wanted)


def _places(count: int) -> str:
    return "1 place for an image" if count == 1 else f"{count} places for images"


def _images(count: int) -> str:
    return {0: "no image is", 1: "1 image is"}.get(count, f"{count} images are")
