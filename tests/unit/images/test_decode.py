"""What a file of an image may be: modes, orientation, transparency; and what is refused before it does harm."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamagen.diagnostics import LlamagenError
from llamagen.images.decode import MAX_PIXELS, read_image
from tests.unit.images.pictures import photo, saved


def test_every_mode_becomes_three_colours(tmp_path: Path) -> None:
    colour = Image.fromarray(photo(20, 30))
    for mode, suffix in (("RGB", "png"), ("L", "png"), ("1", "png"), ("P", "gif"), ("CMYK", "tif")):
        image = colour.convert(mode)
        found = read_image(saved(tmp_path, f"{mode}.{suffix}", image))
        assert found.shape == (20, 30, 3) and found.dtype == np.uint8
        assert np.array_equal(found, np.asarray(image.convert("RGB"))), mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (10, 10, 10, 255))
    image.putpixel((0, 0), (10, 10, 10, 0))
    image.putpixel((1, 0), (10, 10, 10, 51))
    suffix = "tif" if mode == "PA" else "png"
    saved_as = image.convert("LA" if mode == "PA" else mode)
    found = read_image(saved(tmp_path, f"x.{suffix}", saved_as))
    assert found[0, :3].tolist() == [[255] * 3, [206] * 3, [10] * 3]


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    found = read_image(saved(tmp_path, "x.png", image, transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = photo(8, 16)
    found = read_image(saved(tmp_path, "x.png", Image.fromarray(pixels), exif=exif))
    turns = {1: lambda p: p, 2: np.fliplr, 3: lambda p: p[::-1, ::-1], 4: np.flipud}
    turns |= {5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1)}
    turns |= {7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: np.rot90}
    assert np.array_equal(found, turns[orientation](pixels))


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 3), level) for level in (7, 200)]
    path = saved(tmp_path, "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_image(path) == 7).all()


def png_of(width: int, height: int) -> bytes:
    """A header that claims this size, and almost nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_460, 20_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int, tmp_path: Path) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(side, side))
    assert refusal(path) == "LG781"


def refusal(path: Path) -> str:
    with pytest.raises(LlamagenError) as caught:
        read_image(path)
    (found,) = caught.value.diagnostics
    assert str(path) in found.message
    return found.code


def test_a_file_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        whole = saved(tmp_path, f"whole.{suffix}", Image.fromarray(photo(40, 40))).read_bytes()
        for share in (0.0, 0.01, 0.3, 0.7, 0.9):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(whole[: int(len(whole) * share)])
            assert refusal(path) == "LG780", (suffix, share)


@pytest.mark.parametrize("name", ["missing.png", "folder", "text.png", "deep.png", "float.tif"])
def test_what_is_no_image_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    match name:
        case "folder":
            path.mkdir()
        case "text.png":
            path.write_text("no image")
        case "deep.png":  # Pillow would cut its 16 bits off at 255
            Image.fromarray(np.full((4, 4), 5_000, np.uint16)).save(path)
        case "float.tif":
            Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    assert refusal(path) == "LG780"
