"""The table of mutants: wrong variants of formulas, lowerings and block equations, as data."""

from __future__ import annotations

import ast
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.yaml")

Text = Annotated[str, Field(min_length=1)]


class Mutant(BaseModel):
    """One wrong variant: ``before``, which is there exactly once, becomes ``after``.

    Without ``file`` it is an expression or a run of statements of the package, wherever that stands and however it is
    formatted; ``within`` names a function, class or target of an assignment around it. With ``file`` it is text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    id: Text
    simulates: Text
    tests: Text
    """Name of the suites to run."""
    file: Text | None = None
    within: Text | None = None
    before: Text
    after: str


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    suites: dict[str, list[list[str]]]
    """Name -> runs of pytest (its arguments), the quickest first."""
    mutants: list[Mutant]


@dataclass(frozen=True)
class Change:
    """``text`` is the whole file with one mutant in it."""

    path: Path
    original: str
    text: str


def read_table(path: Path = TABLE) -> Table:
    return Table.model_validate(yaml.safe_load(path.read_text()))


def change_of(mutant: Mutant, root: Path) -> Change:
    """Raises ValueError where ``before`` is not there exactly once."""
    changes = list(
        _changes_of_text(mutant, root) if mutant.file else _changes_of_code(mutant, root)
    )
    if len(changes) != 1:
        places = ", ".join(str(c.path.relative_to(root)) for c in changes) or "nowhere"
        raise ValueError(
            f"{mutant.id}: `before` must stand once, and stands {len(changes)} times: {places}"
        )
    return changes[0]


def _changes_of_text(mutant: Mutant, root: Path) -> Iterator[Change]:
    path = root / str(mutant.file)
    original = path.read_text()
    for _ in range(original.count(mutant.before)):
        yield Change(path, original, original.replace(mutant.before, mutant.after, 1))


def _changes_of_code(mutant: Mutant, root: Path) -> Iterator[Change]:
    pattern: Sequence[ast.AST] = ast.parse(mutant.before).body
    after = ast.parse(mutant.after).body
    expression = all(len(b) == 1 and isinstance(b[0], ast.Expr) for b in (pattern, after))
    if expression:
        pattern = [n.value for n in pattern if isinstance(n, ast.Expr)]
    names = set(re.findall(r"(?:id|attr|arg)='(\w+)'", "".join(map(ast.dump, pattern))))
    new = f"({mutant.after})" if expression else mutant.after or "pass"
    for path, original in _sources(root).items():
        if not names <= _words(original):
            continue
        for siblings, scopes in _places(original)[type(pattern[0])]:
            there = len(siblings) >= len(pattern) and all(map(_same, pattern, siblings))
            if there and (mutant.within is None or mutant.within in scopes):
                last = siblings[len(pattern) - 1]
                yield Change(path, original, _replaced(original, siblings[0], last, new))


@cache
def _sources(root: Path) -> dict[Path, str]:
    """The package, once: a mutant is taken back before the next is looked for."""
    return {path: path.read_text() for path in sorted((root / "llamagen").rglob("*.py"))}


Place = tuple[Sequence[ast.AST], tuple[str, ...]]
"""A node with the siblings that follow it, and the names around it."""


@cache
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


@cache
def _places(text: str) -> Mapping[type[ast.AST], list[Place]]:
    places = defaultdict(list)
    for siblings, scopes in _below(ast.parse(text)):
        places[type(siblings[0])].append((siblings, scopes))
    return places


def _below(node: ast.AST, scopes: tuple[str, ...] = ()) -> Iterator[Place]:
    """What stands in an f-string is left out: before Python 3.12 it has no true position."""
    for _, value in ast.iter_fields(node):
        siblings = value if isinstance(value, list) else [value]
        for n, child in enumerate(siblings):
            if isinstance(child, ast.AST):
                yield siblings[n:], scopes
                if not isinstance(child, ast.JoinedStr):
                    yield from _below(child, (*scopes, *_named(child)))


def _named(node: ast.AST) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [ast.unparse(t) for t in targets]
        case ast.AnnAssign(target=target):
            return [ast.unparse(target)]
    return []


def _same(a: object, b: object) -> bool:
    """Whether two trees are one code; reading and assigning a name are not told apart."""
    if isinstance(a, ast.expr_context):
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, ast.AST):
        return all(_same(getattr(a, f), getattr(b, f)) for f in a._fields)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _replaced(text: str, first: ast.AST, last: ast.AST, new: str) -> str:
    """``text`` with ``new`` from the start of ``first`` to the end of ``last``, indented as ``first`` is."""
    lines = text.encode().splitlines(keepends=True)
    assert isinstance(first, ast.expr | ast.stmt) and isinstance(last, ast.expr | ast.stmt)
    assert last.end_lineno is not None and last.end_col_offset is not None
    before = b"".join(lines[: first.lineno - 1]) + lines[first.lineno - 1][: first.col_offset]
    after = lines[last.end_lineno - 1][last.end_col_offset :] + b"".join(lines[last.end_lineno :])
    return (
        before + textwrap.indent(new, " " * first.col_offset).lstrip().encode() + after
    ).decode()
