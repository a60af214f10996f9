"""Renders a chat template; run by ``confined``, which limits what it may take.

Templates run in jinja2's sandbox, as in transformers, and know neither the time nor this machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """``{% generation %}`` marks what the model answered, for training; the text is the same without it."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 writes a set

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def answer(arguments: Sequence[str]) -> Iterator[bytes]:
    """The text, of ``{source, values}`` as JSON on stdin."""
    request = json.loads(sys.stdin.buffer.read())
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    for piece in environment.from_string(request["source"]).generate(**request["values"]):
        yield piece.encode("utf-8")


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """With the options that transformers gives it (utils/chat_template_utils.py)."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
