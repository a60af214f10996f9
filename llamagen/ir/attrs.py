"""Checking the static arguments of an op against its row of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

from llamagen.diagnostics import did_you_mean
from llamagen.ops.dims import Dim
from llamagen.ops.op import AttrSpec, AttrValue, Op
from llamagen.spec.evaluate import Static
from llamagen.spec.expr import Expr, ExpressionError, Extent
from llamagen.spec.scope import unparse_static

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
FLOAT32_WORDS = "a number that float32 holds: 0, or of a size from 1.2e-38 to 3.4e38"

Given = tuple[Static, Expr]
"""A static argument and the expression it came from."""


def bind(
    op: Op, positional: Sequence[Given], named: Mapping[str, Given], extent: Extent
) -> tuple[dict[str, AttrValue], dict[str, Expr]]:
    """Attributes of ``op`` by name, defaults filled in, and their expressions. Raises ExpressionError."""
    written = [a for a in op.attrs if not a.derived]
    known = [a.name for a in written]
    if len(positional) > len(written):
        first = positional[len(written)][1].extent
        takes = ", ".join(known) or "no static arguments"
        raise ExpressionError(f"too many arguments: `{op.name}` takes {takes}", first)
    given: dict[str, Given] = {a.name: g for a, g in zip(written, positional, strict=False)}
    for name, (value, expr) in named.items():
        if name not in known:
            hint = did_you_mean(name, known)
            help = (
                f"did you mean `{hint}`?" if hint else f"it takes: {', '.join(known) or 'nothing'}"
            )
            raise ExpressionError(f"`{op.name}` has no argument `{name}`", expr.extent, help)
        if name in given:
            raise ExpressionError(f"`{name}` is given twice", expr.extent)
        given[name] = (value, expr)
    attrs: dict[str, AttrValue] = {}
    for spec in written:
        if spec.name in given:
            attrs[spec.name] = convert(op, spec, *given[spec.name])
        elif spec.required:
            raise ExpressionError(f"`{op.name}` needs `{spec.name}` ({spec.doc})", extent)
        else:
            attrs[spec.name] = spec.default
    return attrs, {name: expr for name, (_, expr) in given.items()}


def in_float32(value: float) -> bool:
    """Whether backends, which compute in float32, see the number, not an infinity or a zero."""
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def convert(op: Op, spec: AttrSpec, value: Static, expr: Expr) -> AttrValue:
    """``value`` as the attribute's type. Raises ExpressionError when it is of another one."""

    def refuse(wish: str) -> ExpressionError:
        found = f"the text {value!r}" if isinstance(value, str) else unparse_static(value)
        return ExpressionError(
            f"`{spec.name}` of `{op.name}` must be {wish}, it is {found}", expr.extent
        )

    if value is None:
        if spec.optional:
            return None
        raise refuse("given")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match spec.type:
        case "int":
            if isinstance(value, int) and number:
                return value
            raise refuse("a whole number")
        case "float":
            if isinstance(value, int | float) and number:
                if not in_float32(value):
                    raise refuse(FLOAT32_WORDS)
                return float(value)
            raise refuse("a number")
        case "bool":
            if isinstance(value, bool):
                return value
            raise refuse("true or false")
        case "str":
            if isinstance(value, str) and (not spec.choices or value in spec.choices):
                return value
            raise refuse(f"one of {', '.join(spec.choices)}" if spec.choices else "a text")
        case "ints":
            items = value if isinstance(value, tuple) else (value,)
            if all(isinstance(i, int) and not isinstance(i, bool) for i in items):
                return tuple(int(i) for i in items if isinstance(i, int))
            raise refuse("a list of whole numbers")
        case "floats":
            if isinstance(value, tuple) and all(type(i) in (int, float) for i in value):
                return tuple(float(i) for i in value if isinstance(i, int | float))
            raise refuse("a list of numbers")
        case "dims":
            return _dims(value, refuse("a list of sizes such as [B, S, 128]"))
        case _:
            assert_never(spec.type)


def _dims(value: Static, refusal: ExpressionError) -> str:
    if not isinstance(value, tuple) or not value:
        raise refusal
    sizes: list[str] = []
    for item in value:
        if not isinstance(item, int | str) or isinstance(item, bool):
            raise refusal
        try:
            sizes.append(str(Dim.of(item)))
        except ValueError:
            raise refusal from None
    return ", ".join(sizes)
