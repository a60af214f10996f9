"""Tiles, normalisation and places in a prompt, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llamagen.diagnostics import LlamagenError
from llamagen.images import prepare
from llamagen.images.prepare import CanvasImage, packed, prompt_of, with_places
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
        found = prepare.normalized(image, recipe)
        assert found.shape == (3, 5, 7) and found.dtype == np.float32
        assert np.abs(found - exact.transpose(2, 0, 1)).max() < most
    rounded = prepare.normalized(image, TILES).view(np.uint32)
    assert not (rounded & 0xFFFF).any(), "bfloat16 holds every value"


def test_tiles_are_cut_row_by_row() -> None:
    image = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)
    found = prepare.cut(image, rows=2, columns=3)
    assert found.shape == (6, 3, 2, 2)
    assert np.array_equal(found[4], image[:, 2:4, 2:4])


def test_the_layout_of_two_rows_of_two() -> None:
    image = prepare.tiled(photo(16, 16), TILES)
    assert (image.rows, image.columns, len(image.tiles)) == (2, 2, 5)
    row = (91, 91, 94, 91, 91, 95)
    assert prepare.layout(image, TILES) == (92, *row, *row, 90, 91, 91, 93)
    small = prepare.tiled(photo(8, 8), TILES)
    assert prepare.layout(small, TILES) == (92, 90, 91, 91, 93)


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


@pytest.mark.parametrize(
    ("size", "grid", "fitted"),
    [
        ((8, 8), (1, 1), (8, 8)),
        ((4, 4), (1, 1), (8, 8)),  # smaller than a tile: enlarged to one
        ((8, 16), (1, 2), (8, 16)),
        ((9, 9), (2, 2), (9, 9)),  # not enlarged
        ((100, 10), (4, 1), (32, 3)),
        ((10, 100), (1, 4), (3, 32)),
        ((41, 41), (2, 2), (16, 15)),  # 41 * (16 / 41) is below 16 in float32
    ],
)
def test_grids_and_fits(
    size: tuple[int, int], grid: tuple[int, int], fitted: tuple[int, int]
) -> None:
    found = prepare.grid_for(size, TILES)
    assert found == grid
    assert prepare.fit(size, (found[0] * 8, found[1] * 8), 8, float32=True) == fitted


@pytest.mark.parametrize(
    ("size", "ratio_id", "fitted"),
    [
        ((8, 8), 1, (8, 8)),
        ((8, 4), 1, (8, 4)),
        ((4, 4), 1, (8, 8)),
        ((8, 16), 2, (8, 16)),
        ((41, 20), 3, (16, 7)),
        ((41, 41), 1, (8, 8)),
    ],
)
def test_canvases(size: tuple[int, int], ratio_id: int, fitted: tuple[int, int]) -> None:
    image = prepare.on_canvas(photo(*size), CANVAS)
    assert image.ratio_id == ratio_id
    rows, columns = CANVAS.aspect_ratios[ratio_id - 1]
    assert prepare.fit(size, (rows * 8, columns * 8), 8) == fitted
    assert image.tiles.shape == (rows * columns, 3, 8, 8)


def test_padding_is_black_at_the_right_and_below() -> None:
    narrow, flat = (prepare.on_canvas(photo(*size), CANVAS).tiles[0] for size in ((8, 4), (4, 8)))
    black = prepare.normalized(np.zeros((1, 1, 3), np.uint8), CANVAS)
    assert (narrow[:, :, 4:] == black).all() and (flat[:, 4:] == black).all()
    assert not (narrow[:, :, :4] == black).all(axis=(0, 1)).any()


def test_the_last_tile_is_the_whole_image_resized() -> None:
    image = photo(16, 40)
    whole = Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR)
    found = prepare.tiled(image, TILES)
    assert len(found.tiles) == found.rows * found.columns + 1
    assert np.array_equal(found.tiles[-1], prepare.normalized(np.asarray(whole), TILES))


def test_bfloat16_is_rounded_at_every_step() -> None:
    import torch

    recipe = TILES.model_copy(update={"mean": (0.3, 0.4, 0.6), "std": (0.7, 0.3, 0.9)})
    image = photo(9, 9)
    exact = torch.from_numpy(image).permute(2, 0, 1).to(torch.bfloat16) * (1 / 255)
    mean, std = (
        torch.tensor(v).to(torch.bfloat16)[:, None, None] for v in (recipe.mean, recipe.std)
    )
    expected = ((exact - mean) / std).float().numpy()
    assert np.array_equal(prepare.normalized(image, recipe), expected)


def test_which_text_sees_which_image() -> None:
    """Text from an image on to the next; neighbours together; only tiles that are there."""
    two = CANVAS.model_copy(update={"max_tiles": 2})
    found = prepare.seen_by([[7, 90, 7, 90, 90, 7]], [[1, 2, 1]], two)
    assert found[0, :, 0].tolist() == [[0, 0], [1, 0], [1, 0], [0, 0], [0, 0], [0, 0]]
    assert found[0, :, 1].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]
    assert found[0, :, 2].tolist() == [[0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [1, 0]]
