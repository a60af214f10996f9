"""Questions about the family in the one expression language: filter, select, sort, share, and histories."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import cache
from typing import TypeAlias, get_args

from llamagen.analysis.records import COLUMNS, Record
from llamagen.analysis.tables import error_text, static_text
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.spec.expr import (
    FUNCTIONS,
    ExpressionError,
    Static,
    UnknownName,
    evaluate,
    names,
    parse,
)
from llamagen.spec.registry import Registry
from llamagen.spec.schema import Hyperparameters, Rope, Spec, Vision

FIELDS = frozenset(
    field
    for union in (Rope, Vision)
    for kind in get_args(get_args(union)[0])
    for field in kind.model_fields
)
"""Fields of `rope`, `rope_local` and `vision`, each of some kind of it; those of `patterns` are as specs name them."""

DEFAULT_SELECT = ("id", "released", "params")

Value: TypeAlias = "Static | date"
"""What an answer has: a column that is `released` itself has dates."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of values, one column an expression of ``columns``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def to_dicts(self) -> list[dict[str, Value]]:
        """One mapping a row, as tables of data frames are made of."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def _repr_html_(self) -> str:
        """A table, where a notebook shows it."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        rows = (
            "".join(f"<td>{html.escape(static_text(value))}</td>" for value in row)
            for row in self.rows
        )
        body = "".join(f"<tr>{cells}</tr>" for cells in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the matching models have a value."""

    value: Static
    count: int
    of: int
    ids: tuple[str, ...]

    @property
    def fraction(self) -> Fraction:
        return Fraction(self.count, self.of)


def query(
    family: Sequence[Record],
    where: str = "true",
    *,
    select: Sequence[str] = DEFAULT_SELECT,
    sort: str | None = None,
    first: int | None = None,
) -> Answer:
    """Models for which ``where`` is true, by release date unless ``sort`` (``-params``: largest first) says otherwise.

    A model lacking a value that the condition needs does not match. Raises LG905 for an expression that cannot be
    evaluated, with the nearest known name.
    """
    records = [record for record in family if holds(record, where)]
    if sort is not None:
        records = _sorted(records, sort)
    rows = tuple(tuple(_dated_value(record, text) for text in select) for record in records[:first])
    return Answer(tuple(select), rows)


def _dated_value(record: Record, text: str) -> Value:
    found = value(record, text)
    return date.fromisoformat(found) if text == "released" and isinstance(found, str) else found


def share(family: Sequence[Record], path: str, where: str = "true") -> tuple[Share, ...]:
    """Values of ``path`` among the models that match, the most frequent first."""
    records = [record for record in family if holds(record, where)]
    by_value: dict[str, tuple[Static, list[str]]] = {}
    for record in records:
        here = value(record, path)
        by_value.setdefault(repr(here), (here, []))[1].append(record.id)
    shares = [Share(v, len(ids), len(records), tuple(ids)) for v, ids in by_value.values()]
    return tuple(sorted(shares, key=lambda s: (-s.count, repr(s.value))))


def holds(record: Record, where: str) -> bool:
    """Whether the condition is true; not where it needs a value that the model lacks.

    Raises LG905 for a condition that cannot be evaluated, or that is not true or false.
    """
    truth = value(record, where)
    if truth is not None and not isinstance(truth, bool):
        message = f"`{where}` is {static_text(truth)} for {record.id}, not true or false"
        raise LlamagenError.of("LG905", message, help=f"compare it, as in `{where} == ...`")
    return truth is True


def value(record: Record, text: str) -> Static:
    """Value of an expression for one model; none when it needs a value that the model lacks."""
    try:
        return evaluate(parse(text), record, FUNCTIONS)
    except UnknownName as error:
        if _lacks(record, text, error.name):
            return None
        message = f"`{error.name}` is not a name of a model"
        raise LlamagenError.of("LG905", message, help=_help(error.name)) from None
    except ExpressionError as error:
        try:
            if _lacks(record, text):
                return None
        except ExpressionError:  # it has no names to ask for
            pass
        raise LlamagenError.of("LG905", error_text(text, error), help=error.help) from None


def _help(name: str) -> str:
    if name in Spec.model_fields:
        return "values stand without their section: `rope.theta`, not `hyperparameters.rope.theta`"
    known = (*COLUMNS, *FIELDS, *sorted(_benchmarks()))
    return did_you_mean(name, known, "`llamagen query --columns` lists the names")


def _lacks(record: Record, text: str, field: str | None = None) -> bool:
    """Whether some name of the expression is none for this model, or a record without the asked ``field``."""
    used = [n.id for n in names(parse(text)) if n.id in COLUMNS]
    if field is not None and field not in FIELDS and "patterns" not in used:
        return "benchmarks" in used and field in _benchmarks()
    return any(record[name] is None or isinstance(record[name], Mapping) for name in used)


@cache
def _benchmarks() -> frozenset[str]:
    """Names of results that some shipped model has."""
    registry = Registry()
    every = (registry.load(spec_id).spec.training for spec_id in registry.ids(abstract=False))
    return frozenset(
        one.name for training in every if training is not None for one in training.benchmarks or ()
    )


def _sorted(records: list[Record], sort: str) -> list[Record]:
    """By numbers, or else by text; models without the value last."""
    text = sort.removeprefix("-")
    known = [(value(r, text), r) for r in records]
    present = [(v, r) for v, r in known if v is not None]
    numbers = [(v, r) for v, r in present if isinstance(v, int | float)]
    if len(numbers) == len(present):
        numbers.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
        ordered = [r for _, r in numbers]
    else:
        present.sort(key=lambda pair: repr(pair[0]), reverse=sort.startswith("-"))
        ordered = [r for _, r in present]
    return [*ordered, *(r for v, r in known if v is None)]


# timelines


@dataclass(frozen=True, slots=True)
class Held:
    """A value and the models of one date that have it. ``first``: no earlier model had it."""

    value: Static
    ids: tuple[str, ...]
    first: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A release date on which the values differ from those of the date before."""

    date: date
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

    def firsts(self) -> tuple[tuple[date, Held], ...]:
        """(date, value) of every first appearance."""
        return tuple((s.date, h) for s in self.steps for h in s.held if h.first)


def timeline(family: Sequence[Record], path: str, where: str) -> Timeline:
    """The history of the expression ``path`` over models that match ``where`` and have a date."""
    return _timeline(*_dated(family, where), path, where)


def history(family: Sequence[Record], where: str) -> tuple[Timeline, ...]:
    """Timelines of every hyperparameter that some model sets."""
    records, left_out = _dated(family, where)
    every = (_timeline(records, left_out, name, where) for name in Hyperparameters.model_fields)
    return tuple(t for t in every if any(h.value is not None for s in t.steps for h in s.held))


def _dated(family: Sequence[Record], where: str) -> tuple[list[Record], tuple[str, ...]]:
    """Records that match, and ids of those that do not."""
    dated = [(r, holds(r, where)) for r in family if r["released"] is not None]
    return [r for r, kept in dated if kept], tuple(r.id for r, kept in dated if not kept)


def _timeline(records: list[Record], left_out: tuple[str, ...], path: str, where: str) -> Timeline:
    by_date: dict[str, dict[str, tuple[Static, list[str]]]] = {}
    for record in records:
        here = value(record, path)
        used = (n.id for n in names(parse(path)))
        if record.architecture is None and any(
            n in COLUMNS and COLUMNS[n].from_graph for n in used
        ):
            continue
        released = static_text(record["released"])
        by_date.setdefault(released, {}).setdefault(repr(here), (here, []))[1].append(record.id)
    steps: list[Step] = []
    seen: set[str] = set()
    before: frozenset[str] = frozenset()
    for released in sorted(by_date):
        values = by_date[released]
        if frozenset(values) != before:
            held = tuple(Held(v, tuple(ids), key not in seen) for key, (v, ids) in values.items())
            steps.append(Step(date.fromisoformat(released), held))
        before = frozenset(values)
        seen |= before
    return Timeline(path, tuple(steps), len(by_date), where, left_out)


def timeline_text(history: Timeline) -> str:
    """One line a value and date, first appearances marked."""
    return "".join(f"{line}\n" for line in [*_lines(history), *_left_out(history)])


def _left_out(history: Timeline) -> Iterator[str]:
    """A filter that nobody typed must not hide models without a word."""
    if history.left_out:
        count = len(history.left_out)
        models = f"{count} dated model{'s' if count > 1 else ''}"
        folders = Counter(i.rsplit("/", 1)[0] for i in history.left_out)
        groups = ", ".join(f"{name} {n}" for name, n in sorted(folders.items()))
        yield f'left out by --where "{history.where}": {models} ({groups})'
        yield '  --where "true" shows them too'


def _lines(history: Timeline) -> Iterator[str]:
    if not history.steps:
        yield f"{history.path}: no release matches"
        return
    if history.constant:
        value = static_text(history.steps[0].held[0].value)
        yield f"{history.path}: {value} in all {history.releases} releases, never changed"
        return
    yield f"{history.path}: {len(history.steps)} of {history.releases} release dates changed it"
    for step in history.steps:
        for i, held in enumerate(step.held):
            day = step.date.isoformat() if i == 0 else " " * len("YYYY-MM-DD")
            mark = "first  " if held.first else "       "
            ids = ", ".join(held.ids[:4])
            more = f" and {len(held.ids) - 4} more" if len(held.ids) > 4 else ""
            yield f"  {day}  {mark} {static_text(held.value)}  {ids}{more}"


def history_text(timelines: Sequence[Timeline]) -> str:
    """First appearances of every value, then what never changed."""
    lines: list[str] = []
    for one in timelines:
        if not one.constant:
            firsts = "; ".join(
                f"{day} {static_text(held.value)} ({held.ids[0]})" for day, held in one.firsts()
            )
            lines.append(f"{one.path}: {firsts}")
    still = [f"{t.path} = {static_text(t.steps[0].held[0].value)}" for t in timelines if t.constant]
    lines.append(f"never changed: {', '.join(still) if still else 'nothing'}")
    for one in timelines[:1]:
        lines.extend(_left_out(one))
    return "".join(f"{line}\n" for line in lines)
