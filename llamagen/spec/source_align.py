"""Where each character of a decoded scalar stands in its file.

Non-blank characters of a scalar appear in the file in the same order, except for quotes and
escapes, so one walk over both gives every place. Blanks that line folding made are placed right
after the character before them.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamagen.diagnostics import Span

_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "t": "\t", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"}


def literal_indent(text: str, lines: tuple[str, ...], header_line: int) -> int:
    """Indentation of the content of a `|` block whose header is on `header_line` (1-based)."""
    for row, content in enumerate(text.split("\n")):
        if content.strip(" "):
            return len(lines[header_line + row]) - len(content)
    return 0


def align(text: str, style: str, lines: tuple[str, ...], span: Span) -> tuple[tuple[int, int], ...]:
    """Line and column of every character of `text`, and of its end (`len(text) + 1` places)."""
    places: list[tuple[int, int]] = []
    content = _content(style, lines, span)
    upcoming = next(content, None)
    after = (span.line, span.col)
    for char in text:
        if upcoming is not None and upcoming[0] == char:
            _, line, col, width = upcoming
            places.append((line, col))
            after = (line, col + width)
            upcoming = next(content, None)
        else:
            places.append(after)
            after = (after[0], after[1] + 1)
    places.append(after)
    return tuple(places)


def _content(style: str, lines: tuple[str, ...], span: Span) -> Iterator[tuple[str, int, int, int]]:
    """(character, line, column, width in the file) of all that is not layout."""
    in_block = style in ("literal", "folded")
    first = span.line + 1 if in_block else span.line
    quote = {"single": "'", "double": '"'}.get(style)
    for number in range(first, span.end_line + 1):
        line = lines[number - 1]
        col = span.col - 1 if number == span.line else 0
        col += quote is not None and number == span.line
        stop = span.end_col - 1 if number == span.end_line else len(line)
        stop -= quote is not None and number == span.end_line
        while col < stop:
            char = line[col]
            width = 1
            if quote == '"' and char == "\\":
                if col + 1 >= stop:
                    break  # an escaped line break stands for nothing
                width = 2 + _HEX_ESCAPES.get(line[col + 1], 0)
                yield _unescape(line[col : col + width]), number, col + 1, width
            elif char != " ":
                width = 2 if quote == "'" and char == "'" else 1
                yield char, number, col + 1, width
            col += width


def _unescape(escape: str) -> str:
    if len(escape) > 2:
        return chr(int(escape[2:], 16))
    return _ESCAPES.get(escape[1], escape[1])
