"""Curves a person would look at: cache bytes over context, for one model or for the family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llamagen.analysis.numbers import CacheReport
from llamagen.analysis.pictures.svg import Curve, plot_svg
from llamagen.diagnostics import LlamagenError

CONTEXTS = tuple(2**k for k in range(10, 18))
"""1,024 to 131,072 tokens."""


def cache_curve(
    name: str, report: CacheReport, bytes_per_value: int = 2, contexts: Sequence[int] = CONTEXTS
) -> Curve:
    """Bytes of cache that later queries can still see, for one sequence."""
    return Curve(name, tuple((n, report.needed(n, bytes_per_value)) for n in contexts))


def cache_plot(
    caches: Iterable[tuple[str, CacheReport]],
    bytes_per_value: int = 2,
    contexts: Sequence[int] = CONTEXTS,
) -> str:
    """SVG of KV cache over context. Models whose curves coincide share a line. Raises LG901 without any model."""
    by_points: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name, report in caches:
        curve = cache_curve(name, report, bytes_per_value, contexts)
        if any(y for _, y in curve.points):
            by_points.setdefault(curve.points, []).append(name)
    if not by_points:
        raise LlamagenError.of("LG901", "there is no model with a cache to plot")
    curves = [
        Curve(names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", points)
        for points, names in sorted(by_points.items(), reverse=True)
    ]
    title = f"KV cache in sight of a later query, one sequence, {8 * bytes_per_value} bit"
    return plot_svg(title, "context (tokens)", "bytes", curves)
