"""A file to red, green and blue: upright, transparency on white, and nothing that is broken or absurd."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.diagnostics import LlamagenError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""As Pillow has it: an image of this size takes 256 MiB in memory, whatever the file takes."""

FORMATS = ("PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF")
"""All that is decoded, whatever the name of a file says: for others Pillow starts programs (Ghostscript for EPS)."""

_EIGHT_BITS = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of the first frame, turned as its EXIF data says.

    Raises LG780 for what cannot be read whole or has more than 8 bits a colour, LG781 for more than ``MAX_PIXELS``.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they are about is refused here
            with (
                files.open_file(path, files.IMAGE) as file,
                Image.open(file, formats=FORMATS) as image,
            ):
                _refuse(path, image)
                image.load()
                return as_rgb(image)
    except Image.DecompressionBombError as error:
        raise _too_large(path, "its header claims more than twice what is decoded") from error
    except UnidentifiedImageError as error:
        help = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} can be read"
        raise LlamagenError.of("LG780", f"{path} is not an image", help=help) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LlamagenError.of("LG780", f"{path} cannot be read: {reason}") from error
    except (ValueError, SyntaxError, EOFError) as error:  # what decoders raise for broken files
        raise LlamagenError.of("LG780", f"{path} is broken: {error}") from error


def as_rgb(image: Image) -> NDArray[np.uint8]:
    """The same for an image in memory, whose mode has at most 8 bits a colour."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if "A" in upright.getbands() or upright.info.get("transparency") is not None:
        over = upright.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, over)
    return np.asarray(upright.convert("RGB"))


def _refuse(path: Path, image: Image) -> None:
    """By the header, before any pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"it has {width:,} x {height:,} pixels")
    if image.mode not in _EIGHT_BITS:
        message = f"{path} has more than 8 bits a colour (mode {image.mode})"
        raise LlamagenError.of("LG780", message, help="convert it to 8 bits: its range is unknown")


def _too_large(path: Path, reason: str) -> LlamagenError:
    message = f"{path} is too large: {reason}"
    return LlamagenError.of("LG781", message, help=f"at most {MAX_PIXELS:,} pixels are decoded")
