"""Tokens of the expression language to nodes. The grammar stands in expr.py."""

from __future__ import annotations

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
)
from llamagen.spec.expr_tokens import Token

MAX_DEPTH = 48
MAX_STEPS = 128
"""Operators, calls, fields and indices of one expression or equation: they nest as deep as they are many."""

_KEYWORDS = frozenset({"and", "or", "not", "in", "if", "else", "true", "false", "none", "return"})
_COMPARE = frozenset({"==", "!=", "<", "<=", ">", ">=", "in", "not in"})


class Parser:
    """Tokens to nodes, by recursive descent; depth and number of steps are bounded."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.steps = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def advance(self) -> Token:
        token = self.token
        self.at += 1
        return token

    def is_op(self, *texts: str) -> bool:
        return self.token.kind == "op" and self.token.text in texts

    def is_word(self, *texts: str) -> bool:
        return self.token.kind == "name" and self.token.text in texts

    def expect(self, text: str) -> Token:
        if not self.is_op(text):
            raise self.unexpected(f"expected `{text}`")
        return self.advance()

    def unexpected(self, wish: str) -> ExpressionError:
        found = {"end": "the text ends", "newline": "the line ends"}.get(self.token.kind)
        found = found or f"found `{self.token.text}`"
        return ExpressionError(f"{wish}, but {found}", self.token.extent)

    def step(self) -> None:
        """Count one more operator, call, field or index."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            message = f"an expression may have {MAX_STEPS} operators and calls; use more equations"
            raise ExpressionError(message, self.token.extent)

    def expression(self) -> Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}", self.token.extent)
        value = self.disjunction()
        if self.is_word("if"):
            self.advance()
            test = self.disjunction()
            if not self.is_word("else"):
                raise self.unexpected("expected `else`")
            self.advance()
            otherwise = self.expression()
            value = Conditional(value, test, otherwise, _join(value.extent, otherwise.extent))
        self.depth -= 1
        return value

    def disjunction(self) -> Expr:
        left = self.conjunction()
        while self.is_word("or"):
            self.advance()
            left = self.binary("or", left, self.conjunction())
        return left

    def conjunction(self) -> Expr:
        left = self.negation()
        while self.is_word("and"):
            self.advance()
            left = self.binary("and", left, self.negation())
        return left

    def negation(self) -> Expr:
        if not self.is_word("not"):
            return self.comparison()
        start = self.advance().extent
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}", start)
        operand = self.negation()
        self.depth -= 1
        return Unary("not", operand, _join(start, operand.extent))

    def comparison(self) -> Expr:
        left = self.sum()
        while (op := self.comparison_operator()) is not None:
            left = self.binary(op, left, self.sum())
        return left

    def comparison_operator(self) -> str | None:
        if self.token.kind == "op" and self.token.text in _COMPARE:
            return self.advance().text
        if self.is_word("in"):
            return self.advance().text
        following = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
        if self.is_word("not") and following.kind == "name" and following.text == "in":
            self.at += 2
            return "not in"
        return None

    def sum(self) -> Expr:
        left = self.product()
        while self.is_op("+", "-"):
            left = self.binary(self.advance().text, left, self.product())
        return left

    def product(self) -> Expr:
        left = self.unary()
        while self.is_op("*", "/", "//", "%", "@"):
            left = self.binary(self.advance().text, left, self.unary())
        return left

    def unary(self) -> Expr:
        if not self.is_op("-"):
            return self.power()
        start = self.advance().extent
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}", start)
        operand = self.unary()
        self.depth -= 1
        if isinstance(operand, Literal_) and type(operand.value) in (int, float):
            assert isinstance(operand.value, int | float)
            return Literal_(-operand.value, _join(start, operand.extent))
        return Unary("-", operand, _join(start, operand.extent))

    def power(self) -> Expr:
        base = self.postfix()
        if not self.is_op("**"):
            return base
        self.advance()
        self.step()
        return self.binary("**", base, self.unary())

    def postfix(self) -> Expr:
        value = self.atom()
        while self.is_op(".", "(", "["):
            self.step()
            if self.is_op("."):
                self.advance()
                if self.token.kind != "name":
                    raise self.unexpected("expected a name after `.`")
                name = self.advance()
                value = Attribute(value, name.text, _join(value.extent, name.extent))
            elif self.is_op("("):
                value = self.call(value)
            else:
                self.advance()
                index = self.expression()
                value = Index(value, index, _join(value.extent, self.expect("]").extent))
        return value

    def call(self, function: Expr) -> Expr:
        self.expect("(")
        arguments: list[Expr] = []
        keywords: list[tuple[str, Expr]] = []
        while not self.is_op(")"):
            following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else self.token
            if self.token.kind == "name" and following.kind == "op" and following.text == "=":
                key = self.advance()
                self.advance()
                if any(key.text == k for k, _ in keywords):
                    raise ExpressionError(f"`{key.text}` is given twice", key.extent)
                keywords.append((key.text, self.expression()))
            elif keywords:
                raise ExpressionError(
                    "a positional argument follows a named one", self.token.extent
                )
            else:
                arguments.append(self.expression())
            if not self.is_op(","):
                break
            self.advance()
        end = self.expect(")").extent
        return Call(function, tuple(arguments), tuple(keywords), _join(function.extent, end))

    def atom(self) -> Expr:
        token = self.token
        match token.kind:
            case "int":
                self.advance()
                return Literal_(int(token.text), token.extent)
            case "float":
                self.advance()
                return Literal_(float(token.text), token.extent)
            case "string":
                self.advance()
                return Literal_(token.text, token.extent)
            case "name" if token.text in ("true", "false", "none"):
                self.advance()
                value = {"true": True, "false": False, "none": None}[token.text]
                return Literal_(value, token.extent)
            case "name" if token.text not in _KEYWORDS:
                self.advance()
                return Name(token.text, token.extent)
            case "op" if token.text == "(":
                self.advance()
                inner = self.expression()
                self.expect(")")
                return inner
            case "op" if token.text == "[":
                self.advance()
                items: list[Expr] = []
                while not self.is_op("]"):
                    items.append(self.expression())
                    if not self.is_op(","):
                        break
                    self.advance()
                return ListExpr(tuple(items), _join(token.extent, self.expect("]").extent))
            case _:
                raise self.unexpected("expected a value")

    def binary(self, op: str, left: Expr, right: Expr) -> Expr:
        self.step()
        return Binary(op, left, right, _join(left.extent, right.extent))

    def statement(self) -> Statement:
        start = self.token.extent
        self.steps = 0
        if self.is_word("return"):
            self.advance()
            values = [self.expression()]
            while self.is_op(","):
                self.advance()
                values.append(self.expression())
            return Return(tuple(values), _join(start, values[-1].extent))
        targets = [self.target()]
        while self.is_op(","):
            self.advance()
            targets.append(self.target())
        self.expect("=")
        value = self.expression()
        return Assign(tuple(targets), value, _join(start, value.extent))

    def target(self) -> Name:
        token = self.token
        if token.kind != "name" or token.text in _KEYWORDS:
            raise self.unexpected("expected the name of a value, or `return`")
        self.advance()
        return Name(token.text, token.extent)


def _join(a: Extent, b: Extent) -> Extent:
    return (a[0], b[1])
