"""YAML text to a tree of frozen nodes with places, in the strict subset that specs are written in.

Built from parser events with an explicit stack: nesting cannot overflow anything, aliases are
never expanded, and libyaml and the pure-Python parser give the same tree. Everything that is
refused is reported at once, each with its place (spec/rules/diagnostics.yaml, LG001 to LG029).
"""

from __future__ import annotations

from pathlib import Path

from llamagen.diagnostics import LlamagenError
from llamagen.spec.source_build import MAX_DEPTH, MAX_NODES, Builder, limited
from llamagen.spec.source_nodes import (
    Key,
    Map,
    Node,
    Plain,
    Scalar,
    ScalarValue,
    Seq,
    SourceMap,
    Style,
    to_plain,
)
from llamagen.spec.source_text import MAX_BYTES, MAX_LINE, check_text, decode, encode, read_bytes

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_LINE",
    "MAX_NODES",
    "Key",
    "Map",
    "Node",
    "Plain",
    "Scalar",
    "ScalarValue",
    "Seq",
    "SourceMap",
    "Style",
    "load_source",
    "to_plain",
]


def load_source(source: Path | str | bytes, file_name: str | None = None) -> SourceMap:
    """Load a file (`Path`) or text (`str`, `bytes`); `file_name` is what spans call it.

    Raises LlamagenError with every finding (LG001 to LG029), sorted by place.
    """
    name = file_name if file_name is not None else "<text>"
    match source:
        case Path():
            name = file_name if file_name is not None else str(source)
            raw = read_bytes(source, name)
        case str():
            raw = encode(source, name)
        case bytes():
            raw = source
    text = decode(raw, name)
    lines = tuple(text.split("\n"))
    found = check_text(text, lines, name)
    if found:
        raise LlamagenError(limited(found))
    return SourceMap(name, text, Builder(name, lines).build(text))
