"""Decodes an image; run by ``confined``, which limits what it may take.

Pixels are told in strips, so that no second copy of a large image is made in another mode.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence

# These formats and no others: Pillow would hand PostScript to Ghostscript, whatever the name of the file.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

FORMATS = (
    PngImagePlugin.PngImageFile.format,
    JpegImagePlugin.JpegImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    GifImagePlugin.GifImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
)

_EIGHT_BITS = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
_STRIP = 1 << 20
"""Pixels."""


class TooLarge(Exception):
    """The text is a reason."""


class TooDeep(Exception):
    """The text is the mode."""


def answer(arguments: Sequence[str]) -> Iterator[bytes]:
    """A line with width and height, then the pixels as RGB; ``arguments`` are the most pixels."""
    (most,) = map(int, arguments)
    warnings.simplefilter("ignore")  # what they are about is refused here
    with Image.open(sys.stdin.buffer, formats=FORMATS) as image:
        width, height = image.size
        if width * height > most:
            raise TooLarge(f"it has {width:,} x {height:,} pixels")
        if image.mode not in _EIGHT_BITS:
            raise TooDeep(image.mode)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        width, height = image.size
        yield f"{width} {height}\n".encode()
        rows = max(1, _STRIP // width)
        for top in range(0, height, rows):
            strip = image.crop((0, top, width, min(height, top + rows)))
            yield as_rgb(strip).tobytes()


def as_rgb(image: Image.Image) -> Image.Image:
    """Three colours, transparency on white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over)
    return image.convert("RGB")
