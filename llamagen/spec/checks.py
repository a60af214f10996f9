"""A merged tree as a typed spec, and what is wrong with it: schema, invariants, patterns and layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from llamagen.diagnostics import (
    NAME_ALIASES,
    Diagnostic,
    Fix,
    LlamagenError,
    Related,
    Span,
    did_you_mean,
)
from llamagen.spec.expr import (
    FUNCTIONS,
    Expr,
    ExpressionError,
    Scope,
    Static,
    UnknownName,
    evaluate,
    names,
    parse,
    unparse,
    unparse_static,
)
from llamagen.spec.naming import bind_layout
from llamagen.spec.resolve import Branch, Leaf, Merged, ResolvedSpec, Tree, merge, tree_to_plain
from llamagen.spec.schema import (
    AtPattern,
    CyclePattern,
    EveryPattern,
    ListPattern,
    Pattern,
    Spec,
)
from llamagen.spec.source import Plain, Refusal, Scalar, Seq, SourceMap, resolve_plain

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def resolve(chain: Sequence[SourceMap], known: Merged | None = None) -> ResolvedSpec:
    """Merge, validate and check one chain of files. Raises LlamagenError with everything found wrong."""
    tree, findings = merge(chain, known)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise LlamagenError(*errors)
    plain = tree_to_plain(tree)
    spec = validate(plain, tree)
    ids = tuple(
        node.text if isinstance(node := source.root.get("id"), Scalar) else source.file
        for source in chain
    )
    files = tuple(source.file for source in chain)
    resolved = ResolvedSpec(spec, tree, plain, ids, files, tuple(findings))
    check_invariants(resolved)
    return resolved


# what expressions may name


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
        case AtPattern(default=default):
            where = {i: value for value, indices in pattern.others for i in indices}
            return tuple(where.get(i, default) for i in range(layers))


def expression_error(
    code: str, node: Scalar | None, error: ExpressionError, scope: Mapping[str, object]
) -> Diagnostic:
    """An expression's fault as a finding at its place in the YAML."""
    span = node.slice_span(*error.extent) if node is not None else None
    help = error.help
    if isinstance(error, UnknownName):
        elsewhere = "set it under `hyperparameters` or `constants`"
        known = [*FUNCTIONS] if error.function else [*scope, *FUNCTIONS]
        if error.function:
            elsewhere = f"functions: {', '.join(FUNCTIONS)}"
        help = did_you_mean(error.name, known, elsewhere)
    return Diagnostic(code, "error", error.message, span, (), help)


# invariants, patterns and layouts


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
            diagnostic = expression_error("LG304", None, error, scope)
            yield replace(diagnostic, span=resolved.place("checkpoint", "layouts", name))


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
    leaves = (resolved.leaf(section, name) for section in ("hyperparameters", "constants"))
    return next((leaf for leaf in leaves if leaf is not None), None)


def _check_patterns(resolved: ResolvedSpec, scope: Scope) -> Iterator[Diagnostic]:
    spec = resolved.spec
    layers = spec.hyperparameters.num_layers
    for name, pattern in spec.patterns.items():
        place = resolved.place("patterns", name)
        written = resolved.find("patterns", name, "at")
        if isinstance(written, Branch) and isinstance(pattern, AtPattern):
            default = pattern.default
            for value, key in written.keys.items():
                if isinstance(default, str | None) or value not in written.entries:
                    continue
                message = (
                    f"`patterns.{name}`: `default` is {unparse_static(default)}, "
                    f"and `{value}` below `at` is text"
                )
                having = unparse_static(dict(pattern.others)[value])
                shown = "true" if isinstance(resolve_plain(value), str) else value
                help = f"write what is no text as `at: [{{layers: {having}, value: {shown}}}]`"
                fixes = _listed(written) if value == next(iter(written.keys)) else ()
                yield Diagnostic("LG103", "error", message, key.span, (), help, fixes)
        if layers is None:
            if not spec.abstract:
                message = f"pattern `{name}` needs `hyperparameters.num_layers`"
                yield Diagnostic("LG303", "error", message, place)
        elif isinstance(pattern, ListPattern) and len(pattern.list) != layers:
            message = f"pattern `{name}` has {len(pattern.list)} values for {layers} layers"
            yield Diagnostic("LG303", "error", message, place)
        elif isinstance(pattern, AtPattern):
            seen: dict[int, Static] = {}
            for other, indices in pattern.others:
                for i in indices:
                    if i >= layers or i in seen:
                        reason = (
                            f"there are {layers} layers"
                            if i >= layers
                            else f"it is `{unparse_static(seen[i])}` too"
                        )
                        shown = unparse_static(other)
                        message = f"pattern `{name}`: layer {i} cannot be `{shown}`, {reason}"
                        yield Diagnostic("LG303", "error", message, place)
                    seen[i] = other


