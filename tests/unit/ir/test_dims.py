"""Symbolic sizes behave like the integers they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamagen.ops.dims import B, Dim, P, S, T

LEAVES = st.one_of(st.integers(-9, 99).map(Dim.of), st.sampled_from([B, S, P, T]))
DIMS = st.recursive(
    LEAVES,
    lambda d: st.one_of(
        st.tuples(d, d).map(lambda p: p[0] + p[1]), st.tuples(d, d).map(lambda p: p[0] * p[1])
    ),
    max_leaves=6,
)
SIZES = st.fixed_dictionaries({n: st.integers(0, 9) for n in "BSP"})


@given(DIMS, DIMS, SIZES)
def test_arithmetic_commutes_with_evaluation(a: Dim, b: Dim, sizes: dict[str, int]) -> None:
    x, y = a.evaluate(sizes), b.evaluate(sizes)
    assert (a + b).evaluate(sizes) == x + y
    assert (a - b).evaluate(sizes) == x - y
    assert (a * b).evaluate(sizes) == x * y
    assert a - a == Dim.of(0)
    assert a + b == b + a


@given(DIMS)
def test_text_round_trip(a: Dim) -> None:
    assert Dim.of(str(a)) == a


def test_reading() -> None:
    assert str(T * 2 + 1) in ("2*P + 2*S + 1",)
    assert (S * 6).divided_by(3) == S * 2
    assert (S * 6 + 1).divided_by(3) is None
    assert Dim.of(12).value == 12
    with pytest.raises(ValueError, match="not a fixed size"):
        _ = S.value
    with pytest.raises(ValueError, match="not a size"):
        Dim.of("S; import os")
