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

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

MAX_LENGTH = 4096
MAX_DEPTH = 48
MAX_STEPS = 128
"""Operators, calls, fields and indices of one expression or equation: they nest as deep as they are many."""

Extent: TypeAlias = tuple[int, int]
"""Start and end offset in the text that was parsed; end is exclusive."""


class ExpressionError(Exception):
    """A text that is not an expression; ``extent`` says where, in offsets of the text."""

    def __init__(self, message: str, extent: Extent, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.extent = extent
        self.help = help


@dataclass(frozen=True, slots=True)
class Literal_:
    value: int | float | bool | str | None
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Name:
    id: str
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Attribute:
    base: Expr
    name: str
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Index:
    base: Expr
    index: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Call:
    function: Expr
    arguments: tuple[Expr, ...]
    keywords: tuple[tuple[str, Expr], ...]
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Unary:
    op: Literal["-", "not"]
    operand: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Binary:
    op: str
    left: Expr
    right: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Conditional:
    then: Expr
    test: Expr
    otherwise: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class ListExpr:
    items: tuple[Expr, ...]
    extent: Extent = field(compare=False, default=(0, 0))


Expr: TypeAlias = (
    "Literal_ | Name | Attribute | Index | Call | Unary | Binary | Conditional | ListExpr"
)


@dataclass(frozen=True, slots=True)
class Assign:
    """``targets = value``: one name, or several for an op with several results."""

    targets: tuple[Name, ...]
    value: Expr
    extent: Extent = field(compare=False, default=(0, 0))


@dataclass(frozen=True, slots=True)
class Return:
    values: tuple[Expr, ...]
    extent: Extent = field(compare=False, default=(0, 0))


Statement: TypeAlias = Assign | Return


@dataclass(frozen=True, slots=True)
class Token:
    kind: Literal["int", "float", "string", "name", "op", "newline", "end"]
    text: str
    extent: Extent


_OPERATORS = (
    "**", "//", "==", "!=", "<=", ">=",
    "+", "-", "*", "/", "%", "@", "(", ")", "[", "]", ",", ".", "=", "<", ">",
)  # fmt: skip
_KEYWORDS = frozenset({"and", "or", "not", "in", "if", "else", "true", "false", "none", "return"})
_COMPARE = frozenset({"==", "!=", "<", "<=", ">", ">=", "in", "not in"})
_ASCII_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789")


def tokenize(text: str, *, lines: bool = False) -> list[Token]:
    """Tokens of ``text``; with ``lines`` an unbracketed line end is a token of its own. Raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        message = f"an expression may have {MAX_LENGTH} characters, this one has {len(text)}"
        raise ExpressionError(message, (0, 1))
    return list(_tokens(text, lines=lines))


def _tokens(text: str, *, lines: bool) -> Iterator[Token]:
    i, depth, n = 0, 0, len(text)
    while i < n:
        c = text[i]
        if c == "\n":
            if lines and depth == 0:
                yield Token("newline", c, (i, i + 1))
            i += 1
        elif c in " \r\t":
            i += 1
        elif c == "#":
            while i < n and text[i] != "\n":
                i += 1
        elif c.isascii() and c.isdigit():
            j = _number_end(text, i)
            literal = text[i:j]
            if j < n and text[j] in _ASCII_NAME:
                raise ExpressionError(f"`{literal}{text[j]}` is not a number", (i, j + 1))
            if len(literal) > 40:
                raise ExpressionError("a number may have 40 digits", (i, j))
            kind: Literal["int", "float"] = "float" if set(literal) & {".", "e", "E"} else "int"
            if kind == "int" and len(literal) > 1 and literal[0] == "0":
                raise ExpressionError(f"`{literal}` has a leading zero", (i, j))
            yield Token(kind, literal, (i, j))
            i = j
        elif c in "'\"":
            j = text.find(c, i + 1)
            if j < 0 or "\n" in text[i:j] or "\\" in text[i:j]:
                message = "a string ends on its line with the same quote and has no backslashes"
                raise ExpressionError(message, (i, i + 1))
            yield Token("string", text[i + 1 : j], (i, j + 1))
            i = j + 1
        elif c in _ASCII_NAME:
            j = i
            while j < n and text[j] in _ASCII_NAME:
                j += 1
            yield Token("name", text[i:j], (i, j))
            i = j
        else:
            op = next((o for o in _OPERATORS if text.startswith(o, i)), None)
            if op is None:
                raise ExpressionError(f"{c!a} has no meaning here", (i, i + 1))
            depth += (op in "([") - (op in ")]")
            yield Token("op", op, (i, i + len(op)))
            i += len(op)
    yield Token("end", "", (n, n))


def _number_end(text: str, i: int) -> int:
    n = len(text)
    while i < n and text[i] in "0123456789":
        i += 1
    if i + 1 < n and text[i] == "." and text[i + 1] in "0123456789":
        i += 1
        while i < n and text[i] in "0123456789":
            i += 1
    if i < n and text[i] in "eE":
        j = i + 2 if i + 1 < n and text[i + 1] in "+-" else i + 1
        if j < n and text[j] in "0123456789":
            while j < n and text[j] in "0123456789":
                j += 1
            i = j
    return i


class _Parser:
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


@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Parse one expression. Raises ExpressionError."""
    parser = _Parser(tokenize(text))
    value = parser.expression()
    if parser.token.kind != "end":
        error = parser.unexpected("the expression is complete here")
        error.help = "`==` compares two values" if parser.is_op("=") else None
        raise error
    return value


@lru_cache(maxsize=1024)
def parse_statements(text: str) -> tuple[Statement, ...]:
    """Parse the equations of a block: assignments, then one ``return``. Raises ExpressionError."""
    parser = _Parser(tokenize(text, lines=True))
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


def names(expr: Expr) -> Iterator[Name]:
    """Every free name of ``expr``, left to right, functions included."""
    match expr:
        case Literal_():
            return
        case Name():
            yield expr
        case Attribute(base=base):
            yield from names(base)
        case Index(base=base, index=index):
            yield from names(base)
            yield from names(index)
        case Call(function=function, arguments=arguments, keywords=keywords):
            yield from names(function)
            for argument in arguments:
                yield from names(argument)
            for _, argument in keywords:
                yield from names(argument)
        case Unary(operand=operand):
            yield from names(operand)
        case Binary(left=left, right=right):
            yield from names(left)
            yield from names(right)
        case Conditional(then=then, test=test, otherwise=otherwise):
            yield from names(test)
            yield from names(then)
            yield from names(otherwise)
        case ListExpr(items=items):
            for item in items:
                yield from names(item)


_PRECEDENCE = {
    "or": 1, "and": 2, "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4, "in": 4, "not in": 4,
    "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "@": 6, "**": 8,
}  # fmt: skip


def unparse(expr: Expr) -> str:
    """The canonical text of ``expr``: ``parse(unparse(e)) == e``."""
    return _unparse(expr, 0)


def _unparse(expr: Expr, outer: int) -> str:
    match expr:
        case Literal_(value=None):
            return "none"
        case Literal_(value=bool() as value):
            return "true" if value else "false"
        case Literal_(value=str() as value):
            return f'"{value}"' if "'" in value else f"'{value}'"
        case Literal_(value=value):
            text = repr(value)
            return f"({text})" if text.startswith("-") and outer > 6 else text
        case Name(id=id):
            return id
        case Attribute(base=base, name=name):
            return f"{_unparse(base, 9)}.{name}"
        case Index(base=base, index=index):
            return f"{_unparse(base, 9)}[{_unparse(index, 0)}]"
        case Call(function=function, arguments=arguments, keywords=keywords):
            given = [_unparse(a, 0) for a in arguments]
            given += [f"{k}={_unparse(v, 0)}" for k, v in keywords]
            return f"{_unparse(function, 9)}({', '.join(given)})"
        case Unary(op="not", operand=operand):
            return _wrap(f"not {_unparse(operand, 3)}", 3, outer)
        case Unary(operand=operand):
            return _wrap(f"-{_unparse(operand, 7)}", 7, outer)
        case Binary(op="**", left=left, right=right):
            return _wrap(f"{_unparse(left, 9)} ** {_unparse(right, 7)}", 8, outer)
        case Binary(op=op, left=left, right=right):
            rank = _PRECEDENCE[op]
            return _wrap(f"{_unparse(left, rank)} {op} {_unparse(right, rank + 1)}", rank, outer)
        case Conditional(then=then, test=test, otherwise=otherwise):
            text = f"{_unparse(then, 1)} if {_unparse(test, 1)} else {_unparse(otherwise, 0)}"
            return _wrap(text, 0, outer)
        case ListExpr(items=items):
            return f"[{', '.join(_unparse(i, 0) for i in items)}]"


def _wrap(text: str, rank: int, outer: int) -> str:
    return f"({text})" if outer > rank else text
