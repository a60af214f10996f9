"""Texts that others wrote, placed in Markdown: they stay one text in one cell, whatever they hold."""

from __future__ import annotations

_ESCAPES = (
    ("\\", "\\\\"),  # first; GitHub takes `\\|` for a backslash and the end of a cell
    ("&", "&amp;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("|", "\\|"),
    ("`", "\\`"),
    ("](", "]\\("),
)
_NOT_IN_CODE = frozenset("`|\\")


def cell(text: str) -> str:
    """One line that cannot leave its table cell, become HTML, or be a link or an image."""
    line = " ".join(text.split())
    for plain, safe in _ESCAPES:
        line = line.replace(plain, safe)
    return line


def code(text: str) -> str:
    """The text in a code span, or as a cell where a code span cannot hold it."""
    plain = text.strip() and text.isprintable() and not _NOT_IN_CODE & {*text}
    return f"`{text}`" if plain else cell(text)
