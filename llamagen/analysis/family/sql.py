"""The family as SQL tables, read only: models, layers, parameters, changes, sources (stdlib sqlite, in memory)."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from llamagen.analysis.diff.features import collapse
from llamagen.analysis.diff.overlay import leaf_changes, plain_of
from llamagen.analysis.family.records import COLUMNS, Family
from llamagen.analysis.numbers.memory import cache_of
from llamagen.analysis.sources import known_sources, source_of
from llamagen.diagnostics import LlamagenError
from llamagen.ir.build_graphs import all_parameters
from llamagen.spec.evaluate import Static

Cell: TypeAlias = "str | int | float | None"
Row: TypeAlias = tuple[Cell, ...]

MAX_STEPS: Final = 50_000_000
"""Virtual machine steps of one statement, about a second."""

MAX_ROWS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` is run only when a statement names the table."""

    columns: tuple[str, ...]
    doc: str
    rows: Callable[[Family], Iterator[Row]]


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


_MODEL_COLUMNS = tuple(COLUMNS)


def _models(family: Family) -> Iterator[Row]:
    for record in family.records():
        yield tuple(_cell(record[name]) for name in _MODEL_COLUMNS)


def _layers(family: Family) -> Iterator[Row]:
    for record in family.records():
        if record.graph is None:
            continue
        rotated = {
            a.path: int(any(node.op == "rotate" for node in a.block.nodes))
            for a in record.attentions
        }
        for i, slot in enumerate(cache_of(record.graph).layers):
            yield (
                record.id,
                i,
                slot.path,
                slot.kv_heads,
                slot.key_dim,
                slot.window,
                slot.chunk,
                rotated.get(slot.path),
            )


def _parameters(family: Family) -> Iterator[Row]:
    for record in family.records():
        found: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        for path, parameter in all_parameters(record.graphs).items():
            key = (collapse(path)[0], parameter.shape)
            times, _ = found.get(key, (0, 0))
            found[key] = (times + 1, parameter.count)
        for (path, shape), (times, count) in found.items():
            yield (record.id, path, times, "×".join(map(str, shape)), count, times * count)


def _changes(family: Family) -> Iterator[Row]:
    for record in family.records():
        base = record.resolved.spec.extends
        if base is None or base.endswith((".yaml", ".yml")):
            continue
        parent = family.registry.load(base)
        for change in leaf_changes(plain_of(parent), plain_of(record.resolved)):
            before = None if change.absent_before else _text(change.before)
            after = None if change.absent_after else _text(change.after)
            yield (record.id, base, ".".join(change.path), before, after)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sources(family: Family) -> Iterator[Row]:
    known = known_sources()
    for record in family.records():
        for path, leaf in record.resolved.leaves():
            if path.startswith(("hyperparameters.", "release.", "training.", "tokenizer.")):
                source = source_of(record.resolved, path)
                key = source.split("#", 1)[0] if source is not None else None
                title = known.get(key) if key is not None else None
                value = " ".join(leaf.origins[-1].text.split())
                yield (record.id, path, value, source, title, leaf.origins[-1].spec_id)


TABLES: Final[Mapping[str, Table]] = {
    "models": Table(_MODEL_COLUMNS, "one row a model; the columns of a query", _models),
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
}


def sql(family: Family, statement: str) -> Result:
    """Run one SELECT. Raises LG905 for anything else, for an error of SQL, and for one that runs too long."""
    connection = sqlite3.connect(":memory:")
    try:
        words = set(re.findall(r"[a-z_]+", statement.lower()))
        for name, table in TABLES.items():
            if name in words:
                _fill(connection, name, table, family)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: 1, MAX_STEPS)
        cursor = connection.execute(statement)
        rows = cursor.fetchmany(MAX_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning) as error:
        help = "one SELECT over: " + ", ".join(TABLES)
        raise LlamagenError.of(
            "LG905", f"the statement cannot be run: {error}", help=help
        ) from None
    finally:
        connection.close()
    if len(rows) > MAX_ROWS:
        help = "add a condition or LIMIT"
        raise LlamagenError.of("LG905", f"the answer has more than {MAX_ROWS} rows", help=help)
    return Result(_columns(cursor.description), tuple(rows))


def _columns(description: Sequence[Sequence[object]] | None) -> tuple[str, ...]:
    return tuple(str(column[0]) for column in description or ())


def _fill(connection: sqlite3.Connection, name: str, table: Table, family: Family) -> None:
    columns = ", ".join(f'"{c}"' for c in table.columns)
    marks = ", ".join("?" for _ in table.columns)
    connection.execute(f"CREATE TABLE {name} ({columns})")
    connection.executemany(f"INSERT INTO {name} VALUES ({marks})", table.rows(family))


_ALLOWED = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)


def _authorize(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
