"""``python -m tests.field.table``: docs/providers.md from generated/reports/field.json; prints the table of README."""

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
rounding sets for this model; the last column is the largest part of that bound that was taken. Of folders in float32
`run --provider` writes the tokens that it writes on the CPU, too.

The CPU provider of onnxruntime 1.32 is what all tests run. WebGPU is computed by SwiftShader, software that has no
float16; the operator of experts (MoE) is the CPU's there. Folders of `ort-webgpu` are computed with prompts of 40
tokens and over a driver that hides its subgroups ([vulkan.c](../tests/field/vulkan.c)), as on Apple's and NVIDIA's
devices: with them the kernel of attention is wrong, which `run` and `verify` refuse (LG727). By hand, on 2026-12-01:
llama-3.2-1b in float16, plain and int4, equal on lavapipe of Mesa 25. `openvino` is `verify --against openvino`, two
readers of one graph: it has none of ONNX Runtime's own operators (profiles ort-cpu, ort-cuda and ort-webgpu), no Scan
that it can convert (experts), and reads the text graph alone.
llama.cpp: [verify.md](verify.md).
"""

BROWSER = """\
## In a browser: Chromium {chromium}, transformers.js {@huggingface/transformers}, {date}

The page of `export --web` (float32) in headless Chromium, without a network, with onnxruntime-web
{onnxruntime-web}: *equal* are all tokens that it writes to those of `llamagen run`.

| model | on | profile | codes | result | tokens |
|---|---|---|---|---|---|
"""

CUDA = """\
## CUDA: onnxruntime-gpu {onnxruntime-gpu}, onnxruntime-genai-cuda {onnxruntime-genai-cuda}, {date}

Over libraries that compute nothing ([cuda_stub.c](../tests/field/cuda_stub.c)): kernels are registered, chosen and
constructed, and check the inputs of their calls. **No number of a GPU is proven by this, nor speed.** Every model for
ort-cuda in float32, float16 and bfloat16, plain, int4 and int8. No graph needs cuDNN; on the CPU is what computes
sizes. Experts are one operator in sizes that the provider's kernels take (`resized`), but in codes with float32, for
which it has no kernel. Elsewhere they are a Scan whose sizes are computed: opened, not called over such libraries, and
no graph to be captured.

| model | graphs | opened, called | captured (`enable_cuda_graph=1`) | tensors copied in a call |
|---|---|---|---|---|
"""

ENGINES = """\
## Engines of others: every spec, {date}

Folders of `export --format transformers --custom-code` with random weights, in sizes that vLLM's kernels for a CPU
take (`python -m tests.field vllm`): {versions}. In brackets the largest distance of a logit, or of a token's log
probability, in standard deviations; equal is what float32 does to this model in the float64 reference, and for
`parallel.py`, which is run in float64, 1e-12. A dash: the engine cannot, for the reason below the table.

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
    parts.append("\n".join(engines(field["vllm"])) + "\n")
    return "\n".join(parts)


def summary() -> str:
    """The table of README: each engine, on how many specs it is equal, and why not on the others."""
    known = json.loads(FIELD.read_text())["vllm"]["models"]
    lines = ["| engine | equal | it cannot |", "|---|---|---|"]
    for column in next(iter(known.values()))["engines"]:
        cells = {name: row["engines"][column] for name, row in known.items()}
        equal = sum(cell.startswith("equal") for cell in cells.values())
        why: dict[str, list[str]] = {}
        for name, cell in cells.items():
            if not cell.startswith("equal"):
                reason = cell.partition(": ")[2].partition("; ")[0]
                why.setdefault(_short(reason), []).append(name)
        said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in why.items())
        lines.append(f"| {column} | {equal} of {len(cells)} | {said} |")
    return "\n".join(lines)


def _short(reason: str) -> str:
    """What is said of a degree, or of an engine, without the words that the row has."""
    for before, after in (("cannot express ", " as custom code"), (": ", "")):
        if before in reason:
            return reason.partition(before)[2].partition(after or "\n")[0]
    return reason


def engines(known: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    yield ENGINES.format(date=known["date"], versions=versions).rstrip() + "\n"
    columns = list(next(iter(known["models"].values()))["engines"])
    yield f"| spec | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    why: dict[str, list[str]] = {}
    for name, row in known["models"].items():
        cells = []
        for column, cell in row["engines"].items():
            equal = cell.startswith("equal")
            cells.append(f"{cell.replace(', ', ' (')})" if equal else "-")
            if not equal:
                why.setdefault(f"{column}: {cell.partition(': ')[2]}", []).append(name)
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    for reason, names in why.items():
        yield f"- {reason}: {', '.join(names)}"


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
    print(summary())
