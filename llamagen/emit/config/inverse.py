"""From a value of config.json back to the leaf of a spec that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamagen.emit.config.codecs import CODECS, CodecError, Json
from llamagen.emit.config.table import config_scope
from llamagen.spec.expr import Attribute, Call, Expr, Name, Static, evaluate, parse
from llamagen.spec.schema import Hyperparameters, Spec

Tree = dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Change:
    """A value laid over a path of the spec."""

    path: tuple[str, ...]
    value: Json


def change_for(expression: str, value: Json, spec: Spec) -> Change:
    """The change after which ``expression`` gives ``value``. Raises CodecError, with the end of a sentence."""
    expr = parse(expression)
    match expr:
        case Call(function=Name(id=name), arguments=(first, *rest)) if name in CODECS:
            scope = config_scope(spec)
            others: list[Static] = [evaluate(one, scope) for one in rest]
            return Change(_path(first, spec), CODECS[name].read(value, *others))
        case Name() | Attribute():
            return Change(_path(expr, spec), value)
        case _:
            raise CodecError(f"follows from other values: `{expression}`")


def _path(expr: Expr, spec: Spec) -> tuple[str, ...]:
    match expr:
        case Name(id=name):
            if name in Hyperparameters.model_fields:
                return ("hyperparameters", name)
            if name in spec.patterns:
                return ("patterns", name)
            if name == "tokenizer":
                return (name,)
            return ("constants", name)
        case Attribute(base=base, name=name):
            return (*_path(base, spec), name)
        case _:
            raise AssertionError(expr)


def lay(tree: Tree, change: Change) -> None:
    """Lay a change over plain data. A mapping is merged into the one there, unless it is of another kind."""
    here = tree
    for name in change.path[:-1]:
        below = here.setdefault(name, {})
        assert isinstance(below, dict), change
        here = below
    _merge(here, change.path[-1], change.value)


def _merge(here: Tree, name: str, value: Json) -> None:
    old = here.get(name)
    if not isinstance(value, Mapping) or not isinstance(old, dict):
        here[name] = value if not isinstance(value, Mapping) else dict(value)
        return
    if "kind" in value and value["kind"] != old.get("kind"):
        kept = {key: old[key] for key in ("theta", "layout", "partial") if key in old}
        here[name] = {**kept, **value}
        return
    for key, one in value.items():
        _merge(old, key, one)
