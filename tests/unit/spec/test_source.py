"""The strict YAML loader: what it accepts, what it refuses and where, and hostile input."""

from __future__ import annotations

import datetime
import re
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import Diagnostic, LlamagenError, Span
from llamagen.diagnostics.codes import load_codes
from llamagen.spec import source as loader
from llamagen.spec.source import (
    Map,
    Node,
    Refusal,
    Scalar,
    Seq,
    SourceMap,
    load_source,
    resolve_plain,
    to_plain,
)
from tests.counting import work

IN_TABLE = [code for code in load_codes() if code.startswith("LG0")]
NOT_TEXT = {"LG001", "LG002", "LG006", "LG008", "LG009", "LG030", "LG031"}


def findings(text: str | bytes) -> tuple[Diagnostic, ...]:
    try:
        load_source(text, "f.yaml")
    except LlamagenError as failure:
        return failure.diagnostics
    return ()


def codes(text: str | bytes) -> list[str]:
    return [found.code for found in findings(text)]


def places(text: str) -> list[tuple[str, int, int]]:
    return [(f.code, f.span.line, f.span.col) for f in findings(text) if f.span is not None]


def scalar(source: SourceMap, *path: str | int) -> Scalar:
    node: Node | None = source.root
    for step in path:
        match node, step:
            case Map(), str():
                node = node.get(step)
            case Seq(), int():
                node = node.items[step]
    assert isinstance(node, Scalar)
    return node


def from_table(text: str) -> str:
    return re.sub(r"<U\+([0-9A-F]{4})>", lambda match: chr(int(match[1], 16)), text)


# the table's examples


@pytest.mark.parametrize("code", [code for code in IN_TABLE if code not in NOT_TEXT])
def test_examples_of_the_table(code: str) -> None:
    doc = load_codes()[code]
    fired = findings(from_table(doc.bad))
    assert {found.code for found in fired} == {code}
    assert all(found.span is not None and found.help for found in fired)
    assert codes(from_table(doc.good)) == []


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(LlamagenError) as failure:
            load_source(path)
        assert [found.code for found in failure.value.diagnostics] == ["LG001"]
    good = tmp_path / "x.yaml"
    good.write_text("a: 1\n")
    assert load_source(good).file == str(good)
    assert load_source(good, "short.yaml").root.span.file == "short.yaml"


def test_too_large(tmp_path: Path) -> None:
    fits = b"a: 1\n" + b"# 3456789012345\n" * ((1 << 16) - 1) + b"# 89012345\n"
    assert len(fits) == 1 << 20
    path = tmp_path / "x.yaml"
    path.write_bytes(fits + b"\n")
    with pytest.raises(LlamagenError) as failure:
        load_source(path)
    assert [found.code for found in failure.value.diagnostics] == ["LG002"]
    assert codes(fits) == []


def test_long_line() -> None:
    assert places("a: 1\nb: " + "x" * 4094) == [("LG006", 2, 4097)]
    assert codes("a: 1\nb: " + "x" * 4093) == []


def test_too_many_nodes() -> None:
    row = "- [" + ", ".join(["1"] * 1000) + "]\n"
    assert codes("a:\n" + row * 51) == ["LG008"]
    assert codes("a:\n" + row * 49) == []


def test_findings_are_limited() -> None:
    assert codes("a:\n" + "- no\n" * 100) == ["LG020"] * 100
    many = findings("a:\n" + "- no\n" * 103)
    assert [found.code for found in many] == ["LG020"] * 100 + ["LG009"]
    assert many[-1].severity == "note" and many[-1].message.startswith("3 more")


# places


def test_all_findings_at_once_by_place() -> None:
    text = "a: no\nb: &x 1\nc: *x\na: 010\nd: !t [1e5]\ne: {<<: {f: ~}}\n"
    assert places(text) == [
        ("LG020", 1, 4),
        ("LG011", 2, 4),
        ("LG011", 3, 4),
        ("LG015", 4, 1),
        ("LG021", 4, 4),
        ("LG012", 5, 4),
        ("LG021", 5, 8),
        ("LG016", 6, 5),
        ("LG022", 6, 13),
    ]


def test_findings_before_a_syntax_error_are_kept() -> None:
    assert [code for code, *_ in places("a: no\nb: 010\nc: [1\n")] == ["LG020", "LG021", "LG010"]


def test_duplicate_shows_both_ends() -> None:
    (found,) = findings("a: 1\nb: 2\na: 3\n")
    assert found.span == Span("f.yaml", 3, 1, 3, 2)
    assert [other.span for other in found.related] == [Span("f.yaml", 1, 1, 1, 2)]


