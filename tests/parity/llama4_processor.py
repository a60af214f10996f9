"""What transformers' Llama4ImageProcessor makes of the images of a folder; run as a program, results in an .npz.

It runs in a process of its own, because torchvision there is a stand-in (tests/parity/torchvision_stand_in).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

STAND_IN = Path(__file__).with_name("torchvision_stand_in")


def main(folder: Path) -> None:
    sys.path.insert(0, str(STAND_IN))
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor
    from transformers.models.llama4.image_processing_llama4 import (
        find_supported_resolutions,
        get_best_fit,
        get_max_res_without_distortion,
    )
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    processor = AutoImageProcessor.from_pretrained(folder)
    found: dict[str, Any] = {}
    layouts: dict[str, str] = {}
    for file in sorted(folder.glob("*.png")):
        made = processor(Image.open(file), return_tensors="pt")
        found[file.stem] = made["pixel_values"].float().numpy()
        ratio = [int(n) for n in made["aspect_ratios"][0]]
        layouts[file.stem] = Llama4Processor._prompt_split_image(None, ratio, 9)
    side = processor.size.height
    grids = torch.tensor(find_supported_resolutions(processor.max_patches, processor.size))
    fits = []
    for size in np.load(folder / "sizes.npy").tolist():
        canvas = get_best_fit(size, grids)
        limits = [min(max(have, side), most) for have, most in zip(size, canvas, strict=True)]
        fitted = get_max_res_without_distortion(size, limits)
        fits.append([*(int(n) for n in canvas), *(max(int(n), 1) for n in fitted)])
    (folder / "layouts.json").write_text(json.dumps(layouts))
    np.savez(folder / "found.npz", fits=np.array(fits), **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
