"""JSON with the place of every value: files from elsewhere, read strictly and without recursion limits to hit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen import files
from llamagen.diagnostics import LlamagenError, Span
from llamagen.emit.config.codecs import Json

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NUMBER = 64
"""Characters of a number; longer ones are no sizes, and reading them takes quadratic time."""

_BLANK = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_WORD = re.compile(r"[A-Za-z_+-][A-Za-z0-9_+-]*")
_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class JsonSource:
    """A JSON object, and the places of its values by dotted path (members of lists by number)."""

    file: str
    value: Mapping[str, Json]
    places: Mapping[str, Span]

    def place(self, path: str) -> Span:
        """The place of a value, of the closest thing above it, or of the file."""
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return self.places.get(path, Span(self.file, 1, 1))


def read_json(path: Path, *, within: Path | None = None) -> JsonSource:
    """Raises LG106 for a file that cannot be read or is not a JSON object; ``within`` is the folder it was found in."""
    return parse_json(files.read_bytes(path, files.CONFIG, within=within), str(path))


def parse_json(raw: bytes, name: str) -> JsonSource:
    """The object that ``raw`` holds. Raises LG106 at the place of what is wrong."""
    if len(raw) > MAX_BYTES:
        message = f"`{name}` has more than {MAX_BYTES:,} bytes, which no configuration has"
        raise LlamagenError.of("LG106", message, help="give the config.json of a model")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"`{name}` is not UTF-8 text: byte {error.start} is wrong"
        raise LlamagenError.of("LG106", message, help="save it as UTF-8") from None
    return _Parser(text, name).run()


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.at = 0
        self.places: dict[str, Span] = {}
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def run(self) -> JsonSource:
        value = self.value("", 0)
        self.blank()
        if self.at != len(self.text):
            raise self.error("the file goes on after its value", self.at)
        if not isinstance(value, dict):
            raise self.error("a configuration is a JSON object, `{...}`", 0)
        return JsonSource(self.file, value, self.places)

    def blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def value(self, path: str, depth: int) -> Json:
        self.blank()
        start = self.at
        head = self.text[start : start + 1]
        if depth > MAX_DEPTH:
            raise self.error(f"it nests deeper than {MAX_DEPTH} levels", start)
        match head:
            case "{":
                value: Json = dict(self.members(path, depth))
            case "[":
                value = list(self.items(path, depth))
            case '"':
                value = self.string()
            case _:
                value = self.atom()
        if path:
            self.places[path] = self.span(start, self.at)
        return value

    def members(self, path: str, depth: int) -> Iterator[tuple[str, Json]]:
        self.at += 1
        seen: set[str] = set()
        while not self.closed("}", first=not seen):
            self.blank()
            start = self.at
            if self.text[start : start + 1] != '"':
                raise self.error('a key, in "quotes", is expected here', start)
            key = self.string()
            if key in seen:
                raise self.error(f"the key `{key[:60]}` comes twice", start)
            seen.add(key)
            self.blank()
            if self.text[self.at : self.at + 1] != ":":
                raise self.error("`:` is expected here", self.at)
            self.at += 1
            yield key, self.value(f"{path}.{key}" if path else key, depth + 1)

    def items(self, path: str, depth: int) -> Iterator[Json]:
        self.at += 1
        count = 0
        while not self.closed("]", first=count == 0):
            yield self.value(f"{path}.{count}", depth + 1)
            count += 1

    def closed(self, end: str, *, first: bool) -> bool:
        self.blank()
        head = self.text[self.at : self.at + 1]
        if head == end:
            self.at += 1
            return True
        if not first:
            if head != ",":
                raise self.error(f"`,` or `{end}` is expected here", self.at)
            self.at += 1
        return False

    def string(self) -> str:
        found = _STRING.match(self.text, self.at)
        try:
            text = json.loads(found[0]) if found is not None else None
        except json.JSONDecodeError:
            text = None
        if found is None or not isinstance(text, str):
            raise self.error("the text is not closed, or has a wrong escape", self.at)
        self.at = found.end()
        return text

    def atom(self) -> Json:
        start = self.at
        number = _NUMBER.match(self.text, start)
        word = _WORD.match(self.text, start)
        if number is not None and not _WORD.match(self.text, number.end()):
            self.at = number.end()
            if self.at - start > MAX_NUMBER:
                raise self.error("the number is too long", start)
            whole = number[1] is None and number[2] is None
            value = int(number[0]) if whole else float(number[0])
            if value in (float("inf"), float("-inf")):
                raise self.error("the number is too large", start)
            return value
        if word is not None and word[0] in _CONSTANTS:
            self.at = word.end()
            return _CONSTANTS[word[0]]
        found = f"`{word[0][:30]}` is no JSON value" if word else "a value is expected here"
        raise self.error(found, start)

    def span(self, start: int, end: int) -> Span:
        line, col = self.position(start)
        end_line, end_col = self.position(end)
        return Span(self.file, line, col, end_line, end_col)

    def position(self, at: int) -> tuple[int, int]:
        from bisect import bisect_right

        line = bisect_right(self.starts, at)
        return line, at - self.starts[line - 1] + 1

    def error(self, message: str, at: int) -> LlamagenError:
        line, col = self.position(min(at, len(self.text)))
        help = "a configuration is plain JSON: finite numbers, each key once"
        return LlamagenError.of("LG106", message, Span(self.file, line, col), help)
