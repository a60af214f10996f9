"""YAML text to a tree of frozen nodes with places, in the strict subset that specs are written in.

The parser's events are read by recursive descent, after size and encoding were checked: nesting is bounded before
it is followed, aliases are never expanded, and libyaml and the pure-Python parser give the same tree. Everything
that is refused is reported at once, each with its place (spec/rules/diagnostics.yaml, LG001 to LG029).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isinf
from pathlib import Path
from typing import Final, Literal, NoReturn, Protocol, TypeAlias

import yaml
from yaml import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    MarkedYAMLError,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    YAMLError,
)

from llamagen import files
from llamagen.diagnostics import Diagnostic, Fix, LlamagenError, Related, Span

MAX_BYTES: Final = 1 << 20
MAX_LINE: Final = 4096
MAX_DEPTH: Final = 32
MAX_NODES: Final = 50_000
MAX_REPORTED: Final = 100

# nodes

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
            indent = _literal_indent(self.text, self.lines, start.line)
            return start.line + 1 + row, indent + in_line + 1
        if start.line == start.end_line or not self.lines:
            quote = 0 if self.style == "plain" or not self.lines else 1
            if start.end_col - start.col == len(self.text) + 2 * quote or not self.lines:
                return start.line, start.col + quote + offset
        return _align(self.text, self.style, self.lines, start)[offset]

    def slice_span(self, start: int, end: int) -> Span:
        """The place of `text[start:end]` in the file; an empty slice covers one character."""
        line, col = self.position(start)
        if end <= start:
            return Span(self.span.file, line, col)
        end_line, end_col = self.position(end - 1)
        return Span(self.span.file, line, col, end_line, end_col + 1)


@dataclass(frozen=True, slots=True)
class Woven(Scalar):
    """Equations of a base in which some are replaced: text from several places, which may be in several files."""

    pieces: tuple[tuple[int, Scalar, int], ...] = field(default=(), compare=False, repr=False)
    """In order: where a piece starts in `text`, what it was written in, and where it starts there."""

    def slice_span(self, start: int, end: int) -> Span:
        """The place of `text[start:end]`, as far as its first piece goes."""
        index = max((i for i, p in enumerate(self.pieces) if p[0] <= start), default=0)
        begins, written, offset = self.pieces[index]
        stops = self.pieces[index + 1][0] if index + 1 < len(self.pieces) else len(self.text)
        shift = offset - begins
        return written.slice_span(start + shift, min(end, stops) + shift)


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


def load_source(source: Path | str | bytes, file_name: str | None = None) -> SourceMap:
    """Load a file (`Path`) or text (`str`, `bytes`); `file_name` is what spans call it.

    Raises LlamagenError with every finding (LG001 to LG029), sorted by place.
    """
    name = file_name if file_name is not None else "<text>"
    match source:
        case Path():
            name = file_name if file_name is not None else str(source)
            raw = files.read_bytes(source, files.SPEC, name=name)
        case str():
            raw = _encode(source, name)
        case bytes():
            raw = source
    text = _decode(raw, name)
    lines = tuple(text.split("\n"))
    findings = _check_text(text, lines, name)
    if findings:
        raise LlamagenError(_limited(findings))
    return SourceMap(name, text, _Reader(name, text, lines).document())


def source_text(path: Path, name: str) -> str:
    """The text of a file that may be no YAML. Raises LG001 to LG003."""
    return _decode(files.read_bytes(path, files.SPEC, name=name), name)


# text

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


def _decode(raw: bytes, name: str) -> str:
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


def _encode(text: str, name: str) -> bytes:
    """The UTF-8 bytes of text given in memory. Raises LG003 for lone surrogates."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise LlamagenError.of(
            "LG003",
            f"{name!r} holds half of a surrogate pair at character {failure.start}",
            help="pass valid Unicode text",
        ) from failure


def _is_forbidden(char: str) -> bool:
    """Control, bidirectional, invisible or look-alike blank characters."""
    if char.isascii():
        return not (char == "\n" or " " <= char <= "~")
    return char in _HIDDEN or unicodedata.category(char) in _HIDDEN_CATEGORIES


def _describe(char: str) -> str:
    """`U+202E RIGHT-TO-LEFT OVERRIDE`"""
    return f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip()


