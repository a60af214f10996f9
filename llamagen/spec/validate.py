"""Merged files as a typed spec, and what the schema finds wrong in them, at its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from llamagen.diagnostics import Diagnostic, LlamagenError, Span, did_you_mean
from llamagen.spec.resolved import Branch, Leaf, Tree
from llamagen.spec.schema import (
    Spec,
)
from llamagen.spec.source import Plain, Scalar, Seq

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def validate(plain: Mapping[str, Plain], tree: Branch) -> Spec:
    """The typed spec. Raises LlamagenError with one LG1xx finding for each fault, at its place."""
    try:
        return Spec.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        findings = {d: None for e in error.errors(include_url=False) for d in _finding(e, tree)}
        raise LlamagenError(*findings) from None


def _finding(error: ErrorDetails, tree: Branch) -> Iterator[Diagnostic]:
    path, node, span = _locate(error["loc"], tree)
    dotted = ".".join(path) or "the spec"
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        owner = path[:-1]
        span = _key_span(tree, path) or span
        hint = did_you_mean(path[-1], _fields_at(owner))
        message = f"`{path[-1]}` is not a key of {_owner(owner)}"
        yield Diagnostic("LG101", "error", message, span, (), _hint(hint, owner))
    elif kind == "missing":
        missing = str(error["loc"][-1])
        message = f"{_owner(path)} lacks `{missing}`"
        yield Diagnostic("LG102", "error", message, span, (), f"add `{missing}: ...`")
    elif kind == "union_tag_not_found":
        message = f"`{dotted}` lacks `kind`"
        yield Diagnostic("LG102", "error", message, span, (), _choices(error))
    elif kind == "union_tag_invalid":
        message = f"`{dotted}` has an unknown kind"
        yield Diagnostic("LG104", "error", message, span, (), _choices(error))
    else:
        found = f", found `{_short(node)}`" if isinstance(node, Leaf) else ""
        reason = message[0].lower() + message[1:]
        help = _type_help(kind, node)
        if len(path) == 2 and path[0] == "patterns":
            help = (
                "write {list: [...]}, {cycle: [...]}, {every: 2, value: a, otherwise: b} "
                "or {default: a, at: {b: [3]}}"
            )
        yield Diagnostic("LG103", "error", f"`{dotted}`: {reason}{found}", span, (), help)


def _type_help(kind: str, node: Tree) -> str | None:
    """The next step after a value of the wrong type."""
    if not isinstance(node, Leaf) or not isinstance(node.node, Scalar):
        return None
    scalar = node.node
    if kind in ("int_type", "float_type") and scalar.style in ("single", "double"):
        return f"remove the quotes: `{scalar.text}`"
    if kind == "bool_type":
        return "write `true` or `false`"
    if kind == "string_type":
        return f"quote it: `'{scalar.text}'`"
    return None


def _key_span(tree: Tree, path: Sequence[str]) -> Span | None:
    for name in path[:-1]:
        below = tree.entries.get(name) if isinstance(tree, Branch) else None
        if below is None:
            return None
        tree = below
    key = tree.keys.get(path[-1]) if isinstance(tree, Branch) and path else None
    return key.span if key is not None else None


def _choices(error: ErrorDetails) -> str | None:
    expected = error.get("ctx", {}).get("expected_tags")
    return f"one of {expected}" if expected else None


def _short(leaf: Leaf) -> str:
    if isinstance(leaf.node, Seq):
        text = f"a list of {len(leaf.node)}"
    else:
        quote = {"single": "'", "double": '"'}.get(leaf.node.style, "")
        text = f"{quote}{leaf.node.text}{quote}"
    return text if len(text) <= 60 else text[:57] + "..."


def _owner(path: Sequence[str]) -> str:
    return f"`{'.'.join(path)}`" if path else "a spec"


def _hint(hint: str | None, owner: Sequence[str]) -> str | None:
    if hint:
        return f"did you mean `{hint}`?"
    fields = _fields_at(owner)
    if owner[:1] == ("hyperparameters",):
        return "a number only this architecture needs goes under `constants`"
    return f"known keys: {', '.join(fields)}" if fields and len(fields) < 24 else None


def _locate(loc: tuple[int | str, ...], tree: Branch) -> tuple[tuple[str, ...], Tree, Span]:
    """Pydantic's location (with union tags in it) as a path of the tree, the deepest node there, its place."""
    path: list[str] = []
    here: Tree = tree
    span = tree.span
    for step in loc:
        if isinstance(here, Branch) and str(step) in here.entries:
            name = str(step)
            key = here.keys.get(name)
            here = here.entries[name]
            path.append(name)
            span = here.node.span if isinstance(here, Leaf) else (key.span if key else here.span)
        elif isinstance(here, Leaf) and isinstance(here.node, Seq) and isinstance(step, int):
            if step < len(here.node.items):
                path.append(str(step))
                span = here.node.items[step].span
            break
    last = str(loc[-1]) if loc else ""
    if path and path[-1] == last and isinstance(here, Branch):
        return tuple(path), here, span
    return tuple(path), here, span


def _fields_at(path: Sequence[str]) -> tuple[str, ...]:
    """Keys that the schema allows at ``path``; empty where names are the author's own."""
    models: list[type[BaseModel]] = [Spec]
    for step in path:
        below: list[type[BaseModel]] = []
        for model in models:
            annotation = model.model_fields[step].annotation if step in model.model_fields else None
            below.extend(_models(annotation))
        models = below or [m for m in models if step not in m.model_fields]
        if not models:
            return ()
    return tuple(dict.fromkeys(name for model in models for name in model.model_fields))


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
