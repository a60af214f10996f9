"""Static evaluation of expressions: exact ints, bounded floats, no side effects, no attributes of Python objects."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import TypeAlias, assert_never

from llamagen.spec.expr import (
    Attribute,
    Binary,
    Call,
    Conditional,
    Expr,
    ExpressionError,
    Index,
    ListExpr,
    Literal_,
    Name,
    Unary,
)

Static: TypeAlias = "int | float | bool | str | tuple[Static, ...] | Mapping[str, Static] | None"
"""A value known before any tensor exists."""

Scope: TypeAlias = Mapping[str, Static]

MAX_INT = 2**127
MAX_ITEMS = 4096


def ceil_to(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def _int(value: int | float) -> int:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("int() of a value that is not finite")
    return int(value)


def _range(*bounds: int) -> tuple[int, ...]:
    span = range(*bounds)
    if len(span) > MAX_ITEMS:
        raise ValueError(f"a list may have {MAX_ITEMS} items")
    return tuple(span)


FUNCTIONS: Mapping[str, Callable[..., Static]] = {
    "abs": abs,
    "all": lambda items: all(items),
    "any": lambda items: any(items),
    "ceil": lambda x: math.ceil(x),
    "ceil_to": ceil_to,
    "contains": lambda text, part: part in text,
    "count": lambda items, value: sum(1 for i in items if i == value),
    "floor": lambda x: math.floor(x),
    "int": _int,
    "layers_of": lambda kinds, kind: tuple(i for i, found in enumerate(kinds) if found == kind),
    "len": len,
    "log2": math.log2,
    "max": max,
    "min": min,
    "range": _range,
    "round": lambda x, digits=0: round(x, digits),
    "sqrt": math.sqrt,
    "startswith": lambda text, part: text.startswith(part),
    "sum": lambda items: sum(items),
}
"""Functions of the language that need no tensors. Each is total over its types or raises ExpressionError."""

_ARITHMETIC: Mapping[str, Callable[..., Static]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
_COMPARE: Mapping[str, Callable[..., bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class UnknownName(ExpressionError):
    """A name that the scope does not have; the caller knows what could have been meant."""

    def __init__(self, name: str, extent: tuple[int, int]) -> None:
        super().__init__(f"`{name}` is not known here", extent)
        self.name = name


def evaluate(
    expr: Expr, scope: Scope, functions: Mapping[str, Callable[..., Static]] = FUNCTIONS
) -> Static:
    """Value of ``expr`` where names come from ``scope``. Raises ExpressionError (UnknownName) with a place."""
    match expr:
        case Name(id=name, extent=extent):
            if name not in scope:
                raise UnknownName(name, extent)
            return scope[name]
        case Literal_(value=value):
            return value
        case Binary():
            return _binary(expr, scope, functions)
        case Attribute(base=base, name=name, extent=extent):
            record = evaluate(base, scope, functions)
            if not isinstance(record, Mapping):
                raise ExpressionError(f"`{_kind(record)}` has no field `{name}`", extent)
            if name not in record:
                raise UnknownName(name, extent)
            return record[name]
        case Unary(op="not", operand=operand):
            return not is_true(evaluate(operand, scope, functions), operand)
        case Unary(operand=operand, extent=extent):
            return _apply(operator.neg, [_number(operand, scope, functions)], "-", extent)
        case Call(function=Name(id=name), arguments=arguments, keywords=(), extent=extent):
            if name not in functions:
                raise UnknownName(name, extent)
            given = [evaluate(a, scope, functions) for a in arguments]
            return _apply(functions[name], given, f"{name}()", extent)
        case Call(extent=extent):
            raise ExpressionError("only functions of the language can be called here", extent)
        case Index(base=base, index=index, extent=extent):
            return _index(
                evaluate(base, scope, functions), evaluate(index, scope, functions), extent
            )
        case Conditional(then=then, test=test, otherwise=otherwise):
            chosen = then if is_true(evaluate(test, scope, functions), test) else otherwise
            return evaluate(chosen, scope, functions)
        case ListExpr(items=items):
            return tuple(evaluate(i, scope, functions) for i in items)
        case _:
            assert_never(expr)


def _binary(expr: Binary, scope: Scope, functions: Mapping[str, Callable[..., Static]]) -> Static:
    op, extent = expr.op, expr.extent
    if op == "@":
        raise ExpressionError(f"`{op}` works on tensors only", extent)
    left = evaluate(expr.left, scope, functions)
    if op in ("and", "or"):
        decided = is_true(left, expr.left) == (op == "or")
        return left if decided else evaluate(expr.right, scope, functions)
    if op in ("in", "not in"):
        items = evaluate(expr.right, scope, functions)
        if not isinstance(items, tuple | str | Mapping):
            raise ExpressionError(f"`in` needs a list or a text, not {_kind(items)}", extent)
        return bool(_apply(operator.contains, [items, left], op, extent)) == (op == "in")
    if op in _COMPARE:
        right = evaluate(expr.right, scope, functions)
        if {type(left), type(right)} == {str, bool}:
            message = f"{_kind(left)} and {_kind(right)} are never equal"
            raise ExpressionError(message, extent, _NO_TRUTH)
        return _apply(_COMPARE[op], [left, right], op, extent)
    if op == "+" and isinstance(left, str | tuple):
        right = evaluate(expr.right, scope, functions)
        if type(left) is type(right):
            return _apply(operator.add, [left, right], op, extent)
        return _arithmetic(op, _check(left, expr.left), _check(right, expr.right), extent)
    a = _check(left, expr.left)
    return _arithmetic(op, a, _number(expr.right, scope, functions), extent)


def is_true(value: Static, expr: Expr) -> bool:
    """Whether ``value``, which ``expr`` gave, holds as a test; text does neither. Raises ExpressionError."""
    if isinstance(value, str):
        raise ExpressionError(f"needs true or false, found {_kind(value)}", expr.extent, _NO_TRUTH)
    return bool(value)


_NO_TRUTH = (
    "compare text with text (`kind == 'local'`), or give values that are `true` or `false` without "
    "quotes; a pattern of them is {cycle: [...]}, {list: [...]} or {every: ...}"
)


def _number(
    expr: Expr, scope: Scope, functions: Mapping[str, Callable[..., Static]]
) -> int | float:
    return _check(evaluate(expr, scope, functions), expr)


def _check(value: Static, expr: Expr) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"needs a number, found {_kind(value)}", expr.extent)
    return value


def _arithmetic(op: str, a: int | float, b: int | float, extent: tuple[int, int]) -> Static:
    if op == "**" and (abs(b) > 128 or abs(a) > 1e9):
        raise ExpressionError("a power this large is refused", extent)
    return _apply(_ARITHMETIC[op], [a, b], op, extent)


def _apply(
    function: Callable[..., Static], given: list[Static], what: str, extent: tuple[int, int]
) -> Static:
    try:
        value = function(*given)
    except ZeroDivisionError:
        raise ExpressionError("division by zero", extent) from None
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        kinds = ", ".join(_kind(g) for g in given)
        raise ExpressionError(f"`{what}` cannot take {kinds}: {error}", extent) from None
    if isinstance(value, complex):
        raise ExpressionError("the result is not a real number", extent)
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise ExpressionError("the result has more than 127 bits", extent)
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError("the result is not finite", extent)
    if isinstance(value, tuple | str) and len(value) > MAX_ITEMS:
        raise ExpressionError(f"a list may have {MAX_ITEMS} items", extent)
    return value


def _index(items: Static, index: Static, extent: tuple[int, int]) -> Static:
    if isinstance(items, Mapping) and isinstance(index, str):
        if index not in items:
            raise UnknownName(index, extent)
        return items[index]
    if not isinstance(items, tuple) or isinstance(index, bool) or not isinstance(index, int):
        raise ExpressionError(f"{_kind(items)}[{_kind(index)}] is not possible", extent)
    if not -len(items) <= index < len(items):
        raise ExpressionError(f"index {index} is outside a list of {len(items)}", extent)
    return items[index]


def _kind(value: Static) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text '{value[:40]}'"
        case tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "a record"
        case _:
            assert_never(value)
