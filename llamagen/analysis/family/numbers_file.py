"""What the graphs of one architecture add up to, kept beside the shipped specs so that questions need not build them.

The numbers are looked up by the digest of the wiring and the values, so a spec that changed, or is not shipped, is
measured anew; that the saved numbers are those of the op table is a contract test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TypedDict

from llamagen.analysis.family.architecture import Architecture, Slot, Totals, Weight
from llamagen.resources import data_folder, data_text
from llamagen.spec.resolved import ResolvedSpec

NUMBERS_FILE = "numbers.json"


def architecture_of(resolved: ResolvedSpec) -> Architecture | None:
    """Saved numbers, or measured now; None while the wiring is not published."""
    if resolved.spec.root is None:
        return None
    digest = resolved.digest
    if digest not in _known:
        _known[digest] = _saved(digest) or _measured(resolved)
    return _known[digest]


_known: dict[str, Architecture] = {}
"""By digest; several models can be of one architecture."""


def _measured(resolved: ResolvedSpec) -> Architecture:
    from llamagen.analysis.family.measure import measure

    return measure(resolved)


class _Record(TypedDict):
    """An Architecture in JSON: rows of its two tables as lists, in the order of their fields."""

    totals: dict[str, int | None]
    ops: list[str]
    graphs: list[str]
    layers: list[tuple[str, int, int, int, int | None, int | None, bool | None]]
    weights: list[tuple[str, int, list[int]]]


def numbers_text(models: Iterable[ResolvedSpec]) -> str:
    """The text of spec/numbers.json for these models, measured now."""
    found: dict[str, str] = {}
    for resolved in models:
        if resolved.spec.root is not None and resolved.digest not in found:
            record = asdict(_measured(resolved))
            for table in ("layers", "weights"):
                record[table] = [list(row.values()) for row in record[table]]
            found[resolved.digest] = json.dumps(record, separators=(",", ":"))
    lines = [f'"{digest}": {found[digest]}' for digest in sorted(found)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def numbers_path() -> Path:
    return data_folder("spec") / NUMBERS_FILE


def _saved(digest: str) -> Architecture | None:
    found = _file().get(digest)
    if found is None:
        return None
    return Architecture(
        Totals(**found["totals"]),  # type: ignore[arg-type]
        tuple(found["ops"]),
        tuple(found["graphs"]),
        tuple(Slot(*row) for row in found["layers"]),
        tuple(Weight(path, times, tuple(shape)) for path, times, shape in found["weights"]),
    )


@cache
def _file() -> Mapping[str, _Record]:
    try:
        table: dict[str, _Record] = json.loads(data_text("spec", NUMBERS_FILE))
    except FileNotFoundError:  # while it is made
        return {}
    return table
