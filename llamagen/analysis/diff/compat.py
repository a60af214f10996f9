"""Whether B runs A's weights, and what a runtime does with B. Facts about runtimes are data: spec/runtimes.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.analysis.ask import Model
from llamagen.analysis.diff.judge import Change, Diff, diff
from llamagen.analysis.diff.runtimes import RuntimeReport, on_runtimes, runtimes
from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.diff.transforms import Transform
from llamagen.analysis.numbers import storage
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
    result: Diff = diff(before, after)
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
