"""The rows of spec/rules/rewrites.yaml, and the lines that their patterns and replacements are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias, get_args

from pydantic import Field

from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError
from llamagen.spec.schema import Closed

RewrittenProfile: TypeAlias = Literal["ort-cpu", "ort-cuda"]
"""The profiles that rewrite; ``portable`` has no rules."""

REWRITTEN_PROFILES: tuple[RewrittenProfile, ...] = get_args(RewrittenProfile)


class Need(Closed):
    """A condition, and the sentence that is said where it does not hold."""

    condition: str = Field(alias="is")
    reason: str = Field(alias="else")


class Case(Closed):
    """YAML laid over the test model: what the rule rewrites, and what it leaves when exported in ``dtype``."""

    fires: str
    silent: str
    dtype: Literal["float32", "float16"] = "float32"
    codes: Literal["none", "int4"] = "none"
    """Of the experts, in blocks of 16."""


class RewriteRow(Closed):
    """One rule as it is written."""

    title: str
    profiles: tuple[RewrittenProfile, ...] = Field(strict=False)
    pattern: str
    given: str = ""
    let: dict[str, str] = {}
    needs: tuple[Need, ...] = Field(default=(), strict=False)
    replacement: str
    why: str
    case: Case


class RewriteRows(Closed):
    version: Literal[1]
    rules: dict[str, RewriteRow]


@dataclass(frozen=True, slots=True)
class Line:
    """``results = op(operands; attributes) with weights of``. An alias ``y = x`` has no op.

    ``optional`` counts the last operands that may be absent; the operand ``-`` is never there.
    """

    results: tuple[str, ...]
    op: str | None
    operands: tuple[str, ...]
    optional: int
    splats: tuple[str, ...]
    attrs: tuple[tuple[str, str], ...]
    weights: tuple[str, ...]
    """Lines, by their first result, whose weights the new op has: one, or several to join."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row with its lines parsed. The first line of the pattern is where matching starts."""

    name: str
    row: RewriteRow
    pattern: tuple[Line, ...]
    given: tuple[Line, ...]
    replacement: tuple[Line, ...]


_LINE = re.compile(
    r"(?P<results>\w+(?:, \w+)*) = (?P<op>\w+)"
    r"(?:\((?P<operands>[^;()]*)(?:; (?P<attrs>.*))?\))?"
    r"(?: (?:with|joining) (?P<weights>\w+(?:, \w+)*))?"
)


def line_of(text: str) -> Line:
    """Parse one line. Raises LG103."""
    found = _LINE.fullmatch(text.strip())
    if found is None:
        raise LlamagenError.of("LG103", f"spec/rules/rewrites.yaml: `{text}` is not a line")
    results = tuple(found["results"].split(", "))
    weights = tuple(found["weights"].split(", ")) if found["weights"] else ()
    if found["operands"] is None:
        return Line(results, None, (found["op"],), 0, (), (), weights)
    operands = tuple(o for o in found["operands"].split(", ") if o)
    splats: list[str] = []
    attrs: list[tuple[str, str]] = []
    for word in (found["attrs"] or "").split(", "):
        if word.startswith("**"):
            splats.append(word[2:])
        elif word:
            name, _, value = word.partition("=")
            attrs.append((name, value))
    optional = sum(o.endswith("?") for o in operands)
    bare = tuple(o.removesuffix("?") for o in operands)
    return Line(results, found["op"], bare, optional, tuple(splats), tuple(attrs), weights)


def _lines(text: str) -> tuple[Line, ...]:
    return tuple(line_of(line) for line in text.splitlines() if line.strip())


@cache
def rewrite_rules() -> Mapping[str, Rule]:
    """Every rule by name, in the order in which they apply."""
    rows = load_table("rules/rewrites.yaml", RewriteRows).rules
    return {
        name: Rule(name, row, _lines(row.pattern), _lines(row.given), _lines(row.replacement))
        for name, row in rows.items()
    }