def _check_text(text: str, lines: tuple[str, ...], name: str) -> list[Diagnostic]:
    """LG004 (forbidden character), LG005 (tab), LG006 (long line): the first of each per line."""
    findings: list[Diagnostic] = []
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            findings.append(
                Diagnostic(
                    "LG006",
                    "error",
                    f"this line has {len(line):,} characters, the limit is {MAX_LINE:,}",
                    Span(name, number, MAX_LINE + 1),
                    help="break the line; a `|` or `>-` block holds long text",
                )
            )
    if not _NOT_PLAIN_ASCII.search(text):
        return findings
    forbidden = {char for char in set(text) if _is_forbidden(char)}
    if not forbidden:
        return findings
    for number, line in enumerate(lines, 1):
        if forbidden.isdisjoint(line):
            continue
        tab = line.find("\t")
        if tab >= 0:
            findings.append(
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
            findings.append(
                Diagnostic(
                    "LG004",
                    "error",
                    f"the character {_describe(line[hidden])} is not allowed:"
                    " it is invisible or changes how the text around it is shown",
                    Span(name, number, hidden + 1),
                    help="delete it, or write a plain space if it stands for one",
                )
            )
    return findings


# trees

_STYLES: Final[dict[str, Style]] = {
    "'": "single",
    '"': "double",
    "|": "literal",
    ">": "folded",
}
_KEY = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9_*./:+\[\]-]*|[A-Za-z_]\w*(?:, [A-Za-z_]\w*)+", re.ASCII)
"""A name or a path; or the names that an equation gives, `k, v`."""
_PARSER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its event parser runs


class _Mark(Protocol):
    line: int
    column: int


