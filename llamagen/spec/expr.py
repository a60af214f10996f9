"""The one expression language: invariants, lint rules, queries, part declarations and block equations.

Its syntax is Python's, so Python's own parser reads it, and a whitelist of what it may find becomes frozen nodes
with offsets in the text. Nothing is ever passed to Python's evaluator. What there is: numbers, texts, ``true``,
``false``, ``none``, names, ``a.b``, ``a[i]``, ``f(x, k=y)``, ``[a, b]``, arithmetic with ``@``, comparisons, ``in``,
``and``, ``or``, ``not``, and ``a if c else b``. Equations of a block are ``a, b = expr``, one a line, and a last
``return expr, ...``.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias, assert_never

Extent: TypeAlias = tuple[int, int]
"""Start and end offset in the text that was parsed; end is exclusive."""

MAX_LENGTH = 4096
MAX_DEPTH = 48
"""Of brackets in brackets."""
MAX_STEPS = 128
"""Operators, calls, fields and indices of one expression or equation: they nest as deep as they are many."""
MAX_DIGITS = 40


class ExpressionError(Exception):
    """A text that is not an expression; ``extent`` says where, in offsets of the text."""

    def __init__(self, message: str, extent: Extent, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.extent = extent
        self.help = help


# nodes


@dataclass(frozen=True, slots=True)
class _Placed:
    """Nodes are compared without their places."""

    extent: Extent = field(compare=False, default=(0, 0), kw_only=True)


@dataclass(frozen=True, slots=True)
class Literal_(_Placed):
    value: int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Name(_Placed):
    id: str


@dataclass(frozen=True, slots=True)
class Attribute(_Placed):
    base: Expr
    name: str


@dataclass(frozen=True, slots=True)
class Index(_Placed):
    base: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Call(_Placed):
    function: Expr
    arguments: tuple[Expr, ...]
    keywords: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True)
class Unary(_Placed):
    op: Literal["-", "not"]
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(_Placed):
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Conditional(_Placed):
    then: Expr
    test: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class ListExpr(_Placed):
    items: tuple[Expr, ...]


Expr: TypeAlias = (
    "Literal_ | Name | Attribute | Index | Call | Unary | Binary | Conditional | ListExpr"
)


@dataclass(frozen=True, slots=True)
class Assign(_Placed):
    """``targets = value``: one name, or several for an op with several results."""

    targets: tuple[Name, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Return(_Placed):
    values: tuple[Expr, ...]


Statement: TypeAlias = Assign | Return


def names(expr: Expr) -> Iterator[Name]:
    """Every free name of ``expr``, left to right, functions included."""
    match expr:
        case Name():
            yield expr
        case Literal_():
            return
        case Attribute(base=below) | Unary(operand=below):
            yield from names(below)
        case Index(base=first, index=second) | Binary(left=first, right=second):
            yield from names(first)
            yield from names(second)
        case Call(function=function, arguments=arguments, keywords=keywords):
            for below in (function, *arguments, *(value for _, value in keywords)):
                yield from names(below)
        case Conditional(then=then, test=test, otherwise=otherwise):
            for below in (test, then, otherwise):
                yield from names(below)
        case ListExpr(items=items):
            for below in items:
                yield from names(below)
        case _:
            assert_never(expr)


# text to nodes


@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Parse one expression. Raises ExpressionError."""
    code = _code(text)
    _pieces(code)
    tree = _tree(code, 0, "eval")
    assert isinstance(tree, ast.Expression)
    return _Reader(text, _indent(code)).node(tree.body)


@lru_cache(maxsize=1024)
def parse_statements(text: str) -> tuple[Statement, ...]:
    """Parse the equations of a block: assignments, then one ``return``. Raises ExpressionError."""
    code = _code(text)
    statements: list[Statement] = []
    for start, end in _pieces(code):
        piece = code[start:end]
        if piece.isspace() or not piece:
            continue
        shift = start + _indent(piece)
        if statements and isinstance(statements[-1], Return):
            raise ExpressionError("nothing may follow `return`", (shift, end))
        tree = _tree(piece, start, "exec")
        assert isinstance(tree, ast.Module)
        statements.append(_Reader(text, shift).statement(tree.body[0]))
    if not statements or not isinstance(statements[-1], Return):
        last = (max(len(text) - 1, 0), len(text))
        raise ExpressionError("the last line must be `return ...`", last)
    return tuple(statements)


