"""Questions about the family in the one expression language: filter, select, sort, first, share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

from llamagen.analysis.family.records import COLUMNS, Family, Record
from llamagen.analysis.rules import error_text, parsed, static_text
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.spec.expr import FUNCTIONS, ExpressionError, Static, UnknownName, evaluate, names
from llamagen.spec.schema import Rope, Spec, Vision

FIELDS = frozenset(
    field
    for union in (Rope, Vision)
    for kind in get_args(get_args(union)[0])
    for field in kind.model_fields
)
"""Fields of `rope`, `rope_local` and `vision`, each of some kind of it; those of `patterns` are as specs name them."""

DEFAULT_SELECT = ("id", "released", "params")


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of values, one column an expression of ``columns``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Static, ...], ...]


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
    family: Family,
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
    found = matching(family, where)
    if sort is not None:
        found = _sorted(found, sort)
    if first is not None:
        found = found[:first]
    rows = tuple(tuple(value(record, text) for text in select) for record in found)
    return Answer(tuple(select), rows)


def share(family: Family, path: str, where: str = "true") -> tuple[Share, ...]:
    """Values of ``path`` among the models that match, the most frequent first."""
    found = matching(family, where)
    by_value: dict[str, tuple[Static, list[str]]] = {}
    for record in found:
        here = value(record, path)
        by_value.setdefault(_key(here), (here, []))[1].append(record.id)
    shares = [Share(v, len(ids), len(found), tuple(ids)) for v, ids in by_value.values()]
    return tuple(sorted(shares, key=lambda s: (-s.count, _key(s.value))))


def matching(family: Family, where: str) -> list[Record]:
    """Raises LG905 for a condition that cannot be evaluated, or that is not true or false."""
    return [record for record in family.records() if matches(record, where)]


def matches(record: Record, where: str) -> bool:
    """Whether the condition is true; not where it needs a value that the model lacks."""
    found = value(record, where)
    if found is not None and not isinstance(found, bool):
        message = f"`{where}` is {static_text(found)} for {record.id}, not true or false"
        raise LlamagenError.of("LG905", message, help=f"compare it, as in `{where} == ...`")
    return found is True


def value(record: Record, text: str) -> Static:
    """Value of an expression for one model; none when it needs a value that the model lacks."""
    try:
        return evaluate(parsed(text), record, FUNCTIONS)
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
    hint = did_you_mean(name, (*COLUMNS, *FIELDS))
    return f"did you mean `{hint}`?" if hint else "`llamagen query --columns` lists the names"


def _lacks(record: Record, text: str, field: str | None = None) -> bool:
    """Whether some name of the expression is none for this model, or a record without the asked ``field``."""
    used = [n.id for n in names(parsed(text)) if n.id in COLUMNS]
    if field is not None and field not in FIELDS and "patterns" not in used:
        return False
    return any(record[name] is None or isinstance(record[name], Mapping) for name in used)


def _sorted(found: list[Record], sort: str) -> list[Record]:
    descending = sort.startswith("-")
    text = sort[1:] if descending else sort
    known = [(value(r, text), r) for r in found]
    present = [(v, r) for v, r in known if v is not None]
    absent = [r for v, r in known if v is None]
    numeric = all(isinstance(v, int | float) for v, _ in present)
    if numeric:
        present.sort(key=lambda pair: _number(pair[0]), reverse=descending)
    else:
        present.sort(key=lambda pair: _key(pair[0]), reverse=descending)
    return [*(r for _, r in present), *absent]


def _number(value: Static) -> float | int:
    assert isinstance(value, int | float)
    return value


def _key(value: Static) -> str:
    return repr(value)
