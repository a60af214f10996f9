"""YAML that is written: the canonical form of a file (`llamagen fmt`), of a value, and of a resolved spec.

Two spaces per level, the given order of the top-level keys, quotes only where they are needed, `{...}` and `[...]`
kept on one line where they fit 120 columns, long text folded, comments kept. The form is a function of the values,
the comments, and the choice between block and flow, so that formatting twice changes nothing; every result is
loaded again and compared before it is returned.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias, TypeGuard

from llamagen.diagnostics import Diagnostic, LlamagenError, Span
from llamagen.files import is_folder
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import Branch, Origin, ResolvedSpec
from llamagen.spec.schema import Spec
from llamagen.spec.source import (
    Key,
    Map,
    Node,
    Plain,
    Refusal,
    Scalar,
    Seq,
    SourceMap,
    load_source,
    resolve_plain,
    source_text,
)
from llamagen.writing import write_changed

WIDTH = 120
INDENT = 2


# files


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What a finding with a named fix became: the place in the file as it was, and the code of the finding."""

    place: str
    before: str
    after: str
    code: str


@dataclass(frozen=True, slots=True)
class FormatReport:
    """``changed`` files differ (or differed) from their canonical form; ``findings`` say where, or what is broken."""

    changed: tuple[Path, ...]
    findings: tuple[Diagnostic, ...]
    upgrades: tuple[Upgrade, ...] = ()

    @property
    def failed(self) -> bool:
        """A file could not be formatted at all."""
        return any(finding.severity == "error" for finding in self.findings)


def fmt(files: Sequence[Path], *, write: bool = True, upgrade: bool = False) -> FormatReport:
    """Bring YAML files (and those below folders) into canonical form; without ``write`` only say which are not.

    With ``upgrade`` findings that name one fix are put right first.
    """
    key_order = tuple(Spec.model_fields)
    changed: list[Path] = []
    findings: list[Diagnostic] = []
    upgrades: list[Upgrade] = []
    for path in _files(files):
        try:
            text = source_text(path, path.as_posix())
            done: tuple[Upgrade, ...] = ()
            if upgrade:
                text, done = upgraded(text, path)
                upgrades += done
            source = load_source(text, path.as_posix())
            finding = check_format(source, key_order)
            if finding is None and not done:
                continue
            changed.append(path)
            if write:
                write_changed(path.parent, {path.name: format_source(source, key_order)})
            elif finding is not None:
                findings.append(finding)
        except LlamagenError as error:
            findings.extend(error.diagnostics)
    return FormatReport(tuple(changed), tuple(findings), tuple(upgrades))


def upgraded(text: str, path: Path) -> tuple[str, tuple[Upgrade, ...]]:
    """The text of a spec with every finding put right that has fixes; again, until none has: one may hide another."""
    name = path.as_posix()
    done: list[Upgrade] = []
    while True:
        try:
            source = load_source(text, name)
            if source.root.get("spec") is not None:
                Registry().load_text(text, name)
            return text, tuple(done)
        except LlamagenError as error:
            fixes = {
                (fix.span.line, fix.span.col): (fix, one.code)
                for one in error.diagnostics
                for fix in one.fixes
                if fix.span.file == name
            }
            if not fixes:
                return text, tuple(done)  # what is left is for people: `check` says it
        rows = text.split("\n")
        starts = [0, *accumulate(len(row) + 1 for row in rows)]
        now = list[Upgrade]()
        for fix, code in sorted(fixes.values(), key=lambda one: one[0].span, reverse=True):
            span = fix.span
            start = starts[span.line - 1] + span.col - 1
            stop = starts[span.end_line - 1] + span.end_col - 1
            now.append(Upgrade(str(span), text[start:stop], fix.text, code))
            text = text[:start] + fix.text + text[stop:]
        done += reversed(now)


def _files(targets: Iterable[Path]) -> list[Path]:
    paths: dict[Path, None] = {}
    for target in targets:
        # not rglob, which fails where another writer removes a folder meanwhile
        below = (Path(where, name) for where, _, names in os.walk(target) for name in names)
        yaml = sorted(path for path in below if path.suffix == ".yaml")
        paths.update(dict.fromkeys(yaml if is_folder(target) else [target]))
    return list(paths)


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


