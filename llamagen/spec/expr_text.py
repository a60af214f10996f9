"""Expressions back to their canonical text."""

from __future__ import annotations

from llamagen.spec.expr_nodes import (
    Attribute,
    Binary,
    Call,
    Conditional,
    Expr,
    Index,
    ListExpr,
    Literal_,
    Name,
    Unary,
)

_PRECEDENCE = {
    "or": 1, "and": 2, "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4, "in": 4, "not in": 4,
    "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "@": 6, "**": 8,
}  # fmt: skip


def unparse(expr: Expr) -> str:
    """The canonical text of ``expr``: ``parse(unparse(e)) == e``."""
    return _unparse(expr, 0)


def _unparse(expr: Expr, outer: int) -> str:
    match expr:
        case Literal_(value=None):
            return "none"
        case Literal_(value=bool() as value):
            return "true" if value else "false"
        case Literal_(value=str() as value):
            return f'"{value}"' if "'" in value else f"'{value}'"
        case Literal_(value=value):
            text = repr(value)
            return f"({text})" if text.startswith("-") and outer > 6 else text
        case Name(id=id):
            return id
        case Attribute(base=base, name=name):
            return f"{_unparse(base, 9)}.{name}"
        case Index(base=base, index=index):
            return f"{_unparse(base, 9)}[{_unparse(index, 0)}]"
        case Call(function=function, arguments=arguments, keywords=keywords):
            given = [_unparse(a, 0) for a in arguments]
            given += [f"{k}={_unparse(v, 0)}" for k, v in keywords]
            return f"{_unparse(function, 9)}({', '.join(given)})"
        case Unary(op="not", operand=operand):
            return _wrap(f"not {_unparse(operand, 3)}", 3, outer)
        case Unary(operand=operand):
            return _wrap(f"-{_unparse(operand, 7)}", 7, outer)
        case Binary(op="**", left=left, right=right):
            return _wrap(f"{_unparse(left, 9)} ** {_unparse(right, 7)}", 8, outer)
        case Binary(op=op, left=left, right=right):
            rank = _PRECEDENCE[op]
            return _wrap(f"{_unparse(left, rank)} {op} {_unparse(right, rank + 1)}", rank, outer)
        case Conditional(then=then, test=test, otherwise=otherwise):
            text = f"{_unparse(then, 1)} if {_unparse(test, 1)} else {_unparse(otherwise, 0)}"
            return _wrap(text, 0, outer)
        case ListExpr(items=items):
            return f"[{', '.join(_unparse(i, 0) for i in items)}]"


def _wrap(text: str, rank: int, outer: int) -> str:
    return f"({text})" if outer > rank else text
