"""``python -m tests.field browser``: the page of `export --web` in headless Chromium writes what `run` writes.

A reduced model with random weights, on WebAssembly and on WebGPU, which is Chromium's own SwiftShader here.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, Literal

from llamagen.emit.clients.web import PACKAGES
from llamagen.emit.options import ExportOptions, QuantizeOptions
from tests.clients.browser import SOFTWARE_GPU, page_of
from tests.clients.models import TextModel
from tests.clients.test_page import INT4, answered, exported, of_run

MODEL = TextModel("llama/3.2/1b")
DEVICES = {"wasm": (), "webgpu": SOFTWARE_GPU}
CODES = {"none": QuantizeOptions(), "int4": INT4}
PROFILES: tuple[Literal["portable", "ort-webgpu"], ...] = ("portable", "ort-webgpu")
ROWS = tuple(
    f"{MODEL.id} {device} {profile} {codes}"
    for device in DEVICES
    for profile in PROFILES
    for codes in CODES
)


def missing() -> str:
    """Why there can be no rows, or nothing."""
    lacking = [name for name in ("chromium", "npm") if shutil.which(name) is None]
    return f"{', '.join(lacking)} not installed" if lacking else ""


def versions() -> dict[str, str]:
    said = subprocess.run(["chromium", "--version"], check=True, capture_output=True, text=True)
    words = said.stdout.split()
    number = next(word for word in words if word[0].isdigit())
    return {"chromium": number, **{one.name: one.version for one in PACKAGES}}


def rows() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="field-browser-") as name:
        place = Path(name)
        checkpoint = MODEL.checkpoint(place)
        found: dict[str, Any] = {}
        for (codes, quantize), profile in product(CODES.items(), PROFILES):
            options = ExportOptions(profile, web=True, quantize=quantize)
            out = exported(checkpoint, place / f"{profile}-{codes}", options)
            for device, flags in DEVICES.items():
                with page_of(out, flags) as page:
                    said = answered(page, f"?device={device}", some=4)
                    shown = page.value("document.getElementById('device').textContent")
                there = ("WebGPU" in shown) == (device == "webgpu")
                same = bool(said) and said == of_run(out, len(said))
                row = f"{MODEL.id} {device} {profile} {codes}"
                result = "equal" if same and there else "different"
                found[row] = {"result": result, "tokens": len(said)}
                print(f"browser, {row}: {result}", flush=True)
        return found
