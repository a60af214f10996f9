"""Where the expression of an op is written: its attributes and types, and what holds around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamagen.ops.code import Code, Text, Tuple
from llamagen.ops.dims import Dim
from llamagen.ops.op import Attrs, TensorType


@dataclass(frozen=True, slots=True)
class TorchSite:
    attrs: Attrs
    part: str | None
    number: Callable[[str], Code]
    """An attribute of the node as Python: a constant's name where the spec used one."""
    numbers: Callable[[str], tuple[Code, ...]]
    """An attribute that is a list."""
    operand_types: tuple[TensorType, ...]
    result_types: tuple[TensorType, ...]
    model_dtype: Callable[[], Code]
    """An expression for the dtype the model runs in."""
    size: Callable[[Dim], Code]
    """An expression for a symbolic size."""
    sizes: Callable[[Sequence[Dim]], tuple[Code, ...]]
    """Expressions for a new shape of the same elements."""
    helper: Callable[[str], None]
    """Notes that a helper of the templates is used."""
    kept: Callable[[], str]
    """How many tokens a bounded slot keeps; empty for one that keeps all."""
    attend: Text
    """The attention function under a mask."""
    unmasked: Text
    """The attention function without one."""
    extras: tuple[str, ...]
    """What both take besides q, k, v and the mask."""
    states: str = ""
    """The list that holds all operands, if they are states that a loop collected."""

    def listed(self, x: Sequence[Code]) -> Code:
        """All operands as one argument."""
        return Text(self.states) if self.states else Tuple(tuple(x))