# which entry a comment belongs to


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
    comments: list[Comment] = []
    for number, text in enumerate(lines, 1):
        col = _comment_col(text, taken.get(number, []))
        if col is not None:
            own_line = not text[: col - 1].strip()
            start = len(text) - len(text.lstrip()) + 1
            blank = number > 1 and not lines[number - 2].strip()
            comments.append(
                Comment(text[col - 1 :].rstrip(), number, start, own_line, blank and own_line)
            )
    return comments


def _comment_col(line: str, taken: list[tuple[int, int]]) -> int | None:
    at = line.find("#")
    while at >= 0:
        inside = any(start <= at + 1 < stop for start, stop in taken)
        if not inside and (at == 0 or line[at - 1] == " "):
            return at + 1
        at = line.find("#", at + 1)
    return None


# scalars


_INDICATORS = frozenset("?:,[]{}#&*!|>'\"%@`")
_FLOW_INDICATORS = frozenset(",[]{}:")
_DOUBLE_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"})
_BREAK = re.compile(r"(?<! ) (?! )")  # a blank that line folding gives back


def key_text(text: str, *, flow: bool) -> str:
    """A key; quoted where another reader could take it for a boolean, null or fraction."""
    resolved = resolve_plain(text)
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
            lines += _folded_lines(line, width)
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


def _folded_lines(line: str, width: int) -> list[str]:
    out: list[str] = []
    for word in _BREAK.split(line):
        if out and len(out[-1]) + 1 + len(word) <= width:
            out[-1] += f" {word}"
        else:
            out.append(word)
    return out


# plain data


Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value] | None"


def float_text(value: float) -> str:
    """A float that YAML 1.1 and 1.2 readers agree on: digits on both sides of the point, a signed exponent."""
    text = repr(value)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if "." not in mantissa:
        mantissa += ".0"
    sign = "" if exponent[0] in "+-" else "+"
    return f"{mantissa}e{sign}{exponent}"


def flow(value: Value) -> str:
    """A value on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return float_text(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return (
                f"{{{', '.join(f'{key_text(n, flow=True)}: {flow(v)}' for n, v in value.items())}}}"
            )
        case _:
            return f"[{', '.join(map(flow, value))}]"


def lines(tree: Mapping[str, Value], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every leaf on a line of its own: (dotted path, line without its end)."""
    for name, value in tree.items():
        here = (*path, name)
        lead = f"{' ' * INDENT * len(path)}{key_text(name, flow=True)}:"
        if isinstance(value, Mapping) and value:
            yield ".".join(here), lead
            yield from lines(value, here)
        else:
            yield ".".join(here), f"{lead} {flow(value)}"


# resolved specs


_DROPPED = frozenset({"extends"})


@dataclass(frozen=True, slots=True)
class OriginRow:
    """A leaf of a resolved spec: its value as written, and everyone who wrote it, first base first."""

    path: str
    text: str
    origins: tuple[Origin, ...]

    @property
    def span(self) -> Span:
        return self.origins[-1].span

    @property
    def spec_id(self) -> str:
        """The spec whose value counts."""
        return self.origins[-1].spec_id


def resolved_text(resolved: ResolvedSpec) -> str:
    """The spec as one YAML file in canonical form; loading it gives the same architecture digest."""
    lines = [line for line in _branch(resolved.tree, resolved.plain, 0) if line]
    source = load_source("\n".join(lines) + "\n", f"<resolved {resolved.spec.id}>")
    return format_source(source, tuple(Spec.model_fields))


def origin_rows(resolved: ResolvedSpec) -> tuple[OriginRow, ...]:
    """Every leaf that is set, in the order of the merged tree."""
    return tuple(
        OriginRow(path, leaf.origins[-1].text, leaf.origins)
        for path, leaf in resolved.leaves
        if path not in _DROPPED
    )


def _branch(tree: Branch, plain: Mapping[str, Plain], depth: int) -> Iterator[str]:
    """``plain`` is the same tree without what was unset or removed; the nodes know how numbers were written."""
    pad = " " * INDENT * depth
    for name, value in plain.items():
        if depth == 0 and name in _DROPPED:
            continue
        below = tree.entries[name]
        key = key_text(name, flow=True)
        if value is None:
            yield f"{pad}{key}: null"
        elif isinstance(below, Branch):
            assert isinstance(value, dict), (name, value)
            lines = list(_branch(below, value, depth + 1))
            yield f"{pad}{key}:" if lines else f"{pad}{key}: {{}}"
            yield from lines
        else:
            yield f"{pad}{key}: {_flow(below.node)}"
