"""A file to red, green and blue: upright, transparency on white, and nothing that is broken or absurd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.confined import Limits, Stopped, confined
from llamagen.diagnostics import LlamagenError

MAX_PIXELS = 89_478_485
"""As Pillow has it: an image of this size takes 256 MiB in memory, whatever the file takes."""

_SCRIPT = Path(__file__).with_name("decoder.py")
_LIMITS = Limits(seconds=30, memory=2 << 30, answer=3 * MAX_PIXELS + 100)
"""Of ``MAX_PIXELS`` a PNG with transparency takes 4 s, a WebP 1.4 GiB."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of the first frame, turned as its EXIF data says. A process of its own decodes it.

    Raises LG780 for what cannot be read whole or has more than 8 bits a colour, LG781 for more than ``MAX_PIXELS``,
    and for a file that takes more time or memory than any image of that size.
    """
    with files.open_file(path, files.IMAGE) as file:
        try:
            answer = confined(_SCRIPT, (str(MAX_PIXELS),), file, _LIMITS)
        except Stopped as error:
            raise _refused(path, error) from error
    start = answer.index(b"\n") + 1
    width, height = map(int, answer[:start].split())
    return np.frombuffer(answer, np.uint8, offset=start).reshape(height, width, 3)


def _refused(path: Path, error: Stopped) -> LlamagenError:
    match error.kind:
        case "TooLarge" | "limit":
            return _too_large(path, str(error))
        case "DecompressionBombError":
            return _too_large(path, "its header claims more than twice what is decoded")
        case "TooDeep":
            message = f"{path} has more than 8 bits a colour (mode {error})"
            help = "convert it to 8 bits: its range is unknown"
        case "UnidentifiedImageError":
            message = f"{path} is not an image"
            help = "PNG, JPEG, WebP, GIF, BMP and TIFF can be read"
        case _:  # what decoders raise for broken files
            return LlamagenError.of("LG780", f"{path} cannot be read: {error}")
    return LlamagenError.of("LG780", message, help=help)


def _too_large(path: Path, reason: str) -> LlamagenError:
    message = f"{path} is too large: {reason}"
    return LlamagenError.of("LG781", message, help=f"at most {MAX_PIXELS:,} pixels are decoded")
