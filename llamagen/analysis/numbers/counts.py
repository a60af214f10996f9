"""Parameter counts by architecture, kept beside the shipped specs so that `list` need not build graphs.

A count is looked up by the digest of the wiring and the numbers, so a spec that changed is counted anew; that the
saved counts are those of the op table is a contract test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llamagen.resources import data_folder
from llamagen.spec.resolve import ResolvedSpec

COUNTS_FILE = "counts.json"


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of a model, all its graphs together, and those but for experts that a token did not choose."""

    total: int
    active: int


def counts_of(resolved: ResolvedSpec) -> Counts | None:
    """Saved counts, or counted now; None while the wiring is not published."""
    if resolved.spec.root is None:
        return None
    return _saved().get(resolved.digest) or count(resolved)


def count(resolved: ResolvedSpec) -> Counts:
    """Counted from the graphs."""
    from llamagen.analysis.numbers.params import count_parameters
    from llamagen.ir.build_graphs import MAIN, all_parameters, build_all

    graphs = build_all(resolved)
    report = count_parameters(graphs[MAIN])
    whole = sum(p.count for p in all_parameters(graphs).values())
    return Counts(whole, whole - (report.total - report.active))


def counts_text(models: Iterable[ResolvedSpec]) -> str:
    """The text of spec/counts.json for these models, counted now."""
    found: dict[str, list[int]] = {}
    for resolved in models:
        if resolved.spec.root is not None and resolved.digest not in found:
            counts = count(resolved)
            found[resolved.digest] = [counts.total, counts.active]
    lines = [f"  {json.dumps(digest)}: {json.dumps(found[digest])}" for digest in sorted(found)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def counts_path() -> Path:
    return data_folder("spec") / COUNTS_FILE


@cache
def _saved() -> Mapping[str, Counts]:
    path = counts_path()
    if not path.is_file():
        return {}
    table: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    return {digest: Counts(total, active) for digest, (total, active) in table.items()}
