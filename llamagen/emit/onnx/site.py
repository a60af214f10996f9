"""Where a lowering happens: the op's attributes, types and parameters. The operands come beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from llamagen.ops.dims import Dim
from llamagen.ops.op import Attrs, TensorType

Given: TypeAlias = "tuple[ir.Value | None, ...]"
"""Operands of a rewritten op; None for an absent one."""


@dataclass(frozen=True, slots=True)
class Site:
    """One op application. ``parameters`` maps the local name (``weight``) to its initializer.

    ``operands`` are the types of the operands that are there; ``given`` has None for an absent one between others.
    """

    attrs: Attrs
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    parameters: Mapping[str, ir.Value]
    given: Given

    def dims(self, operand: int = 0) -> tuple[Dim, ...]:
        return self.operands[operand].shape

    def axis(self) -> int:
        """The attribute ``axis``, counted from the front."""
        axis = self.attrs["axis"]
        assert isinstance(axis, int)
        return axis % len(self.operands[0].shape)