class _Reader:
    """Events in, nodes and findings out."""

    def __init__(self, file: str, text: str, lines: tuple[str, ...]) -> None:
        self.file = file
        self.lines = lines
        # libyaml's events where PyYAML was built with it, else the same ones in pure Python
        self.events: Iterator[Event] = yaml.parse(text, Loader=_PARSER)
        self.findings: list[Diagnostic] = []
        self.nodes = 0

    def document(self) -> Map:
        root: Node | None = None
        documents = 0
        try:
            for event in self.events:
                if isinstance(event, NodeEvent):
                    root = self.node(event, 0)
                elif type(event) is DocumentStartEvent:
                    documents += 1
                    if documents > 1:
                        message = "a second document starts here, a file holds one"
                        self.stop("LG013", message, event, "move it to a file of its own")
                    if event.version is not None or event.tags:
                        message = "YAML directives (lines that start with `%`) are not allowed"
                        self.error("LG014", message, self.start(event), "remove the line")
        except YAMLError as failure:
            error = _syntax_error(failure, self.file, self.lines)
            self.findings = [*(one for one in self.findings if not _follows(one, error)), error]
        if self.findings:
            raise LlamagenError(_limited(self.findings))
        if not isinstance(root, Map):
            span = root.span if root is not None else Span(self.file, 1, 1)
            message = "the file must be a mapping of keys to values"
            message += ", and it is empty" if root is None else ""
            raise LlamagenError.of("LG025", message, span, help="write `key: value` lines")
        return root

    def node(self, event: Event, depth: int, *, cut: bool = False) -> Node:
        """The node that begins with ``event``; ``cut`` says that it makes no sense (LG024 was reported)."""
        self.count(event)
        if type(event) is ScalarEvent:
            return self.scalar(event, cut)
        if isinstance(event, CollectionStartEvent):
            return self.collection(event, depth)
        assert type(event) is AliasEvent, event
        return Scalar(None, "", "plain", self.alias(event), self.lines)

    def collection(self, event: CollectionStartEvent, depth: int) -> Map | Seq:
        if depth >= MAX_DEPTH:
            message = f"this is nested deeper than {MAX_DEPTH} levels"
            self.stop("LG007", message, event, "flatten the structure")
        flow = bool(event.flow_style)
        cut = False
        items: list[Node] = []
        keys: list[Key] = []
        seen: dict[str, Key] = {}
        of_map = type(event) is MappingStartEvent
        while not isinstance(end := next(self.events), MappingEndEvent | SequenceEndEvent):
            if of_map:
                keys.append(self.key(end, seen, depth, cut))
                end = next(self.events)
            item = self.node(end, depth + 1, cut=cut)
            items.append(item)
            if flow and not cut and isinstance(item, Scalar) and item.style == "plain":
                cut = self.is_cut(item)
        line, col = _place(event.start_mark)
        stop = (line, col)
        # a block ends with its last value; parsers mark where the next token starts
        if flow:
            stop = _place(end.end_mark)
        elif items:
            stop = items[-1].span.end_line, items[-1].span.end_col
        span = Span(self.file, line, col, *stop)
        if of_map:
            return Map(tuple(zip(keys, items, strict=True)), span, flow)
        return Seq(tuple(items), span, flow)

    def scalar(self, event: ScalarEvent, cut: bool) -> Scalar:
        style = _STYLES.get(event.style or "", "plain")
        text: str = event.value
        value: ScalarValue = text
        span = self.span(event)
        if style == "plain":
            resolved = resolve_plain(text)
            if isinstance(resolved, Refusal):
                value = None
                if not cut:
                    if span.line > len(self.lines):  # a missing value at the end of the file
                        span = _clamped(self.file, span.line - 1, span.col - 1, self.lines)
                    self.error(resolved.code, resolved.message, span, resolved.help, resolved.fix)
            else:
                value = resolved
        elif style == "double":
            hidden = next((c for c in text if c != "\t" and _is_forbidden(c)), None)
            if hidden is not None:
                message = f"this text has an escape for {_describe(hidden)}, which is not allowed"
                self.error("LG004", message, span, "remove the escape")
        elif style != "single":
            span = self.block_span(span)
        return Scalar(value, text, style, span, self.lines)

    def key(self, event: Event, seen: dict[str, Key], depth: int, cut: bool) -> Key:
        if type(event) is not ScalarEvent:
            node = self.node(event, depth + 1)
            if not cut and type(event) is not AliasEvent:
                advice = "use a plain name as the key"
                self.error("LG019", "a key cannot be a list or a mapping", node.span, advice)
            return Key("", node.span)
        self.count(event)
        text: str = event.value
        span = self.span(event)
        key = Key(text, span)
        if cut:
            return key
        style = _STYLES.get(event.style or "", "plain")
        if text == "<<" and style == "plain":
            message = "merge keys (`<<`) are not allowed"
            advice = "write the keys out, or use `extends` to build on another spec"
            return self.refused_key("LG016", message, key, advice)
        if style in ("literal", "folded") or span.line != span.end_line:
            message = "a key must be one word on one line"
            return self.refused_key("LG019", message, key, "shorten the key")
        if style == "plain":
            resolved = resolve_plain(text)
            if isinstance(resolved, Refusal):
                if not text:
                    return self.refused_key(
                        "LG019", "a key is missing here", key, "write `key: value`"
                    )
                message = f"as a key, {resolved.message}"
                advice = f"quote the key: `'{text}'`"
                return self.refused_key(resolved.code, message, key, advice, f"'{text}'")
            if resolved is None or isinstance(resolved, bool):
                code = "LG022" if resolved is None else "LG020"
                message = f"as a key, `{text}` is not text for YAML readers"
                advice = f"rename it; layers have a value that is no text by `at: [{{layers: [0], value: {text}}}]`"
                return self.refused_key(code, message, key, advice, f"'{text}'")
        if not _KEY.fullmatch(text):
            odd = next((char for char in text if not char.isascii()), None)
            why = f"has a character outside ASCII ({_describe(odd)})" if odd is not None else ""
            message = f"the key {text!r} {why or 'is not a name or a path'}"
            advice = (
                "keys are letters, digits and `_ . - / : + * [ ]`, and start with a letter or digit"
            )
            return self.refused_key("LG017", message, key, advice)
        first = seen.setdefault(text.lower(), key)
        if first is not key:
            related = (Related("first used here", first.span),)
            message, code = f"the key {text!r} appears twice in this mapping", "LG015"
            advice = "remove one of the two, or rename it"
            if first.text != text:
                message = (
                    f"the keys {first.text!r} and {text!r} differ only in upper and lower case"
                )
                code, advice = "LG018", "rename one of the two"
            self.findings.append(Diagnostic(code, "error", message, span, related, advice))
        return key

    def refused_key(
        self, code: str, message: str, key: Key, advice: str, fix: str | None = None
    ) -> Key:
        self.error(code, message, key.span, advice, fix)
        return key

    def is_cut(self, item: Scalar) -> bool:
        """`{a: f(x, y)}` without quotes is `a: f(x` and a key `y)`: say that, once."""
        if item.text.count("(") <= item.text.count(")"):
            return False
        message = (
            f"the text {item.text!r} was cut at a comma: commas separate entries inside {{}} and []"
        )
        self.error("LG024", message, item.span, "put the whole text in quotes")
        return True

    def alias(self, event: AliasEvent) -> Span:
        span = self.span(event)
        message = f"aliases are not allowed: `*{event.anchor}`"
        advice = "write the value out, use `extends`, or quote text that starts with `*`"
        self.error("LG011", message, span, advice)
        return span

    def count(self, event: Event) -> None:
        """What is refused of any node: too many, anchors and tags."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            message = f"the file has more than {MAX_NODES:,} keys and values"
            self.stop("LG008", message, event, "split the file")
        if isinstance(event, ScalarEvent | CollectionStartEvent):
            if event.anchor is not None:
                message = f"anchors are not allowed: `&{event.anchor}`"
                advice = "remove it, use `extends`, or quote text that starts with `&`"
                self.error("LG011", message, self.start(event), advice)
            if event.tag is not None:
                message = f"tags are not allowed: `{event.tag}`"
                advice = "remove it, or quote text that starts with `!`"
                self.error("LG012", message, self.start(event), advice)

    def error(
        self, code: str, message: str, span: Span, advice: str, fix: str | None = None
    ) -> None:
        fixes = (Fix(span, fix),) if fix is not None else ()
        self.findings.append(Diagnostic(code, "error", message, span, (), advice, fixes))

    def stop(self, code: str, message: str, event: Event, advice: str) -> NoReturn:
        """A limit was exceeded: nothing after this place is looked at."""
        self.error(code, message, self.start(event), advice)
        raise LlamagenError(_limited(self.findings))

    def start(self, event: Event) -> Span:
        return Span(self.file, *_place(event.start_mark))

    def span(self, event: Event) -> Span:
        return Span(self.file, *_place(event.start_mark), *_place(event.end_mark))

    def block_span(self, span: Span) -> Span:
        """From the `|` or `>` to the end of the last line with text (parsers end after it)."""
        last = span.end_line - (span.end_col == 1)
        while last > span.line and not self.lines[last - 1].strip():
            last -= 1
        return Span(self.file, span.line, span.col, last, len(self.lines[last - 1]) + 1)


def _place(mark: _Mark | None) -> tuple[int, int]:
    """Line and column from 1; both parsers mark every event, their type stubs do not say so."""
    assert mark is not None, "the YAML parser gave an event without a place"
    return mark.line + 1, mark.column + 1


def _follows(one: Diagnostic, error: Diagnostic) -> bool:
    """Whether a missing value is what the parser made of the text at a syntax error."""
    if one.code != "LG022" or one.span is None or error.span is None:
        return False
    return one.span >= error.span


def _limited(findings: list[Diagnostic]) -> list[Diagnostic]:
    """The findings by place, at most `MAX_REPORTED`, with a note where some were left out."""
    ordered = sorted(findings, key=lambda one: (one.span is not None, one.span))
    if len(ordered) <= MAX_REPORTED:
        return ordered
    left = len(ordered) - MAX_REPORTED
    note = Diagnostic("LG009", "note", f"{left:,} more findings in this file are not shown")
    return [*ordered[:MAX_REPORTED], note]


# places inside of scalars

_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "t": "\t", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"}


def _literal_indent(text: str, lines: tuple[str, ...], header_line: int) -> int:
    """Indentation of the content of a `|` block whose header is on `header_line` (1-based)."""
    for row, content in enumerate(text.split("\n")):
        if content.strip(" "):
            return len(lines[header_line + row]) - len(content)
    return 0


def _align(
    text: str, style: str, lines: tuple[str, ...], span: Span
) -> tuple[tuple[int, int], ...]:
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


# what an unquoted word means

INT_LIMIT = 1 << 63

_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_TRUE = frozenset({"true", "yes", "on"})  # `y` and `n` are names: no common reader differs
_FALSE = frozenset({"false", "no", "off"})
_WORD_LIMIT = 5  # the longest of the words above

_LOOSE = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
_FIRST = "is a number for YAML 1.1 readers and text for YAML 1.2"
_SECOND = "is text for YAML 1.1 readers and a number for YAML 1.2"
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (r"(?i:[-+]?\.(?:inf|nan))", "is not a finite number"),
        (r"[-+]?0x[0-9a-fA-F]+", "is hexadecimal, numbers are written in decimal here"),
        (r"[-+]?0b[01_]*[01]", _FIRST),
        (r"[-+]?0o[0-7]+", _SECOND),
        (r"[-+]?0[0-7_]*[0-7]", "is octal for YAML 1.1 readers and decimal for YAML 1.2"),
        (r"[-+]?0[0-9]+|[-+]?[0-9]+[eE][-+]?[0-9]+", _SECOND),
        (r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?", f"{_FIRST}: in base 60"),
        (rf"(?=.*_){_LOOSE}", _FIRST),
        (_LOOSE, "is not the one spelling that this format has for the number"),
    )
)
"""What some YAML version reads as a number, and why it is none here; the first that fits counts."""
_NUMBER_LIMIT = 64  # longer ones are refused without computing what they would be


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a plain scalar has no value here: a code, a sentence and what to write instead."""

    code: str
    message: str
    help: str
    fix: str | None = None
    """What to write, where only one thing can be meant but the text itself."""


