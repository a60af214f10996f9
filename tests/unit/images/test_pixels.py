"""Tiles, normalisation and places in a prompt, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.images import pixels, tiles
from llamagen.images.canvas import CanvasImage, packed
from llamagen.images.prompt import prompt_of, with_places
from llamagen.images.recipe import CanvasRecipe, TilesRecipe
from tests.unit.images.pictures import photo

TILES = TilesRecipe(
    tile_size=8,
    max_tiles=4,
    mean=(0.5, 0.25, 0.75),
    std=(0.5, 0.125, 1.0),
    pixel_dtype="bfloat16",
    image_token=90,
    bos_token=1,
    tokens_per_tile=2,
    patch_token=91,
    start_token=92,
    end_token=93,
    x_separator_token=94,
    y_separator_token=95,
)
CANVAS = CanvasRecipe(
    tile_size=8,
    max_tiles=2,
    mean=(0.5, 0.25, 0.75),
    std=(0.5, 0.125, 1.0),
    pixel_dtype="float32",
    image_token=90,
    bos_token=1,
    aspect_ratios=((1, 1), (1, 2), (2, 1)),
)


def test_normalisation() -> None:
    image = photo(5, 7)
    exact = (image / 255 - np.array(TILES.mean)) / np.array(TILES.std)
    for recipe, most in ((CANVAS, 1e-6), (TILES, 2**-6)):
        found = pixels.normalized(image, recipe)
        assert found.shape == (3, 5, 7) and found.dtype == np.float32
        assert np.abs(found - exact.transpose(2, 0, 1)).max() < most
    rounded = pixels.normalized(image, TILES).view(np.uint32)
    assert not (rounded & 0xFFFF).any(), "bfloat16 holds every value"


def test_tiles_are_cut_row_by_row() -> None:
    image = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)
    found = pixels.cut(image, rows=2, columns=3)
    assert found.shape == (6, 3, 2, 2)
    assert np.array_equal(found[4], image[:, 2:4, 2:4])


def test_the_layout_of_two_rows_of_two() -> None:
    image = tiles.tiled(photo(16, 16), TILES)
    assert (image.rows, image.columns, len(image.tiles)) == (2, 2, 5)
    row = (91, 91, 94, 91, 91, 95)
    assert tiles.layout(image, TILES) == (92, *row, *row, 90, 91, 91, 93)
    small = tiles.tiled(photo(8, 8), TILES)
    assert tiles.layout(small, TILES) == (92, 90, 91, 91, 93)


def test_images_stand_where_they_are_marked_or_in_front() -> None:
    assert with_places((1, 5), 2, TILES, encoded=False) == (1, 90, 90, 5)
    assert with_places((5, 6), 1, TILES, encoded=True) == (90, 5, 6)
    assert with_places((1, 5), 1, CANVAS, encoded=True) == (90, 1, 5)
    assert with_places((1, 90, 5), 1, CANVAS, encoded=False) == (1, 90, 5)
    assert with_places((1, 5, 90, 6), 1, TILES, encoded=True) == (1, 5, 90, 6)


@pytest.mark.parametrize(("ids", "count"), [((1, 90, 5), 0), ((1, 90, 90), 1), ((90,), 3)])
def test_places_and_images_must_agree(ids: tuple[int, ...], count: int) -> None:
    for recipe in (TILES, CANVAS):
        with pytest.raises(LlamagenError) as caught:
            prompt_of(ids, [photo(8, 8)] * count, recipe, encoded=False)
        assert caught.value.diagnostics[0].code == "LG782"


def test_ids_that_are_laid_out_stay_as_they_are() -> None:
    image = photo(8, 16)
    short = prompt_of((1, 90, 5), [image], TILES, encoded=False)
    again = prompt_of(short.input_ids, [image], TILES, encoded=False)
    assert again.input_ids == short.input_ids
    with pytest.raises(LlamagenError, match=r"not those of image 1"):
        prompt_of(short.input_ids, [photo(8, 8)], TILES, encoded=False)


def test_a_batch_needs_an_image() -> None:
    with pytest.raises(ValueError, match="one at least"):
        packed([[], []], CANVAS)
    one = CanvasImage(1, np.ones((1, 3, 8, 8), np.float32))
    found = packed([[], [one]], CANVAS)
    assert found.aspect_ratio_ids.tolist() == [[0], [1]]
    assert found.aspect_ratio_mask.tolist() == [[[1, 0]], [[1, 0]]]
