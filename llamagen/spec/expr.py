"""The one expression language: invariants, lint rules, queries, part declarations and block equations.

Closed and safe: a hand-written tokenizer and a Pratt parser produce frozen nodes with source offsets. Nothing is
ever passed to Python's own evaluator. Grammar, loosest binding first::

    expr    = or ["if" or "else" expr]
    or      = and {"or" and}          and = not {"and" not}       not = ["not"] compare
    compare = sum {("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not in") sum}
    sum     = product {("+" | "-") product}
    product = unary {("*" | "/" | "//" | "%" | "@") unary}
    unary   = ["-"] power             power = postfix ["**" unary]
    postfix = atom {"." NAME | "(" arguments ")" | "[" expr "]"}
    atom    = INT | FLOAT | STRING | "true" | "false" | "none" | NAME | "(" expr ")" | "[" {expr ","} "]"

Statements (block equations), one a line: ``a, b = expr`` and a last ``return expr, ...``.
"""

from __future__ import annotations

from functools import lru_cache

from llamagen.spec.expr_nodes import (
    Assign,
    Attribute,
    Binary,
    Call,
    Conditional,
    Expr,
    ExpressionError,
    Extent,
    Index,
    ListExpr,
    Literal_,
    Name,
    Return,
    Statement,
    Unary,
    names,
)
from llamagen.spec.expr_parser import MAX_DEPTH, MAX_STEPS, Parser
from llamagen.spec.expr_text import unparse
from llamagen.spec.expr_tokens import MAX_LENGTH, tokenize

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_STEPS",
    "Assign",
    "Attribute",
    "Binary",
    "Call",
    "Conditional",
    "Expr",
    "ExpressionError",
    "Extent",
    "Index",
    "ListExpr",
    "Literal_",
    "Name",
    "Return",
    "Statement",
    "Unary",
    "names",
    "parse",
    "parse_statements",
    "tokenize",
    "unparse",
]


@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Parse one expression. Raises ExpressionError."""
    parser = Parser(tokenize(text))
    value = parser.expression()
    if parser.token.kind != "end":
        error = parser.unexpected("the expression is complete here")
        error.help = "`==` compares two values" if parser.is_op("=") else None
        raise error
    return value


@lru_cache(maxsize=1024)
def parse_statements(text: str) -> tuple[Statement, ...]:
    """Parse the equations of a block: assignments, then one ``return``. Raises ExpressionError."""
    parser = Parser(tokenize(text, lines=True))
    statements: list[Statement] = []
    while True:
        while parser.token.kind == "newline":
            parser.advance()
        if parser.token.kind == "end":
            break
        if statements and isinstance(statements[-1], Return):
            raise ExpressionError("nothing may follow `return`", parser.token.extent)
        statements.append(parser.statement())
        if parser.token.kind not in ("newline", "end"):
            raise parser.unexpected("the equation is complete here")
    if not statements or not isinstance(statements[-1], Return):
        raise ExpressionError(
            "the last line must be `return ...`", (max(len(text) - 1, 0), len(text))
        )
    return tuple(statements)
