"""The source of a library function with what a model fixes put in: partial evaluation of text.

What is not decided keeps its text: comments, names and the order of statements are those of library.py. The layout is
for the formatter.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import getsource
from pathlib import Path
from textwrap import dedent, indent
from typing import TypeAlias

from llamagen.ops.code import Fixed, Statements, Stay, Template, Text

_Edit: TypeAlias = tuple[int, int, str]
Definition: TypeAlias = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
_KEEPS_PARENTHESES = (ast.IfExp, ast.BoolOp, ast.Tuple, ast.Lambda)


class Library:
    """A Python file: its imports, and its definitions by name and in order, methods as ``Class.method``."""

    def __init__(self, text: str) -> None:
        assert text.isascii(), "columns count bytes"
        self.text = text
        self.lines = text.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.definitions: dict[str, Definition] = {}
        self._placed: dict[str, str] = {}
        for statement in ast.parse(text).body:
            match statement:
                case ast.Import() | ast.ImportFrom():
                    self.imports.append(statement)
                case ast.FunctionDef(name=name):
                    self.definitions[name] = statement
                case ast.ClassDef(name=name, body=body):
                    self.definitions[name] = statement
                    methods = [m for m in body if isinstance(m, ast.FunctionDef)]
                    self.definitions.update({f"{name}.{m.name}": m for m in methods})
                case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
                    self.definitions[name] = statement

    def place(
        self,
        name: str,
        fixed: Mapping[str, Fixed] | None = None,
        *,
        to: str = "",
        words: Mapping[str, str] | None = None,
    ) -> str:
        """The source of ``name``, called ``to``, with ``words`` of its docstring replaced.

        ``fixed`` says what parameters and globals are; a parameter behind a ``*`` that it does not name is its default.
        """
        key = repr((name, fixed, to, words))
        if key not in self._placed:
            self._placed[key] = self._place(name, fixed, to, words)
        return self._placed[key]

    def _place(
        self, name: str, fixed: Mapping[str, Fixed] | None, to: str, words: Mapping[str, str] | None
    ) -> str:
        node = self.definitions[name]
        known = dict(fixed or {})
        for below in ast.walk(node):
            if isinstance(below, ast.FunctionDef):
                for argument, default in keyword_only(below):
                    if argument.arg not in known:
                        assert isinstance(default, ast.Constant), f"{name} needs {argument.arg}"
                        known[argument.arg] = ast.literal_eval(default)
        return _Placing(self, known, node, to, words or {}).placed()


@cache
def library() -> Library:
    """library.py, read and not imported: it imports torch."""
    return Library(Path(__file__).with_name("library.py").read_text(encoding="utf-8"))


def statements_of(function: Callable[..., object], fixed: Mapping[str, Fixed]) -> Statements:
    """What ``x = function(x)`` stands for, where ``x`` is the name of its first parameter."""
    name = function.__name__
    text = Library(getsource(function)).place(name, fixed)
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return)
    lines = dedent(text.split("\n", 1)[1]).split("\n")
    last = node.body[-1].lineno - 2
    x = node.args.args[0].arg
    lines[last] = lines[last].replace("return", f"{x} =", 1)
    return Statements(tuple(line for line in lines if line != f"{x} = {x}"))


def keyword_only(node: ast.FunctionDef) -> list[tuple[ast.arg, ast.expr | None]]:
    return list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))


@dataclass(slots=True)
class _Placing:
    library: Library
    fixed: Mapping[str, Fixed]
    node: Definition
    to: str
    words: Mapping[str, str]

    def placed(self) -> str:
        return self.edited(self.lines([self.node]), self.statements([self.node])).rstrip()

    # Places in the text

    def edited(self, span: tuple[int, int], edits: Iterator[_Edit]) -> str:
        at, end = span
        pieces: list[str] = []
        for start, stop, text in sorted(edits):
            pieces += [self.library.text[at:start], text]
            at = stop
        return "".join([*pieces, self.library.text[at:end]])

    def at(self, line: int, column: int) -> int:
        return self.library.starts[line - 1] + column

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def lines(self, body: Sequence[ast.stmt]) -> tuple[int, int]:
        """Whole lines, with comments and decorators above."""
        first, last = body[0], body[-1].end_lineno
        assert last is not None
        decorators = first.decorator_list if isinstance(first, ast.FunctionDef) else []
        line = min([first.lineno, *(d.lineno for d in decorators)])
        while self.library.lines[line - 2].lstrip().startswith("#"):
            line -= 1
        return self.at(line, 0), self.at(last + 1, 0)

    def text(self, node: ast.expr) -> str:
        """An expression with its edits."""
        return self.edited(self.span(node), self.edits(node))

    # Statements

    def statements(self, body: Sequence[ast.stmt]) -> Iterator[_Edit]:
        """Edits of a block. What follows a return that is always reached goes."""
        for i, statement in enumerate(body):
            span = self.lines([statement])
            match statement:
                case ast.If(test=test) if (truth := self.truth(test)) is not None:
                    branch = statement.body if truth else statement.orelse
                    yield *span, self.block(branch, statement.col_offset)
                    if branch and isinstance(branch[-1], ast.Return) and body[i + 1 :]:
                        yield *self.lines(body[i + 1 :]), ""
                        return
                case ast.Assign(targets=[ast.Attribute(ast.Name("self"), name)]) if (
                    name in self.fixed
                ):
                    yield *span, ""
                case ast.Assign(value=ast.Call(func)) if isinstance(
                    known := self.known(func), Statements
                ):
                    yield (
                        *span,
                        indent("".join(f"{n}\n" for n in known.lines), " " * statement.col_offset),
                    )
                case ast.Expr(ast.Constant(str())) if statement in getattr(self.node, "body", ()):
                    text = self.library.text[slice(*span)]
                    for word, other in self.words.items():
                        assert word in text, word
                        text = text.replace(word, other)
                    yield *span, text
                case _:
                    yield from self.below(statement)

    def block(self, body: Sequence[ast.stmt], column: int) -> str:
        """A branch as part of the block around it."""
        if not body:
            return ""
        return indent(dedent(self.edited(self.lines(body), self.statements(body))), " " * column)

    def below(self, node: ast.AST) -> Iterator[_Edit]:
        """Edits inside of a node that stays."""
        if isinstance(node, ast.FunctionDef):
            yield self.signature(node)
        elif isinstance(node, ast.ClassDef) and self.to:
            start = self.span(node)[0] + len("class ")
            yield start, start + len(node.name), self.to
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse") and isinstance(value, list):
                yield from self.statements(value)
            elif name not in ("args", "returns") or not isinstance(node, ast.FunctionDef):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from self.edits(child)

    def signature(self, node: ast.FunctionDef) -> _Edit:
        assert node.returns is not None
        usual = node.args.args
        defaults = [*[None] * (len(usual) - len(node.args.defaults)), *node.args.defaults]
        texts = [self.parameter(a, d) for a, d in zip(usual, defaults, strict=True)]
        texts += [self.parameter(a, None) for a, _ in keyword_only(node) if self.stays(a)]
        name = self.to if node is self.node and self.to else node.name
        returns = self.library.text[slice(*self.span(node.returns))]
        line = f"def {name}({', '.join(t for t in texts if t)}) -> {returns}:\n"
        return self.at(node.lineno, node.col_offset), self.lines(node.body)[0], line

    def stays(self, argument: ast.arg) -> bool:
        return isinstance(self.fixed[argument.arg], Stay)

    def parameter(self, argument: ast.arg, default: ast.expr | None) -> str:
        """``name: type = default``, or nothing."""
        name = argument.arg
        known = self.fixed.get(name, Stay.KEPT)
        type_ = f": {self.text(argument.annotation)}" if argument.annotation else ""
        match known:
            case Stay.KEPT:
                return name + type_ + (f" = {self.text(default)}" if default else "")
            case Stay.PRESENT:
                return name + type_.removesuffix(" | None")
            case Text(text=new):
                return new + type_
            case _:
                return ""

    # Expressions

    def known(self, node: ast.expr) -> Fixed:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.Name(name, ast.Load()) | ast.Attribute(ast.Name("self"), name, ast.Load()):
                return self.fixed.get(name, Stay.KEPT)
            case _:
                return Stay.KEPT

    def truth(self, node: ast.expr) -> bool | None:
        """What a condition is whatever the tensors are; None if that is open."""
        match node:
            case ast.UnaryOp(ast.Not(), operand):
                truth = self.truth(operand)
                return None if truth is None else not truth
            case ast.BoolOp(op, operands):
                truths = [self.truth(o) for o in operands]
                decides = isinstance(op, ast.Or)
                return decides if decides in truths else None if None in truths else not decides
            case ast.Compare(left, [op], [ast.Constant(right)]) if (
                self.known(left) is not Stay.KEPT
            ):
                equal = self.known(left) == right
                return equal == isinstance(op, ast.Is | ast.Eq)
            case _:
                known = self.known(node)
                return None if known is Stay.KEPT else bool(known)

    def edits(self, node: ast.AST) -> Iterator[_Edit]:
        new = self.replacement(node) if isinstance(node, ast.expr) else None
        if new is None:
            yield from self.below(node)
            return
        assert isinstance(node, ast.expr)
        start, end = self.span(node)
        text, tree = self.library.text, ast.parse(new, mode="eval").body
        keeps = isinstance(tree, _KEEPS_PARENTHESES) or (
            isinstance(tree, ast.BinOp) and not isinstance(tree.op, ast.Pow)
        )
        before, after = text[:start].rstrip(), text[end:].lstrip()
        if not keeps and before[-1] == "(" and after[0] == ")" and before[-2] in " ([,":
            start, end = len(before) - 1, len(text) - len(after) + 1
        yield start, end, new

    def replacement(self, node: ast.expr) -> str | None:
        match node:
            case ast.Constant():
                return None
            case ast.Name() | ast.Attribute():
                known = self.known(node)
                if isinstance(known, Text):
                    return known.text
                return repr(known) if isinstance(known, bool | int | float | str | None) else None
            case ast.IfExp(test, body, orelse) if (truth := self.truth(test)) is not None:
                return self.text(body if truth else orelse)
            case ast.BoolOp() | ast.Compare() | ast.UnaryOp() if (
                truth := self.truth(node)
            ) is not None:
                return repr(truth)
            case ast.BoolOp(op, operands) if any(self.truth(o) is not None for o in operands):
                word = " and " if isinstance(op, ast.And) else " or "
                return word.join(self.text(o) for o in operands if self.truth(o) is None)
            case ast.Call(func, arguments, keywords):
                known = self.known(func)
                if isinstance(known, Template):
                    return known.text.format(*map(self.text, arguments))
                texts = [self.text(a) for a in arguments if self.known(a) is not Stay.LEFT_OUT]
                texts += [f"{k.arg}={self.text(k.value)}" for k in keywords if self.says(func, k)]
                if len(texts) == len(arguments) + len(keywords):
                    return None
                return f"{self.text(func)}({', '.join(texts)})"
            case _:
                return None

    def says(self, function: ast.expr, keyword: ast.keyword) -> bool:
        """Whether a keyword stays: not one behind the ``*`` of the library, nor what became None or False."""
        if isinstance(function, ast.Name) and function.id in self.library.definitions:
            callee = self.library.definitions[function.id]
            assert isinstance(callee, ast.FunctionDef)
            return keyword.arg not in {a.arg for a, _ in keyword_only(callee)}
        return isinstance(keyword.value, ast.Constant) or self.truth(keyword.value) is not False
