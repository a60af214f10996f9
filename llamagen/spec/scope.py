"""What the expressions of a spec may name, and their faults as findings."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from llamagen.diagnostics import Diagnostic, did_you_mean
from llamagen.spec.expr import FUNCTIONS, ExpressionError, Static, UnknownName
from llamagen.spec.schema import (
    AtPattern,
    CyclePattern,
    EveryPattern,
    ListPattern,
    Pattern,
    Spec,
)
from llamagen.spec.source import Scalar


def scope_of(spec: Spec) -> dict[str, Static]:
    """Names that expressions of ``spec`` may use: hyperparameters that are set, constants, patterns."""
    scope: dict[str, Static] = {}
    for name in type(spec.hyperparameters).model_fields:
        value = getattr(spec.hyperparameters, name)
        if value is not None:
            scope[name] = value.model_dump() if isinstance(value, BaseModel) else value
    scope.update(spec.constants)
    layers = spec.hyperparameters.num_layers
    for name, pattern in spec.patterns.items():
        scope[name] = expand(pattern, layers or 0)
    return scope


def expand(pattern: Pattern, layers: int) -> tuple[Static, ...]:
    """A pattern written out: one value a layer."""
    match pattern:
        case CyclePattern(cycle=cycle):
            return tuple(cycle[i % len(cycle)] for i in range(layers))
        case ListPattern(list=values):
            return values
        case EveryPattern(every=every, value=value, otherwise=otherwise):
            return tuple(value if (i + 1) % every == 0 else otherwise for i in range(layers))
        case AtPattern(default=default, at=at):
            where = {i: value for value, indices in at.items() for i in indices}
            return tuple(where.get(i, default) for i in range(layers))


def expression_error(
    code: str, node: Scalar | None, error: ExpressionError, scope: Mapping[str, object]
) -> Diagnostic:
    """An expression's fault as a finding at its place in the YAML."""
    span = node.slice_span(*error.extent) if node is not None else None
    help = error.help
    if isinstance(error, UnknownName):
        hint = did_you_mean(error.name, [*scope, *FUNCTIONS])
        help = (
            f"did you mean `{hint}`?" if hint else "set it under `hyperparameters` or `constants`"
        )
    return Diagnostic(code, "error", error.message, span, (), help)