_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}
_KEYWORDS = frozenset({"and", "or", "not", "in", "if", "else", "return"})
_FOREIGN = re.compile(rf"\b(?:{'|'.join(set(keyword.kwlist) - _KEYWORDS)})\b")
_QUOTED = r"'[^'\\\n]*'|\"[^\"\\\n]*\""
_SPECIAL = re.compile(
    rf"(?P<quoted>{_QUOTED})|(?P<comment>#[^\n]*)|[^\w \t\r\n+\-*/%@()\[\],.=<>!]", re.ASCII
)
_BRACKETS = re.compile(r"[()\[\]\n]")
_LIKE_NUMBER = re.compile(r"(?<!\w)\d(?:[eE][+-](?=\d)|[\w.])*|\.\d[\w.]*", re.ASCII)
_NUMBER = re.compile(r"0|[1-9]\d*|\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)", re.ASCII)


def _code(text: str) -> str:
    """The text in plain ASCII for Python's parser, each character in its place; texts and comments are blank.

    So a byte of the parser is a character of the text, and no escape, prefix or comment means anything to it.
    """
    if len(text) > MAX_LENGTH:
        message = f"an expression may have {MAX_LENGTH} characters, this one has {len(text)}"
        raise ExpressionError(message, (0, 1))
    code = _SPECIAL.sub(_blank, text).replace("\r", " ")
    for number in _LIKE_NUMBER.finditer(code):
        _check_number(number[0], number.span())
    if foreign := _FOREIGN.search(code):
        word, ours = foreign[0], foreign[0].lower()
        help = f"write `{ours}`" if ours in _WORDS else "choose another name"
        raise ExpressionError(f"`{word}` is a word of Python alone", foreign.span(), help)
    return code


def _blank(special: re.Match[str]) -> str:
    text = special[0]
    if special["quoted"]:
        return text[0] + "_" * (len(text) - 2) + text[0]
    if special["comment"]:
        return " " * len(text)
    message = f"{text!a} has no meaning here"
    if text in "'\"":
        message = "a string ends on its line with the same quote and has no backslashes"
    raise ExpressionError(message, special.span())


def _check_number(text: str, extent: Extent) -> None:
    if _NUMBER.fullmatch(text) is None:
        zero = text.isdigit()
        reason = "has a leading zero" if zero else "is not a number: write `12`, `0.5` or `1e-5`"
        raise ExpressionError(f"`{text[:MAX_DIGITS]}` {reason}", extent)
    if len(text) > MAX_DIGITS:
        raise ExpressionError(f"a number may have {MAX_DIGITS} digits", extent)
    if math.isinf(float(text)):
        raise ExpressionError(f"`{text}` is too large", extent)


def _pieces(code: str) -> list[Extent]:
    """Start and end of what line ends outside of brackets divide. Raises ExpressionError for too many brackets."""
    pieces: list[Extent] = []
    start = depth = 0
    for bracket in _BRACKETS.finditer(code):
        if bracket[0] in "([":
            depth += 1
            if depth > MAX_DEPTH:
                raise ExpressionError(f"nested deeper than {MAX_DEPTH}", bracket.span())
        elif bracket[0] in ")]":
            depth -= 1
        elif depth <= 0:
            pieces.append((start, bracket.start()))
            start, depth = bracket.end(), 0
    return [*pieces, (start, len(code))]


def _indent(code: str) -> int:
    return len(code) - len(code.lstrip())


def _tree(code: str, start: int, mode: Literal["eval", "exec"]) -> ast.AST:
    """Python's tree of ``code``, which begins at ``start`` of the text; places count from its first character."""
    line = code.replace("\n", " ")
    if (
        len(_STEPS.findall(line)) > 3 * MAX_STEPS
    ):  # deep trees overflow the stack of Python's parser
        raise _too_long((start, start + len(code)))
    try:
        return ast.parse(line.strip(), mode=mode)
    except SyntaxError as error:
        raise _syntax_error(error, code, start, mode) from None


