"""Canonical form of a YAML file: one way to write every value, comments kept.

Two spaces per level, the given order of the top-level keys, quotes only where they are needed,
`{...}` and `[...]` kept on one line where they fit 120 columns, long text folded. The form
is a function of the values, the comments, and the choice between block and flow, so that
formatting twice changes nothing; every result is loaded again and compared before it is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from llamagen.diagnostics import Diagnostic, LlamagenError, Span
from llamagen.spec.fmt_comments import Attached, Comment, Entry
from llamagen.spec.fmt_scalars import WIDTH, block, inline, key_text
from llamagen.spec.source import Map, Node, Scalar, Seq, SourceMap, load_source

INDENT = 2


def format_source(source: SourceMap, key_order: Sequence[str] = ()) -> str:
    """The canonical text of a loaded file; top-level keys not in `key_order` keep their place last.

    Raises LlamagenError LG031 if the result would not load to the same values.
    """
    text = _Writer(source, key_order).text()
    try:
        again = load_source(text, source.file)
    except LlamagenError as failure:
        raise _defect(source.file) from failure
    if _values(again.root, top=True) != _values(source.root, top=True):
        raise _defect(source.file)
    return text


def check_format(source: SourceMap, key_order: Sequence[str] = ()) -> Diagnostic | None:
    """LG030 at the first line that the canonical form writes differently, or None."""
    canonical = format_source(source, key_order)
    if canonical == source.text:
        return None
    ours, theirs = canonical.split("\n"), source.text.split("\n")
    pairs = enumerate(zip(ours, theirs, strict=False), 1)
    line = next((number for number, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    return Diagnostic(
        "LG030",
        "warning",
        "the file is not in canonical form; this is the first line that differs",
        Span(source.file, line, 1, line, max(2, len(theirs[line - 1]) + 1)),
        help="run `llamagen fmt` on it",
    )


class _Writer:
    def __init__(self, source: SourceMap, key_order: Sequence[str]) -> None:
        self.root = source.root
        self.rank = {name: place for place, name in enumerate(key_order)}
        self.notes = Attached(source)
        self.out: list[str] = []

    def text(self) -> str:
        notes = self.notes
        self._comments(notes.header, 0, first=True)
        entries = notes.entries_of(self.root) or []
        ordered = sorted(entries, key=lambda one: self._rank(one))
        if notes.header and notes.header_blank:
            self._blank()
        for entry in ordered:
            self._entry(entry, 0, first=not self.out)
        if not ordered:
            self.out.append("{}")
        self._comments(notes.end, 0, first=not self.out)
        return "\n".join(self.out) + "\n"

    def _rank(self, entry: Entry) -> int:
        name = entry.key.text if entry.key is not None else ""
        return self.rank.get(name, len(self.rank))

    def _blank(self) -> None:
        if self.out and self.out[-1]:
            self.out.append("")

    def _comments(self, comments: list[Comment], indent: int, *, first: bool) -> None:
        for number, comment in enumerate(comments):
            if comment.blank_before and not (first and number == 0):
                self._blank()
            self.out.append(" " * indent + comment.text)

    def _lead(self, entry: Entry, indent: int, *, first: bool) -> None:
        self._comments(entry.notes.lead, indent, first=first)
        if entry.notes.blank_before and (entry.notes.lead or not first):
            self._blank()

    def _entry(self, entry: Entry, indent: int, *, first: bool) -> None:
        self._lead(entry, indent, first=first)
        if entry.key is None:
            self._before_dash(entry, indent)
        head = " " * indent + (f"{key_text(entry.key.text, flow=False)}:" if entry.key else "-")
        self._value(head, entry, indent)
        self._comments(entry.notes.foot, indent, first=False)

    def _before_dash(self, entry: Entry, indent: int) -> None:
        """Comments for which the shared line of `- - key: value` has no room."""
        used = indent + INDENT
        while entry.key is None:
            value = entry.value
            if isinstance(value, Scalar) or not self._is_block(value, used) or self._wraps(value):
                return
            if entry.notes.tail:
                self.out.append(" " * indent + entry.notes.tail)
            entry = self._entries(value)[0]
            self._comments(entry.notes.lead, indent, first=True)
            used += INDENT

    def _value(self, head: str, entry: Entry, indent: int) -> None:
        """`head` (a key or dashes) and the value, whose own lines stand deeper than `indent`."""
        value, tail = entry.value, entry.notes.tail
        if isinstance(value, Scalar):
            folded = block(value, indent + INDENT, len(head) + 1)
            if folded is None:
                self._line(f"{head} {inline(value, flow=False)}", tail)
                return
            header, lines = folded
            self._line(f"{head} {header}", tail)
            pad = " " * (indent + INDENT)
            self.out += [pad + line if line else "" for line in lines]
        elif not self._is_block(value, len(head) + 1):
            self._line(f"{head} {_flow(value)}", tail)
        elif self._wraps(value):
            at = indent + INDENT if entry.key is not None else len(head) + 1
            lines = _wrapped(value, at)
            if entry.key is not None:
                self.out.append(head)
            else:
                lines[0] = f"{head} {lines[0].lstrip()}"
            self.out += lines[:-1]
            self._line(lines[-1], tail)
        elif entry.key is not None:
            self._line(head, tail)
            for number, inner in enumerate(self._entries(value)):
                self._entry(inner, indent + INDENT, first=number == 0)
        else:
            self._after_dash(head, value, indent + INDENT)

    def _after_dash(self, head: str, value: Map | Seq, indent: int) -> None:
        """`- key: value`: the first entry shares the line of the dash."""
        for number, inner in enumerate(self._entries(value)):
            if number:
                self._entry(inner, indent, first=False)
                continue
            start = f"{key_text(inner.key.text, flow=False)}:" if inner.key else "-"
            self._value(f"{head} {start}", inner, indent)
            self._comments(inner.notes.foot, indent, first=False)

    def _line(self, text: str, tail: str) -> None:
        self.out.append(f"{text}  {tail}" if tail else text)

    def _is_block(self, node: Map | Seq, used: int) -> bool:
        """Block style: chosen in the file, needed for comments, or too long for one line."""
        if not len(node):
            return False
        if not node.flow or self.notes.entries_of(node) is not None:
            return True
        return used + len(_flow(node)) > WIDTH

    def _wraps(self, node: Map | Seq) -> TypeGuard[Seq]:
        """A long `[...]` of plain values stays one, over several lines."""
        if not isinstance(node, Seq) or not node.flow or self.notes.entries_of(node) is not None:
            return False
        return all(isinstance(item, Scalar) for item in node.items)

    def _entries(self, node: Map | Seq) -> list[Entry]:
        """The entries with their comments; a flow collection that became a block has none."""
        attached = self.notes.entries_of(node)
        if attached is not None:
            return attached
        match node:
            case Map():
                return [Entry(key, value, 0, 0, None) for key, value in node.entries]
            case Seq():
                return [Entry(None, value, 0, 0, None) for value in node.items]


def _flow(node: Node) -> str:
    match node:
        case Scalar():
            return inline(node, flow=True)
        case Seq():
            return f"[{', '.join(_flow(item) for item in node.items)}]"
        case Map():
            pairs = (f"{key_text(k.text, flow=True)}: {_flow(v)}" for k, v in node.entries)
            return f"{{{', '.join(pairs)}}}"


def _wrapped(node: Seq, indent: int) -> list[str]:
    """`[1, 2,` over as many lines as needed, aligned after the bracket."""
    lines = [" " * indent + "["]
    for number, item in enumerate(node.items):
        word = _flow(item) + ("," if number < len(node.items) - 1 else "]")
        blank = "" if lines[-1].endswith("[") and number == 0 else " "
        if number and len(lines[-1]) + len(blank) + len(word) > WIDTH:
            lines.append(" " * (indent + 1) + word)
        else:
            lines[-1] += blank + word
    return lines


def _values(node: Node, *, top: bool = False) -> object:
    """What must not change: types, texts, keys and their order (at the top only the keys)."""
    match node:
        case Scalar():
            return type(node.value).__name__, node.text
        case Seq():
            return [_values(item) for item in node.items]
        case Map():
            pairs = [(key.text, _values(value)) for key, value in node.entries]
            return sorted(pairs, key=lambda pair: pair[0]) if top else pairs


def _defect(file: str) -> LlamagenError:
    return LlamagenError.of(
        "LG031",
        f"formatting {file!r} would change its values, so nothing was written",
        help="this is a defect of llamagen: report the file",
    )
