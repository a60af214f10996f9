"""What a YAML file holds, with the place of everything: frozen `Scalar`, `Seq` and `Map` nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llamagen.diagnostics import Span
from llamagen.spec.source_align import align, literal_indent

Style = Literal["plain", "single", "double", "literal", "folded"]
ScalarValue: TypeAlias = str | int | float | bool | None
Plain: TypeAlias = ScalarValue | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `text` is the decoded text, `value` what it means (equal for strings)."""

    value: ScalarValue
    text: str
    style: Style
    span: Span
    lines: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The lines of the file, shared by all its nodes."""

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column (1-based) in the file of the character at `offset` of `text`.

        Offsets at or past the last line break of the text give the end of its last line.
        """
        offset = max(0, min(offset, len(self.text.rstrip("\n"))))
        start = self.span
        if self.style == "literal" and self.lines:
            row = self.text.count("\n", 0, offset)
            in_line = offset - (self.text.rfind("\n", 0, offset) + 1)
            indent = literal_indent(self.text, self.lines, start.line)
            return start.line + 1 + row, indent + in_line + 1
        if start.line == start.end_line or not self.lines:
            quote = 0 if self.style == "plain" or not self.lines else 1
            if start.end_col - start.col == len(self.text) + 2 * quote or not self.lines:
                return start.line, start.col + quote + offset
        return align(self.text, self.style, self.lines, start)[offset]

    def slice_span(self, start: int, end: int) -> Span:
        """The place of `text[start:end]` in the file; an empty slice covers one character."""
        line, col = self.position(start)
        if end <= start:
            return Span(self.span.file, line, col)
        end_line, end_col = self.position(end - 1)
        return Span(self.span.file, line, col, end_line, end_col + 1)

    def line_span(self, index: int) -> Span:
        """The place of line `index` (0-based) of `text`, without its indentation."""
        rows = self.text.split("\n")
        row = rows[index]
        start = sum(len(before) + 1 for before in rows[:index]) + len(row) - len(row.lstrip())
        return self.slice_span(start, start + len(row.strip()))


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a mapping: an ASCII name or path."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Seq:
    """A list; `flow` says that it is written as `[...]`."""

    items: tuple[Node, ...]
    span: Span
    flow: bool = False

    def __iter__(self) -> Iterator[Node]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class Map:
    """A mapping in file order, keys unique; `flow` says that it is written as `{...}`."""

    entries: tuple[tuple[Key, Node], ...]
    span: Span
    flow: bool = False

    def __contains__(self, name: str) -> bool:
        return any(key.text == name for key, _ in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def keys(self) -> tuple[str, ...]:
        return tuple(key.text for key, _ in self.entries)

    def get(self, name: str) -> Node | None:
        """The node under `name`, or None."""
        return next((node for key, node in self.entries if key.text == name), None)

    def key(self, name: str) -> Key | None:
        """The key `name` with its place, or None."""
        return next((key for key, _ in self.entries if key.text == name), None)


Node: TypeAlias = Scalar | Seq | Map


@dataclass(frozen=True, slots=True)
class SourceMap:
    """One loaded file. `file` is its name in spans, `text` its text with `\\n` line ends."""

    file: str
    text: str
    root: Map


def to_plain(node: Node) -> Plain:
    """The node as lists, dicts and values, places dropped (depth is bounded by the loader)."""
    match node:
        case Scalar():
            return node.value
        case Seq():
            return [to_plain(item) for item in node.items]
        case Map():
            return {key.text: to_plain(item) for key, item in node.entries}
