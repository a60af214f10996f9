"""Every lowering against the float64 reference, in every dtype."""

from __future__ import annotations

import pytest

from llamagen.emit.onnx.profile import ONNX_DTYPES, OnnxDType
from llamagen.ops.table import OPS

from .op_cases import (
    CASES,
    MAX,
    RMS,
    ROUNDOFF,
    Case,
    operands_of,
)
from .single import (
    compare,
)


def test_every_op_has_a_case() -> None:
    """What hands something to another graph is no model of its own."""
    alone = {op.name for op in OPS.values() if op.onnx is not None}
    assert {c.op for c in CASES} == alone


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_reference(case: Case) -> None:
    worst, rms = compare(case.op, case.operands, operands_of(case), **case.attrs).errors()
    assert worst <= MAX
    assert rms <= RMS


@pytest.mark.parametrize("dtype", [d for d in ONNX_DTYPES if d != "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reduced_dtypes_stay_within_their_roundoff(case: Case, dtype: OnnxDType) -> None:
    found = compare(case.op, case.operands, operands_of(case), dtype, **case.attrs)
    _, rms = found.errors()
    assert rms <= 2 * ROUNDOFF[dtype]
