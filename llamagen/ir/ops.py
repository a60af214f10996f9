"""The op table: the only place that knows operand and result shapes, parameters, FLOPs and compute precision.

A new op is one row in a table below, one lowering in each backend, and one function in ir/reference.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.ir.ops_attention import ATTENTION_OPS
from llamagen.ir.ops_basic import BASIC_OPS
from llamagen.ir.ops_images import IMAGE_OPS
from llamagen.ir.ops_parts import PART_OPS
from llamagen.ir.optypes import Op

_ROWS = (*PART_OPS, *ATTENTION_OPS, *BASIC_OPS, *IMAGE_OPS)
OPS: Mapping[str, Op] = {op.name: op for op in _ROWS}
assert len(OPS) == len(_ROWS), "two ops share a name"
