"""``python -m tests.field cpu-1.27 cpu-1.31 openvino webgpu``: what other builds and engines make of exported folders.

Each is installed into an environment of its own, in which `verify` runs the folder and compares it with the generated
PyTorch, or ONNX Runtime's CPU with the other engine, case by case. WebGPU computes on SwiftShader, the software Vulkan
that comes with Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.environments import environment
from llamagen import api
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from tests.clients.vllm_models import spec_of
from tests.parity.models import SPECS

ROOT = Path(__file__).resolve().parents[2]
CODES = {
    "none": NOT_QUANTIZED,
    "int4": QuantizeOptions("int4", 16, accuracy_level=1),
    "int8": QuantizeOptions("int8", 16, accuracy_level=1),
}
"""Products in float32: with int8 activations WebGPU and the CPU differ by what those cost."""


@dataclass(frozen=True, slots=True)
class Folder:
    model: str
    profile: Literal["portable", "ort-cpu", "ort-cuda", "ort-webgpu"]
    dtype: OnnxDType
    codes: str = "none"

    def __str__(self) -> str:
        return f"{self.model} {self.profile} {self.dtype} {self.codes}"


@dataclass(frozen=True, slots=True)
class Provider:
    """A build, and the oldest runtime that its folders are exported for."""

    packages: tuple[str, ...]
    asked: tuple[str, ...]
    """How `verify` compares: ONNX Runtime by a provider with torch, or on the CPU with another reader of the graph."""
    runtime: str
    folders: tuple[Folder, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


CPU = ("--provider", "cpu", "--against", "torch")
DENSE, IMAGES, EXPERTS = "llama-3.2-1b", "llama-3.2-11b-vision", "llama-4-scout"
RESIZED = "mixtral", "llama4_text", "mpt", "mistral", "gpt_oss"
"""Of others, in sizes that kernels of experts and of fused attention take."""
FUSED = (
    *(Folder(DENSE, "ort-cpu", "float32", codes) for codes in CODES),
    *(Folder(DENSE, "portable", dtype) for dtype in ("float32", "float16", "bfloat16")),
    *(Folder(model, "portable", "float32") for model in (IMAGES, EXPERTS, "mpt")),
)


def without_subgroups(settings: Mapping[str, str], place: Path) -> dict[str, str]:
    """The driver of ``settings`` without subgroups, as Apple and NVIDIA are attended on; built in ``place``."""
    driver = Path(settings["VK_ICD_FILENAMES"])
    library, described = place / "libvulkan_hiding.so", place / "hiding.json"
    source = Path(__file__).with_name("vulkan.c")
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    hiding = {"library_path": str(library), "api_version": "1.1.0"}
    described.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": hiding}))
    named = driver.parent / json.loads(driver.read_text())["ICD"]["library_path"]
    return {**settings, "VK_ICD_FILENAMES": str(described), "DRIVER": str(named)}


def software_vulkan() -> dict[str, str]:
    """Chromium's, which is no GPU. Empty without it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    places = [Path("/usr/lib/chromium"), *([Path(chromium).resolve().parent] if chromium else [])]
    for place in places:
        if (driver := place / "vk_swiftshader_icd.json").is_file():
            return {
                "VK_ICD_FILENAMES": str(driver),
                "LD_LIBRARY_PATH": str(place),
                "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
            }
    return {}


