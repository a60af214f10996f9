"""Nodes of the expression language: frozen, compared without their places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Extent: TypeAlias = tuple[int, int]
"""Start and end offset in the text that was parsed; end is exclusive."""


class ExpressionError(Exception):
    """A text that is not an expression; ``extent`` says where, in offsets of the text."""

    def __init__(self, message: str, extent: Extent, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.extent = extent
        self.help = help


@dataclass(frozen=True, slots=True)
class Literal_:
    value: int | float | bool | str | None
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Name:
    id: str
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Attribute:
    base: Expr
    name: str
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Index:
    base: Expr
    index: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Call:
    function: Expr
    arguments: tuple[Expr, ...]
    keywords: tuple[tuple[str, Expr], ...]
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Unary:
    op: Literal["-", "not"]
    operand: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Binary:
    op: str
    left: Expr
    right: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Conditional:
    then: Expr
    test: Expr
    otherwise: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class ListExpr:
    items: tuple[Expr, ...]
    extent: Extent = field(compare=False, default=(0, 0))


Expr: TypeAlias = (
    "Literal_ | Name | Attribute | Index | Call | Unary | Binary | Conditional | ListExpr"
)


@dataclass(frozen=True, slots=True)
class Assign:
    """``targets = value``: one name, or several for an op with several results."""

    targets: tuple[Name, ...]
    value: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Return:
    values: tuple[Expr, ...]
    extent: Extent = field(compare=False, default=(0, 0))


Statement: TypeAlias = Assign | Return


def names(expr: Expr) -> Iterator[Name]:
    """Every free name of ``expr``, left to right, functions included."""
    match expr:
        case Literal_():
            return
        case Name():
            yield expr
        case Attribute(base=base):
            yield from names(base)
        case Index(base=base, index=index):
            yield from names(base)
            yield from names(index)
        case Call(function=function, arguments=arguments, keywords=keywords):
            yield from names(function)
            for argument in arguments:
                yield from names(argument)
            for _, argument in keywords:
                yield from names(argument)
        case Unary(operand=operand):
            yield from names(operand)
        case Binary(left=left, right=right):
            yield from names(left)
            yield from names(right)
        case Conditional(then=then, test=test, otherwise=otherwise):
            yield from names(test)
            yield from names(then)
            yield from names(otherwise)
        case ListExpr(items=items):
            for item in items:
                yield from names(item)
