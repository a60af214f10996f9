"""``python -m tests.field [NAME ...]``: others' code as oracles of `verify`; writes generated/reports/field.json.

Spec, generated PyTorch and reference may share an error; code that knows nothing of this house does not. Each witness
is installed at a pinned version into an environment of its own (bench/environments.py), in which `verify` compares an
export of a reduced model with it, case by case. Weights are random; sizes are small, all else is the released model's.

Tolerances are those of `verify` for a witness in float32: what float32 does to this model in the float64 reference,
times the square root of two, and for the largest error a factor for how many logits there are (docs/proof.md).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.environments import environment
from tests.clients.models import LLAMA_2, TextModel
from tests.field import browser, cuda, engines, providers
from tests.field.providers import PROVIDERS as ALL_PROVIDERS

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "generated" / "reports" / "field.json"
SEED = 5


@dataclass(frozen=True, slots=True)
class Routed:
    """The text of a Llama 4, its sizes reduced, with chunks and steps of the temperature that every case crosses."""

    id: str

    def spec(self, folder: Path) -> Path:
        path = folder / "reduced.yaml"
        path.write_text(
            f"spec: 1\nid: reduced/{self.id}\nextends: {self.id}\ntitle: reduced\ntokenizer: null\n"
            "graphs: {vision_encoder: null, embedding: null, decoder: null}\nconstants: {patch_token: null}\n"
            "hyperparameters: {vocab_size: 328, hidden_size: 64, num_layers: 8, num_heads: 8, num_kv_heads: 2,\n"
            "  head_dim: 8, max_positions: 16384, dense_intermediate_size: 80, num_experts: 4,\n"
            "  expert_intermediate_size: 48, shared_expert_intermediate_size: 48, attention_chunk_size: 5,\n"
            "  attention_temperature_floor: 3}\n",
            encoding="utf-8",
        )
        return path


Model = TextModel | Routed


@dataclass(frozen=True, slots=True)
class Witness:
    """An oracle of this folder, the packages whose versions count, and the models that it is an authority for."""

    oracle: str
    packages: tuple[str, ...]
    models: tuple[Model, ...]


GENERATIONS = (
    TextModel("llama/1/7b", LLAMA_2),
    TextModel("llama/2/70b", LLAMA_2),
    TextModel("llama/3/8b"),
    TextModel("llama/3.1/8b"),
)
SCALED = TextModel("llama/3.2/1b")
"""Its frequencies are scaled by 32."""
WITNESSES: Mapping[str, Witness] = {
    # its factor of scaled frequencies is 8, that of 3.2 is 32, for which it is no authority
    "meta": Witness("meta_model.py", ("llama-models", "fairscale", "torch"), GENERATIONS),
    "meta4": Witness(
        "meta4_model.py",
        ("llama-models", "fairscale", "torch"),
        (Routed("llama/4/scout"), Routed("llama/4/maverick")),
    ),
    "litgpt": Witness("litgpt_model.py", ("litgpt", "torch"), (GENERATIONS[1], SCALED)),
    "onnx": Witness("onnx_reference.py", ("onnx",), (GENERATIONS[1], SCALED)),
    "xllamacpp": Witness("llama_cpp.py", ("xllamacpp",), (*GENERATIONS, SCALED)),
}


Rows = Callable[[], dict[str, Any]]
PROVIDERS: Mapping[str, tuple[tuple[str, ...], Rows]] = {
    "cuda": (cuda.PACKAGES, cuda.rows),
    "vllm": (engines.PACKAGES, engines.rows),
    "browser": ((), browser.rows),
    **{name: (one.packages, partial(providers.rows, name)) for name, one in ALL_PROVIDERS.items()},
}
"""What is no oracle, but runs our folders: its packages of PyPI, and the rows of its record."""
GOOD = ("equal", "accepted")


def missing(name: str) -> str:
    """Why the environment of a witness cannot be made, or nothing."""
    if name == "browser":
        return browser.missing()
    if name in ALL_PROVIDERS and (why := providers.missing(name)):
        return why
    try:
        environment(name)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"{name} cannot be installed: {(said.strip().splitlines() or ['no reason'])[-1]}"
    return ""


def compared(name: str, model: Model) -> dict[str, Any]:
    """The model's row: cases, the worst of their errors, and how much of its bound that is."""
    witness, python = WITNESSES[name], str(environment(name))
    with tempfile.TemporaryDirectory(prefix="field-") as place:
        folder = Path(place)
        spec, out, report = model.spec(folder), folder / "out", folder / "report.json"
        export = ["export", str(spec), "--random-weights", str(SEED), "--out", str(out)]
        words = ["--against", str(Path(__file__).with_name(witness.oracle))]
        _llamagen(sys.executable, *export)
        _llamagen(python, "verify", str(out), *words, "--report", str(report))
        rows = json.loads(report.read_text())["comparisons"]
    of_witness = [row for row in rows if row["witness"] == witness.oracle]
    equal = [row for row in of_witness if row["verdict"] == "equal"]
    skipped = {
        row["case"]: row["note"].replace(f"{ROOT}/", "")
        for row in of_witness
        if row["verdict"] in ("skipped", "not compared")
    }
    differ = any(row["verdict"] == "different" for row in rows)
    parts = [row["error"]["rms_over_std"] / row["tolerance"]["rms_over_std"] for row in equal]
    return {
        "result": "equal" if equal and not differ else "different",
        "cases": len(equal),
        "logits": sum(row["logits"] for row in equal),
        "rms_over_std": max((row["error"]["rms_over_std"] for row in equal), default=None),
        "max_over_std": max((row["error"]["max_over_std"] for row in equal), default=None),
        "rms_of_bound": float(f"{max(parts, default=0.0):.2g}"),
        "not_compared": skipped,
    }


def _llamagen(python: str, *words: str) -> int:
    """The exit code: 0, or 1 for findings of `verify`. Raises RuntimeError with the messages of any other end."""
    done = subprocess.run(
        [python, "-m", "llamagen", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1) or "error[" in done.stderr:
        raise RuntimeError(f"{' '.join(words[:2])}: {done.stderr[-2000:]}")
    return done.returncode


def versions(name: str) -> dict[str, str]:
    if name == "browser":
        return browser.versions()
    code = "import sys, importlib.metadata as m; print(*(m.version(n) for n in sys.argv[1:]))"
    packages = PROVIDERS[name][0] if name in PROVIDERS else WITNESSES[name].packages
    words = [str(environment(name)), "-c", code, *packages]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return dict(zip(packages, done.stdout.split(), strict=True))


def record(name: str) -> dict[str, Any]:
    git = ("git", "-C", str(ROOT), "rev-parse", "HEAD")
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    rows: dict[str, Any] = PROVIDERS[name][1]() if name in PROVIDERS else {}
    for model in WITNESSES[name].models if name in WITNESSES else ():
        rows[model.id] = compared(name, model)
        print(f"{name}, {model.id}: {rows[model.id]['result']}", flush=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"commit": commit, "date": today, "versions": versions(name), "models": rows}


def save(found: Mapping[str, Any]) -> None:
    """Beside what is there of other witnesses."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps({**known, **found}, indent=2, sort_keys=True) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    known = [*WITNESSES, *PROVIDERS]
    parser = argparse.ArgumentParser(prog="python -m tests.field", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args(words).names or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no witness {unknown[0]!r}: {', '.join(known)}")
    failed = False
    for name in names:
        if why := missing(name):
            print(why, file=sys.stderr)
            failed = True
            continue
        found = record(name)
        save({name: found})
        failed |= any(row["result"] not in GOOD for row in found["models"].values())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
