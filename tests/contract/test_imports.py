"""Commands that read import nothing heavy, and answer quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = str(REPOSITORY / "tests/cases/common/tiny.yaml")

HEAVY = frozenset(
    {
        "jinja2",
        "ml_dtypes",
        "networkx",
        "numpy",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "rich",
        "safetensors",
        "tokenizers",
        "torch",
        "transformers",
    }
)

READERS = {
    "help": ["--help"],
    "check one": ["check", "llama/3.2/1b"],
    "check all": ["check"],
    "list": ["list"],
    "show": ["show", "llama/3.2/1b"],
    "resolve": ["resolve", "llama/3.2/1b"],
    "resolve origins": ["resolve", "llama/3.2/1b", "--origins"],
    "explain value": ["explain", "llama/3.2/1b", "rope.theta"],
    "explain code": ["explain", "LG021"],
    "explain op": ["explain", "attention"],
    "graph": ["graph", "llama/3.2/1b"],
    "mermaid": ["graph", "llama/3.2/1b", "--as", "mermaid"],
    "diff": ["diff", "llama/2/7b", "llama/3/8b"],
    "diff of different families": ["diff", "llama/3.1/70b", "llama/4/scout"],
    "diff with images": ["diff", "llama/3.1/8b", "llama/3.2/11b-vision"],
    "compat": ["compat", "llama/2/7b", "llama/3/8b"],
    "cost": ["cost", "llama/4/scout", "--images", "5"],
    "query": ["query", "num_kv_heads < num_heads", "--sort", "-params", "--first", "3"],
    "timeline": ["timeline", "rope_theta"],
    "sql": ["sql", "select * from models"],
    "sql over layers": ["sql", "select count(*) from layers"],
    "plot": ["plot"],
    "explorer": ["graph", "llama/4/scout", "--as", "explorer"],
    "fmt": ["fmt", "--check", TINY],
    "schema": ["schema"],
}

_CODE = """
import json, resource, sys
from llamagen.cli import main
code = main(json.loads(sys.argv[1]))
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
print(json.dumps({"code": code, "heavy": heavy, "seconds": usage.ru_utime + usage.ru_stime}), file=sys.stderr)
"""

BUDGET_SECONDS = 0.4
"""Of process time, user and system."""

ALL_SPECS = {"check all": 2.0, "explain value": 1.25}
"""Commands that resolve or build every shipped spec, and how much longer they may take."""

_BASELINE = """
import resource, typer, pydantic, yaml
class Model(pydantic.BaseModel): field: int
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime)
"""
_BASELINE_SECONDS = 0.16
"""What the libraries alone take on the machine that the budget was set on, when it is idle."""


def _slowness() -> float:
    """How much slower this machine is at this moment; at least 1."""
    done = subprocess.run(
        [sys.executable, "-c", _BASELINE], capture_output=True, text=True, check=True
    )
    return max(1.0, float(done.stdout) / _BASELINE_SECONDS)


def _measure(arguments: list[str]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(arguments), json.dumps(sorted(HEAVY))],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.defpath},
    )
    found: dict[str, object] = json.loads(done.stderr.strip().split("\n")[-1])
    return found


@pytest.mark.parametrize("name", READERS)
def test_readers_import_nothing_heavy(name: str) -> None:
    found = _measure(READERS[name])
    assert found["heavy"] == []
    assert found["code"] in (0, 1)


def test_the_probe_sees_heavy_modules() -> None:
    arguments = ["generate", TINY, "--target", "onnx", "--to", os.devnull + "/x", "--check"]
    assert "onnx_ir" in str(_measure(arguments)["heavy"])


@pytest.mark.parametrize("name", READERS)
def test_readers_answer_quickly(name: str) -> None:
    """The best of several runs: the machine may be busy, but a slow command is slow every time."""
    budget = BUDGET_SECONDS * ALL_SPECS.get(name, 1.0)
    best = float("inf")
    for _ in range(12):
        seconds = float(str(_measure(READERS[name])["seconds"]))
        best = min(best, seconds / _slowness())
        if best <= budget:
            return
    pytest.fail(f"{best:.2f} s of process time, {budget:.2f} s are allowed")
