"""A compatibility report as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llamagen.analysis.diff.compat import CompatReport
from llamagen.analysis.diff.render import arrow, where
from llamagen.analysis.diff.surfaces import Verdict
from llamagen.analysis.diff.transforms import doc

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
        yield f"  convert by {transform.value}: {doc(transform)}"
    for change in report.blocking:
        yield f"  {change.rule} {where(change)}  {arrow(change)}"
    for found in report.runtimes:
        status = found.status.value if found.status is not None else "nothing known"
        yield ""
        yield f"{report.after} on {found.runtime.title}: {status}"
        for fact in found.facts:
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