_STEPS = re.compile(
    r"\*\*|//|(?<![,\[(])(?<![,\[(] )-|[+*/%@<>]|[=!]=|\.(?!\d)|[\w)\]]\s*[(\[]|\b(?:and|or|not|in|if)\b"
)
"""Whatever nests, counted too often rather than too rarely; not the signs and points of a list of numbers."""


def _too_long(extent: Extent) -> ExpressionError:
    message = f"an expression may have {MAX_STEPS} operators and calls; use more equations"
    return ExpressionError(message, extent)


_INCOMPLETE = re.compile(r"(?:^|[-+*/%@(\[,.=<>!]|\b(?:and|or|not|in|if|else|return))\s*$")
_TOKEN = re.compile(rf"{_QUOTED}|\w+|[=!<>]=|\*\*|//|.")


def _syntax_error(
    error: SyntaxError, code: str, start: int, mode: Literal["eval", "exec"]
) -> ExpressionError:
    """What Python's parser says as a sentence of ours, which no version of Python changes."""
    says, line = error.msg, code.replace("\n", " ").rstrip()
    what, whole = ("equation", "line") if mode == "exec" else ("expression", "text")
    at = min(_indent(line) + error.offset - 1, len(line)) if error.offset else len(line)
    token = _TOKEN.match(line, at)
    end = token.end() if token else at
    here = f"found `{token[0]}`" if token else f"the {whole} ends"
    last = max(end, _indent(line) + (error.end_offset or 1) - 1)  # of several tokens
    help = None
    if "never closed" in says:
        message = f"this `{line[at]}` is never closed"
    elif "unmatched" in says:
        message = f"this `{line[at]}` closes nothing"
    elif "does not match" in says:
        message = f"this `{line[at]}` does not close `{says[-2]}`"
    elif (opened := _unclosed(code)) is not None:
        at, end = opened, opened + 1
        message = f"this `{line[at]}` is never closed"
    elif "follows keyword argument" in says:
        message = "a positional argument follows a named one"
    elif "expected 'else'" in says:
        message = "`a if c` lacks its `else b`"
    elif "forgot a comma" in says:
        end = last
        message = "a comma or an operator is missing here"
    elif "cannot assign" in says or "cannot contain assignment" in says:
        end = last
        message = "only names stand before `=`"
    elif _INCOMPLETE.search(line[:at]):
        message = f"expected a value, but {here}"
    else:
        message = f"the {what} is complete here, but {here}"
        help = "`==` compares two values" if here == "found `=`" else None
    return ExpressionError(message, (start + at, start + end), help)


_NEXT_EQUATION = re.compile(r"\n\s*(?:return\b|\w+(?:\s*,\s*\w+)*\s*=(?!=))")


def _unclosed(code: str) -> int | None:
    """Place of the bracket that should have been closed before what seems to be another equation."""
    for line in _NEXT_EQUATION.finditer(code):
        opened = _opened(code[: line.start()])
        if opened and _opened(code) and not _INCOMPLETE.search(code[: line.start()]):
            return opened[-1]
    return None


def _opened(code: str) -> list[int]:
    """Places of the brackets that are not closed."""
    opened: list[int] = []
    for bracket in _BRACKETS.finditer(code):
        if bracket[0] in "([":
            opened.append(bracket.start())
        elif bracket[0] != "\n" and opened:
            opened.pop()
    return opened


_OPERATORS: Mapping[type[ast.operator | ast.cmpop | ast.boolop], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.MatMult: "@", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.In: "in", ast.NotIn: "not in", ast.And: "and", ast.Or: "or",
}  # fmt: skip