def test_equal_keys_of_different_mappings_are_fine() -> None:
    assert codes("a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 2}]\n") == []


def test_spans() -> None:
    source = load_source("a:\n  - {b: [x, 'yz']}\n  - text of\n    two lines\nc: 1\n")
    a = source.root.get("a")
    assert isinstance(a, Seq) and a.span == Span("<text>", 2, 3, 4, 14) and not a.flow
    inner = a.items[0]
    assert isinstance(inner, Map) and inner.span == Span("<text>", 2, 5, 2, 19) and inner.flow
    assert scalar(source, "a", 0, "b", 1).span == Span("<text>", 2, 13, 2, 17)
    assert source.root.key("c") is not None
    assert source.root.span == Span("<text>", 1, 1, 5, 5)


def test_positions_inside_blocks() -> None:
    text = "a:\n  f: |-  # note\n\n    h = x\n      return é + y\n  g: >\n    one\n    two\n\n    three\n"
    source = load_source(text, "f")
    f, g = scalar(source, "a", "f"), scalar(source, "a", "g")
    assert f.text == "\nh = x\n  return é + y"
    assert f.span == Span("f", 2, 6, 5, 19)
    assert f.slice_span(1, 6) == Span("f", 4, 5, 4, 10)
    assert f.slice_span(9, 21) == Span("f", 5, 7, 5, 19)
    at = f.text.index("y")
    assert f.slice_span(at, at + 1) == Span("f", 5, 18, 5, 19)
    assert f.position(len(f.text)) == (5, 19)
    assert g.text == "one two\nthree\n"
    assert g.position(g.text.index("two")) == (8, 5)
    assert g.position(g.text.index("three")) == (10, 5)
    assert g.position(len(g.text)) == (10, 10)


def test_positions_inside_quotes() -> None:
    source = load_source("a: 'it''s x'\nb: \"\\x41\\tb \\\n   c\n   d\"\nc: p q\n   r\n", "f")
    a, b, c = (scalar(source, name) for name in "abc")
    assert a.position(a.text.index("s")) == (1, 9)
    assert b.text == "A\tb c d"
    assert [b.position(b.text.index(char)) for char in "Abcd"] == [(2, 5), (2, 11), (3, 4), (4, 4)]
    assert c.position(c.text.index("r")) == (6 - 0, 4)
    assert c.slice_span(0, len(c.text)) == c.span


_WORDS = st.text(alphabet="ab1_'\"\\#:é日 \n", min_size=1, max_size=30)


@given(st.lists(_WORDS, min_size=1, max_size=3), st.sampled_from(["'", '"', "|", ">", None]))
@settings(max_examples=150)
def test_positions_hit_the_character(words: list[str], style: str | None) -> None:
    """Every character that the file shows unescaped stands where `position` says."""
    dumped = yaml.dump({"k": words}, default_style=None, width=12, allow_unicode=True)
    if style is not None:
        listed = (yaml.ScalarNode("tag:yaml.org,2002:str", word, style=style) for word in words)
        tree = yaml.SequenceNode("tag:yaml.org,2002:seq", list(listed))
        key = yaml.ScalarNode("tag:yaml.org,2002:str", "k")
        root = yaml.MappingNode("tag:yaml.org,2002:map", [(key, tree)])
        dumped = yaml.serialize(root, width=12, allow_unicode=True)
    try:
        source = load_source(dumped)
    except LlamagenError:
        return
    lines = dumped.split("\n")
    # PyYAML breaks a folded line that begins with a space
    assume(yaml.safe_load(dumped) == {"k": words})
    for index, word in enumerate(words):
        node = scalar(source, "k", index)
        assert node.text == word
        for offset, char in enumerate(word.rstrip("\n")):
            line, col = node.position(offset)
            shown = lines[line - 1][col - 1 : col]
            assert char.isspace() or shown in (char, "\\"), (dumped, offset)


# scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("0", 0),
        ("-12", -12),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("1.0e-6", 1e-6),
        ("1.5e+3", 1500.0),
        ("1.0E6", 1e6),
        ("-0.5", -0.5),
        ("2024-04-18", "2024-04-18"),
        ("2024-04-18T10:00:00Z", "2024-04-18T10:00:00Z"),
        ("yesterday", "yesterday"),
        ("nano", "nano"),
        ("1.2.3", "1.2.3"),
        ("3b", "3b"),
        ("-", "-"),
        (".", "."),
        ("0x", "0x"),
    ],
)
def test_accepted_scalars(text: str, value: object) -> None:
    resolved = resolve_plain(text)
    assert resolved == value and type(resolved) is type(value)


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("1e-5", "LG021", "`1.0e-5`"),
        ("5E5", "LG021", "`5.0e5`"),
        ("-2e3", "LG021", "`-2.0e3`"),
        ("010", "LG021", "`8` or `10`"),
        ("-010", "LG021", "`-8` or `-10`"),
        ("00", "LG021", "`0`"),
        ("08", "LG021", "`8`"),
        ("0o17", "LG021", "`15`"),
        ("0x1f", "LG021", "`31`"),
        ("0b101", "LG021", "`5`"),
        ("1:30", "LG021", "'1:30'"),
        ("190:20:30.15", "LG021", "decimal"),
        ("1_000", "LG021", "`1000`"),
        ("1_000.5", "LG021", "`1000.5`"),
        (".5", "LG021", "`0.5`"),
        ("-.5", "LG021", "`-0.5`"),
        ("5.", "LG021", "`5.0`"),
        ("1.e5", "LG021", "`1.0e5`"),
        ("+1", "LG021", "`1`"),
        ("+1.5", "LG021", "`1.5`"),
        ("01.5", "LG021", "`1.5`"),
        (".inf", "LG021", "finite"),
        ("-.Inf", "LG021", "finite"),
        (".NaN", "LG021", "finite"),
        ("0x" + "f" * 100_000, "LG021", "quote"),
        ("no", "LG020", "`false`"),
        ("Yes", "LG020", "`true`"),
        ("on", "LG020", "`true`"),
        ("OFF", "LG020", "`false`"),
        ("True", "LG020", "`true`"),
        ("FALSE", "LG020", "`false`"),
        ("=", "LG020", "'='"),
        ("~", "LG022", "`null`"),
        ("Null", "LG022", "`null`"),
        ("NULL", "LG022", "`null`"),
        ("", "LG022", "remove"),
        ("9223372036854775808", "LG023", "2^63"),
        ("1" * 100_000, "LG023", "2^63"),
        ("1.0e999", "LG023", "magnitude"),
        ("1.0e-999", "LG023", "magnitude"),
    ],
)
def test_refused_scalars(text: str, code: str, fix: str) -> None:
    resolved = resolve_plain(text)
    assert isinstance(resolved, Refusal)
    assert (resolved.code, fix in resolved.help) == (code, True), resolved.help
    assert len(resolved.message) < 200


@pytest.mark.parametrize("text", ["no", "1e-5", "010", "~", "", "0x1f", "null", "1"])
def test_quoted_scalars_are_text(text: str) -> None:
    assert scalar(load_source(f"a: '{text}'\n"), "a").value == text


@given(st.text(alphabet="0123456789+-._eExob:abfnNyYtrulsTRUE~=i", min_size=1, max_size=9))
@settings(max_examples=1500)
@example("685_230.15")
@example("0.")
@example("12:30:45")
def test_values_mean_the_same_to_yaml_1_1(text: str) -> None:
    """What is accepted, PyYAML reads alike: but for dates, and exponents without a sign."""
    resolved = resolve_plain(text)
    if isinstance(resolved, Refusal):
        return
    try:
        theirs = yaml.safe_load(f"- {text}\n")
    except (yaml.YAMLError, ValueError):
        return
    if not isinstance(theirs, list) or isinstance(theirs[0], dict | list):
        return  # `- x`, `a:`: not a plain scalar at all
    if isinstance(resolved, str) and isinstance(theirs[0], datetime.date):
        return
    if isinstance(resolved, float) and theirs[0] == text:
        assert re.search(r"[eE][0-9]", text)
        return
    assert theirs[0] == resolved and type(theirs[0]) is type(resolved)


# keys


@pytest.mark.parametrize(
    "key",
    ["hyperparameters.*", "llama/3.1/8b", "layers.0.q_proj", "llama-1-paper", "3", "'on'", "y"],
)
def test_accepted_keys(key: str) -> None:
    assert codes(f"{key}: 1\n") == []


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("no", "LG020"),
        ("true", "LG020"),
        ("null", "LG022"),
        ("~", "LG022"),
        ("1e5", "LG021"),
        ("010", "LG021"),
        ("<<", "LG016"),
        ("a b", "LG017"),
        ("''", "LG017"),
        ("hidden_siz\u0435", "LG017"),
        ("\uff41", "LG017"),
        ("$x", "LG017"),
        ("? |\n a\n", "LG019"),
        ("? {a: 1}\n", "LG019"),
        ("? 'a\n  b'\n", "LG019"),
        ("*x ", "LG011"),
    ],
)
def test_refused_keys(key: str, code: str) -> None:
    assert codes(f"{key}: 1\n") == [code]


