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
import json, sys
from llamagen.cli import main
code = main(json.loads(sys.argv[1]))
heavy = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
print(json.dumps({"code": code, "heavy": heavy}), file=sys.stderr)
"""

BUDGET_CALLS = 700_000
"""Calls of Python functions: what 0.4 s of process time are on the machine that this was set on. Seconds would be those
of the machine and of what else it does."""

SHIPPED = len([*(REPOSITORY / "spec").glob("*/*/[!_]*.yaml")])
MANY_GRAPHS = {
    "check all": 0.043 * SHIPPED,
    "diff of different families": 2.7,
    "diff with images": 1.25,
}
"""Commands that build every shipped spec, or two models once for each value in which they differ, and how much more
they may do."""

_COUNT = """
import json, sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
from llamagen.cli import main
main(json.loads(sys.argv[1]))
sys.setprofile(None)
print(calls, file=sys.stderr)
"""


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
def test_readers_do_little(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, json.dumps(READERS[name])],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.defpath},
    )
    calls = int(done.stderr.strip().split("\n")[-1])
    assert calls <= BUDGET_CALLS * MANY_GRAPHS.get(name, 1.0)
