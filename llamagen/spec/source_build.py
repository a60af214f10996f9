"""Parser events in, nodes and findings out: the one pass of the loader over a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias, cast

import yaml
from yaml import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    YAMLError,
)

from llamagen.diagnostics import Diagnostic, LlamagenError, Related, Span
from llamagen.spec.source_nodes import Key, Map, Node, Scalar, ScalarValue, Seq, Style
from llamagen.spec.source_scalars import Refusal, resolve_key, resolve_plain
from llamagen.spec.source_syntax import clamped, syntax_error
from llamagen.spec.source_text import describe, is_forbidden

MAX_DEPTH: Final = 32
MAX_NODES: Final = 50_000
MAX_REPORTED: Final = 100

_STYLES: Final[dict[str, Style]] = {
    "'": "single",
    '"': "double",
    "|": "literal",
    ">": "folded",
}
_KEY = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9_*./:+\[\]-]*")
_Opening: TypeAlias = MappingStartEvent | SequenceStartEvent
_PARSER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its event parser runs


def _parse_events(text: str) -> Iterator[Event]:
    """libyaml's events where PyYAML was built with it, else the same ones in pure Python."""
    return yaml.parse(text, Loader=_PARSER)


def limited(found: list[Diagnostic]) -> list[Diagnostic]:
    """The findings by place, at most `MAX_REPORTED`, with a note where some were left out."""
    ordered = sorted(found, key=lambda one: (one.span is not None, one.span))
    if len(ordered) <= MAX_REPORTED:
        return ordered
    left = len(ordered) - MAX_REPORTED
    note = Diagnostic("LG009", "note", f"{left:,} more findings in this file are not shown")
    return [*ordered[:MAX_REPORTED], note]


class _Mark(Protocol):
    line: int
    column: int


class _Frame:
    """An open collection."""

    __slots__ = ("cut", "entries", "event", "items", "key", "seen")

    def __init__(self, event: _Opening) -> None:
        self.event = event
        self.items: list[Node] = []
        self.entries: list[tuple[Key, Node]] = []
        self.key: Key | None = None  # the key whose value comes next
        self.seen: dict[str, Key] = {}  # case-folded key -> first key
        self.cut = False  # an earlier text was cut at a comma: what follows makes no sense


class _Stop(Exception):
    """A limit was exceeded: nothing after this place is looked at."""