def resolve_plain(text: str) -> ScalarValue | Refusal:
    """The value of an unquoted scalar, or why it is refused (LG020 to LG023)."""
    if not text:
        return Refusal(
            "LG022", "a value is missing here", "write the value, or `null`, or remove the key"
        )
    if text[0] in "-+.0123456789":
        return _resolve_number(text)
    if len(text) > _WORD_LIMIT:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    return _refuse_word(text) or text


def _refuse_word(text: str) -> Refusal | None:
    folded = text.lower()
    if folded in _TRUE or folded in _FALSE:
        value = "true" if folded in _TRUE else "false"
        if folded == value:
            why = f"`{text}` is one of several spellings of `{value}`, this format has one"
        else:
            why = f"`{text}` is `{value}` for YAML 1.1 readers and text for YAML 1.2 readers"
        return Refusal("LG020", why, f"write `{value}`, or `'{text}'` if you mean the text", value)
    if folded in ("null", "~"):
        why = f"`{text}` is one of several spellings of `null`, this format has one"
        return Refusal("LG022", why, f"write `null`, or `'{text}'` if you mean the text", "null")
    if text == "=":
        why = "`=` is a special value for YAML 1.1 readers and text for YAML 1.2 readers"
        return Refusal("LG020", why, "write `'='` if you mean the text", "'='")
    return None


