"""The expression language: parse and unparse are inverse, evaluation equals Python's, hostile text is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.spec.expr import (
    FUNCTIONS,
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
    UnknownName,
    evaluate,
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
        ("a if b", "lacks its `else"),
        ("f(a b)", "a comma or an operator"),
        ("f(a", "`\\(` is never closed"),
        ("a)", "`\\)` closes nothing"),
        ("[a)", "`\\)` does not close `\\[`"),
        ("a = b", "complete here, but found `=`"),
        ("f(a.b=1)", "only names stand before"),
        ("a < b < c", "two values are compared"),
        ("a, b", "several values"),
        ("f(*a)", "not part"),
        ("f(**a)", "not part"),
        ("+a", "not part"),
        ("a << b", "not part"),
        ("'a' 'b'", "not part"),
        ("f'a'", "not part"),
        ("b'a'", "not part"),
        ("(i for i in a)", "`for` is a word of Python"),
        ("True", "`True` is a word of Python"),
        ("a is b", "`is` is a word of Python"),
        ("1e999", "too large"),
        (".5", "not a number"),
        ("0x1f", "not a number"),
        ("010", "leading zero"),
        ("1_000", "not a number"),
        ("'a", "a string ends"),
        ("'a\\'", "a string ends"),
        ("__import__('os')", "no function"),
        ("a.b.c()", "only functions"),
        ("(" * 60 + "1" + ")" * 60, "nested deeper"),
        ("-" * 200 + "a", "128 operators"),
        ("-" * 4000 + "a", "128 operators"),
        ("a ** " * 800 + "a", "128 operators"),
        ("a.b" * 1000, "128 operators"),
        ("f" + "()" * 1000, "128 operators"),
        ("a and " * 130 + "a", "128 operators"),
        ("1" * 41, "40 digits"),
        ("a" * 5000, "characters"),
        ("2 ** 1000", "refused"),
        ("10 ** 30 * 10 ** 30 * 10 ** 30", "refused|127 bits"),
        ("1 // 0", "division by zero"),
        ("range(10000)", "4096"),
        ("'a' * 100000", "needs a number"),
        ("nаme", "no meaning"),  # a Cyrillic letter
        ("1; 2", "no meaning"),
        ("lambda: 1", "no meaning"),
        ("a\x00", "no meaning"),
        ("a\ud800", "no meaning"),
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
    assert len(parse_statements("  y = x  # é\n\n   return y\n")) == 2


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        ("y == x\nreturn y", "an equation is `name", "y == x"),
        ("f(x) = 1\nreturn y", "only names stand before", "f(x)"),
        ("x = y = 1\nreturn x", "an equation is `name", "x = y = 1"),
        ("x += 1\nreturn x", "an equation is `name", "x += 1"),
        ("y = x\nreturn", "needs a value", "return"),
        ("y = 'é' + \nreturn y", "expected a value, but the line ends", ""),
        ("y = 'é' ~ x\nreturn y", "no meaning", "~"),
        ("y = 'é' + f(\n  x,, 'é')\nreturn y", "expected a value, but found `,`", ","),
        ("y = 'é' + 2 * x[i for]\nreturn y", "`for` is a word of Python", "for"),
        ("y = 'é' + g(1 < x < 2)\nreturn y", "two values are compared", "1 < x < 2"),
        ("y = f(g(x)\nreturn h(y)", r"`\(` is never closed", "("),
        ("y = g([x, z)\nz = [1]\nreturn y", r"does not close `\[`", ")"),
        ("y = f(x,\n  a=1\n  b=2)\nreturn y", "a comma or an operator is missing", "1\n  b"),
        ("import os\nreturn y", "`import` is a word of Python", "import"),
    ],
)
def test_a_wrong_equation_is_shown(text: str, reason: str, shown: str) -> None:
    with pytest.raises(ExpressionError, match=reason) as caught:
        parse_statements(text)
    assert text[slice(*caught.value.extent)] == shown


def test_deep_texts_do_not_overflow_a_small_stack() -> None:
    """Python's parser recurses in C: what nests is counted before it runs."""
    code = (
        "import threading\n"
        "from llamagen.spec.expr import ExpressionError, parse\n"
        "def run():\n"
        "    for text in ('-' * 4000 + 'a', 'not ' * 1000 + 'a', 'a**' * 1000 + 'a', '1+' * 2000 + 'a',\n"
        "                 'a if b else ' * 300 + 'a', 'a' + '.b' * 1000, 'f' + '()' * 1000, '(' * 2000):\n"
        "        try: parse(text)\n"
        "        except ExpressionError: print('refused')\n"
        "threading.stack_size(1 << 17)\n"
        "thread = threading.Thread(target=run)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["refused"] * 8)


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
