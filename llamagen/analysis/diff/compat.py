"""Whether B runs A's weights, and what a runtime does with B: `compat`, as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from llamagen.analysis.diff.judge import Change, Surface, Verdict, diff
from llamagen.analysis.diff.render import arrow, where
from llamagen.analysis.diff.runtimes import RuntimeReport, on_runtimes, runtimes
from llamagen.analysis.diff.weights import DOC, Transform
from llamagen.analysis.numbers import storage
from llamagen.analysis.targets import Model
from llamagen.ir.elaborate import build_all


@dataclass(frozen=True, slots=True)
class CompatReport:
    """Whether a checkpoint of A works in B's graph."""

    before: str
    after: str
    weights: Verdict
    numerics: Verdict
    transforms: tuple[Transform, ...]
    blocking: tuple[Change, ...]
    """Changes of weights or numerics that no conversion makes up for."""
    runtimes: tuple[RuntimeReport, ...]

    @property
    def verdict(self) -> Verdict:
        """Same or compatible: load and run; convertible: after ``transforms``; breaking: not at all."""
        return max((self.weights, self.numerics), key=lambda v: v.rank)


def compat(
    before: Model, after: Model, names: tuple[str, ...] = (), dtype: str = "float32"
) -> CompatReport:
    """Whether A's weights run in B, and what the runtimes ``names`` (all without any) do with B in ``dtype``.

    Raises LG401 for a record without wiring, LG901 for an unknown runtime or dtype.
    """
    storage(dtype)
    for model in (before, after):
        if not model.graphs:
            build_all(model.resolved)  # raises LG401
    result = diff(before, after)
    surfaces = (Surface.WEIGHTS, Surface.NUMERICS)
    blocking = tuple(
        c
        for c in result.changes
        if c.kind != "value" and any(c.verdict(s) is Verdict.BREAKING for s in surfaces)
    )
    reports = on_runtimes(after.resolved, after.graphs, names or tuple(runtimes()), dtype)
    return CompatReport(
        before.id,
        after.id,
        result.verdict(Surface.WEIGHTS),
        result.verdict(Surface.NUMERICS),
        result.transforms(),
        blocking,
        reports,
    )


_SENTENCE = {
    Verdict.SAME: "run as they are: same weights, same numbers",
    Verdict.COMPATIBLE: "run as they are",
    Verdict.GROWS: "run as they are, and take more",
    Verdict.CONVERTIBLE: "run after conversion (`llamagen convert`)",
}


def _sentence(report: CompatReport) -> str:
    if report.verdict is not Verdict.BREAKING:
        return _SENTENCE[report.verdict]
    if report.weights is Verdict.BREAKING:
        return "do not load"
    loads = "load" if report.weights.rank < Verdict.CONVERTIBLE.rank else "load after conversion"
    return f"{loads}, and compute something else"


def text(report: CompatReport) -> str:
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: CompatReport) -> Iterator[str]:
    yield f"weights of {report.before} in {report.after}: {_sentence(report)}"
    yield f"  weights {report.weights.value}, numerics {report.numerics.value}"
    for transform in report.transforms:
        yield f"  convert by {transform.value}: {DOC[transform]}"
    for change in report.blocking:
        yield f"  {change.rule} {where(change)}  {arrow(change)}"
    for one in report.runtimes:
        status = one.status.value if one.status is not None else "nothing known"
        yield ""
        yield f"{report.after} on {one.runtime.title}: {status}"
        for fact in one.facts:
            yield f"  {fact.status.value:<8} {fact.note} [{fact.source}]"


def json_text(report: CompatReport) -> str:
    document = {
        "version": 1,
        "before": report.before,
        "after": report.after,
        "verdict": report.verdict.value,
        "weights": report.weights.value,
        "numerics": report.numerics.value,
        "transforms": [t.value for t in report.transforms],
        "blocking": [
            {"rule": c.rule, "path": c.path, "times": c.times, "change": arrow(c)}
            for c in report.blocking
        ],
        "runtimes": [
            {
                "name": r.name,
                "title": r.runtime.title,
                "status": r.status.value if r.status is not None else None,
                "facts": [
                    {"status": f.status.value, "note": f.note, "source": f.source} for f in r.facts
                ],
            }
            for r in report.runtimes
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
