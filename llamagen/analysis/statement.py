"""Compiles and runs one SELECT in sqlite; run by ``confined``, which limits what it may take.

Besides, sqlite counts: steps of its virtual machine, bytes of a value, bytes of memory.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from math import isfinite

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1 << 20,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_HEAP = 128 << 20
_ALLOWED = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_INNER = frozenset({"load_extension", "fts3_tokenizer"})
"""Functions that reach into the process."""


class TooMuch(Exception):
    """The text is a reason."""


def answer(arguments: Sequence[str]) -> Iterator[bytes]:
    """Of ``{statement, tables, rows}`` as JSON on stdin, a line of JSON each: the names of the result, and its rows.

    ``arguments`` are the most steps and the most rows.
    """
    steps, most = map(int, arguments)
    request = json.loads(sys.stdin.buffer.read())
    tables: dict[str, list[str]] = request["tables"]
    connection = sqlite3.connect(":memory:")
    for name, columns in tables.items():
        declared = ", ".join(f'"{c}"' for c in columns)
        connection.execute(f"CREATE TABLE {name} ({declared})")
    for name, rows in request["rows"].items():
        marks = ", ".join("?" for _ in tables[name])
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
    # sqlite declares these functions by an UPDATE of its schema, which is refused below
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")
    for kind, limit in _LIMITS.items():
        connection.setlimit(kind, limit)
    connection.execute("PRAGMA temp_store = MEMORY")  # no file may grow
    connection.execute(f"PRAGMA hard_heap_limit = {_HEAP}")

    def authorize(action: int, table: str | None, column: str | None, *_: str | None) -> int:
        """A SELECT only."""
        allowed = action in _ALLOWED and column not in _INNER
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    connection.set_authorizer(authorize)
    connection.set_progress_handler(lambda: 1, steps)
    try:
        connection.execute(f"EXPLAIN {request['statement']}")  # which no EXPLAIN can be given to
        cursor = connection.execute(request["statement"])
        if cursor.description is None:
            raise sqlite3.ProgrammingError("it is no SELECT")
        yield _line([column[0] for column in cursor.description])
        for count, row in enumerate(cursor):
            if count == most:
                raise TooMuch(f"the answer has more than {most} rows")
            yield _line([_plain(cell) for cell in row])
    except MemoryError as error:
        raise TooMuch(f"it needs more than {_HEAP >> 20} MiB of memory") from error


def _plain(value: object) -> object:
    """A blob as hexadecimal digits, a number that is not finite as text: JSON has neither."""
    match value:
        case bytes():
            return value.hex()
        case float() if not isfinite(value):
            return str(value)
        case _:
            return value


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
