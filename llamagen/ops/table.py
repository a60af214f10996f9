"""The op table: every row by name."""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.ops.activations import ACTIVATION_OPS
from llamagen.ops.arithmetic import ARITHMETIC_OPS
from llamagen.ops.attention import ATTENTION_OPS
from llamagen.ops.images import IMAGE_OPS
from llamagen.ops.linear import LINEAR_OPS
from llamagen.ops.moe import EXPERT_OPS
from llamagen.ops.norms import NORM_OPS
from llamagen.ops.op import Attrs, Op, Precision, ShapeError, TensorType, Tokens, Types
from llamagen.ops.pooling import POOLING_OPS
from llamagen.ops.rope import ROPE_OPS
from llamagen.ops.shapes import SHAPE_OPS
from llamagen.ops.states import STATE_OPS


def _no_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    raise ShapeError("a call has the shapes of its block")


CALL, STACK = (
    Op(name, doc, "", (), _no_shape, Precision.EXACT, Tokens.MIXED, control=True)
    for name, doc in (("call", "Run a block part."), ("stack", "Run the layers of a stack part."))
)

_FAMILIES = (
    LINEAR_OPS,
    NORM_OPS,
    EXPERT_OPS,
    ATTENTION_OPS,
    ROPE_OPS,
    ACTIVATION_OPS,
    ARITHMETIC_OPS,
    SHAPE_OPS,
    IMAGE_OPS,
    POOLING_OPS,
    STATE_OPS,
)
_ROWS = [op for family in _FAMILIES for op in family]

OPS: Mapping[str, Op] = {op.name: op for op in _ROWS if not op.fused}
"""What graphs of specs are made of."""

NODES: Mapping[str, Op] = {op.name: op for op in (*_ROWS, CALL, STACK)}
"""And what else may be a node: the operators that profiles put in, and calls of blocks."""

assert len(NODES) == len(_ROWS) + 2, "two ops share a name"