def _resolve_number(text: str) -> int | float | str | Refusal:
    if _INT.fullmatch(text):
        if len(text) > 20 or not -INT_LIMIT <= int(text) < INT_LIMIT:
            return Refusal(
                "LG023",
                f"{_shortened(text)} does not fit a signed 64-bit integer",
                "write a number from -2^63 to 2^63 - 1, or quote it if you mean the text",
            )
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        lost = number == 0.0 and re.search("[1-9]", re.split("[eE]", text)[0])
        if isinf(number) or lost:
            return Refusal(
                "LG023",
                f"{_shortened(text)} is outside the range of a 64-bit float",
                "write a number between 1.0e-307 and 1.0e+308 in magnitude",
            )
        return number
    return _refuse_number(text) or text


def _refuse_number(text: str) -> Refusal | None:
    """The refusal of a spelling that some YAML version reads as a number, or None for text."""
    why = next((why for spelling, why in _SPELLINGS if spelling.fullmatch(text)), None)
    if why is None:
        return None
    shown, options, fix = _shortened(text), ["a finite number in decimal"], None
    digits = text.lstrip("+-").replace("_", "").lower()
    mantissa, *exponent = digits.split("e")
    whole, dot, fraction = mantissa.partition(".")
    if len(text) <= _NUMBER_LIMIT and ":" not in text and fraction not in ("inf", "nan"):
        if digits[:2] in ("0x", "0b", "0o"):
            numbers = [str(int(digits, 0))]
        elif dot or exponent:
            power = "".join(f"e{one}" for one in exponent)
            numbers = [f"{int(whole or 0)}.{fraction or 0}{power}"]
        else:
            octal = digits[0] == "0" and set(digits) <= set("01234567")
            numbers = [*([str(int(digits, 8))] if octal else []), str(int(digits))]
        sign = "-" if text.startswith("-") else ""
        options = [f"`{sign}{number}`" for number in dict.fromkeys(numbers)]
        fix = f"{sign}{numbers[0]}" if len(options) == 1 else None
    text_of = f"`'{text}'`" if shown == text else "it in quotes"
    help = f"write {' or '.join(options)}, or {text_of} if you mean the text"
    return Refusal("LG021", f"`{shown}` {why}", help, fix)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


# syntax errors

_QUOTE = "put the text in single quotes"

