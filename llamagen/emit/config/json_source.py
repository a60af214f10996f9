"""JSON with the place of every value: files from elsewhere, read strictly and without recursion limits to hit."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from llamagen import files
from llamagen.diagnostics import LlamagenError, Span

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""A JSON value. Lists that the language made are tuples."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NUMBER = 64
"""Characters of a number; longer ones are no sizes, and reading them takes quadratic time."""

_STRING = r'"(?:[^"\\]|\\.)*+"?+'
_TOKEN = re.compile(
    rf"(?P<key>{_STRING})[ \t\r\n]*:|(?P<text>{_STRING})|(?P<bracket>[][{{}}])|(?P<comma>,)|(?P<word>[^][{{}}\s,\"]+)",
    re.DOTALL,
)


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
    places = _Places(text, name)
    places.find()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise places.refusal(f"this is no JSON: {error.msg}", error.pos) from None
    if not isinstance(value, dict):
        raise places.refusal("a configuration is a JSON object, `{...}`", 0)
    return JsonSource(name, value, places.spans)


class _Places:
    """Where every value stands, whether or not the text is JSON."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.spans: dict[str, Span] = {}

    def find(self) -> None:
        """Refuses what ``json.loads`` takes: a key twice, endless nesting, numbers without end or bound."""
        path = ""
        above: list[tuple[str, int]] = []
        keys: list[set[str] | None] = []  # None for a list
        for token in _TOKEN.finditer(self.text):
            start, word = token.start(), token[0]
            match token.lastgroup:
                case "key" if above and (seen := keys[-1]) is not None:
                    key = _decoded(token["key"])
                    if key in seen:
                        raise self.refusal(f"the key `{key[:60]}` comes twice", start)
                    seen.add(key)
                    path = f"{above[-1][0]}.{key}".removeprefix(".")
                case "comma" if above and keys[-1] is None:
                    before, _, number = path.rpartition(".")
                    path = f"{before}.{int(number) + 1}"
                case "bracket" if word in "[{":
                    if len(above) > MAX_DEPTH:
                        raise self.refusal(f"it nests deeper than {MAX_DEPTH} levels", start)
                    above.append((path, start))
                    keys.append(None if word == "[" else set())
                    path = f"{path}.0" if word == "[" else path
                case "bracket" if above:
                    path, opened = above.pop()
                    keys.pop()
                    self.spans[path] = self.span(opened, token.end())
                case "text" | "word":
                    if token["word"]:
                        self.check_number(word, start)
                    self.spans[path] = self.span(start, token.end())
        self.spans.pop("", None)

    def check_number(self, word: str, start: int) -> None:
        if len(word) > MAX_NUMBER:
            raise self.refusal("the number is too long", start)
        try:
            finite = math.isfinite(float(word))
        except ValueError:
            return  # no number: true, or no JSON
        if not finite:
            raise self.refusal(f"`{word}` is no finite number", start)

    def span(self, start: int, end: int) -> Span:
        return Span(self.file, *self.position(start), *self.position(end))

    def position(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.starts, at)
        return line, at - self.starts[line - 1] + 1

    def refusal(self, message: str, at: int) -> LlamagenError:
        help = "a configuration is plain JSON: finite numbers, each key once"
        return LlamagenError.of("LG106", message, Span(self.file, *self.position(at)), help)


def _decoded(key: str) -> str:
    try:
        return str(json.loads(key))
    except json.JSONDecodeError:
        return key  # refused with the whole text
