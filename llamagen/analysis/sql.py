"""The family as SQL tables, read only (stdlib sqlite, in memory)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from llamagen.analysis.cost import devices
from llamagen.analysis.diff.overlay import leaf_changes, plain_of
from llamagen.analysis.records import COLUMNS, Record
from llamagen.analysis.sources import claims, conflicts, known_sources, source_of, uncertain
from llamagen.confined import Limits, Stopped, confined
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.spec.expr import Static

Cell: TypeAlias = "str | int | float | None"
Row: TypeAlias = tuple[Cell, ...]

MAX_STEPS: Final = 50_000_000
"""Virtual machine steps of one statement, about a second."""

MAX_ROWS: Final = 100_000

_SCRIPT = Path(__file__).with_name("statement.py")
_LIMITS = Limits(seconds=10, memory=512 << 20, answer=64 << 20)


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` is run only for a statement that names the table."""

    columns: tuple[str, ...]
    doc: str
    rows: Callable[[Sequence[Record]], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Result:
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _cell(value: Static) -> Cell:
    match value:
        case bool():
            return int(value)
        case tuple() | Mapping():
            return json.dumps(value, ensure_ascii=False, default=dict)
        case _:
            return value


def _models(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        yield tuple(map(_cell, record.values()))


def _layers(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        if record.architecture is None:
            continue
        for i, slot in enumerate(record.architecture.cache.layers):
            yield (
                record.id,
                i,
                slot.path,
                slot.kv_heads,
                slot.key_dim,
                slot.window,
                slot.chunk,
                None if slot.rope is None else int(slot.rope),
            )


def _parameters(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        for one in record.architecture.weights if record.architecture is not None else ():
            shape = "×".join(map(str, one.shape))
            yield (record.id, one.path, one.times, shape, one.count, one.times * one.count)


def _changes(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        base = record.resolved.spec.extends
        if base is None or base.endswith((".yaml", ".yml")):
            continue
        parent = record.registry.load(base)
        for change in leaf_changes(plain_of(parent), plain_of(record.resolved)):
            before = None if change.absent_before else _text(change.before)
            after = None if change.absent_after else _text(change.after)
            yield (record.id, base, ".".join(change.path), before, after)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sources(family: Sequence[Record]) -> Iterator[Row]:
    known = known_sources()
    for record in family:
        for path, leaf in record.resolved.leaves:
            if path.startswith(("hyperparameters.", "release.", "training.", "tokenizer.")):
                source = source_of(record.resolved, path)
                title = known.get(source.split("#", 1)[0]) if source is not None else None
                value = " ".join(leaf.origins[-1].text.split())
                yield (record.id, path, value, source, title, leaf.origins[-1].spec_id)


def _conflicts(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        for one in conflicts(record.resolved):
            for claim in one.claims:
                reason = " ".join(one.reason.split())
                yield (record.id, one.path, claim.value, claim.source, one.choice, reason)


def _uncertain(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        for one in uncertain(record.resolved):
            yield (record.id, one.path, " ".join(one.why.split()))


def _lineage(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        lineage = record.resolved.spec.lineage
        for base in lineage.derived_from if lineage is not None else ():
            yield (record.id, base, lineage.how if lineage is not None else None)


def _variants(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        training = record.resolved.spec.training
        for variant in (training.weight_variants or ()) if training is not None else ():
            yield (record.id, variant)


def _benchmarks(family: Sequence[Record]) -> Iterator[Row]:
    for record in family:
        training = record.resolved.spec.training
        for one in (training.benchmarks or ()) if training is not None else ():
            yield (record.id, one.name, one.score, one.shots, one.metric)


def _devices(_: Sequence[Record]) -> Iterator[Row]:
    for name, one in devices().items():
        yield (name, one.title, one.memory_bytes)


def _claims(_: Sequence[Record]) -> Iterator[Row]:
    for number, one in claims().items():
        about, sources = json.dumps(one.about), json.dumps(one.sources)
        yield (int(number), about, one.claim, one.verdict, one.fact, sources, one.see)


TABLES: Final[Mapping[str, Table]] = {
    "models": Table(tuple(COLUMNS), "one row a model; the columns of a query", _models),
    "layers": Table(
        ("model", "layer", "path", "kv_heads", "head_dim", "window", "chunk", "rope"),
        "one row a cache slot; window and chunk in tokens, rope 0 or 1",
        _layers,
    ),
    "parameters": Table(
        ("model", "path", "times", "shape", "count", "total"),
        "one row a weight, equal layers folded: total = times * count",
        _parameters,
    ),
    "changes": Table(
        ("model", "base", "path", "before", "after"),
        "one row a value that a spec changes over the one it extends",
        _changes,
    ),
    "sources": Table(
        ("model", "path", "value", "source", "title", "written_in"),
        "one row a value with the source that proves it",
        _sources,
    ),
    "conflicts": Table(
        ("model", "path", "value", "source", "choice", "reason"),
        "one row a claim about a value that authorities disagree on",
        _conflicts,
    ),
    "uncertain": Table(
        ("model", "path", "why"), "one row a value that rests on inference", _uncertain
    ),
    "lineage": Table(
        ("model", "base", "how"), "one row a model that another was made from", _lineage
    ),
    "benchmarks": Table(
        ("model", "name", "score", "shots", "metric"),
        "one row a result that a model's publisher states",
        _benchmarks,
    ),
    "variants": Table(("model", "variant"), "one row a form of published weights", _variants),
    "devices": Table(
        ("name", "title", "memory_bytes"), "one row a device of spec/hardware.yaml", _devices
    ),
    "claims": Table(
        ("number", "about", "claim", "verdict", "fact", "sources", "see"),
        "one row a wide-spread claim and what primary sources say; about and sources are JSON lists",
        _claims,
    ),
}


def sql(family: Sequence[Record], statement: str) -> Result:
    """Run one SELECT. Raises LG905 for anything else, for an error of SQL, and for one that takes too much."""
    words = set(re.findall(r"\w+", statement.lower()))
    request = {
        "statement": statement,
        "tables": {name: table.columns for name, table in TABLES.items()},
        "rows": {name: list(t.rows(family)) for name, t in TABLES.items() if name in words},
    }
    try:  # strangers write statements: sqlite has a process of its own
        question = json.dumps(request).encode()
        answer = confined(_SCRIPT, (str(MAX_STEPS), str(MAX_ROWS)), question, _LIMITS)
    except Stopped as error:
        reason = str(error)
        message = f"the statement cannot be run: {reason}"
        raise LlamagenError.of("LG905", message, help=_help(error.kind, reason)) from None
    names, *rows = map(json.loads, answer.splitlines())
    return Result(_columns(names), tuple(map(tuple, rows)))


def _help(kind: str, message: str) -> str:
    """The nearest name for one that sqlite does not know."""
    if message == "interrupted":
        return "it takes too long; ask for fewer rows or joins"
    if kind in ("limit", "TooMuch"):
        return "add a condition or LIMIT"
    what, _, name = message.partition(": ")
    names = {
        "no such column": (c for t in TABLES.values() for c in t.columns),
        "no such table": TABLES,
    }
    otherwise = f"one SELECT over: {', '.join(TABLES)}; `llamagen sql` lists the columns"
    return did_you_mean(name.rpartition(".")[2], names.get(what, ()), otherwise)


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    """Names of the result; of equal ones, as a join has them, the later are numbered as sqlite does: ``id:1``."""
    columns: list[str] = []
    seen: Counter[str] = Counter()
    for name in names:
        columns.append(f"{name}:{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return tuple(columns)
