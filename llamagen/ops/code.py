"""Python expressions as data, and their text on one line.

Only the shapes that generated forwards need: names, literals, calls, operators. Text of a spec never
gets in here except through ``names.py`` (checked identifiers) and ``repr``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias, assert_never

WIDTH = 100
INDENT = "    "

_RANK = {
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), 1),
    "|": 2, "&": 3, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "@": 6, "**": 8,
}  # fmt: skip
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


def literal(value: int | float | bool | str | tuple[float, ...] | None) -> Text:
    """A Python literal; texts are quoted with double quotes, everything in them escaped."""
    if isinstance(value, str):
        body = repr(value)[1:-1].replace("\\'", "'").replace('"', '\\"')
        return Text(f'"{body}"')
    return Text(repr(value))


def flat(code: Code, outer: int = 0) -> str:
    """The text on one line, as ruff spaces it; in parentheses where the operator around binds tighter than ``code``."""
    match code:
        case Text(text=text):
            return f"({text})" if text.startswith("-") and outer > _NEGATION else text
        case Keyword(name=name, value=value):
            return f"{name}={flat(value, isinstance(value, Tuple))}"
        case Attribute(receiver=receiver, name=name):
            return f"{flat(receiver, _ATOM)}.{name}"
        case Indexed(receiver=receiver, index=index):
            return f"{flat(receiver, _ATOM)}[{index}]"
        case Call(function=function, arguments=arguments, receiver=receiver):
            owner = "" if receiver is None else f"{flat(receiver, _ATOM)}."
            return (
                f"{owner}{function}({', '.join(flat(a, isinstance(a, Tuple)) for a in arguments)})"
            )
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
            chained = rank == 1  # Python's comparisons are
            text = f"{flat(left, rank + chained)} {op} {flat(right, rank + 1)}"
            return f"({text})" if outer > rank else text
        case Tuple(items=(single,)):
            return f"({flat(single)},)"
        case Tuple(items=items):
            text = ", ".join(flat(i, isinstance(i, Tuple)) for i in items)
            return f"({text})" if outer or not items else text
        case _:
            assert_never(code)


def statement(prefix: str, code: Code, depth: int) -> str:
    """``prefix`` (``h = ``, ``return ``) and ``code``; ``depth`` counts indents."""
    return f"{INDENT * depth}{prefix}{flat(code)}"


class Stay(Enum):
    """A parameter of a library function that stays one, although it stands behind the ``*``."""

    KEPT = "as it is"
    PRESENT = "and is neither None nor empty"
    LEFT_OUT = "no: a parameter before the ``*`` that goes, where calls hand it on too"


@dataclass(frozen=True, slots=True)
class Template:
    """In place of a function: the text of a call, with ``{}`` for its argument."""

    text: str


@dataclass(frozen=True, slots=True)
class Statements:
    """In place of a function: what assigns its result, where a statement does nothing else."""

    lines: tuple[str, ...]


Scalar: TypeAlias = bool | int | float | str | None
Fixed: TypeAlias = Scalar | Text | Stay | Template | Statements
"""What a file knows of a name in the library: a value, text in its place (a parameter before the ``*`` is renamed to
it), or that it stays."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a forward pass computes once, at its top, and hands to the blocks."""

    kind: Literal["rope", "grid", "mask", "temperature", "tiles"]
    variables: tuple[str, ...]
    type: str
    call: str
    causal: bool = False
    """A mask that torch's kernel needs no tensor for."""
