"""Data files of the analyses (strict YAML, closed models, loaded when first asked for) and the conditions in them.

Lint, diff, runtime and rewrite rules have names, conditions and message templates in the one expression language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.resources import data_folder
from llamagen.spec.expr import FUNCTIONS, ExpressionError, Scope, Static, evaluate, parse
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import first_fault
from llamagen.spec.source import load_source, to_plain

T = TypeVar("T", bound=BaseModel)
V = TypeVar("V")


def load_table(name: str, model: type[T]) -> T:
    """``spec/<name>`` as ``model``. Raises LlamagenError LG103 for a file that does not fit it."""
    table = _load(name, model)
    assert isinstance(table, model)
    return table


@cache
def _load(name: str, model: type[BaseModel]) -> BaseModel:
    return read_table(data_folder("spec") / name, model, f"spec/{name}")


def read_table(path: Path, model: type[T], shown: str | None = None) -> T:
    """A YAML file as ``model``, called ``shown`` in messages. Raises LG103 for one that does not fit it."""
    file = shown or str(path)
    text = json.dumps(to_plain(load_source(path, file).root))
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise LlamagenError.of("LG103", f"{file}: {first_fault(error)}") from None


def chosen(known: Mapping[str, V], name: str, what: str) -> V:
    """The entry ``name``. Raises LG901, "`name` is not ``what``", with the nearest known one."""
    if name not in known:
        help = did_you_mean(name, known, f"known: {', '.join(known)}")
        raise LlamagenError.of("LG901", f"`{name}` is not {what}", help=help)
    return known[name]


def holds(text: str, scope: Scope) -> bool:
    """Whether the condition is true. Raises LG301 for one that cannot be evaluated."""
    return value_of(text, scope) is True


def value_of(text: str, scope: Scope) -> Static:
    """Value of an expression over ``scope``. Raises LG301 with the expression and the reason."""
    try:
        return evaluate(parse(text), scope, FUNCTIONS)
    except ExpressionError as error:
        raise LlamagenError.of("LG301", error_text(text, error), help=error.help) from None


def error_text(text: str, error: ExpressionError) -> str:
    """The expression, what is wrong with it and where."""
    at = text[slice(*error.extent)]
    return f"`{text}`: {error.message}{f', at `{at}`' if at else ''}"


def fill(template: str, scope: Scope) -> str:
    """``template`` with every ``{expression}`` replaced by its value; ``{{`` and ``}}`` are braces."""
    pieces: list[str] = []
    rest = template
    while rest:
        before, brace, after = rest.partition("{")
        pieces.append(before.replace("}}", "}"))
        if not brace:
            break
        if after.startswith("{"):
            pieces.append("{")
            rest = after[1:]
            continue
        inner, end, rest = after.partition("}")
        if not end:
            raise LlamagenError.of("LG301", f"the template `{template}` has an open brace")
        pieces.append(static_text(value_of(inner, scope)))
    return "".join(pieces)


def hyperparameter_scope(resolved: ResolvedSpec) -> dict[str, Static]:
    """Every name of the vocabulary (none where unset), and the spec's constants."""
    scope: dict[str, Static] = dict(resolved.spec.constants)
    values = resolved.spec.hyperparameters
    for name in type(values).model_fields:
        value = getattr(values, name)
        scope[name] = value.model_dump() if isinstance(value, BaseModel) else value
    return scope


def jsonable(value: Mapping[str, object] | date) -> object:
    """What JSON has no type for, as the ``default`` of `json.dumps`: a date as ISO 8601 has it."""
    return value.isoformat() if isinstance(value, date) else dict(value)


def static_text(value: Static | date) -> str:
    """A value as people read it: thousands separated, lists bracketed, a nested record in one line."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case int():
            return f"{value:,}" if abs(value) >= 100_000 else str(value)
        case tuple():
            return f"[{', '.join(map(static_text, value))}]"
        case Mapping():
            return "{" + ", ".join(f"{k}: {static_text(v)}" for k, v in value.items()) + "}"
        case _:
            return str(value)
