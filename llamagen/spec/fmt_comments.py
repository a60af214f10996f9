"""Which entry a comment belongs to.

Comments on lines of their own lead the next entry, or follow the last one if they are indented
deeper than the next; comments at the end of a line stay with the entry on that line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamagen.spec.source import Key, Map, Node, Scalar, Seq, SourceMap


@dataclass(frozen=True, slots=True)
class Comment:
    text: str
    line: int
    col: int
    own_line: bool
    blank_before: bool


@dataclass(slots=True)
class Notes:
    """What stands around one entry."""

    lead: list[Comment] = field(default_factory=list)
    blank_before: bool = False  # between the lead and the entry
    tail: str = ""  # at the end of its line
    foot: list[Comment] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """A mapping entry (with a key) or a list item, as it stands in the file."""

    key: Key | None
    value: Node
    col: int
    depth: int
    parent: Entry | None
    notes: Notes = field(default_factory=Notes, compare=False)

    @property
    def line(self) -> int:
        return self.key.span.line if self.key is not None else self.value.span.line


class Attached:
    """The entries of a file with their comments; `header` and `end` belong to none."""

    def __init__(self, source: SourceMap) -> None:
        self.lines = source.text.split("\n")
        self.comments = _comments(source.root, self.lines)
        self.entries: dict[int, list[Entry]] = {}  # id of a block collection -> its entries
        self.order: list[Entry] = []
        self._list(source.root, 1, None)
        self.header: list[Comment] = []
        self.header_blank = False
        self.end: list[Comment] = []
        self._attach()

    def entries_of(self, node: Map | Seq) -> list[Entry] | None:
        """The entries of a collection that must be a block, None for one without comments."""
        return self.entries.get(id(node))

    def holds_comments(self, node: Map | Seq) -> bool:
        """Whether comments stand between the brackets of a flow collection."""
        return any(node.span.line <= c.line < node.span.end_line for c in self.comments)

    def _list(self, node: Node, depth: int, parent: Entry | None) -> None:
        if isinstance(node, Scalar) or (
            node.flow and parent is not None and not self.holds_comments(node)
        ):
            return
        mine: list[Entry] = []
        self.entries[id(node)] = mine
        pairs = node.entries if isinstance(node, Map) else [(None, item) for item in node.items]
        for key, value in pairs:
            start = value.span if node.flow else node.span
            col = key.span.col if key is not None else start.col
            entry = Entry(key, value, col, depth, parent)
            mine.append(entry)
            self.order.append(entry)
            self._list(value, depth + 1, entry)

    def _attach(self) -> None:
        ends: dict[int, Entry] = {}
        for entry in self.order:
            if entry.key is not None:
                ends[entry.line] = entry
            if id(entry.value) not in self.entries:
                ends[_comment_line(entry.value)] = entry
        pending: list[Comment] = []
        for comment in self.comments:
            if comment.own_line or comment.line not in ends:
                pending.append(comment)
                continue
            notes = ends[comment.line].notes
            if notes.tail:  # `key: # this` and `value # that`
                early = Comment(notes.tail, comment.line, comment.col, True, False)
                notes.lead.append(early)
            notes.tail = comment.text
        last: Entry | None = None
        for entry in self.order:
            limit = entry.line
            if id(entry.value) not in self.entries:
                limit = max(limit, entry.value.span.line)
            taken = [comment for comment in pending if comment.line < limit]
            pending = pending[len(taken) :]
            blank = self._is_blank(entry.line - 1)
            if last is None:
                self.header, self.header_blank = taken, blank
            else:
                taken = _feet(taken, last, entry.col, entry.depth)
                entry.notes.lead[:0] = taken
                entry.notes.blank_before = blank
            last = entry
        self.end = _feet(pending, last, 1, 1) if last is not None else pending

    def _is_blank(self, line: int) -> bool:
        return line >= 1 and not self.lines[line - 1].strip()


def _feet(comments: list[Comment], last: Entry, col: int, depth: int) -> list[Comment]:
    """Give the comments that are indented deeper than what follows to the entries they end."""
    for taken, comment in enumerate(comments):
        owner: Entry | None = last
        while owner is not None and owner.col > comment.col:
            owner = owner.parent
        if owner is None or owner.col <= col or owner.depth <= depth:
            return comments[taken:]
        owner.notes.foot.append(comment)
        last = owner
    return []


def _comment_line(value: Node) -> int:
    """The line at whose end a comment about this value can stand."""
    if isinstance(value, Scalar) and value.style in ("literal", "folded"):
        return value.span.line
    return value.span.end_line


def _comments(root: Map, lines: list[str]) -> list[Comment]:
    """All comments: `#` at a line's start or after a blank, outside of keys and scalars."""
    taken: dict[int, list[tuple[int, int]]] = {}  # line -> columns of keys and scalars
    stack: list[Node] = [root]
    while stack:
        node = stack.pop()
        match node:
            case Scalar(span=span, style="literal" | "folded"):
                taken.setdefault(span.line, []).append((span.col, span.col + 1))
                for line in range(span.line + 1, span.end_line + 1):
                    taken.setdefault(line, []).append((1, len(lines[line - 1]) + 1))
            case Scalar(span=span):
                for line in range(span.line, span.end_line + 1):
                    start = span.col if line == span.line else 1
                    stop = span.end_col if line == span.end_line else len(lines[line - 1]) + 1
                    taken.setdefault(line, []).append((start, stop))
            case Seq(items=items):
                stack += items
            case Map(entries=entries):
                for key, value in entries:
                    taken.setdefault(key.span.line, []).append((key.span.col, key.span.end_col))
                    stack.append(value)
    found: list[Comment] = []
    for number, text in enumerate(lines, 1):
        col = _comment_col(text, taken.get(number, []))
        if col is not None:
            own_line = not text[: col - 1].strip()
            start = len(text) - len(text.lstrip()) + 1
            blank = number > 1 and not lines[number - 2].strip()
            found.append(
                Comment(text[col - 1 :].rstrip(), number, start, own_line, blank and own_line)
            )
    return found


def _comment_col(line: str, taken: list[tuple[int, int]]) -> int | None:
    at = line.find("#")
    while at >= 0:
        inside = any(start <= at + 1 < stop for start, stop in taken)
        if not inside and (at == 0 or line[at - 1] == " "):
            return at + 1
        at = line.find("#", at + 1)
    return None
