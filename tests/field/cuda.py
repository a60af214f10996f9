"""``python -m tests.field cuda``: what the published CUDA provider says of every model for ort-cuda, without a GPU.

Reduced models of every generation and the foreign ones, in three dtypes, plain and in codes, are opened and called by
the real provider over libraries that compute nothing (cuda_stub.py): its kernels are registered, chosen, constructed,
and check the inputs of a prompt, a batch of them, tokens after them and a later prompt. What no kernel computed is not
proven: numbers are those of the CPU (tests/unit/onnx), speed is unknown.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.environments import environment
from llamagen import api
from llamagen.emit.onnx.profile import ONNX_DTYPES
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from tests.clients.vllm_models import spec_of
from tests.field.cuda_stub import build, site_of
from tests.parity.models import FOREIGN, SPECS

PACKAGES = ("onnxruntime-gpu", "onnxruntime-genai-cuda")
REDUCED = tuple(sorted(path.stem for path in (SPECS / "reduced").glob("*.yaml")))
EXPERTS = "deepseek_v3", "llama4_text", "mixtral", "olmoe", "qwen3_moe"
NAMES = (
    *(f"reduced/{name}" for name in REDUCED),
    *(f"foreign/{name}" for name in FOREIGN),
    *(f"resized/{name}" for name in EXPERTS),
)
"""Models with experts once more in sizes that the provider's kernels of experts take."""
CODES = {
    "none": NOT_QUANTIZED,
    "int4": QuantizeOptions("int4", embedding="none"),
    "int8": QuantizeOptions("int8", embedding="none"),
}


class Provider:
    """The probe in its environment; ``ask`` says what the provider thinks of a folder."""

    def __init__(self) -> None:
        python = environment("cuda")
        stub = build(site_of(python), python.parents[1] / "stub")
        self.child = subprocess.Popen(
            [python, str(Path(__file__).with_name("cuda_probe.py"))],
            env={**os.environ, "LD_LIBRARY_PATH": str(stub)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, folder: Path) -> dict[str, dict[str, Any]]:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(f"{folder}\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            raise RuntimeError(f"the provider crashed with {self.child.wait()}")
        found: dict[str, dict[str, Any]] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait()


def rows() -> dict[str, Any]:
    """A row a model for generated/reports/field.json."""
    provider = Provider()
    try:
        found = {}
        for name in NAMES:
            found[name] = summary(probed(provider, name))
            print(f"cuda, {name}: {found[name]['result']}", flush=True)
        return found
    finally:
        provider.close()


def probed(provider: Provider, name: str) -> dict[str, Any]:
    """Of one model: its folders by dtype and codes, and what is to be said of any of their graphs."""
    rows = {}
    resized = name.startswith("resized/")
    for dtype, (kind, codes) in product(ONNX_DTYPES, CODES.items()):
        with tempfile.TemporaryDirectory(prefix="cuda-") as place:
            out = Path(place) / "out"
            spec = spec_of(Path(name).name, Path(place)) if resized else SPECS / f"{name}.yaml"
            quantize = replace(codes, block_size=32 if resized else 16)
            options = ExportOptions("ort-cuda", dtype, max_context=64, quantize=quantize)
            api.load(spec, [SPECS]).export(out, options, random_weights=3)
            rows[f"{dtype} {kind}"] = provider.ask(out)
    return rows


def summary(rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Of all graphs of all folders of a model; of how many what is said."""
    graphs = [graph for folder in rows.values() for graph in folder.values()]
    refused = any("refused" in graph for graph in graphs)
    said: dict[str, Any] = {
        "result": "refused" if refused else "accepted",
        "graphs": len(graphs),
        "on_cpu": sorted({op for graph in graphs for op in graph.get("cpu", ())}),
        "copied_tensors": max(graph.get("copies", 0) for graph in graphs),
    }
    for what in ("refused", "not_called", "no_cuda_graph"):
        if reasons := Counter(graph[what] for graph in graphs if what in graph):
            said[what] = dict(reasons)
    return said
