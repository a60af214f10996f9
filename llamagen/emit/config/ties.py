"""Values that a `config:` table ties to others: they follow when a file changes those."""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.emit.config.codecs import CONFIG_FUNCTIONS, Json
from llamagen.emit.config.table import config_scope, plain
from llamagen.spec.expr import Binary, Expr, Name, evaluate, parse
from llamagen.spec.schema import Hyperparameters, Spec


def tied_values(requires: Mapping[str, str], spec: Spec) -> dict[str, dict[str, Json]]:
    """New values by section, of names that no longer fulfil a requirement ``name == value``.

    Some numbers have no key of their own in a foreign file, because its reader derives them from others.
    """
    scope = config_scope(spec)
    moved: dict[str, dict[str, Json]] = {}
    for text in requires.values():
        match parse(text):
            case Binary(op="==", left=left, right=right):
                section, name = _place(left, spec)
            case _:
                continue
        if section:
            value = evaluate(right, scope, CONFIG_FUNCTIONS)
            if evaluate(left, scope, CONFIG_FUNCTIONS) != value:
                moved.setdefault(section, {})[name] = plain(value)
    return moved


def _place(expr: Expr, spec: Spec) -> tuple[str, str]:
    match expr:
        case Name(id=name):
            if name in spec.constants:
                return "constants", name
            if name in Hyperparameters.model_fields:
                return "hyperparameters", name
        case _:
            pass
    return "", ""