PROVIDERS: Mapping[str, Provider] = {
    "cpu-1.27": Provider(("onnxruntime",), CPU, "1.27", FUSED),
    "cpu-1.31": Provider(("onnxruntime",), CPU, "1.31", FUSED),
    # no operators of ONNX Runtime (FusedMatMul, GroupQueryAttention, QuickGelu), and no Scan, which experts are
    "openvino": Provider(
        ("openvino",),
        ("--against", "openvino"),
        "1.31",
        (
            *(Folder(DENSE, "portable", "float32", codes) for codes in CODES),
            *(Folder(DENSE, "portable", dtype) for dtype in ("float16", "bfloat16")),
            Folder(DENSE, "portable", "float16", "int4"),
            Folder(IMAGES, "portable", "float32"),
        ),
    ),
    "webgpu": Provider(
        ("onnxruntime", "onnxruntime-ep-webgpu"),
        ("--provider", "webgpu", "--against", "torch"),
        "1.31",
        (
            *(Folder(DENSE, "portable", "float32", codes) for codes in CODES),
            Folder(DENSE, "portable", "bfloat16"),
            *(Folder(DENSE, "ort-cuda", "float32", codes) for codes in CODES),
            *(Folder(model, "portable", "float32") for model in (IMAGES, EXPERTS)),
            *(Folder(model, "ort-cuda", "float32") for model in RESIZED[:2]),
            *(Folder(DENSE, "ort-webgpu", "float32", codes) for codes in CODES),
            *(
                Folder(model, "ort-webgpu", "float32")
                for model in ("mistral", "gpt_oss", "mixtral")
            ),
        ),
        software_vulkan(),
    ),
}


def missing(name: str) -> str:
    """Why a provider cannot be tried here, or nothing."""
    needs_vulkan = name == "webgpu" and not PROVIDERS[name].settings
    return "webgpu needs Chromium's vk_swiftshader_icd.json" if needs_vulkan else ""


def rows(name: str) -> dict[str, Any]:
    """A row a folder."""
    found = {}
    for folder in PROVIDERS[name].folders:
        found[str(folder)] = compared(name, folder)
        print(f"{name}, {folder}: {found[str(folder)]['result']}", flush=True)
    return found


def compared(name: str, folder: Folder) -> dict[str, Any]:
    provider = PROVIDERS[name]
    with tempfile.TemporaryDirectory(prefix="provider-") as place:
        out, report = Path(place) / "out", Path(place) / "report.json"
        options = ExportOptions(
            folder.profile,
            folder.dtype,
            max_context=64,
            quantize=CODES[folder.codes],
            runtime=provider.runtime,
        )
        spec = SPECS / "reduced" / f"{folder.model}.yaml"
        if folder.model in RESIZED:
            spec = spec_of(folder.model, Path(place))
        api.load(spec).export(out, options, random_weights=3)
        words = ["verify", str(out), *provider.asked]
        settings = provider.settings
        if folder.profile == "ort-webgpu":
            settings = without_subgroups(settings, Path(place))
            words += ["--prompt-tokens", "40"]  # its kernel for prompts begins at 32

        def said(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [environment(name), "-m", "llamagen", *words],
                env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )

        done = said(*words, "--report", str(report))
        if done.returncode not in (0, 1) or not report.is_file():
            reason = next(
                (line for line in done.stderr.splitlines() if line.startswith("error[")), "crashed"
            )
            return {"result": "refused", "reason": reason.replace(str(out), "DIR")[:300]}
        comparisons = json.loads(report.read_text())["comparisons"]
        # token by token, as `run` keeps its cache; near ties of two bytes may fall otherwise
        texts = [
            said("run", str(out), "--ids", "1,2,3,4,5", "--max-new-tokens", "12", "--provider", one)
            for one in dict.fromkeys(("cpu", provider.asked[1]))
            if provider.asked[0] == "--provider" and folder.dtype == "float32"
        ]
    equal = [
        row
        for row in comparisons
        if row["verdict"] == "equal" and row["witness"] == provider.asked[-1]
    ]
    ran = {(text.returncode, text.stdout) for text in texts}
    same = not ran or (len(ran) == 1 and ran.pop()[0] == 0)
    parts = [row["error"]["rms_over_std"] / row["tolerance"]["rms_over_std"] for row in equal]
    return {
        "result": "equal" if done.returncode == 0 and equal and same else "different",
        "cases": len(equal),
        "rms_of_bound": float(f"{max(parts, default=0.0):.2g}"),
        "not_compared": {
            row["case"]: row["note"] for row in comparisons if row["verdict"] == "skipped"
        },
    }
