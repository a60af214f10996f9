"""An exported model that reads images, and two of these, for `prepare.py` of the cases."""

from __future__ import annotations

import numpy as np
from PIL import Image

from llamagen import api


def exported(spec: str = "seeing.yaml") -> None:
    api.load(spec).export("out", random_weights=7)
    y, x = np.mgrid[0:40, 0:60]
    cat = np.stack([4 * x, 6 * y, (x * y) % 256], -1).astype(np.uint8)
    Image.fromarray(cat).save("cat.png")
    Image.fromarray(cat[:20, :20]).save("dot.png")
