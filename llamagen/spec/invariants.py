"""The invariants of a spec, and whether its patterns and layouts fit its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llamagen.diagnostics import Diagnostic, LlamagenError, Related
from llamagen.spec.bound_layout import bind_layout
from llamagen.spec.evaluate import FUNCTIONS, Scope, evaluate
from llamagen.spec.expr import Expr, ExpressionError, names, parse, unparse
from llamagen.spec.resolved import Branch, Leaf, ResolvedSpec
from llamagen.spec.schema import AtPattern, ListPattern
from llamagen.spec.scope import expression_error, scope_of, unparse_static
from llamagen.spec.source_nodes import Scalar


def check_invariants(resolved: ResolvedSpec) -> None:
    """Every invariant holds, and patterns fit the layers. Raises LlamagenError with all that do not."""
    spec = resolved.spec
    scope = scope_of(spec)
    findings = list(_check_patterns(resolved, scope))
    known_in_schema = set(type(spec.hyperparameters).model_fields)
    for name in (*spec.constants, *spec.patterns):
        if name in known_in_schema:
            section = "constants" if name in spec.constants else "patterns"
            message = f"`{name}` is a hyperparameter of the vocabulary"
            place = resolved.place(section, name)
            findings.append(Diagnostic("LG105", "error", message, place, (), "set it there"))
    for name, text in spec.invariants.items():
        node = resolved.scalar("invariants", name)
        try:
            expr = parse(text)
            if spec.abstract and any(
                n.id not in scope and n.id not in FUNCTIONS for n in names(expr)
            ):
                continue
            if evaluate(expr, scope) is not True:
                findings.append(_violated(resolved, name, expr, node, scope))
        except ExpressionError as error:
            findings.append(expression_error("LG301", node, error, scope))
    if not spec.abstract:
        findings.extend(_check_layouts(resolved, scope))
    if findings:
        raise LlamagenError(*findings)


def _check_layouts(resolved: ResolvedSpec, scope: Scope) -> Iterator[Diagnostic]:
    """Numbers of the stated layouts; evaluated here so that `check` finds a misspelt name, not the export."""
    for name, layout in resolved.spec.checkpoint.layouts.items():
        try:
            bind_layout(name, layout, scope)
        except ExpressionError as error:
            found = expression_error("LG304", None, error, scope)
            yield replace(found, span=resolved.place("checkpoint", "layouts", name))


def _violated(
    resolved: ResolvedSpec, name: str, expr: Expr, node: Scalar | None, scope: Scope
) -> Diagnostic:
    used = dict.fromkeys(n.id for n in names(expr) if n.id in scope)
    values = ", ".join(f"{n} = {unparse_static(scope[n])}" for n in used)
    span = node.slice_span(0, len(node.text.rstrip())) if node else None
    message = f"`{resolved.spec.id}`: invariant `{name}` does not hold: {unparse(expr)}"
    leaves = ((n, _value_leaf(resolved, n)) for n in used)
    related = tuple(
        Related(
            f"{n} = {unparse_static(scope[n])}, from {leaf.origins[-1].spec_id}", leaf.node.span
        )
        for n, leaf in leaves
        if leaf is not None
    )
    help = (
        f"change one of these values, or drop an inherited rule with `invariants: {{{name}: null}}`"
    )
    if not related and values:
        help = f"with {values}"
    return Diagnostic("LG302", "error", message, span, related, help)


def _value_leaf(resolved: ResolvedSpec, name: str) -> Leaf | None:
    found = (resolved.leaf(section, name) for section in ("hyperparameters", "constants"))
    return next((leaf for leaf in found if leaf is not None), None)


def _check_patterns(resolved: ResolvedSpec, scope: Scope) -> Iterator[Diagnostic]:
    spec = resolved.spec
    layers = spec.hyperparameters.num_layers
    for name, pattern in spec.patterns.items():
        place = resolved.place("patterns", name)
        if isinstance(pattern, AtPattern) and not isinstance(pattern.default, str | None):
            default = unparse_static(pattern.default)
            for value in pattern.at:
                message = (
                    f"`patterns.{name}`: `default` is {default}, and `{value}` below `at` is text"
                )
                help = "write {list: [...]}, {cycle: [...]} or {every: 2, value: a, otherwise: b}"
                branch = resolved.find("patterns", name, "at")
                at = branch.keys[value].span if isinstance(branch, Branch) else place
                yield Diagnostic("LG103", "error", message, at, (), help)
        if layers is None:
            if not spec.abstract:
                message = f"pattern `{name}` needs `hyperparameters.num_layers`"
                yield Diagnostic("LG303", "error", message, place)
        elif isinstance(pattern, ListPattern) and len(pattern.list) != layers:
            message = f"pattern `{name}` has {len(pattern.list)} values for {layers} layers"
            yield Diagnostic("LG303", "error", message, place)
        elif isinstance(pattern, AtPattern):
            seen: dict[int, str] = {}
            for value, indices in pattern.at.items():
                for i in indices:
                    if i >= layers or i in seen:
                        reason = (
                            f"there are {layers} layers"
                            if i >= layers
                            else f"it is `{seen[i]}` too"
                        )
                        message = f"pattern `{name}`: layer {i} cannot be `{value}`, {reason}"
                        yield Diagnostic("LG303", "error", message, place)
                    seen[i] = value
