"""Pictures made by Pillow: smooth, noisy, odd sizes, every mode, and broken files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = (
    (1, 1), (1, 2), (2, 1), (3, 50), (50, 3), (7, 900), (900, 7), (24, 24), (23, 25), (25, 23), (24, 48),
    (48, 24), (96, 96), (97, 95), (31, 77), (77, 31), (100, 80), (80, 100), (120, 37), (333, 517), (640, 480),
)  # fmt: skip
"""Height and width; tiles of the tests have 24 pixels."""


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Waves and slopes under noise: neither flat nor white."""
    generator = np.random.default_rng((seed, height, width))
    y, x = np.mgrid[0:height, 0:width]
    waves = 128 + 100 * np.sin(x / 17 + y / 31)
    slopes = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    noisy = np.stack([waves, *slopes], -1) + generator.normal(0, 20, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path