class Builder:
    """Events in, nodes and findings out."""

    def __init__(self, file: str, lines: tuple[str, ...]) -> None:
        self.file = file
        self.lines = lines
        self.found: list[Diagnostic] = []
        self.stack: list[_Frame] = []
        self.root: Node | None = None
        self.nodes = 0
        self.documents = 0

    def build(self, text: str) -> Map:
        try:
            for event in _parse_events(text):
                self._take(event)
        except _Stop:
            pass
        except YAMLError as failure:
            error = syntax_error(failure, self.file, self.lines)
            self.found = [*(one for one in self.found if not _follows(one, error)), error]
        if not self.found and not isinstance(self.root, Map):
            self.found.append(self._not_a_mapping())
        if self.found or not isinstance(self.root, Map):
            raise LlamagenError(limited(self.found))
        return self.root

    def _take(self, event: Event) -> None:
        kind = type(event)
        if kind is ScalarEvent:
            self._scalar(cast(ScalarEvent, event))
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            self._open(cast(_Opening, event))
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            self._close(event)
        elif kind is AliasEvent:
            self._alias(cast(AliasEvent, event))
        elif kind is DocumentStartEvent:
            self._document(cast(DocumentStartEvent, event))

    # scalars and keys

    def _scalar(self, event: ScalarEvent) -> None:
        self._count(event)
        if event.anchor is not None or event.tag is not None:
            self._refuse_marks(event)
        style = _STYLES.get(event.style or "", "plain")
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is None and _is_map(frame):
            frame.key = self._key(frame, event, style)
            return
        text: str = event.value
        value: ScalarValue = text
        span = self._span(event)
        if style == "plain":
            resolved = resolve_plain(text)
            if isinstance(resolved, Refusal):
                if frame is None or not frame.cut:
                    self._refusal(resolved, span)
                self._place(Scalar(None, text, style, span, self.lines))
                return
            value = resolved
            if frame is not None and frame.event.flow_style and "(" in text:
                self._check_cut(frame, text, span)
        elif style == "double":
            self._check_decoded(text, span)
        elif style == "literal" or style == "folded":
            span = self._block_span(event)
        self._place(Scalar(value, text, style, span, self.lines))

    def _key(self, frame: _Frame, event: ScalarEvent, style: Style) -> Key:
        text: str = event.value
        span = self._span(event)
        key = Key(text, span)
        if frame.cut:
            return key
        if text == "<<" and style == "plain":
            self._error(
                "LG016",
                "merge keys (`<<`) are not allowed",
                span,
                "write the keys out, or use `extends` to build on another spec",
            )
            return key
        if style in ("literal", "folded") or span.line != span.end_line:
            self._error("LG019", "a key must be one word on one line", span, "shorten the key")
            return key
        if style == "plain":
            resolved = resolve_key(text)
            if isinstance(resolved, Refusal) or resolved is None or isinstance(resolved, bool):
                self._refuse_key_word(text, resolved, span)
                return key
        if not _KEY.fullmatch(text):
            self._refuse_key_name(text, span)
            return key
        first = frame.seen.setdefault(text.lower(), key)
        if first is key:
            return key
        related = (Related("first used here", first.span),)
        if first.text == text:
            message, code = f"the key {text!r} appears twice in this mapping", "LG015"
            advice = "remove one of the two, or rename it"
        else:
            message = f"the keys {first.text!r} and {text!r} differ only in upper and lower case"
            code, advice = "LG018", "rename one of the two"
        self.found.append(Diagnostic(code, "error", message, span, related, advice))
        return key

    def _refuse_key_word(self, text: str, resolved: ScalarValue | Refusal, span: Span) -> None:
        match resolved:
            case Refusal(code="LG022") if not text:
                self._error("LG019", "a key is missing here", span, "write `key: value`")
            case Refusal():
                advice = f"quote the key: `'{text}'`"
                self._error(resolved.code, f"as a key, {resolved.message}", span, advice)
            case _:
                code = "LG022" if resolved is None else "LG020"
                message = f"as a key, `{text}` is not text for YAML readers"
                advice = (
                    "rename it; what is true or false for layers is {list: [...]} or {cycle: [...]}"
                )
                self._error(code, message, span, advice)

    def _refuse_key_name(self, text: str, span: Span) -> None:
        odd = next((char for char in text if not char.isascii()), None)
        if odd is not None:
            why = f"the key {text!r} has a character outside ASCII ({describe(odd)})"
        else:
            why = f"the key {text!r} is not a name or a path"
        advice = (
            "keys are letters, digits and `_ . - / : + * [ ]`, and start with a letter or digit"
        )
        self._error("LG017", why, span, advice)

    def _check_cut(self, frame: _Frame, text: str, span: Span) -> None:
        """`{a: f(x, y)}` without quotes is `a: f(x` and a key `y)`: say that, once."""
        if text.count("(") <= text.count(")") or frame.cut:
            return
        frame.cut = True
        message = (
            f"the text {text!r} was cut at a comma: commas separate entries inside {{}} and []"
        )
        self._error("LG024", message, span, "put the whole text in quotes")

    def _check_decoded(self, text: str, span: Span) -> None:
        hidden = next((c for c in text if c != "\t" and is_forbidden(c)), None)
        if hidden is not None:
            message = f"this text has an escape for {describe(hidden)}, which is not allowed"
            self._error("LG004", message, span, "remove the escape")

    # collections

    def _open(self, event: _Opening) -> None:
        self._count(event)
        if event.anchor is not None or event.tag is not None:
            self._refuse_marks(event)
        if len(self.stack) >= MAX_DEPTH:
            message = f"this is nested deeper than {MAX_DEPTH} levels"
            self._error("LG007", message, self._start(event), "flatten the structure")
            raise _Stop
        self.stack.append(_Frame(event))

    def _close(self, end: Event) -> None:
        frame = self.stack.pop()
        flow = bool(frame.event.flow_style)
        line, col = _place(frame.event.start_mark)
        if flow:
            stop = _place(end.end_mark)
        else:  # a block ends with its last value; parsers mark where the next token starts
            last = (
                frame.entries[-1][1] if frame.entries else frame.items[-1] if frame.items else None
            )
            stop = (last.span.end_line, last.span.end_col) if last is not None else (line, col)
        span = Span(self.file, line, col, *stop)
        node: Node
        if _is_map(frame):
            node = Map(tuple(frame.entries), span, flow)
        else:
            node = Seq(tuple(frame.items), span, flow)
        self._place(node)

    def _place(self, node: Node) -> None:
        if not self.stack:
            if self.documents == 1:
                self.root = node
            return
        frame = self.stack[-1]
        if not _is_map(frame):
            frame.items.append(node)
        elif frame.key is None:
            if not frame.cut:
                advice = "use a plain name as the key"
                self._error("LG019", "a key cannot be a list or a mapping", node.span, advice)
            frame.key = Key("", node.span)
        else:
            frame.entries.append((frame.key, node))
            frame.key = None

    # what is refused wherever it stands

    def _alias(self, event: AliasEvent) -> None:
        self._count(event)
        span = self._span(event)
        message = f"aliases are not allowed: `*{event.anchor}`"
        advice = "write the value out, use `extends`, or quote text that starts with `*`"
        self._error("LG011", message, span, advice)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is None and _is_map(frame):
            frame.key = Key("", span)
        else:
            self._place(Scalar(None, "", "plain", span, self.lines))

    def _refuse_marks(self, event: ScalarEvent | _Opening) -> None:
        span = self._start(event)
        if event.anchor is not None:
            message = f"anchors are not allowed: `&{event.anchor}`"
            advice = "remove it, use `extends`, or quote text that starts with `&`"
            self._error("LG011", message, span, advice)
        if event.tag is not None:
            message = f"tags are not allowed: `{event.tag}`"
            advice = "remove it, or quote text that starts with `!`"
            self._error("LG012", message, span, advice)

    def _document(self, event: DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            message = "a second document starts here, a file holds one"
            self._error("LG013", message, self._start(event), "move it to a file of its own")
            raise _Stop
        if event.version is not None or event.tags:
            message = "YAML directives (lines that start with `%`) are not allowed"
            self._error("LG014", message, self._start(event), "remove the line")

    def _count(self, event: Event) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            message = f"the file has more than {MAX_NODES:,} keys and values"
            self._error("LG008", message, self._start(event), "split the file")
            raise _Stop

    def _not_a_mapping(self) -> Diagnostic:
        span = self.root.span if self.root is not None else Span(self.file, 1, 1)
        message = "the file must be a mapping of keys to values"
        if self.root is None:
            message += ", and it is empty"
        return Diagnostic("LG025", "error", message, span, help="write `key: value` lines")

    # places and findings

    def _refusal(self, refusal: Refusal, span: Span) -> None:
        if span.line > len(self.lines):  # a missing value at the end of the file
            span = clamped(span.file, span.line - 1, span.col - 1, self.lines)
        self._error(refusal.code, refusal.message, span, refusal.help)

    def _error(self, code: str, message: str, span: Span, advice: str) -> None:
        self.found.append(Diagnostic(code, "error", message, span, help=advice))

    def _start(self, event: Event) -> Span:
        return Span(self.file, *_place(event.start_mark))

    def _span(self, event: Event) -> Span:
        return Span(self.file, *_place(event.start_mark), *_place(event.end_mark))

    def _block_span(self, event: ScalarEvent) -> Span:
        """From the `|` or `>` to the end of the last line with text (parsers end after it)."""
        first, col = _place(event.start_mark)
        last, end_col = _place(event.end_mark)
        last -= end_col == 1
        while last > first and not self.lines[last - 1].strip():
            last -= 1
        return Span(self.file, first, col, last, len(self.lines[last - 1]) + 1)


def _place(mark: _Mark | None) -> tuple[int, int]:
    """Line and column from 1; both parsers mark every event, their type stubs do not say so."""
    if mark is None:
        raise AssertionError("the YAML parser gave an event without a place")
    return mark.line + 1, mark.column + 1


def _follows(one: Diagnostic, error: Diagnostic) -> bool:
    """Whether a missing value is what the parser made of the text at a syntax error."""
    if one.code != "LG022" or one.span is None or error.span is None:
        return False
    return one.span >= error.span


def _is_map(frame: _Frame) -> bool:
    return type(frame.event) is MappingStartEvent
