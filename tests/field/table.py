"""``python -m tests.field.table``: writes docs/providers.md from generated/reports/field.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.field.providers import PROVIDERS, ROOT

FILE = ROOT / "docs" / "providers.md"
FIELD = ROOT / "generated" / "reports" / "field.json"

HEAD = """\
# Where a folder runs

Written by `python -m tests.field.table` from [field.json](../generated/reports/field.json), which
`python -m tests.field NAME ...` makes: each build as it is published, in an environment of its own, on a machine
without a GPU. Models are reduced in size and random in weights; wirings, operators and dtypes are the released ones.
*Equal* is `verify --provider`: prompts, batches, padding, decoding, cut anywhere, each within the bound that float32
rounding sets for this model; the last column is the largest part of that bound that was taken.

The CPU provider of onnxruntime 1.32 is what all tests run. WebGPU is computed by SwiftShader, software that has no
float16. `openvino` is `verify --against openvino`, two readers of one graph: it has none of ONNX Runtime's own
operators (profiles ort-cpu and ort-cuda), no Scan that it can convert (experts), and reads the text graph alone.
llama.cpp: [verify.md](verify.md).
"""

BROWSER = """\
## In a browser: Chromium {chromium}, transformers.js {@huggingface/transformers}, {date}

The page of `export --web` (profile portable, float32) in headless Chromium, without a network, with onnxruntime-web
{onnxruntime-web}: *equal* are all tokens that it writes to those of `llamagen run`.

| model | on | codes | result | tokens |
|---|---|---|---|---|
"""

CUDA = """\
## CUDA: onnxruntime-gpu {onnxruntime-gpu}, onnxruntime-genai-cuda {onnxruntime-genai-cuda}, {date}

Over libraries that compute nothing ([cuda_stub.c](../tests/field/cuda_stub.c)): kernels are registered, chosen and
constructed, and check the inputs of their calls. **No number of a GPU is proven by this, nor speed.** Every model for
ort-cuda in float32, float16 and bfloat16, plain, int4 and int8. No graph needs cuDNN; on the CPU is what computes
sizes.

| model | graphs | opened, called | captured (`enable_cuda_graph=1`) | tensors copied in a call |
|---|---|---|---|---|
"""


def text() -> str:
    field = json.loads(FIELD.read_text())
    parts = [HEAD]
    for name in PROVIDERS:
        parts.append("\n".join(table(name, field[name])) + "\n")
    known = field["browser"]
    rows = (
        f"| {' | '.join(name.split())} | {row['result']} | {row['tokens']} |\n"
        for name, row in known["models"].items()
    )
    parts.append(BROWSER.format(date=known["date"], **known["versions"]) + "".join(rows))
    known = field["cuda"]
    parts.append(
        CUDA.format(date=known["date"], **known["versions"]) + "\n".join(cuda(known)) + "\n"
    )
    return "\n".join(parts)


def table(name: str, known: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    yield f"## `{name}`: {versions}, {known['date']}\n"
    yield "| model | profile | dtype | codes | result | cases | of the bound |\n|---|---|---|---|---|---|---|"
    for folder, row in known["models"].items():
        said = row["result"] if "reason" not in row else f"{row['result']}: {row['reason']}"
        yield f"| {' | '.join(folder.split())} | {said} | {row.get('cases', '')} | {row.get('rms_of_bound', '')} |"


def cuda(known: dict[str, Any]) -> Iterator[str]:
    for name, row in known["models"].items():
        graphs = row["graphs"]
        kept = sum(row.get("not_called", {}).values())
        called = (
            row["result"] if not kept else f"{row['result']}, {kept} not called: sizes are computed"
        )
        captured = graphs - sum(row.get("no_cuda_graph", {}).values())
        copied = row["copied_tensors"]
        yield f"| {name} | {graphs} | {called} | {captured} | {copied} |"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
