"""The one way to write each scalar: quotes only where YAML needs them."""

from __future__ import annotations

import re

from llamagen.spec.source import Refusal, Scalar, resolve_key, resolve_plain

WIDTH = 120

_INDICATORS = frozenset("?:,[]{}#&*!|>'\"%@`")
_FLOW_INDICATORS = frozenset(",[]{}:")
_DOUBLE_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"})
_BREAK = re.compile(r"(?<! ) (?! )")  # a blank that line folding gives back


def key_text(text: str, *, flow: bool) -> str:
    """A key; quoted where another reader could take it for a boolean, null or fraction."""
    resolved = resolve_key(text)
    is_name = isinstance(resolved, str) or type(resolved) is int
    return text if is_name and _plain_fits(text, flow) else _quoted(text)


def inline(scalar: Scalar, *, flow: bool) -> str:
    """A value on one line."""
    if scalar.style == "plain" and not isinstance(scalar.value, str):
        return scalar.text
    text = scalar.text
    is_text = not isinstance(resolve_plain(text), Refusal) and resolve_plain(text) == text
    return text if is_text and _plain_fits(text, flow) else _quoted(text)


def block(scalar: Scalar, indent: int, used: int) -> tuple[str, list[str]] | None:
    """Header and lines of a `|` or `>` block at `indent`, or None where one line is the form.

    `used` is the number of columns before the value on its line.
    """
    if not isinstance(scalar.value, str):
        return None
    text = scalar.text
    width = WIDTH - indent
    too_long = used + len(inline(scalar, flow=False)) > WIDTH
    chomp = "" if text.endswith("\n") else "-"
    wants_fold = ("\n" in text and scalar.style == "folded") or ("\n" not in text and too_long)
    if wants_fold and _folds(text):
        lines: list[str] = []
        for number, line in enumerate(text.rstrip("\n").split("\n")):
            lines += [""] if number else []
            lines += _wrapped(line, width)
        if len(lines) > 1 or "\n" in text:
            return ">" + chomp, lines
    if "\n" in text and _is_literal(text):
        return "|" + chomp, text.rstrip("\n").split("\n")
    return None


def _plain_fits(text: str, flow: bool) -> bool:
    """Whether the parser reads these characters, unquoted, as this very text."""
    if not text or text != text.strip() or text in ("<<", "-") or "\n" in text or "\t" in text:
        return False
    if text[0] in _INDICATORS or text.startswith(("---", "...", "- ")):
        return False
    if ": " in text or " #" in text or text.endswith(":"):
        return False
    if not flow:
        return True
    return _FLOW_INDICATORS.isdisjoint(text) and text.count("(") <= text.count(")")


def _quoted(text: str) -> str:
    """Double quotes, or single ones where those save escapes."""
    saves = '"' in text or "\\" in text
    if saves and "\n" not in text and "\t" not in text:
        return "'" + text.replace("'", "''") + "'"
    return '"' + text.translate(_DOUBLE_ESCAPES) + '"'


def _is_literal(text: str) -> bool:
    """Whether a `|` block without indentation indicator gives this text back."""
    lines = text.removesuffix("\n").split("\n")
    if "\t" in text or not lines[-1].strip():
        return False
    first = next(line for line in lines if line)
    return not first.startswith(" ") and all(line.strip() or not line for line in lines)


def _folds(text: str) -> bool:
    """Whether a `>` block gives this text back: no line starts or ends with a blank."""
    lines = text.removesuffix("\n").split("\n")
    if "\t" in text or not lines[0] or not lines[-1]:
        return False
    return all(line == line.strip() for line in lines)


def _wrapped(line: str, width: int) -> list[str]:
    out: list[str] = []
    for word in _BREAK.split(line):
        if out and len(out[-1]) + 1 + len(word) <= width:
            out[-1] += f" {word}"
        else:
            out.append(word)
    return out
