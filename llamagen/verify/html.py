"""A verification report as one page: no scripts, nothing loaded from elsewhere, every text escaped.

The page is a function of the JSON document, so that the two cannot tell different stories.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

from llamagen.resources import templates
from llamagen.verify.document import (
    CaseDocument,
    ComparisonDocument,
    ErrorDocument,
    LayerDocument,
    LayersDocument,
    LimitDocument,
    ReportDocument,
    ToleranceDocument,
)
from llamagen.verify.numerics import TELLS_NOTHING

WITNESS_WORDS = {
    "torch": "the PyTorch module that llamagen generates, run with the folder's weights in float32",
    "reference": "a float64 interpreter in numpy, written from the formulas; shares no code with a backend",
    "transformers": "transformers' own model of the folder's config.json, in float32 with eager attention",
}
_FLOOR = 1e-9
"""Errors below are drawn as nothing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A number and how much of its bar is filled, in percent of a logarithmic axis."""

    text: str
    percent: int


@dataclass(frozen=True, slots=True)
class CaseView:
    name: str
    shape: str
    padding: str
    calls: str
    positions: str
    meaning: str


@dataclass(frozen=True, slots=True)
class ComparisonView:
    witness: str
    case: str
    verdict: str
    max: str
    rms: str
    tolerance: str
    rule: str
    used: Bar
    """The error as a share of its tolerance."""


@dataclass(frozen=True, slots=True)
class LayerView:
    path: str
    onnx: Bar | None
    torch: Bar | None


@dataclass(frozen=True, slots=True)
class LayersView:
    case: str
    basis: str
    axis: str
    onnx: bool
    torch: bool
    rows: tuple[LayerView, ...]


@dataclass(frozen=True, slots=True)
class PageView:
    document: ReportDocument
    verdict: str
    sentence: str
    witnesses: tuple[tuple[str, str], ...]
    cases: tuple[CaseView, ...]
    comparisons: tuple[ComparisonView, ...]
    layers: tuple[LayersView, ...]
    measured: bool
    tells: float
    """The widest bound that is called equal."""
    reference: bool
    parameters: str
    tokens: str
    tied: str
    limits: tuple[str, ...]


def page_of(found: ReportDocument) -> PageView:
    """Everything the template places."""
    names = tuple(dict.fromkeys(c.witness for c in found.comparisons))
    compared = [c for c in found.comparisons if c.verdict != "skipped"]
    different = [c for c in compared if c.verdict == "different"]
    verdict = "equal" if found.passed else "different" if different else "not compared"
    return PageView(
        document=found,
        verdict=verdict,
        sentence=_sentence(len(compared), len(different), len(found.comparisons)),
        tells=TELLS_NOTHING,
        witnesses=tuple((name, WITNESS_WORDS[name]) for name in names),
        cases=tuple(map(_case, found.cases)),
        comparisons=tuple(map(_comparison, found.comparisons)),
        layers=tuple(map(_layers, found.layers)),
        measured=any(c.tolerance and c.tolerance.rule == "measured" for c in found.comparisons),
        reference="reference" in names,
        parameters=f"{found.parameters:,}",
        tokens=f"{found.tokens:,}",
        tied=", ".join(found.tied) or "none",
        limits=tuple(map(_limit, found.limits)),
    )


def html_text(found: ReportDocument) -> str:
    """One self-contained page. Deterministic."""
    return templates("docs", html=True).get_template("verify.html.j2").render(page=page_of(found))


def _sentence(compared: int, different: int, rows: int) -> str:
    if compared == 0:
        return "Nothing could be compared."
    skipped = rows - compared
    more = f" {skipped} more {'was' if skipped == 1 else 'were'} skipped." if skipped else ""
    if different == 0:
        if compared == 1:
            return f"The comparison is within its tolerance.{more}"
        return f"All {compared} comparisons are within their tolerances.{more}"
    return f"{different} of {compared} comparisons are beyond their tolerances.{more}"


def _case(case: CaseDocument) -> CaseView:
    padding = ", ".join(map(str, case.padding)) if any(case.padding) else "none"
    return CaseView(
        name=case.name,
        shape=f"{case.rows} × {sum(case.calls)}",
        padding=padding,
        calls=_calls(case.calls),
        positions=f"{case.first_position:,} … {case.last_position:,}",
        meaning=f"the logits of “{case.same_as}”" if case.same_as else "its own",
    )


def _limit(found: LimitDocument) -> str:
    verb = "crossed" if found.crossed else "not crossed"
    unit = "positions" if found.kind == "original context of rope" else "slots"
    return f"{found.kind} of {found.size:,}: {verb}, inputs reach {found.reached:,} {unit}"


def _calls(lengths: tuple[int, ...]) -> str:
    """``12 + 16 × 1``."""
    words: list[str] = []
    run: list[int] = []
    for length in (*lengths, 0):
        if run and length != run[0]:
            words.append(f"{len(run)} × {run[0]}" if len(run) > 1 else f"{run[0]}")
            run = []
        run.append(length)
    return " + ".join(words)


def _comparison(found: ComparisonDocument) -> ComparisonView:
    error, bound = found.error, found.tolerance
    if error is None or bound is None:
        empty = Bar("", 0)
        return ComparisonView(
            found.witness, found.case, found.verdict, "", "", found.note, "", empty
        )
    share = _share(error, bound)
    return ComparisonView(
        found.witness,
        found.case,
        found.verdict,
        f"{error.max_over_std:.1e}",
        f"{error.rms_over_std:.1e}",
        _bound(bound),
        "; ".join(filter(None, (bound.rule, found.note))),
        Bar(f"{share:.0%}", min(100, round(100 * share))),
    )


def _share(error: ErrorDocument, bound: ToleranceDocument) -> float:
    """The larger of the two errors, each over its tolerance."""
    rms = error.rms_over_std / bound.rms_over_std
    most = bound.max_over_std
    return rms if most is None else max(rms, error.max_over_std / most)


def _bound(bound: ToleranceDocument) -> str:
    rms = f"rms {bound.rms_over_std:.1e}"
    return rms if bound.max_over_std is None else f"max {bound.max_over_std:.1e}, {rms}"


def _layers(found: LayersDocument) -> LayersView:
    errors = [e.rms_over_std for row in found.layers for e in (row.onnx, row.torch) if e]
    low, high = _axis(errors)
    rows = tuple(
        LayerView(_name(row), _bar(row.onnx, low, high), _bar(row.torch, low, high))
        for row in found.layers
    )
    return LayersView(
        found.case,
        found.basis,
        f"1e{low:+03d} to 1e{high:+03d}",
        any(row.onnx for row in found.layers),
        any(row.torch for row in found.layers),
        rows,
    )


def _name(row: LayerDocument) -> str:
    return row.path if row.graph == "model" else f"{row.graph}: {row.path}"


def _axis(errors: Iterable[float]) -> tuple[int, int]:
    """Decades that hold all errors."""
    logs = [log10(e) for e in errors if e > _FLOOR]
    if not logs:
        return -9, -8
    low = floor(min(logs))
    return low, max(ceil(max(logs)), low + 1)


def _bar(error: ErrorDocument | None, low: int, high: int) -> Bar | None:
    if error is None:
        return None
    rms = error.rms_over_std
    share = (log10(rms) - low) / (high - low) if rms > _FLOOR else 0.0
    return Bar(f"{rms:.1e}", round(100 * min(max(share, 0.02), 1.0)))
