"""``python -m tests.alarms``: how often `verify` calls a right export different, and how small a mistake it sees.

Writes generated/reports/alarms.json. Right exports are of random sizes, vocabularies, seeds, profiles and dtypes; each
is compared on fresh inputs by the rule that is in use. Mistakes are one number of the graph, wrong by a factor. What
was measured is kept in ``--resume FILE`` line by line, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from llamagen.api import load
from llamagen.emit.onnx.profile import CPU
from llamagen.emit.options import ExportOptions
from llamagen.verify.folder import Comparison, Plan, Subject, subject_of
from llamagen.verify.limits import (
    EXACT,
    Difference,
    Tolerance,
    between_float32,
    difference,
    largest_of,
    measured_tolerance,
)
from llamagen.verify.report import EXACTLY, Row
from llamagen.verify.scenarios import Scenario, Witness
from tests.reports import REPORTS

FILE = REPORTS / "alarms.json"
EXPORTS, INPUTS, TOKENS = 300, 10, 28
WIDE = 2
"""Exports of real widths: four layers of Llama 3.2 1B with a vocabulary of 8,192."""
FACTORS = tuple(10.0**-n for n in range(1, 10))


def spec(n: int) -> str:
    """Model ``n``: a Llama of its own sizes."""
    draw = random.Random(n)
    if n >= EXPORTS - WIDE:
        sizes: dict[str, Any] = {"num_layers": 4, "vocab_size": 8192}
    else:
        head, groups = draw.choice([8, 16, 32, 64]), draw.choice([1, 2, 4])
        heads = groups * draw.choice([1, 2])
        sizes = {
            "num_layers": draw.choice([1, 2, 3, 4]),
            "vocab_size": draw.choice([64, 256, 1024, 2048, 8192]),
            "hidden_size": draw.choice([32, 64, 128, 192]),
            "num_heads": heads,
            "num_kv_heads": groups,
            "head_dim": head,
            "intermediate_size": draw.choice([48, 96, 256, 512]),
            "max_positions": 512,
            "tie_embeddings": draw.random() < 0.5,
        }
    lines = (f"  {name}: {str(value).lower()}" for name, value in sizes.items())
    top = f"spec: 1\nid: alarms/m{n}\nextends: llama/3.2/1b\ntokenizer: null\n"
    free = (
        "invariants: {swiglu_width: null, heads_fill_the_width: null}\n"
        if n < EXPORTS - WIDE
        else ""
    )
    return f"{top}{free}hyperparameters:\n" + "\n".join(lines) + "\n"


def options(n: int) -> ExportOptions:
    draw = random.Random(1000 + n)
    return ExportOptions(
        profile=draw.choice(["portable", "ort-cpu"]),
        dtype=draw.choice(["float32", "float32", "bfloat16", "float16"]),
        logits="all",
    )


def exported(n: int, folder: Path) -> Subject:
    (folder / "spec.yaml").write_text(spec(n), encoding="utf-8")
    load(folder / "spec.yaml").export(folder / "out", options(n), random_weights=n)
    return subject_of(folder / "out", CPU)


def inputs(subject: Subject, seeds: Iterator[int] | range) -> Plan:
    vocabulary = next(iter(subject.graphs.values())).constants["vocab_size"]
    assert isinstance(vocabulary, int)
    cases = []
    for seed in seeds:
        ids = np.random.default_rng(seed).integers(0, vocabulary, (1, TOKENS), dtype=np.int64)
        cases.append(Scenario(f"seed {seed}", ids, np.ones_like(ids), (TOKENS,)))
    return Plan(("model",), tuple(cases))


def rows(subject: Subject, plan: Plan) -> list[Row]:
    comparison = Comparison(subject, plan, lambda what: None)
    return [*comparison.constants(), *comparison.rows("reference")]


def used(witness: str, away: Difference, bound: Tolerance) -> dict[str, Any]:
    """How much of its bounds a comparison takes."""
    most = None if bound.max_over_std is None else away.max_over_std / bound.max_over_std
    return {
        "witness": witness,
        "rms": away.rms_over_std / bound.rms_over_std,
        "max": most,
        "logits": away.count,
        "alarm": not away.within(bound) or not bound.tells,
    }


def measured(n: int) -> dict[str, Any]:
    """Each input is one comparison with a bound of its own; all of an export are evaluated at once."""
    with tempfile.TemporaryDirectory(prefix="alarms-") as folder:
        subject = exported(n, Path(folder))
        dtype = subject.stored.dtype
        ids = np.concatenate(
            [c.input_ids for c in inputs(subject, range(INPUTS * n, INPUTS * (n + 1))).cases]
        )
        case = Scenario("all", ids, np.ones_like(ids), (TOKENS,))
        comparison = Comparison(subject, Plan(("model",), (case,)), lambda what: None)
        list(comparison.constants())
        witnesses: dict[str, Witness] = {"reference": comparison.reference()}
        if n % 3 == 0:
            witnesses["torch"] = cast("Witness", comparison.witness("torch"))
        if n % 6 == 0 and comparison.exactly is not None:
            witnesses["exactly"] = comparison.exactly
        logits = {name: case.logits(witness) for name, witness in witnesses.items()}
        rounded, exact = case.logits(comparison.reference(dtype)), logits["reference"]
        found = []
        for i in range(INPUTS):
            own = slice(i * TOKENS, (i + 1) * TOKENS)
            rounding = difference(rounded[own], exact[own])
            bound = measured_tolerance(dtype, rounding)
            for name in witnesses:
                away = difference(comparison.given["all"][own], logits[name][own])
                allowed = bound if name == "reference" else between_float32(dtype, bound)
                if dtype == "float32":
                    allowed = largest_of(allowed, away.count, rounding)
                if name == "exactly":
                    away, allowed = difference(logits[name][own], exact[own]), EXACT
                found.append(used(name, away, allowed))
        return {"export": n, "dtype": dtype, "rows": found}


# Power: the smallest factor by which a number may be wrong and is seen


def wrong(model: onnx.ModelProto, mistake: str, factor: float) -> bool:
    """Make one number of one node wrong; whether there is such a number."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == mistake:
                attribute.f *= 1 + factor
                return True
    if mistake == "frequency":
        for table in model.graph.initializer:
            if table.name.endswith("inv_freq"):
                values = onnx.numpy_helper.to_array(table).copy()
                values[len(values) // 2] *= 1 + factor
                table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
                return True
    return False


def power(n: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="alarms-") as folder:
        subject = exported(n, Path(folder))
        file = subject.folder / "model.onnx"
        right = file.read_bytes()
        for mistake in ("epsilon", "scale", "frequency"):
            seen: dict[str, float | None] = {"run": None, "exactly": None}
            for factor in FACTORS:
                model = onnx.load_model_from_string(right)
                if not wrong(model, mistake, factor):
                    break
                file.write_bytes(model.SerializeToString())
                results = rows(subject, inputs(subject, range(1)))
                different = [row for row in results if row.verdict == "different"]
                if any(
                    row.witness != "spec" and not row.case.endswith(EXACTLY) for row in different
                ):
                    seen["run"] = factor
                if any(row.witness == "spec" or row.case.endswith(EXACTLY) for row in different):
                    seen["exactly"] = factor
                if not different:
                    break
            if any(seen.values()):
                found.append(
                    {"export": n, "dtype": subject.stored.dtype, "mistake": mistake, **seen}
                )
    return found


def summary(lines: list[dict[str, Any]], powers: list[dict[str, Any]]) -> dict[str, Any]:
    every = [(line["dtype"], row) for line in lines for row in line["rows"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for dtype, row in every:
        how = "exactly" if row["witness"] == "exactly" else f"{dtype}, {row['witness']}"
        groups.setdefault(how, []).append(row)
    runs = [row for how, of in groups.items() if how != "exactly" for row in of]
    return {
        "exports": len(lines),
        "comparisons": len(runs),
        "logits": sum(row["logits"] for row in runs),
        "alarms": sum(row["alarm"] for row in runs),
        "rate_below_with_95_percent": 3.0 / len(runs),
        "groups": {how: _group(of) for how, of in sorted(groups.items())},
        "power": {
            f"{dtype}, {mistake}": {
                how: _worst(
                    [p[how] for p in powers if (p["dtype"], p["mistake"]) == (dtype, mistake)]
                )
                for how in ("run", "exactly")
            }
            for dtype, mistake in sorted({(p["dtype"], p["mistake"]) for p in powers})
        },
    }


def _group(of: list[dict[str, Any]]) -> dict[str, Any]:
    rms = [row["rms"] for row in of]
    most = [row["max"] for row in of if row["max"] is not None]
    return {
        "comparisons": len(of),
        "alarms": sum(row["alarm"] for row in of),
        "rms_of_bound": _quantiles(rms),
        "max_of_bound": _quantiles(most) if most else None,
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    points = {"median": 0.5, "99 %": 0.99, "largest": 1.0}
    return {name: float(f"{np.quantile(values, q):.2g}") for name, q in points.items()}


def _worst(seen: list[float | None]) -> float | None:
    """The factor that was seen in every model; none where some model hid the largest."""
    known = [one for one in seen if one is not None]
    return max(known) if len(known) == len(seen) else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.alarms", description=__doc__)
    parser.add_argument("--resume", type=Path, default=None, metavar="FILE")
    parser.add_argument("--exports", type=int, default=EXPORTS)
    chosen = parser.parse_args()
    lines: list[dict[str, Any]] = []
    if chosen.resume is not None and chosen.resume.exists():
        lines = [json.loads(line) for line in chosen.resume.read_text().splitlines()]
    done = {line["export"] for line in lines}
    for n in range(chosen.exports):
        if n in done:
            continue
        lines.append(measured(n))
        if chosen.resume is not None:
            with chosen.resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
        alarms = sum(row["alarm"] for row in lines[-1]["rows"])
        print(f"{n + 1} of {chosen.exports}: {lines[-1]['dtype']}, {alarms} alarms", flush=True)
    powers = [one for n in range(6) for one in power(n)]
    text = json.dumps(summary(lines, powers), indent=2) + "\n"
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
