"""Expressions of tensors: operators, functions that numbers have too, axes by name, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import flatten
from llamagen.ir.reference import evaluate as evaluate_reference
from llamagen.spec.expr import evaluate, parse
from llamagen.spec.registry import Registry
from llamagen.verify.scenarios import FloatArray
from tests.parity.models import SPECS, RandomModel

G, U = "gate_proj(x)", "up_proj(x)"


def feed_forward(expression: str, hyperparameters: str = "{}") -> str:
    """A model whose feed-forwards return this of two projections, a and b."""
    text = "spec: 1\nid: test/expressions\nextends: foreign/_decoder\n"
    text += f"hyperparameters: {hyperparameters}\nblocks:\n  FeedForward:\n    forward: |\n"
    return f"{text}      a = {G}\n      b = {U}\n      return down_proj({expression})\n"


def feed(expression: str, hyperparameters: str = "{}") -> list[tuple[str, dict[str, object]]]:
    """Ops of such a feed-forward in the first layer, with their attributes."""
    text = feed_forward(expression, hyperparameters)
    nodes = flatten(build(Registry((SPECS,)).load_text(text))).nodes
    return [(n.op, dict(n.attrs)) for n in nodes if n.path == "model.layers.0.mlp"]


@pytest.mark.parametrize(
    ("expression", "ops"),
    [
        ("max(a, 2) + min(b, a)", ["clamp", "minimum", "add"]),
        ("max(2, 3) * a + b", ["mul_scalar", "add"]),
        ("exp(0) * a + sum([1, 2]) * b", ["mul_scalar", "mul_scalar", "add"]),
        ("1 / a + 3 / b", ["reciprocal", "reciprocal", "mul_scalar", "add"]),
        ("pow(a, 2) * pow(2, 3) + b ** a", ["pow_scalar", "mul_scalar", "pow", "add"]),
        ("where(0.5 < a, b, 1)", ["greater_scalar", "where"]),
        ("where(a <= b and not (a > 1), 1, 0) * a", None),
    ],
)
def test_one_function_for_numbers_and_tensors(expression: str, ops: list[str] | None) -> None:
    found = [op for op, _ in feed(expression)]
    assert ops is None or found == ops


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        ("max(a, 0.25) * b", lambda a, b: np.maximum(a, 0.25) * b),
        ("min(0.25, a) * b", lambda a, b: np.minimum(a, 0.25) * b),
        ("3 / a + b", lambda a, b: 3 / a + b),
        ("1 / a + b", lambda a, b: 1 / a + b),
        ("2 - a + (b - 2)", lambda a, b: 2 - a + (b - 2)),
        ("a / 4 - b * 3 ** 2", lambda a, b: a / 4 - b * 9),
        ("square(a) ** 1.5 + b", lambda a, b: np.abs(a) ** 3 + b),
        ("where(0.1 < a, b, a)", lambda a, b: np.where(a > 0.1, b, a)),
        ("where(a >= b and not (0 != min(a, 0)), a, 7) + b", lambda a, b: np.where((a >= b) & (a >= 0), a, 7) + b),
    ],
)  # fmt: skip
def test_what_operators_compute(
    expression: str, formula: Callable[[FloatArray, FloatArray], FloatArray]
) -> None:
    """By numpy's own operators, in float64: what every backend is compared with was built from these."""
    model = RandomModel.of_text(feed_forward(expression))
    ids = np.arange(6)[None]
    found = evaluate_reference(model.flat, model.weight, ids, keep_values=True).values
    here = "model.layers.0.mlp"
    (result,) = (n.operands[0] for n in model.flat.nodes if n.path == f"{here}.down_proj")
    a, b = (np.asarray(found[f"{here}/{name}"], np.float64) for name in "ab")
    want = formula(a, b)
    assert np.allclose(found[result], want, rtol=1e-12, atol=0)


def test_a_number_on_the_left_turns_the_comparison() -> None:
    (less, _), (where, _), *_ = feed("where(0.5 < a, b, 1)")
    assert (less, where) == ("greater_scalar", "where")


@pytest.mark.parametrize(
    ("expression", "axis"),
    [("softmax(a, axis=F) + b", 2), ("max(a, axis=S) + b", 1), ("sum(a, axis=-1) + b", -1)],
)
def test_an_axis_has_a_name(expression: str, axis: int) -> None:
    assert feed(expression)[0][1]["axis"] == axis


def test_letters_are_sizes_in_shapes() -> None:
    ((_, attrs), *_) = feed("reshape(reshape(a, shape=[B, S, K, F // K]), shape=[B, S, F]) + b")
    assert attrs["shape"] == "B, S, 2, 10"


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("softmax(a, axis=H) + b", "no axis is as large as H"),
        ("sum(reshape(a, shape=[B, S, N, N, F // 16]), axis=N) + b", "axes 2, 3 are as large as N"),
        ("a if a > 0 else b", "where(condition, a, b)"),
        ("2 ** a + b", "log(2)"),
        ("where(a, b, 1)", "truth values"),
        ("where(a > 0, b)", "where(condition, a, b)"),
        ("a @ b", "rows of the first"),
        ("(a == positions) + b", "whole numbers and others"),
        ("where(positions == 0.5, a, b)", "no whole number"),
        ("max(a, b, 2)", "of two values"),
        ("einsum(a, b, 'B S F, B T F -> B S T')", "axis T"),
        ("einsum(a, b, 'B S F, B S G -> B S')", "in one operand alone"),
        ("einsum(a, b, 'B S F, B S F -> B S Z')", "in neither"),
        ("einsum(a, b, 'B S F -> B S')", "an equation is"),
        ("limit_groups(a, groups=5, kept=1) + b", "equal groups"),
        ("a and b", "truth values"),
        ("banana(2) * a + b", "no part or op `banana`"),
    ],
)
def test_what_is_refused_says_why(expression: str, says: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        feed(expression, "{intermediate_size: 48}")
    (first, *_) = caught.value.diagnostics
    assert says in f"{first.message} {first.help}" and first.span is not None, first


@pytest.mark.parametrize(
    ("text", "value"),
    [("exp(0)", 1.0), ("log(1)", 0.0), ("pow(2, 3)", 8), ("square(3)", 9), ("cos(0)", 1.0), ("tanh(0)", 0.0)],
)  # fmt: skip
def test_functions_of_numbers(text: str, value: float) -> None:
    assert evaluate(parse(text), {}) == value


def test_a_function_that_is_none_is_not_to_be_set_as_a_number() -> None:
    text = "spec: 1\nid: test/none\nextends: foreign/_decoder\ninvariants: {a: banana(hidden_size) > 3}\n"
    with pytest.raises(LlamagenError) as caught:
        Registry((SPECS,)).load_text(text)
    (finding,) = caught.value.diagnostics
    assert "no function `banana`" in finding.message and "functions: abs" in (finding.help or "")
