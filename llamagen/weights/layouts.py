"""The layouts that a checkpoint of one model may follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llamagen.diagnostics import LlamagenError
from llamagen.spec.checks import scope_of
from llamagen.spec.expr import ExpressionError, Scope, UnknownName
from llamagen.spec.naming import BoundLayout, bind_layout, known_dialects
from llamagen.spec.resolve import ResolvedSpec


def layouts_for(resolved: ResolvedSpec) -> tuple[BoundLayout, ...]:
    """The layouts that the spec states itself, then the known dialects; `checkpoint.drop` counts for all.

    Among layouts that fit equally well the first wins. Raises LG304 for an abstract spec that lacks a number.
    """
    scope = scope_of(resolved.spec)
    drop = resolved.spec.checkpoint.drop
    found = (*_stated(resolved, scope), *dialects_for(scope))
    return tuple(replace(layout, drop=(*layout.drop, *drop)) for layout in found)


def _stated(resolved: ResolvedSpec, scope: Scope) -> Iterator[BoundLayout]:
    for name, layout in resolved.spec.checkpoint.layouts.items():
        try:
            yield bind_layout(name, layout, scope)
        except ExpressionError as error:
            place = resolved.place("checkpoint", "layouts", name)
            raise LlamagenError.of("LG304", error.message, place, error.help) from None


def dialects_for(scope: Scope) -> tuple[BoundLayout, ...]:
    """Every dialect of spec/dialects/ whose numbers the model has; without them it cannot be the model's."""
    found: list[BoundLayout] = []
    for name, layout in known_dialects().items():
        try:
            found.append(bind_layout(name, layout, scope))
        except UnknownName:
            continue
    return tuple(found)
