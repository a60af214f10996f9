"""What chat templates write beyond jinja's own language, as transformers reads them."""

from __future__ import annotations

from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser


class Generation(Extension):
    """``{% generation %}`` marks what the model answered, for training; the text is the same without it."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 writes a set

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
