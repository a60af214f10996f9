"""Preprocessing equal to transformers' processors.

Llama 3.2 Vision: its PIL backend, to the bit. Llama 4: transformers resizes with torch, whose fixed point has 15 bits
where Pillow's has 22, so a colour may differ by one level; all else is to the bit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.processing_mllama import (
    build_string_from_input,
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from llamagen.emit.config.table import config_files
from llamagen.images import prepare
from llamagen.images.prepare import with_places
from llamagen.images.recipe import CanvasRecipe, Recipe, TilesRecipe, recipe_of
from llamagen.spec.registry import Registry
from tests.unit.images.pictures import SIZES, photo

SIDE = 24


def recipe(spec_id: str) -> Recipe:
    found = recipe_of(Registry().load(spec_id).spec)
    assert found is not None
    return found.model_copy(update={"tile_size": SIDE})


@cache
def llama4() -> TilesRecipe:
    found = recipe("llama/4/scout")
    assert isinstance(found, TilesRecipe)
    return found.model_copy(update={"tokens_per_tile": 9})


@cache
def mllama() -> CanvasRecipe:
    found = recipe("llama/3.2/11b-vision-instruct")
    assert isinstance(found, CanvasRecipe)
    return found


def some_sizes(count: int) -> np.ndarray:
    generator = np.random.default_rng(5)
    drawn = np.exp(generator.uniform(0, 8, (count, 2))).astype(np.int64)
    edges = [(a, b) for a in (1, 23, 24, 25, 47, 48, 96, 384) for b in (1, 24, 48, 97, 384, 385)]
    return np.concatenate([drawn, np.array(edges)])


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and what Llama4ImageProcessor makes of them with the exported configuration."""
    folder = tmp_path_factory.mktemp("llama4")
    for name, text in config_files(Registry().load("llama/4/scout")).items():
        (folder / name).write_text(text)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["size"] = {"height": SIDE, "width": SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    for height, width in SIZES:
        Image.fromarray(photo(height, width)).save(folder / f"{height}x{width}.png")
    np.save(folder / "sizes.npy", some_sizes(300))
    program = Path(__file__).with_name("llama4_processor.py")
    subprocess.run([sys.executable, str(program), str(folder)], check=True)
    return folder


def test_tiles_equal_those_of_transformers(processed: Path) -> None:
    """At most one level of 255 apart (in bfloat16: 3/256), in few values, and nowhere without a resize."""
    theirs = np.load(processed / "found.npz")
    apart: list[float] = []
    for height, width in SIZES:
        ours = prepare.tiled(photo(height, width), llama4())
        expected = theirs[f"{height}x{width}"]
        assert ours.tiles.shape == expected.shape
        difference = np.abs(ours.tiles - expected)
        assert difference.max() <= 3 / 256, (height, width, difference.max())
        apart.append(float((difference > 0).mean()))
        unresized = prepare.fit(
            (height, width), (ours.rows * SIDE, ours.columns * SIDE), SIDE, float32=True
        )
        if unresized == (height, width):
            grid = slice(0, ours.rows * ours.columns)
            assert not difference[grid].any(), (height, width)
    assert max(apart) < 0.09 and np.mean(apart) < 0.015, apart


def test_grids_and_fits_equal_those_of_transformers(processed: Path) -> None:
    for size, expected in zip(
        some_sizes(300).tolist(), np.load(processed / "found.npz")["fits"].tolist(), strict=True
    ):
        rows, columns = prepare.grid_for((size[0], size[1]), llama4())
        grid = rows * SIDE, columns * SIDE
        assert [*grid, *prepare.fit((size[0], size[1]), grid, SIDE, float32=True)] == expected, size


def test_layouts_equal_those_of_transformers(processed: Path) -> None:
    r = llama4()
    ids = {
        "<|image_start|>": r.start_token,
        "<|image_end|>": r.end_token,
        "<|image|>": r.image_token,
        "<|patch|>": r.patch_token,
        "<|tile_x_separator|>": r.x_separator_token,
        "<|tile_y_separator|>": r.y_separator_token,
    }
    for name, text in json.loads((processed / "layouts.json").read_text()).items():
        height, width = map(int, name.split("x"))
        expected = tuple(ids[token] for token in re.findall(r"<\|\w+\|>", text))
        assert prepare.layout(prepare.tiled(photo(height, width), r), r) == expected


def test_canvases_equal_those_of_transformers() -> None:
    r = mllama()
    for height, width in some_sizes(300).tolist():
        wanted = tuple(map(int, get_optimal_tiled_canvas(height, width, r.max_tiles, SIDE)))
        rows, columns = prepare.canvas_for((height, width), r)
        assert (rows * SIDE, columns * SIDE) == wanted, (height, width)
        fitted = get_image_size_fit_to_canvas(height, width, *wanted, SIDE)
        assert prepare.fit((height, width), wanted, SIDE) == tuple(map(int, fitted))


def test_a_batch_equals_that_of_transformers(tmp_path: Path) -> None:
    """Rows of 5 and of 16 images, from the exported configuration: to the bit."""
    files = config_files(Registry().load("llama/3.2/11b-vision-instruct"))
    (tmp_path / "preprocessor_config.json").write_text(files["preprocessor_config.json"])
    processor = AutoImageProcessor.from_pretrained(tmp_path, size={"height": SIDE, "width": SIDE})
    assert isinstance(processor, MllamaImageProcessorPil)
    rows = [[photo(*size) for size in sizes] for sizes in (SIZES[:5], SIZES[5:])]
    expected = processor([[Image.fromarray(i) for i in row] for row in rows], return_tensors="np")
    images = [[prepare.on_canvas(image, mllama()) for image in row] for row in rows]
    found = prepare.packed(images, mllama())
    assert np.array_equal(found.pixel_values, expected["pixel_values"])
    assert np.array_equal(found.aspect_ratio_ids, expected["aspect_ratio_ids"])
    assert np.array_equal(found.aspect_ratio_mask, expected["aspect_ratio_mask"])
    assert [[len(i.tiles) for i in row] for row in images] == expected["num_tiles"]


def test_masks_of_text_equal_those_of_transformers() -> None:
    r = mllama()
    generator = np.random.default_rng(3)
    for _ in range(200):
        ids = np.where(generator.random((2, 9)) < 0.4, r.image_token, 7)
        ids[:, 0] = r.image_token
        counts = [generator.integers(1, 5, (row == r.image_token).sum()).tolist() for row in ids]
        expected = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(row.tolist(), r.image_token) for row in ids],
            num_tiles=counts,
            max_num_tiles=r.max_tiles,
            length=9,
        )
        assert np.array_equal(prepare.seen_by(ids.tolist(), counts, r), expected)


def test_images_that_begin_a_text_stand_before_its_first_token() -> None:
    r = mllama()
    for text, ids in (("II12", (0, 9, 9, 1, 2)), ("1I2I", (0, 1, 9, 2, 9)), ("I", (0, 9))):
        built = build_string_from_input(text, "0", "I")
        expected = tuple({"I": r.image_token, "0": r.bos_token}.get(c) or int(c) for c in built)
        named = {9: r.image_token, 0: r.bos_token}
        encoded = tuple(named.get(i, i) for i in ids)
        assert with_places(encoded, text.count("I"), r, encoded=True) == expected
