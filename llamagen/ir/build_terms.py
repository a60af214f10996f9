"""What an expression of a block equation is worth while the block is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llamagen.ir.graph import TensorType
from llamagen.spec.evaluate import Static
from llamagen.spec.expr import Expr, ExpressionError

AMBIENT = ("positions", "attention_mask")
"""Graph-level tensors that every equation may name."""


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
class Several:
    """Results of an op with more than one."""

    items: tuple[Tensor, ...]


class Broken(Exception):
    """An expression that uses a value whose equation already failed: nothing new to report."""


Term: TypeAlias = Tensor | Constant | Several


def number(value: Static, expr: Expr) -> float:
    """``value`` as the number in arithmetic with a tensor. Raises ExpressionError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError("arithmetic with a tensor needs a number here", expr.extent)
    return float(value)