def _listed(at: Branch) -> tuple[Fix, ...]:
    """The mapping of a pattern as a list of `{layers: ..., value: ...}`; none where a key can only be text, where it is
    in several files, or where comments may stand between layers."""
    rows: list[Fix] = []
    for value, below in at.entries.items():
        key = at.keys[value].span
        if isinstance(below, Branch) or isinstance(resolve_plain(value), str | Refusal):
            return ()
        layers = below.node.span
        if layers.file != at.span.file or key.line != layers.end_line:
            return ()
        assert isinstance(below.node, Seq)
        numbers = ", ".join(one.text for one in below.node.items if isinstance(one, Scalar))
        place = Span(key.file, key.line, key.col, layers.end_line, layers.end_col)
        rows.append(Fix(place, f"{{layers: [{numbers}], value: {value}}}"))
    first = rows[0].span
    if (at.span.line, at.span.col) == (first.line, first.col):  # a block
        return tuple(Fix(one.span, f"- {one.text}") for one in rows)
    return (Fix(at.span, f"[{', '.join(one.text for one in rows)}]"),)


# the schema


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
        message = f"`{path[-1]}` is not a key of {_owner(owner)}"
        help = did_you_mean(path[-1], _fields_at(owner), _known_keys(owner))
        name = NAME_ALIASES.get(path[-1], "")
        known = _key_span(tree, (*owner, name))
        here = known is not None and known.file == span.file
        fixes = (Fix(span, name),) if name in _fields_at(owner) and not here else ()
        yield Diagnostic("LG101", "error", message, span, (), help, fixes)
    elif kind == "missing":
        missing = str(error["loc"][-1])
        message = f"{_owner(path)} lacks `{missing}`"
        yield Diagnostic("LG102", "error", message, span, (), f"add `{missing}: ...`")
    elif kind == "union_tag_not_found":
        message = f"`{dotted}` lacks `kind`"
        yield Diagnostic("LG102", "error", message, span, (), _choices(error))
    elif kind == "union_tag_invalid":
        stated = node.entries.get("kind") if isinstance(node, Branch) else None
        span = stated.node.span if isinstance(stated, Leaf) else span
        message = f"`{dotted}` has an unknown kind"
        yield Diagnostic("LG104", "error", message, span, (), _choices(error))
    else:
        shown = f", found `{_short(node)}`" if isinstance(node, Leaf) else ""
        reason = message[0].lower() + message[1:]
        help = _type_help(kind, node)
        if len(path) == 2 and path[0] == "patterns":
            help = (
                "write {list: [...]}, {cycle: [...]}, {every: 2, value: a, otherwise: b} "
                "or {default: a, at: {b: [3]}}"
            )
        fixes = (Fix(span, fix),) if (fix := _unquoted(kind, node)) is not None else ()
        yield Diagnostic("LG103", "error", f"`{dotted}`: {reason}{shown}", span, (), help, fixes)


def _type_help(kind: str, node: Tree) -> str | None:
    """The next step after a value of the wrong type."""
    if kind == "string_type" and isinstance(node, Branch):
        return "a mapping of equations replaces those of a base, and no base has this block"
    if not isinstance(node, Leaf) or not isinstance(node.node, Scalar):
        return None
    scalar = node.node
    if kind in ("int_type", "float_type") and scalar.style in ("single", "double"):
        number = type(resolve_plain(scalar.text)) in (int, float)
        return f"remove the quotes: `{scalar.text}`" if number else "write a number"
    if kind == "bool_type":
        return "write `true` or `false`"
    if kind == "string_type":
        return f"quote it: `'{scalar.text}'`"
    return None


def _unquoted(kind: str, node: Tree) -> str | None:
    """A value of the wrong type as its text is without quotes, or with them, where it then has the right one."""
    if not isinstance(node, Leaf) or not isinstance(node.node, Scalar):
        return None
    text, quoted = node.node.text, node.node.style in ("single", "double")
    means: dict[str, tuple[type, ...]] = {
        "int_type": (int,),
        "float_type": (int, float),
        "bool_type": (bool,),
    }
    if quoted and kind in means and type(resolve_plain(text)) in means[kind]:
        return text
    return f"'{text}'" if kind == "string_type" and node.node.style == "plain" else None


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


def _known_keys(owner: Sequence[str]) -> str | None:
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
