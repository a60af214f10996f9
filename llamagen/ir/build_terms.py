"""What an expression of a block equation is worth while the block is built."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llamagen.ir.attrs import FLOAT32_WORDS, in_float32
from llamagen.ops.dims import IMAGES, B, Dim, S, T
from llamagen.ops.op import TensorType
from llamagen.spec.evaluate import Static
from llamagen.spec.expr import Binary, Expr, ExpressionError, Name, names

AMBIENT = ("positions", "attention_mask")
"""Graph-level tensors that every equation may name, beside the inputs that a graph declares."""

SIZES: Mapping[str, Dim] = {"B": B, "S": S, "T": T, "I": IMAGES}
"""Names of sizes that are known at run time only, in shapes."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of this block by id, or a graph-level one as ``@name``."""

    id: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Constant:
    """A value known now."""

    value: Static


@dataclass(frozen=True, slots=True)
class Listed:
    """Tensors under one name: the states a stack collects. An op that joins any number takes them together."""

    items: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Several:
    """Results of an op with more than one."""

    items: tuple[Tensor | Listed, ...]


class Broken(Exception):
    """An expression that uses a value whose equation already failed: nothing new to report."""


Term: TypeAlias = Tensor | Constant | Listed | Several


def size(expr: Expr, static: Callable[[Expr], Static], shadowed: Container[str] = ()) -> Static:
    """One size of a shape: a value known now, or the text of a Dim such as ``4100*I``. Raises ExpressionError."""
    if not any(n.id in SIZES and n.id not in shadowed for n in names(expr)):
        return static(expr)
    match expr:
        case Name(id=id):
            return str(SIZES[id])
        case Binary(op="+" | "*" as op, left=left, right=right):
            a, b = (_dim(size(e, static, shadowed), e) for e in (left, right))
            return str(a + b if op == "+" else a * b)
        case _:
            message = "sizes known at run time can be added and multiplied, nothing else"
            raise ExpressionError(message, expr.extent)


def _dim(value: Static, expr: Expr) -> Dim:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ExpressionError("a size is a whole number", expr.extent)
    return Dim.of(value)


def number(value: Static, expr: Expr) -> float:
    """``value`` as the number in arithmetic with a tensor. Raises ExpressionError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError("arithmetic with a tensor needs a number here", expr.extent)
    if not in_float32(value):
        raise ExpressionError(f"{value:g} is not {FLOAT32_WORDS}", expr.extent)
    return float(value)
