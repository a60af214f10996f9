"""The expression language: parse and unparse are inverse, evaluation equals Python's, hostile text is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.spec.evaluate import FUNCTIONS, UnknownName, evaluate
from llamagen.spec.expr import (
    Attribute,
    Binary,
    Call,
    Conditional,
    Expr,
    ExpressionError,
    Index,
    ListExpr,
    Literal_,
    Name,
    Unary,
    names,
    parse,
    parse_statements,
    unparse,
)

NAMES = st.sampled_from(["a", "hidden_size", "x1", "rope"]).map(Name)
LITERALS = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.none(),
    st.text("abc '\"_-", max_size=5).filter(lambda s: not ("'" in s and '"' in s)),
).map(Literal_)
OPERATORS = st.sampled_from(
    [
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "@",
        "**",
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "in",
        "not in",
        "and",
        "or",
    ]
)


def _grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    # A minus in front of a number is read as part of the number, so it is not drawn as an operator.
    negated = inner.filter(
        lambda e: not (isinstance(e, Literal_) and type(e.value) in (int, float))
    )
    return st.one_of(
        st.builds(Binary, OPERATORS, inner, inner),
        st.builds(lambda e: Unary("-", e), negated),
        st.builds(lambda e: Unary("not", e), inner),
        st.builds(Conditional, inner, inner, inner),
        st.builds(Index, NAMES, inner),
        st.builds(Attribute, NAMES, st.just("theta")),
        st.builds(
            Call,
            NAMES,
            st.lists(inner, max_size=2).map(tuple),
            st.lists(inner, max_size=1).map(lambda v: tuple(("k", e) for e in v)),
        ),
        st.lists(inner, max_size=3).map(lambda v: ListExpr(tuple(v))),
    )


EXPRESSIONS = st.recursive(LITERALS | NAMES, _grow, max_leaves=12)


@settings(max_examples=400)
@given(EXPRESSIONS)
def test_unparse_is_the_inverse_of_parse(expr: Expr) -> None:
    assert parse(unparse(expr)) == expr


@given(st.integers(0, 99), st.integers(1, 99), st.integers(0, 9))
def test_arithmetic_equals_python(a: int, b: int, c: int) -> None:
    scope = {"a": a, "b": b, "c": c}
    for text in (
        "a + b * c - 7",
        "(a - b) // b % 5",
        "a * -c + b ** 2",
        "-a ** 2",
        "a / b",
        "a if a > b else c",
    ):
        assert evaluate(parse(text), scope) == eval(text, {}, dict(scope))


def test_the_width_rule_of_llama() -> None:
    rule = parse("intermediate_size == ceil_to(2 * (4 * hidden_size) // 3, 256)")
    assert evaluate(rule, {"intermediate_size": 11008, "hidden_size": 4096}) is True
    assert evaluate(rule, {"intermediate_size": 11009, "hidden_size": 4096}) is False
    assert [n.id for n in names(rule) if n.id not in FUNCTIONS] == [
        "intermediate_size",
        "hidden_size",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a +", "expected a value"),
        ("a b", "complete here"),
        ("f(k=1, 2)", "positional"),
        ("f(k=1, k=2)", "given twice"),
        ("010", "leading zero"),
        ("1_000", "not a number"),
        ("'a", "a string ends"),
        ("'a\\'", "a string ends"),
        ("__import__('os')", "not known"),
        ("a.b.c()", "only functions"),
        ("(" * 60 + "1" + ")" * 60, "nested deeper"),
        ("-" * 60 + "a", "nested deeper"),
        ("1" * 41, "40 digits"),
        ("a" * 5000, "characters"),
        ("2 ** 1000", "refused"),
        ("10 ** 30 * 10 ** 30 * 10 ** 30", "refused|127 bits"),
        ("1 // 0", "division by zero"),
        ("range(10000)", "4096"),
        ("'a' * 100000", "needs a number"),
        ("nаme", "no meaning"),  # a Cyrillic letter
        ("1; 2", "no meaning"),
        ("lambda: 1", "no meaning|complete"),
    ],
)
def test_what_is_no_expression_is_refused_with_a_place(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason) as caught:
        evaluate(parse(text), {})
    start, end = caught.value.extent
    assert 0 <= start <= end <= max(len(text), 1)


def test_an_unknown_name_says_where() -> None:
    with pytest.raises(UnknownName) as caught:
        evaluate(parse("1 + hidden_sise"), {"hidden_size": 1})
    assert (caught.value.name, caught.value.extent) == ("hidden_sise", (4, 15))


def test_statements() -> None:
    body = parse_statements("q = f(x,\n  y)\n# note\nk, v = cache(k, v)\nreturn q + k, v\n")
    assert [len(getattr(s, "targets", ())) for s in body] == [1, 2, 0]
    with pytest.raises(ExpressionError, match="nothing may follow"):
        parse_statements("return x\ny = x")
    with pytest.raises(ExpressionError, match="last line must be"):
        parse_statements("y = x")


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_with_a_place(text: str) -> None:
    outcome = parsed(text)
    if isinstance(outcome, ExpressionError):
        start, end = outcome.extent
        assert 0 <= start <= end <= max(len(text), 1)
    else:
        assert parse(unparse(outcome)) == outcome


def parsed(text: str) -> Expr | ExpressionError:
    try:
        return parse(text)
    except ExpressionError as error:
        return error
