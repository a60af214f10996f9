"""Texts of the expression language to tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llamagen.spec.expr_nodes import ExpressionError, Extent

MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Token:
    kind: Literal["int", "float", "string", "name", "op", "newline", "end"]
    text: str
    extent: Extent


_OPERATORS = (
    "**", "//", "==", "!=", "<=", ">=",
    "+", "-", "*", "/", "%", "@", "(", ")", "[", "]", ",", ".", "=", "<", ">",
)  # fmt: skip
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
