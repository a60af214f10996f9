"""Python expressions as data, and their text laid out as ``ruff format`` would.

Only the shapes that generated forwards need: names, literals, calls, operators. Text of a spec never
gets in here except through ``names.py`` (checked identifiers) and ``repr``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

WIDTH = 100
INDENT = "    "

_RANK = {"+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "**": 8}
_NEGATION = 7
_ATOM = 9


@dataclass(frozen=True, slots=True)
class Text:
    """Something that needs no parentheses anywhere: a name, a number, an indexing."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """``function(arguments)``; with a receiver ``receiver.function(arguments)``."""

    function: str
    arguments: tuple[Code, ...]
    receiver: Code | None = None


@dataclass(frozen=True, slots=True)
class Keyword:
    """``name=value`` in a call."""

    name: str
    value: Code


@dataclass(frozen=True, slots=True)
class Attribute:
    """``receiver.name``"""

    receiver: Code
    name: str


@dataclass(frozen=True, slots=True)
class Indexed:
    """``receiver[index]``; ``index`` is finished text such as ``..., :64``."""

    receiver: Code
    index: str


@dataclass(frozen=True, slots=True)
class Binary:
    op: str
    left: Code
    right: Code


@dataclass(frozen=True, slots=True)
class Negative:
    operand: Code


@dataclass(frozen=True, slots=True)
class Tuple:
    items: tuple[Code, ...]


Code: TypeAlias = "Text | Call | Keyword | Attribute | Indexed | Binary | Negative | Tuple"


def call(function: str, *arguments: Code, **keywords: Code) -> Call:
    return Call(function, (*arguments, *(Keyword(k, v) for k, v in keywords.items())))


def method(receiver: Code, name: str, *arguments: Code, **keywords: Code) -> Call:
    return Call(name, (*arguments, *(Keyword(k, v) for k, v in keywords.items())), receiver)


def literal(value: int | float | bool | str | None) -> Text:
    """A Python literal; texts are quoted with double quotes, everything in them escaped."""
    if isinstance(value, str):
        body = repr(value)[1:-1].replace("\\'", "'").replace('"', '\\"')
        return Text(f'"{body}"')
    return Text(repr(value))


def flat(code: Code, outer: int = 0) -> str:
    """The text on one line; parenthesised where the surrounding operator binds tighter than ``code``."""
    match code:
        case Text(text=text):
            return f"({text})" if text.startswith("-") and outer > _NEGATION else text
        case Keyword(name=name, value=value):
            return f"{name}={_argument(value)}"
        case Attribute(receiver=receiver, name=name):
            return f"{flat(receiver, _ATOM)}.{name}"
        case Indexed(receiver=receiver, index=index):
            return f"{flat(receiver, _ATOM)}[{index}]"
        case Call(arguments=arguments):
            return f"{_callee(code)}({', '.join(_argument(a) for a in arguments)})"
        case Negative(operand=operand):
            text = f"-{flat(operand, _NEGATION)}"
            return f"({text})" if outer > _NEGATION else text
        case Binary(op="**", left=left, right=right):
            simple = all(isinstance(e, Text | Attribute) for e in (left, right))
            space = "" if simple else " "
            text = f"{flat(left, _ATOM)}{space}**{space}{flat(right, _NEGATION)}"
            return f"({text})" if outer > _RANK["**"] else text
        case Binary(op=op, left=left, right=right):
            rank = _RANK[op]
            text = f"{flat(left, rank)} {op} {flat(right, rank + 1)}"
            return f"({text})" if outer > rank else text
        case Tuple(items=(single,)):
            return f"({flat(single)},)"
        case Tuple(items=items):
            text = ", ".join(flat(i) for i in items)
            return f"({text})" if outer or not items else text
        case _:
            assert_never(code)


def _argument(code: Code) -> str:
    """A tuple that is an argument needs its parentheses."""
    return flat(code, 1) if isinstance(code, Tuple) else flat(code)


def _callee(code: Call) -> str:
    if code.receiver is None:
        return code.function
    return f"{flat(code.receiver, _ATOM)}.{code.function}"


def fits(prefix: str, code: Code, depth: int) -> bool:
    """Whether a statement stays on one line."""
    return len(INDENT * depth + prefix + flat(code)) <= WIDTH


def statement(prefix: str, code: Code, depth: int) -> list[str]:
    """``prefix`` (``h = ``, ``return ``) and ``code`` in as few lines as fit; ``depth`` counts indents."""
    return [INDENT * depth + line for line in _laid_out(prefix, code, "", WIDTH - 4 * depth)]


def _laid_out(before: str, code: Code, after: str, width: int) -> list[str]:
    line = before + flat(code) + after
    if len(line) <= width:
        return [line]
    match code:
        case Call(arguments=arguments) if arguments:
            return _broken_call(before + _callee(code), arguments, after, width)
        case Binary(left=left, right=Call(arguments=arguments) as right, op=op) if (
            arguments and not isinstance(left, Binary)
        ):
            head = f"{before}{flat(left, _RANK[op])} {op} {_callee(right)}"
            return _broken_call(head, arguments, after, width)
        case Keyword(name=name, value=value):
            return _laid_out(f"{before}{name}=", value, after, width)
        case Binary():
            return [f"{before}(", *_operands(code, width), f"){after}"]
        case _:
            return [f"{before}(", INDENT + flat(code), f"){after}"]


def _broken_call(head: str, arguments: Sequence[Code], after: str, width: int) -> list[str]:
    return [f"{head}(", *_items(arguments, width), f"){after}"]


def _items(items: Sequence[Code], width: int) -> list[str]:
    together = INDENT + ", ".join(_argument(i) for i in items)
    if len(together) <= width:
        return [together]
    comma = "," if len(items) > 1 else ""
    return [INDENT + line for i in items for line in _laid_out("", i, comma, width - 4)]


def _operands(code: Binary, width: int) -> list[str]:
    together = INDENT + flat(code)
    if len(together) <= width:
        return [together]
    terms: list[str] = []
    here: Code = code
    while isinstance(here, Binary) and here.op in ("+", "-"):
        terms.append(f"{here.op} {flat(here.right, _RANK[here.op] + 1)}")
        here = here.left
    return [INDENT + t for t in (flat(here, 5), *reversed(terms))]


def signature(name: str, parameters: Sequence[str], result: str, depth: int) -> list[str]:
    """``def name(parameters) -> result:`` on as few lines as fit."""
    pad = INDENT * depth
    line = f"{pad}def {name}({', '.join(parameters)}) -> {result}:"
    if len(line) <= WIDTH:
        return [line]
    inner = f"{pad}{INDENT}{', '.join(parameters)}"
    if len(inner) <= WIDTH:
        return [f"{pad}def {name}(", inner, f"{pad}) -> {result}:"]
    return [
        f"{pad}def {name}(",
        *(f"{pad}{INDENT}{p}," for p in parameters),
        f"{pad}) -> {result}:",
    ]
