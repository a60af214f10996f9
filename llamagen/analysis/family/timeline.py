"""How a value moved through the releases: only changes, first appearances, and what never changed."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.analysis.family.query import matches, value
from llamagen.analysis.family.records import COLUMNS, Family, Record
from llamagen.analysis.labels import MAINLINE
from llamagen.analysis.rules import parsed, static_text
from llamagen.spec.expr import Static, names
from llamagen.spec.schema import Hyperparameters


@dataclass(frozen=True, slots=True)
class Held:
    """A value and the models of one date that have it. ``first``: no earlier model had it."""

    value: Static
    ids: tuple[str, ...]
    first: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A release date on which the values differ from those of the date before."""

    date: str
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    path: str
    steps: tuple[Step, ...]
    releases: int
    """Dates that were looked at."""
    where: str
    left_out: tuple[str, ...]
    """Models with a date that do not match ``where``."""

    @property
    def constant(self) -> bool:
        return len({repr(h.value) for s in self.steps for h in s.held}) <= 1

    def firsts(self) -> tuple[tuple[str, Held], ...]:
        """(date, value) of every first appearance."""
        return tuple((s.date, h) for s in self.steps for h in s.held if h.first)


def timeline(family: Family, path: str, where: str = MAINLINE) -> Timeline:
    """The history of the expression ``path`` over models that match ``where`` and have a date."""
    return _timeline(*_dated(family, where), path, where)


def history(family: Family, where: str = MAINLINE) -> tuple[Timeline, ...]:
    """Timelines of every hyperparameter that some model sets."""
    records, left_out = _dated(family, where)
    every = (_timeline(records, left_out, name, where) for name in Hyperparameters.model_fields)
    return tuple(t for t in every if any(h.value is not None for s in t.steps for h in s.held))


def _dated(family: Family, where: str) -> tuple[list[Record], tuple[str, ...]]:
    """Records that match, and ids of those that do not."""
    dated = [r for r in family.records() if r["released"] is not None]
    chosen = [r for r in dated if matches(r, where)]
    kept = {r.id for r in chosen}
    return chosen, tuple(r.id for r in dated if r.id not in kept)


def _of_graph(path: str) -> bool:
    return any(n.id in COLUMNS and COLUMNS[n.id].from_graph for n in names(parsed(path)))


def _timeline(records: list[Record], left_out: tuple[str, ...], path: str, where: str) -> Timeline:
    by_date: dict[str, dict[str, tuple[Static, list[str]]]] = {}
    for record in records:
        here = value(record, path)
        if record.architecture is None and _of_graph(path):
            continue
        date = static_text(record["released"])
        by_date.setdefault(date, {}).setdefault(repr(here), (here, []))[1].append(record.id)
    steps: list[Step] = []
    seen: set[str] = set()
    before: frozenset[str] = frozenset()
    for date in sorted(by_date):
        values = by_date[date]
        if frozenset(values) != before:
            held = tuple(Held(v, tuple(ids), key not in seen) for key, (v, ids) in values.items())
            steps.append(Step(date, held))
        before = frozenset(values)
        seen |= before
    return Timeline(path, tuple(steps), len(by_date), where, left_out)