class _Reader:
    """Python's nodes to ours, a whitelist; ``shift`` is where the first character of the parser stands in ``text``."""

    def __init__(self, text: str, shift: int) -> None:
        self.text = text
        self.shift = shift
        self.steps = 0

    def extent(self, node: ast.expr | ast.stmt) -> Extent:
        assert node.end_col_offset is not None
        return node.col_offset + self.shift, node.end_col_offset + self.shift

    def step(self, extent: Extent, count: int = 1) -> None:
        """Count operators, calls, fields and indices."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise _too_long(extent)

    def node(self, node: ast.expr) -> Expr:
        extent = self.extent(node)
        match node:
            case ast.Name(id=name):
                if name in _WORDS:
                    return Literal_(_WORDS[name], extent=extent)
                return Name(name, extent=extent)
            case ast.Constant(value=int() | float() as number):
                return Literal_(number, extent=extent)
            case ast.Constant(value=str(text)) if len(text) == extent[1] - extent[0] - 2:
                return Literal_(self.text[extent[0] + 1 : extent[1] - 1], extent=extent)
            case ast.List(elts=items):
                return ListExpr(tuple(map(self.node, items)), extent=extent)
        self.step(extent)
        match node:
            case ast.Call(func=function, args=arguments, keywords=keywords):
                named: dict[str, Expr] = {}
                called = self.node(function)
                positional = tuple(map(self.node, arguments))
                for pair in keywords:
                    if pair.arg is None or pair.arg in named:
                        reason = "is given twice" if pair.arg else "is not part of the language"
                        at = pair.col_offset + self.shift
                        message = f"`{pair.arg or '**'}` {reason}"
                        raise ExpressionError(message, (at, at + len(pair.arg or "**")))
                    named[pair.arg] = self.node(pair.value)
                return Call(called, positional, tuple(named.items()), extent=extent)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return Binary(
                    _OPERATORS[type(op)], self.node(left), self.node(right), extent=extent
                )
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return Binary(
                    _OPERATORS[type(op)], self.node(left), self.node(right), extent=extent
                )
            case ast.Compare():
                message = "two values are compared at a time"
                raise ExpressionError(message, extent, "write `a < b and b < c`")
            case ast.BoolOp(op=op, values=[first, *others]):
                self.step(extent, len(others) - 1)
                value = self.node(first)
                for other in map(self.node, others):
                    join = (extent[0], other.extent[1])
                    value = Binary(_OPERATORS[type(op)], value, other, extent=join)
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.node(operand)
                if isinstance(value, Literal_) and type(value.value) in (int, float):
                    assert isinstance(value.value, int | float)
                    return Literal_(-value.value, extent=extent)
                return Unary("-", value, extent=extent)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Unary("not", self.node(operand), extent=extent)
            case ast.IfExp(test=test, body=then, orelse=otherwise):
                return Conditional(
                    self.node(then), self.node(test), self.node(otherwise), extent=extent
                )
            case ast.Attribute(value=base, attr=name):
                return Attribute(self.node(base), name, extent=extent)
            case ast.Subscript(value=base, slice=index):
                return Index(self.node(base), self.node(index), extent=extent)
            case ast.Tuple():
                message, help = "several values stand where one is expected", "a list is `[a, b]`"
                raise ExpressionError(message, extent, help)
            case _:
                shown = self.text[slice(*extent)]
                raise ExpressionError(f"`{shown[:40]}` is not part of the language", extent)

    def statement(self, node: ast.stmt) -> Statement:
        extent = self.extent(node)
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=[_, _, *_] as targets)], value=value):
                return Assign(tuple(map(self.target, targets)), self.node(value), extent=extent)
            case ast.Assign(targets=[target], value=value):
                return Assign((self.target(target),), self.node(value), extent=extent)
            case ast.Return(value=ast.Tuple(elts=[_, _, *_] as values)):
                return Return(tuple(map(self.node, values)), extent=extent)
            case ast.Return(value=ast.expr() as value):
                return Return((self.node(value),), extent=extent)
            case ast.Return():
                raise ExpressionError("`return` needs a value", extent)
            case ast.Expr():
                shown = self.text[slice(*extent)]
                help = (
                    f"write `return {shown[:40]}` if it is the last line, or `name = {shown[:40]}`"
                )
                message = "an equation is `name = ...`, and the last one `return ...`"
                raise ExpressionError(message, extent, help)
            case _:
                message = "an equation is `name = ...`, and the last one `return ...`"
                raise ExpressionError(message, extent)

    def target(self, node: ast.expr) -> Name:
        if isinstance(node, ast.Name) and node.id not in _WORDS:
            return Name(node.id, extent=self.extent(node))
        raise ExpressionError("only names stand before `=`", self.extent(node))


# nodes to text

_PRECEDENCE = {
    "or": 1, "and": 2, "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4, "in": 4, "not in": 4,
    "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "@": 6, "**": 8,
}  # fmt: skip


def unparse(expr: Expr, outer: int = 0) -> str:
    """The canonical text of ``expr``, ``parse(unparse(e)) == e``; ``outer`` is the precedence of what it stands in."""
    rank = 10
    match expr:
        case Literal_(value=None):
            text = "none"
        case Literal_(value=bool() as value):
            text = "true" if value else "false"
        case Literal_(value=str() as value):
            text = f'"{value}"' if "'" in value else f"'{value}'"
        case Literal_(value=value):
            text = repr(value)
            rank = 6 if text.startswith("-") else 9
        case Name(id=text):
            pass
        case Attribute(base=base, name=name):
            text = f"{unparse(base, 10)}.{name}"
        case Index(base=base, index=index):
            text = f"{unparse(base, 10)}[{unparse(index)}]"
        case Call(function=function, arguments=arguments, keywords=keywords):
            texts = [*map(unparse, arguments), *(f"{k}={unparse(v)}" for k, v in keywords)]
            text = f"{unparse(function, 10)}({', '.join(texts)})"
        case Unary(op="not", operand=operand):
            rank, text = 3, f"not {unparse(operand, 3)}"
        case Unary(operand=operand):
            rank, text = 7, f"-{unparse(operand, 7)}"
        case Binary(op="**", left=left, right=right):
            rank, text = 8, f"{unparse(left, 9)} ** {unparse(right, 7)}"
        case Binary(op=op, left=left, right=right):
            rank = _PRECEDENCE[op]
            text = f"{unparse(left, rank + (rank == 4))} {op} {unparse(right, rank + 1)}"
        case Conditional(then=then, test=test, otherwise=otherwise):
            rank = 0
            text = f"{unparse(then, 1)} if {unparse(test, 1)} else {unparse(otherwise)}"
        case ListExpr(items=items):
            text = f"[{', '.join(map(unparse, items))}]"
        case _:
            assert_never(expr)
    return f"({text})" if outer > rank else text


# values of nodes

Static: TypeAlias = "int | float | bool | str | tuple[Static, ...] | Mapping[str, Static] | None"
"""A value known before any tensor exists."""

Scope: TypeAlias = Mapping[str, Static]

MAX_INT = 2**127
MAX_ITEMS = 4096


def ceil_to(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def _int(value: int | float) -> int:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("int() of a value that is not finite")
    return int(value)


def _range(*bounds: int) -> tuple[int, ...]:
    span = range(*bounds)
    if len(span) > MAX_ITEMS:
        raise ValueError(f"a list may have {MAX_ITEMS} items")
    return tuple(span)


def power(a: int | float, b: int | float) -> Static:
    """``a ** b``. Raises ValueError for one that would take long or be huge."""
    if abs(b) > 128 or abs(a) > 1e9:
        raise ValueError("a power this large is refused")
    value: int | float = operator.pow(a, b)
    return value


FUNCTIONS: Mapping[str, Callable[..., Static]] = {
    "abs": abs,
    "all": lambda items: all(items),
    "any": lambda items: any(items),
    "ceil": lambda x: math.ceil(x),
    "ceil_to": ceil_to,
    "contains": lambda text, part: part in text,
    "cos": math.cos,
    "count": lambda items, value: sum(1 for i in items if i == value),
    "exp": math.exp,
    "floor": lambda x: math.floor(x),
    "int": _int,
    "layers_of": lambda kinds, kind: tuple(i for i, found in enumerate(kinds) if found == kind),
    "len": len,
    "log": lambda x: math.log(x),
    "log2": math.log2,
    "max": max,
    "min": min,
    "pow": power,
    "range": _range,
    "round": lambda x, digits=0: round(x, digits),
    "sin": math.sin,
    "sqrt": math.sqrt,
    "square": lambda x: x * x,
    "startswith": lambda text, part: text.startswith(part),
    "sum": lambda items: sum(items),
    "tanh": math.tanh,
}
"""Functions of the language that need no tensors. Each is total over its types or raises ExpressionError."""

SIGNATURES: Mapping[str, str] = {
    "abs": "abs(x)",
    "all": "all(list)",
    "any": "any(list)",
    "ceil": "ceil(x)",
    "ceil_to": "ceil_to(x, multiple): the least multiple that is not below x",
    "contains": "contains(text, part)",
    "cos": "cos(x)",
    "count": "count(list, value): how often it is there",
    "exp": "exp(x)",
    "floor": "floor(x)",
    "int": "int(x): without what is behind the point",
    "layers_of": "layers_of(pattern, value): the layers that have it",
    "len": "len(list)",
    "log": "log(x): natural",
    "log2": "log2(x)",
    "max": "max(list) or max(a, b)",
    "min": "min(list) or min(a, b)",
    "pow": "pow(a, b): a ** b",
    "range": "range(stop) or range(start, stop)",
    "round": "round(x, digits)",
    "sin": "sin(x)",
    "sqrt": "sqrt(x)",
    "square": "square(x)",
    "startswith": "startswith(text, part)",
    "sum": "sum(list)",
    "tanh": "tanh(x)",
}
"""How each is written, for `llamagen explain language`."""

_ARITHMETIC: Mapping[str, Callable[..., Static]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": power,
}
_COMPARE: Mapping[str, Callable[..., bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class UnknownName(ExpressionError):
    """A name that the scope does not have, or no function; the caller knows what could have been meant."""

    def __init__(self, name: str, extent: tuple[int, int], *, function: bool = False) -> None:
        message = (
            f"there is no function `{name}` here" if function else f"`{name}` is not known here"
        )
        super().__init__(message, extent)
        self.name = name
        self.function = function


def evaluate(
    expr: Expr, scope: Scope, functions: Mapping[str, Callable[..., Static]] = FUNCTIONS
) -> Static:
    """Value of ``expr`` where names come from ``scope``. Raises ExpressionError (UnknownName) with a place."""
    match expr:
        case Name(id=name, extent=extent):
            if name not in scope:
                raise UnknownName(name, extent)
            return scope[name]
        case Literal_(value=value):
            return value
        case Binary():
            return _binary(expr, scope, functions)
        case Attribute(base=base, name=name, extent=extent):
            record = evaluate(base, scope, functions)
            if not isinstance(record, Mapping):
                raise ExpressionError(f"`{_kind(record)}` has no field `{name}`", extent)
            if name not in record:
                raise UnknownName(name, extent)
            return record[name]
        case Unary(op="not", operand=operand):
            return not is_true(evaluate(operand, scope, functions), operand)
        case Unary(operand=operand, extent=extent):
            return _apply(operator.neg, [_number(operand, scope, functions)], "-", extent)
        case Call(function=Name(id=name), arguments=arguments, keywords=(), extent=extent):
            if name not in functions:
                raise UnknownName(name, (extent[0], extent[0] + len(name)), function=True)
            values = [evaluate(a, scope, functions) for a in arguments]
            return _apply(functions[name], values, f"{name}()", extent)
        case Call(extent=extent):
            raise ExpressionError("only functions of the language can be called here", extent)
        case Index(base=base, index=index, extent=extent):
            return _index(
                evaluate(base, scope, functions), evaluate(index, scope, functions), extent
            )
        case Conditional(then=then, test=test, otherwise=otherwise):
            chosen = then if is_true(evaluate(test, scope, functions), test) else otherwise
            return evaluate(chosen, scope, functions)
        case ListExpr(items=items):
            return tuple(evaluate(i, scope, functions) for i in items)
        case _:
            assert_never(expr)


def _binary(expr: Binary, scope: Scope, functions: Mapping[str, Callable[..., Static]]) -> Static:
    op, extent = expr.op, expr.extent
    if op == "@":
        raise ExpressionError(f"`{op}` works on tensors only", extent)
    left = evaluate(expr.left, scope, functions)
    if op in ("and", "or"):
        decided = is_true(left, expr.left) == (op == "or")
        return left if decided else evaluate(expr.right, scope, functions)
    if op in ("in", "not in"):
        items = evaluate(expr.right, scope, functions)
        if not isinstance(items, tuple | str | Mapping):
            raise ExpressionError(f"`in` needs a list or a text, not {_kind(items)}", extent)
        return bool(_apply(operator.contains, [items, left], op, extent)) == (op == "in")
    if op in _COMPARE:
        right = evaluate(expr.right, scope, functions)
        if {type(left), type(right)} == {str, bool}:
            message = f"{_kind(left)} and {_kind(right)} are never equal"
            raise ExpressionError(message, extent, _NO_TRUTH)
        return _apply(_COMPARE[op], [left, right], op, extent)
    if op == "+" and isinstance(left, str | tuple):
        right = evaluate(expr.right, scope, functions)
        if type(left) is type(right):
            return _apply(operator.add, [left, right], op, extent)
        return _arithmetic(op, _check(left, expr.left), _check(right, expr.right), extent)
    a = _check(left, expr.left)
    return _arithmetic(op, a, _number(expr.right, scope, functions), extent)


_NO_TRUTH = (
    "compare text with text (`kind == 'local'`), or give values that are `true` or `false` without "
    "quotes; a pattern of them is {cycle: [...]}, {list: [...]} or {every: ...}"
)


def is_true(value: Static, expr: Expr) -> bool:
    """Whether ``value``, which ``expr`` gave, holds as a test; text does neither. Raises ExpressionError."""
    if isinstance(value, str):
        raise ExpressionError(f"needs true or false, found {_kind(value)}", expr.extent, _NO_TRUTH)
    return bool(value)


def _number(
    expr: Expr, scope: Scope, functions: Mapping[str, Callable[..., Static]]
) -> int | float:
    return _check(evaluate(expr, scope, functions), expr)


def _check(value: Static, expr: Expr) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"needs a number, found {_kind(value)}", expr.extent)
    return value


def _arithmetic(op: str, a: int | float, b: int | float, extent: tuple[int, int]) -> Static:
    return _apply(_ARITHMETIC[op], [a, b], op, extent)


def _apply(
    function: Callable[..., Static], values: list[Static], what: str, extent: tuple[int, int]
) -> Static:
    try:
        value = function(*values)
    except ZeroDivisionError:
        raise ExpressionError("division by zero", extent) from None
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        kinds = ", ".join(_kind(g) for g in values)
        raise ExpressionError(f"`{what}` cannot take {kinds}: {error}", extent) from None
    if isinstance(value, complex):
        raise ExpressionError("the result is not a real number", extent)
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise ExpressionError("the result has more than 127 bits", extent)
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError("the result is not finite", extent)
    if isinstance(value, tuple | str) and len(value) > MAX_ITEMS:
        raise ExpressionError(f"a list may have {MAX_ITEMS} items", extent)
    return value


def _index(items: Static, index: Static, extent: tuple[int, int]) -> Static:
    if isinstance(items, Mapping) and isinstance(index, str):
        if index not in items:
            raise UnknownName(index, extent)
        return items[index]
    if not isinstance(items, tuple) or isinstance(index, bool) or not isinstance(index, int):
        raise ExpressionError(f"{_kind(items)}[{_kind(index)}] is not possible", extent)
    if not -len(items) <= index < len(items):
        raise ExpressionError(f"index {index} is outside a list of {len(items)}", extent)
    return items[index]


def _kind(value: Static) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text '{value[:40]}'"
        case tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "a record"
        case _:
            assert_never(value)


def unparse_static(value: Static) -> str:
    """A value in the words of the language."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(unparse_static, value))}]"
        case Mapping():
            return "{" + ", ".join(f"{k}: {unparse_static(v)}" for k, v in value.items()) + "}"
        case _:
            return str(value)
