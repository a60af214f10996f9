"""``python -m tests.graph_mutants [NAME ...]``: what `verify --mutants` catches of a model of every generation.

The models are tests/specs/reduced with the limits that were released: chunks, floors and original contexts of 8,192.
Writes generated/reports/mutants.json; names of models that are given are measured again, the others stay.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamagen.api import load
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.options import ExportOptions
from llamagen.verify.mutants import mutate
from tests.reports import REPORTS, WEIGHTS

SPECS = Path(__file__).resolve().parent / "specs"
FILE = REPORTS / "mutants.json"
MOST = 40
HOW: tuple[tuple[str, OnnxDType], ...] = (
    ("portable", "float32"),
    ("portable", "bfloat16"),
    ("ort-cpu", "float32"),
)
"""Profiles and dtypes."""

_ROPE = "rope: {original_max_positions: 8192}, max_positions: 16384"
_LLAMA_4 = "attention_chunk_size: 8192, attention_temperature_floor: 8192, max_positions: 16384, head_dim: 16"
RELEASED = {
    "llama-1-7b": "",
    "llama-2-70b": "",
    "llama-3-8b": "",
    "llama-3.1-8b": _ROPE,
    "llama-3.2-1b": _ROPE,
    "llama-4-scout": _LLAMA_4,
    "llama-4-maverick": _LLAMA_4,
}
"""Reduced models, and which of their hyperparameters are those of the release."""


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for profile, dtype in HOW:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            here = Path(folder)
            text = f"spec: 1\nid: released\nextends: reduced/{name}\n"
            if RELEASED[name]:
                text += f"hyperparameters: {{{RELEASED[name]}}}\n"
            (here / "released.yaml").write_text(text, encoding="utf-8")
            model = load("released", roots=(SPECS, here))
            model.export(
                here / "out", ExportOptions(profile=profile, dtype=dtype), random_weights=WEIGHTS
            )
            mutation = mutate(here / "out", most=MOST)
            found[f"{profile}, {dtype}"] = {
                "possible": mutation.possible,
                "tried": mutation.tried,
                "caught": mutation.killed,
                "by": dict(mutation.caught),
                "survivors": list(mutation.survivors),
            }
            print(f"{name}, {profile}, {dtype}: {mutation.killed} of {mutation.tried}", flush=True)
    return found


def main(chosen: Sequence[str]) -> int:
    report = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in chosen or RELEASED:
        report[name] = measured(name)
        FILE.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