# (what either parser says, our sentence, what to do); the first match wins.
_SENTENCES: tuple[tuple[str, str, str], ...] = (
    ("mapping values are not allowed", "a `key:` is not allowed here",
     "check the indentation of this line and the one before; text with `: ` needs quotes"),
    ("mapping keys are not allowed", "a `? key` is not allowed here", "write plain `key: value` lines"),
    ("(block )?sequence entries are not allowed", "a list item is not allowed here",
     "start the list on a line of its own, under its key"),
    ("cannot start any token", "a value cannot start with this character", _QUOTE),
    ("could not find expected ':'", "this line is not `key: value`",
     "add the `:` and a space; if the line continues a text, indent it more or use `|`"),
    ("found unexpected end of stream", "this quoted text is never closed", "add the closing quote"),
    ("found unexpected document (indicator|separator)", "a document marker stands inside quoted text",
     "close the quotes before it"),
    ("unknown escape character", "this backslash escape does not exist",
     "use single quotes, in which a backslash is only a backslash"),
    ("(hexdecimal number|hexadecimal numbers|invalid Unicode character escape)",
     "this backslash escape needs hexadecimal digits of a valid character",
     "use single quotes, in which a backslash is only a backslash"),
    (r"expected ',' or '\]'", "this `[` list is not closed, or a comma is missing",
     "check commas and brackets; text with `,`, `[`, `]`, `{` or `}` needs quotes here"),
    (r"expected ',' or '\}'", "this `{` mapping is not closed, or a comma is missing",
     "check commas and braces; text with `,`, `[`, `]`, `{` or `}` needs quotes here"),
    ("expected the node content|expected node content", "a value is expected here",
     f"write the value; if it is text that starts like this, {_QUOTE}"),
    ("expected <block end>|did not find expected key|expected '-' indicator",
     "this line does not belong to the block around it",
     "align it with the lines of its block"),
    ("or chomping|chomping or|indentation indicator|comment or (a )?line break",
     "the text of a `|` or `>` block starts on the next line",
     "keep the line of the `|` empty, and indent the text below it"),
    ("leading (empty|spaces)", "the first lines of this block are indented more than its text",
     "indent all lines of the block alike"),
    ("expected '?<document start>'?", "the mapping ended before this line",
     "check the indentation of this line, brackets, braces and quotes"),
    ("alphabetic or numeric", "`&` and `*` are not allowed here", _QUOTE),
    ("tag|URI", "`!` is not allowed here", _QUOTE),
    ("maximum nesting depth", "this is nested deeper than the parser reads", "flatten the structure"),
    ("unexpected ':'", "a `:` is not allowed in unquoted text here", _QUOTE),
)  # fmt: skip
# Here the place where the parser gave up says less than where the text starts.
_TOO_DEEP = re.compile(r"maximum nesting depth")  # libyaml's own bound, met while it looks ahead
_AT_START = re.compile(r"could not find expected ':'|found unexpected end of stream")


def _syntax_error(failure: YAMLError, file: str, lines: tuple[str, ...]) -> Diagnostic:
    """LG010 (LG007 for its bound on nesting) for what a parser raised."""
    problem = str(getattr(failure, "problem", None) or failure)
    code = "LG007" if _TOO_DEEP.search(problem) else "LG010"
    message, advice = next(
        ((sentence, fix) for pattern, sentence, fix in _SENTENCES if re.search(pattern, problem)),
        (f"this is not YAML: {problem}", "check the line and the one before it"),
    )
    if not isinstance(failure, MarkedYAMLError) or failure.problem_mark is None:
        return Diagnostic(code, "error", message, Span(file, 1, 1), help=advice)
    mark = failure.problem_mark
    if failure.context_mark is not None and _AT_START.search(problem):
        mark = failure.context_mark
    span = _clamped(file, mark.line, mark.column, lines)
    related: tuple[Related, ...] = ()
    if failure.context and failure.context_mark is not None:
        start = _clamped(file, failure.context_mark.line, failure.context_mark.column, lines)
        what = re.sub(r"^while (parsing|scanning) (an? )?", "", failure.context)
        if start != span:
            related = (Related(f"in this {what}, which starts here", start),)
    return Diagnostic(code, "error", message, span, related, advice)


def _clamped(file: str, line: int, column: int, lines: tuple[str, ...]) -> Span:
    """A mark as a span; one after the last line becomes the end of the last line with text."""
    while line > 0 and (line >= len(lines) or (column == 0 and not lines[line].strip())):
        line -= 1
        column = len(lines[line])
    return Span(file, line + 1, column + 1)
