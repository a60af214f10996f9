"""Text before YAML: reading, size limits, encoding and the characters that are not allowed."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from llamagen import files
from llamagen.diagnostics import Diagnostic, LlamagenError, Span

MAX_BYTES = 1 << 20
MAX_LINE = 4096

_NOT_PLAIN_ASCII = re.compile(r"[^\n\x20-\x7e]")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"})
# Letters and marks that Unicode does not class as format characters, but that show as nothing.
_HIDDEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffe\uffff")
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
)


def read_bytes(path: Path, name: str) -> bytes:
    """The bytes of a file. Raises LG001, LG002."""
    return files.read_bytes(path, files.SPEC, name=name)


def decode(raw: bytes, name: str) -> str:
    """The text of a file, with `\\n` line ends. Raises LG002, LG003."""
    if len(raw) > MAX_BYTES:
        raise LlamagenError.of(
            "LG002",
            f"{name!r} is larger than {MAX_BYTES:,} bytes",
            help="split it into files that extend one another",
        )
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            raise LlamagenError.of(
                "LG003",
                f"the file is {encoding}, not plain UTF-8",
                Span(name, 1, 1),
                help="save it as UTF-8 without a byte order mark",
            )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as failure:
        before = raw[: failure.start].decode("utf-8")
        line = before.count("\n") + 1
        col = len(before) - (before.rfind("\n") + 1) + 1
        raise LlamagenError.of(
            "LG003",
            f"byte 0x{raw[failure.start]:02x} is not valid UTF-8",
            Span(name, line, col),
            help="save the file as UTF-8",
        ) from failure
    return text.replace("\r\n", "\n")


def encode(text: str, name: str) -> bytes:
    """The UTF-8 bytes of text given in memory. Raises LG003 for lone surrogates."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise LlamagenError.of(
            "LG003",
            f"{name!r} holds half of a surrogate pair at character {failure.start}",
            help="pass valid Unicode text",
        ) from failure


def is_forbidden(char: str) -> bool:
    """Control, bidirectional, invisible or look-alike blank characters."""
    if char.isascii():
        return not (char == "\n" or " " <= char <= "~")
    return char in _HIDDEN or unicodedata.category(char) in _HIDDEN_CATEGORIES


def describe(char: str) -> str:
    """`U+202E RIGHT-TO-LEFT OVERRIDE`"""
    return f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip()


def check_text(text: str, lines: tuple[str, ...], name: str) -> list[Diagnostic]:
    """LG004 (forbidden character), LG005 (tab), LG006 (long line): the first of each per line."""
    found: list[Diagnostic] = []
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            found.append(
                Diagnostic(
                    "LG006",
                    "error",
                    f"this line has {len(line):,} characters, the limit is {MAX_LINE:,}",
                    Span(name, number, MAX_LINE + 1),
                    help="break the line; a `|` or `>-` block holds long text",
                )
            )
    if not _NOT_PLAIN_ASCII.search(text):
        return found
    forbidden = {char for char in set(text) if is_forbidden(char)}
    if not forbidden:
        return found
    for number, line in enumerate(lines, 1):
        if forbidden.isdisjoint(line):
            continue
        tab = line.find("\t")
        if tab >= 0:
            found.append(
                Diagnostic(
                    "LG005",
                    "error",
                    "tabs are not allowed: YAML forbids them as indentation",
                    Span(name, number, tab + 1),
                    help="use spaces, two per level",
                )
            )
        hidden = next((at for at, c in enumerate(line) if c in forbidden and c != "\t"), None)
        if hidden is not None:
            found.append(
                Diagnostic(
                    "LG004",
                    "error",
                    f"the character {describe(line[hidden])} is not allowed:"
                    " it is invisible or changes how the text around it is shown",
                    Span(name, number, hidden + 1),
                    help="delete it, or write a plain space if it stands for one",
                )
            )
    return found
