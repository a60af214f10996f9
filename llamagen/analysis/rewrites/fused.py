"""The operators that rules may name beside the ops of the IR: the types of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from llamagen.ir.dims import Dim
from llamagen.ir.graph import Attrs, TensorType
from llamagen.ir.ops import OPS
from llamagen.ir.optypes import a_int

Types: TypeAlias = Sequence[TensorType | None]
"""None for an operand that is absent."""

FusedShape: TypeAlias = Callable[[Types, Attrs], tuple[TensorType, ...]]


def _given(types: Types, index: int) -> TensorType:
    found = types[index]
    assert found is not None
    return found


def _attention(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Operands: queries (or all three packed), keys, values, past keys, past values, attention mask, sinks."""
    query = _given(types, 0)
    batch, tokens = query.shape[:2]
    presents: list[TensorType] = []
    for past in (_given(types, 3), _given(types, 4)):
        shape = (*past.shape[:2], past.shape[2] + tokens, past.shape[3])
        presents.append(TensorType(past.dtype, shape))
    width = Dim.of(a_int(attrs, "heads")) * presents[0].shape[3]
    return (TensorType(query.dtype, (batch, tokens, width)), *presents)


def _skip_norm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (_given(types, 0), _given(types, 0))


def _same(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (_given(types, 0),)


def _last_row(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = _given(types, 0)
    return (TensorType(x.dtype, (x.shape[0], Dim.of(1), *x.shape[2:])),)


def _product(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return OPS["linear"].shape([_given(types, 0)], attrs)


FUSED: Mapping[str, FusedShape] = {
    "GroupQueryAttention": _attention,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "QuickGelu": _same,
    "FusedMatMul": _product,
    "MoE": _same,
    "QMoE": _same,
    "pack_rows": _same,
    "unpack_rows": _same,
    "last_row": _last_row,
}
"""CamelCase: one operator of ONNX Runtime. Lower case: a few operators on the rows of tokens (rows.py)."""


def result_types(op: str, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Types of the results of an op of the IR or of this table."""
    fused = FUSED.get(op)
    if fused is not None:
        return fused(types, attrs)
    return OPS[op].shape([t for t in types if t is not None], attrs)