def test_missing_key() -> None:
    assert codes("a:\n  ?\n  : 1\n") == ["LG019"]


def test_collisions() -> None:
    assert codes("Norm: 1\nnorm: 2\n") == ["LG018"]
    assert codes("Norm: 1\nnorms: 2\n") == []


# text


@pytest.mark.parametrize(
    "char", ["\x00", "\x07", "\r", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\u202e", "\u3164"]
)
def test_hidden_characters(char: str) -> None:
    assert places(f"a: 1\nb: x{char}y\n") == [("LG004", 2, 5)]
    assert places(f"a: 1\n# {char}.\n") == [("LG004", 2, 3)]


def test_hidden_characters_as_escapes() -> None:
    assert places('a: "x\\u202e"\nb: "\\0"\n') == [("LG004", 1, 4), ("LG004", 2, 4)]
    assert scalar(load_source('a: "x\\ty\\n"\n'), "a").value == "x\ty\n"


def test_other_scripts_are_fine_in_values_and_comments() -> None:
    assert scalar(load_source("# naïve 日本語\na: né 日本 😀\n"), "a").value == "né 日本 😀"


def test_tabs_and_windows_lines() -> None:
    assert places("a:\n\tb: 1\nc: 1\t# x\n") == [("LG005", 2, 1), ("LG005", 3, 5)]
    source = load_source(b"a: |\r\n  x\r\n  y\r\nb: 1\r\n")
    assert scalar(source, "a").value == "x\ny\n" and "\r" not in source.text


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"a: 1\nb: x\xff\n", (2, 5)),
        (b"a: \xc3\xa9\xc3(\n", (1, 5)),
        (b"a: \xed\xa0\x80\n", (1, 4)),
        ("a: 1\n".encode("utf-16"), (1, 1)),
        ("a: 1\n".encode("utf-8-sig"), (1, 1)),
    ],
)
def test_encodings(raw: bytes, place: tuple[int, int]) -> None:
    (found,) = findings(raw)
    assert found.span is not None
    assert (found.code, found.span.line, found.span.col) == ("LG003", *place)


def test_lone_surrogates_in_text() -> None:
    assert codes("a: \ud800\n") == ["LG003"]


def test_byte_order_mark_in_text() -> None:
    assert codes("\ufeffa: 1\n") == ["LG003"]
    assert codes("a: \ufeff1\n") == ["LG004"]


# structure


def test_text_cut_at_a_comma_is_one_finding() -> None:
    text = "p: {a: f(x, y=1e-5), b: 1}\nq: [g(x, no), h]\nr: {a: f(x), b: '(', c: (}\n"
    assert places(text) == [("LG024", 1, 8), ("LG024", 2, 5), ("LG024", 3, 25)]
    assert codes("p:\n  a: f(x, y)\n  b: (\n") == []


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("a: b: c\n", (1, 5), "not allowed here"),
        ("a: 1\n b: 2\n", (2, 3), "not allowed here"),
        ("a: 'x\nb: 1\n", (1, 4), "never closed"),
        ("a: [1, 2\nb: 3\n", (2, 2), "list is not closed"),
        ("{a\n", (1, 3), "mapping is not closed"),
        ("a: {b: 1\n", (1, 9), "mapping is not closed"),
        ("a: @x\n", (1, 4), "cannot start with"),
        ("a:\n  b: 1\n c: 2\n", (3, 2), "does not belong"),
        ("a: 1\nword\nb: 2\n", (2, 1), "not `key: value`"),
        ('a: "\\q"\n', (1, 5), "escape does not exist"),
        ("a: | x\n  y\n", (1, 6), "next line"),
        ("a: 1\n- b\n", (2, 1), "does not belong"),
    ],
)
def test_syntax_errors_are_sentences(text: str, place: tuple[int, int], says: str) -> None:
    (found,) = findings(text)
    assert found.span is not None and found.code == "LG010"
    assert says in found.message and found.help
    assert (found.span.line, found.span.col) == place


@pytest.mark.parametrize("text", ["", "# only\n", "---\n", "- 1\n", "text\n"])
def test_not_a_mapping(text: str) -> None:
    assert codes(text) in (["LG025"], ["LG022"])


def test_document_marks() -> None:
    assert codes("---\na: 1\n...\n") == []
    assert codes("a: 1\n---\nb: 1\n") == ["LG013"]
    assert codes("%TAG ! x:\n---\na: 1\n") == ["LG014"]


