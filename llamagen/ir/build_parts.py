"""Part declarations: ``linear(...)``, a block's name with options, ``stack(count, Block(...))``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamagen.diagnostics import Diagnostic, Span, did_you_mean
from llamagen.ir.attrs import Given, bind
from llamagen.ir.graph import OpPart
from llamagen.ops.op import AttrValue, ShapeError
from llamagen.ops.table import OPS
from llamagen.spec.evaluate import Static, evaluate, is_true
from llamagen.spec.expr import Call, Conditional, Expr, ExpressionError, Literal_, Name, parse
from llamagen.spec.schema import MAX_LAYERS, BlockDefinition
from llamagen.spec.scope import expression_error
from llamagen.spec.source_nodes import Scalar

Options = Mapping[str, AttrValue]


@dataclass(frozen=True, slots=True)
class PartDeclaration:
    """What a part is, before it is called: exactly one of ``op``, ``block`` and ``layers`` is set."""

    name: str
    op: OpPart | None = None
    block: tuple[str, Options] | None = None
    layers: tuple[tuple[str, Options], ...] = ()
    span: Span | None = None
    count_source: Expr | None = None
    collect: tuple[int, ...] | None = None
    """Of a stack: the layers before which its state is a result too; the number of layers is the end."""
    broken: bool = field(default=False)


def declare(
    name: str,
    text: str,
    node: Scalar | None,
    scope: Mapping[str, Static],
    blocks: Mapping[str, BlockDefinition],
) -> PartDeclaration | Diagnostic | None:
    """Read one declaration; None for a part that a condition switched off; a finding when it is wrong."""
    span = node.span if node is not None else None
    try:
        expr = _chosen(parse(text), scope)
        if isinstance(expr, Literal_) and expr.value is None:
            return None
        function, call = _head(expr)
        if function == "stack":
            count, layers, collect = _stack(call, scope, blocks)
            return PartDeclaration(
                name, layers=layers, span=span, count_source=count, collect=collect
            )
        if function in blocks:
            options = _options(function, call, scope, blocks)
            return PartDeclaration(name, block=(function, options), span=span)
        if function in OPS and OPS[function].is_part:
            return PartDeclaration(name, op=_op(name, function, call, scope, span), span=span)
        raise _unknown(function, expr, blocks)
    except ExpressionError as error:
        return expression_error("LG410", node, error, scope)


def _chosen(expr: Expr, scope: Mapping[str, Static]) -> Expr:
    """``A if test else B`` is decided here: a part is one thing or the other."""
    while isinstance(expr, Conditional):
        test = evaluate(expr.test, scope)
        expr = expr.then if is_true(test, expr.test) else expr.otherwise
    return expr


def _head(expr: Expr) -> tuple[str, Call]:
    match expr:
        case Name(id=id, extent=extent):
            return id, Call(expr, (), (), extent)
        case Call(function=Name(id=id)):
            return id, expr
        case _:
            message = "a part is `linear(...)`, a block's name, or `stack(count, Block(...))`"
            raise ExpressionError(message, expr.extent)


def _unknown(function: str, expr: Expr, blocks: Mapping[str, BlockDefinition]) -> ExpressionError:
    parts = [op.name for op in OPS.values() if op.is_part]
    if function in OPS:
        message = f"`{function}` has no parameters: use it in the equations, not as a part"
        return ExpressionError(message, expr.extent)
    hint = did_you_mean(function, [*blocks, *parts, "stack"])
    help = f"did you mean `{hint}`?" if hint else f"parts with parameters: {', '.join(parts)}"
    message = f"`{function}` is neither a block nor an op with parameters"
    return ExpressionError(message, expr.extent, help)


def _given(call: Call, scope: Mapping[str, Static]) -> tuple[list[Given], dict[str, Given]]:
    positional = [(evaluate(a, scope), a) for a in call.arguments]
    return positional, {k: (evaluate(a, scope), a) for k, a in call.keywords}


def _op(
    name: str, function: str, call: Call, scope: Mapping[str, Static], span: Span | None
) -> OpPart:
    op = OPS[function]
    positional, named = _given(call, scope)
    if function == "parameter" and positional:
        sizes = tuple(value for value, _ in positional)
        flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple) else sizes
        positional = [(flat, call.arguments[0])]
    attrs, sources = bind(op, positional, named, call.extent)
    tied = attrs.pop("tied_to", None)
    try:
        parameters = op.parameters(attrs)
    except ShapeError as error:
        raise ExpressionError(str(error), call.extent) from None
    if tied is not None:
        parameters = tuple(p for p in parameters if p.name != "weight")
    assert tied is None or isinstance(tied, str)
    return OpPart(name, function, attrs, parameters, tied, span, sources)


def _options(
    function: str, call: Call, scope: Mapping[str, Static], blocks: Mapping[str, BlockDefinition]
) -> dict[str, AttrValue]:
    known = blocks[function].options
    if call.arguments:
        message = f"options of `{function}` are given by name"
        raise ExpressionError(message, call.arguments[0].extent)
    options: dict[str, AttrValue] = dict(known)
    for key, expr in call.keywords:
        if key not in known:
            hint = did_you_mean(key, list(known))
            help = (
                f"did you mean `{hint}`?" if hint else f"declare it under `options` of {function}"
            )
            raise ExpressionError(f"block `{function}` has no option `{key}`", expr.extent, help)
        value = evaluate(expr, scope)
        if isinstance(value, tuple | Mapping):
            message = (
                f"option `{key}` must be a single value; index the pattern, as in `kinds[layer]`"
            )
            raise ExpressionError(message, expr.extent)
        options[key] = value
    return options


def _stack(
    call: Call, scope: Mapping[str, Static], blocks: Mapping[str, BlockDefinition]
) -> tuple[Expr, tuple[tuple[str, Options], ...], tuple[int, ...] | None]:
    if len(call.arguments) != 2 or [k for k, _ in call.keywords] not in ([], ["collect"]):
        raise ExpressionError("write `stack(count, Block(...), collect=[...])`", call.extent)
    count = evaluate(call.arguments[0], scope)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_LAYERS:
        message = f"a stack has 1 to {MAX_LAYERS} layers, not {count}"
        raise ExpressionError(message, call.arguments[0].extent)
    layers: list[tuple[str, Options]] = []
    for layer in range(count):
        here = _WithLayer(scope, layer)
        expr = _chosen(call.arguments[1], here)
        function, layer_call = _head(expr)
        if function not in blocks:
            raise _unknown(function, expr, blocks)
        layers.append((function, _options(function, layer_call, here, blocks)))
    collect = [_collected(expr, count, scope) for _, expr in call.keywords]
    return call.arguments[0], tuple(layers), collect[0] if collect else None


def _collected(expr: Expr, count: int, scope: Mapping[str, Static]) -> tuple[int, ...]:
    value = evaluate(expr, scope)
    items = value if isinstance(value, tuple) else (value,)
    layers = tuple(i for i in items if isinstance(i, int) and not isinstance(i, bool))
    if not layers or len(layers) != len(items) or not all(0 <= i <= count for i in layers):
        message = f"`collect` is a list of layers from 0 to {count}, the end, not {value}"
        raise ExpressionError(message, expr.extent)
    return layers


class _WithLayer(dict[str, Static]):
    """The scope of one layer: ``layer`` is its index; other names are read through, so that reads are recorded."""

    def __init__(self, scope: Mapping[str, Static], layer: int) -> None:
        super().__init__({"layer": layer})
        self.outer = scope

    def __contains__(self, name: object) -> bool:
        return name == "layer" or name in self.outer

    def __missing__(self, name: str) -> Static:
        return self.outer[name]
