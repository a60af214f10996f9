"""Plain data and nodes as YAML text that the loader reads back unchanged; `fmt` gives it its canonical form after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from llamagen.spec.source import Map, Node, Scalar, Seq

Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value] | None"

INDENT = "  "
_WORDS = frozenset({"on", "off", "yes", "no", "true", "false", "null", "y", "n"})


def key_text(name: str) -> str:
    """A key, quoted unless every reader takes it for this very text."""
    words = name.replace("_", "").replace("-", "")
    bare = words.isascii() and words.isalnum() and not words.isdigit() and words not in _WORDS
    return name if bare else json.dumps(name)


def float_text(value: float) -> str:
    """A float that YAML 1.1 and 1.2 readers agree on: digits on both sides of the point, a signed exponent."""
    text = repr(value)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if "." not in mantissa:
        mantissa += ".0"
    sign = "" if exponent[0] in "+-" else "+"
    return f"{mantissa}e{sign}{exponent}"


def flow(value: Value) -> str:
    """A value on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return float_text(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return f"{{{', '.join(f'{key_text(n)}: {flow(v)}' for n, v in value.items())}}}"
        case _:
            return f"[{', '.join(map(flow, value))}]"


def flow_node(node: Node) -> str:
    """A node on one line, numbers as they were written."""
    match node:
        case Scalar(value=str(text)):
            return flow(text)
        case Scalar(text=text, value=value):
            return text if value is not None else "null"
        case Seq(items=items):
            return f"[{', '.join(map(flow_node, items))}]"
        case Map(entries=entries):
            pairs = (f"{key_text(k.text)}: {flow_node(v)}" for k, v in entries)
            return f"{{{', '.join(pairs)}}}"


def lines(tree: Mapping[str, Value], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every leaf on a line of its own: (dotted path, line without its end)."""
    for name, value in tree.items():
        here = (*path, name)
        lead = f"{INDENT * len(path)}{key_text(name)}:"
        if isinstance(value, Mapping) and value:
            yield ".".join(here), lead
            yield from lines(value, here)
        else:
            yield ".".join(here), f"{lead} {flow(value)}"
