"""The op table: the only place that knows operand and result shapes, parameters, FLOPs and compute precision.

A new op is one row in a table below, one lowering in each backend, and one function in ir/reference.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.ir.ops_attention import ATTENTION_OPS
from llamagen.ir.ops_basic import BASIC_OPS
from llamagen.ir.ops_parts import PART_OPS
from llamagen.ir.optypes import Op

OPS: Mapping[str, Op] = {op.name: op for op in (*PART_OPS, *ATTENTION_OPS, *BASIC_OPS)}
assert len(OPS) == len(PART_OPS) + len(ATTENTION_OPS) + len(BASIC_OPS), "two ops share a name"
