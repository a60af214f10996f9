"""The layouts that checkpoints have: known ones, and bound to the numbers of one model.

The dialects of spec/dialects/ stand apart from the specs: a dialect belongs to whoever writes the files, one serves
many models, and a reader who opens no checkpoint neither loads nor sees it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from llamagen.resources import data_folder
from llamagen.spec.expr import ExpressionError, Scope, Static, evaluate, parse
from llamagen.spec.schema import (
    Count,
    NameRule,
    NamingLayout,
    RopePermute,
    ShardRule,
    SlicePart,
    TileTableRows,
    Transform,
)
from llamagen.spec.source import load_source, to_plain


@cache
def known_dialects() -> Mapping[str, NamingLayout]:
    """Name (of the file) -> layout as written, in the order of names."""
    files = sorted((data_folder("spec") / "dialects").glob("*.yaml"), key=lambda file: file.stem)
    layouts = {
        file.stem: parse_layout(file.read_text(encoding="utf-8"), file.name) for file in files
    }
    return MappingProxyType(layouts)


def parse_layout(text: str, name: str = "<text>") -> NamingLayout:
    """A layout from YAML text. Raises LG0xx for the YAML, pydantic's ValidationError for the rest."""
    return NamingLayout.model_validate_json(json.dumps(to_plain(load_source(text, name).root)))


@dataclass(frozen=True, slots=True)
class BoundLayout:
    """As `NamingLayout`; every `Count` is a number and every list is written out."""

    name: str
    detect: tuple[str, ...]
    rules: tuple[NameRule, ...]
    drop: tuple[str, ...] = ()
    shards: tuple[ShardRule, ...] = ()
    lists: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def bind_layout(name: str, layout: NamingLayout, scope: Scope) -> BoundLayout:
    """The layout for the model whose names and values are ``scope``.

    Raises ExpressionError: UnknownName for a name that the model does not have, else for a value that is
    not a whole number (of a list: not a list of whole numbers).
    """
    return BoundLayout(
        name,
        layout.detect,
        tuple(_rule(rule, scope) for rule in layout.rules),
        layout.drop,
        layout.shards,
        {key: _numbers(value, scope) for key, value in layout.lists.items()},
    )


def _rule(rule: NameRule, scope: Scope) -> NameRule:
    steps = tuple(_step(step, scope) for step in rule.transform)
    return rule if steps == rule.transform else rule.model_copy(update={"transform": steps})


def _step(step: Transform, scope: Scope) -> Transform:
    match step:
        case RopePermute(heads=heads):
            return RopePermute(heads=_number(heads, scope))
        case SlicePart(dim=dim, start=start, stop=stop):
            return SlicePart(dim=dim, start=_number(start, scope), stop=_number(stop, scope))
        case TileTableRows(grids=grids):
            return TileTableRows(grids=_pairs(grids, scope))
        case _:
            return step


def _number(count: Count, scope: Scope) -> int:
    if isinstance(count, int):
        return count
    value = evaluate(parse(count), scope)
    if not _is_int(value):
        raise ExpressionError(f"`{count}` is {value!r}, not a whole number", (0, len(count)))
    assert isinstance(value, int)
    return value


def _numbers(value: str | tuple[int, ...], scope: Scope) -> tuple[int, ...]:
    if isinstance(value, tuple):
        return value
    numbers = evaluate(parse(value), scope)
    if not isinstance(numbers, tuple) or not all(map(_is_int, numbers)):
        message = f"`{value}` is {numbers!r}, not a list of whole numbers"
        raise ExpressionError(message, (0, len(value)))
    return tuple(item for item in numbers if isinstance(item, int))


def _pairs(value: str | tuple[tuple[int, int], ...], scope: Scope) -> tuple[tuple[int, int], ...]:
    if isinstance(value, tuple):
        return value
    numbers = evaluate(parse(value), scope)
    pairs: list[tuple[int, int]] = []
    for item in numbers if isinstance(numbers, tuple) else (None,):
        match item:
            case (int(rows), int(columns)):
                pairs.append((rows, columns))
            case _:
                message = f"`{value}` is {numbers!r}, not a list of rows and columns"
                raise ExpressionError(message, (0, len(value)))
    return tuple(pairs)


def _is_int(value: Static) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