# hostile input

BOMBS = {
    "brackets": "a: " + "[" * 100_000,
    "bracket lines": "a:\n" + " [\n" * 100_000,
    "braces": "a: " + "{x: " * 1_000,
    "dashes": "a:\n" + "- " * 2_000,
    "indents": "".join(" " * depth + "a:\n" for depth in range(1_000)),
    "aliases": "a: &a [x, x]\n" + "".join(f"b{i}: [*a, *a]\n" for i in range(20_000)),
    "cycle": "a: &a [*a]\n",
    "quotes": "a: '" + "'" * 4_000,
    "colons": "a: " + ":" * 4_000,
    "question marks": "? " * 2_000,
    "keys": "a: {" + "x" * 3_000 + ": 1}",
    "long text": "a: |\n" + "  x\n" * 250_000,
    "comments": "#\n" * 500_000,
    "percent": "%" * 4_000,
    "bangs": "a: " + "!" * 4_000,
    "digits": "a: " + "1" * 4_000,
    "base 60": "a: 1" + ":1" * 2_000,
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs_are_little_work(name: str) -> None:
    """A few calls a character. A pattern that backtracks without end runs into the time limit of all tests."""
    text = BOMBS[name]
    found: list[Diagnostic] = []
    work(lambda: found.extend(findings(text)), most=1000 + 8 * len(text))
    assert found or name in ("long text", "colons")
    assert len(found) <= 101


CHARACTERS = "abx01:-?[]{},#&*!|>'\"%@` \n\n\n\\\t\x00\u202eé"
WORDS = ("  ", "a: ", "- ", "<<: ", "*a", "&a ", "no", "1e-5", "---\n", "...\n", "!!int ")
PIECES = st.sampled_from([*CHARACTERS, *WORDS, "|-\n  ", "f(x, y)"])


@given(st.lists(PIECES, max_size=60).map("".join))
@settings(max_examples=400)
def test_hostile_text_loads_or_is_refused(text: str) -> None:
    try:
        source = load_source(text, "f")
    except LlamagenError as failure:
        lines = text.replace("\r\n", "\n").split("\n")
        for found in failure.diagnostics:
            assert found.code in IN_TABLE and found.message
            if found.span is not None:
                assert 1 <= found.span.line <= len(lines)
                assert 1 <= found.span.col <= len(lines[found.span.line - 1]) + 1
        return
    assert texts(source.root) == yaml.load(text, Loader=yaml.BaseLoader)


@given(st.lists(PIECES, max_size=40).map("".join))
@settings(max_examples=200)
@example("a: 1\n\n\n")
@example("a:\n  - 'x\n\n    y'\nb: |+\n  x\n\n\n# c\n")
def test_pure_python_parser_agrees(text: str) -> None:
    """Without libyaml the same text gives the same tree."""
    fast = outcome(text)
    libyaml = loader._PARSER
    loader._PARSER = yaml.SafeLoader
    try:
        slow = outcome(text)
    finally:
        loader._PARSER = libyaml
    if isinstance(fast, SourceMap) and isinstance(slow, SourceMap):
        assert fast == slow
    else:
        assert not isinstance(fast, SourceMap) or slow == ["LG010"], (fast, slow)
        assert not isinstance(slow, SourceMap) or fast == ["LG010"], (fast, slow)


def outcome(text: str) -> SourceMap | list[str]:
    try:
        return load_source(text, "f")
    except LlamagenError as failure:
        return [found.code for found in failure.diagnostics]


def texts(node: Node) -> object:
    match node:
        case Scalar():
            return node.text
        case Seq():
            return [texts(item) for item in node.items]
        case Map():
            return {key.text: texts(value) for key, value in node.entries}


def test_libyaml_is_in_use() -> None:
    assert not yaml.__with_libyaml__ or loader._PARSER is yaml.CSafeLoader


def test_a_line_is_little_work_in_files_of_any_length() -> None:
    """70 files of 100 lines then take 0.06 s on one slow core."""
    block = (
        "  parts: {q: 'linear(a, b)', k: x}\n  forward: |\n    h = x\n    return h\n  n: 1.0e-6\n"
    )
    for count in (17, 170):
        text = "".join(f"b{i}:\n{block}" for i in range(count))
        work(partial(load_source, text), most=80 * text.count("\n"))


def test_to_plain() -> None:
    source = load_source("a: [1, x, {b: null}]\nc: 2.0\n")
    assert to_plain(source.root) == {"a": [1, "x", {"b": None}], "c": 2.0}
