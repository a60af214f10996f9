"""Canonical form: examples, and for random documents the same values, comments and fixed point."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import LlamagenError, Span
from llamagen.spec import fmt
from llamagen.spec.fmt import check_format, format_source
from llamagen.spec.registry import Registry
from llamagen.spec.source import Plain, load_source, to_plain

ORDER = ("spec", "id", "extends", "hyperparameters", "blocks")


def form(text: str) -> str:
    return format_source(load_source(dedent(text)), ORDER)


def unchanged(text: str) -> bool:
    return form(text) == dedent(text)


def test_order_indentation_quotes_and_spaces() -> None:
    assert form(
        """\
        # yaml-language-server: $schema=../../schema.json
        # the smallest one
        blocks:
            A:
                parts: { q: "linear(a, b)",k: 'x' }
                forward: |
                    h = x

                    return  h
        # where it stands
        id:   'llama/1/7b'     # the id


        extends: "llama/1/_base"
        notes:
        - 'plain'
        - "no"
        spec: 1
        """
    ) == dedent(
        """\
        # yaml-language-server: $schema=../../schema.json
        # the smallest one
        spec: 1
        # where it stands
        id: llama/1/7b  # the id

        extends: llama/1/_base
        blocks:
          A:
            parts: {q: "linear(a, b)", k: x}
            forward: |
              h = x

              return  h
        notes:
          - plain
          - "no"
        """
    )


@pytest.mark.parametrize(
    "text",
    [
        "a: {}\nb: []\n",
        'a: ""\nb: "null"\nc: "1e-5"\nd: 1.0e-5\ne: 2024-04-18\nf: "010"\n',
        'a: it\'s\nb: say "x"\nc: \'"q": x\'\nd: "#1"\ne: x#1\nf: a:b\ng: "a: b"\n',
        'a: {x: "a:b", y: "f(x, y)", "no": 1}\n',
        '"no": 1\n"*": 2\nhyperparameters.*: 3\n"null": 4\n"1.5": 5\n16: 6\ny: 7\n',
        "a:\n  - - 1\n    - 2\n  - x: 1\n    z: [2]\n  - []\n",
        'a: "\\n"\nb: "x\\n\\n"\nc: " x"\nd: "a\\tb"\ne: "  x\\ny"\nf: "x\\n  \\ny"\n',
        "a: |-\n  x\n    y\nb: |\n\n  x\n",
        "a: >\n  x\n\n  z\nb: 1\n",
    ],
)
def test_already_canonical(text: str) -> None:
    assert unchanged(text)


def test_comments_keep_their_entries() -> None:
    text = """\
        # header

        # lead of a

        a:  # on a
          # lead of b
          b: 1  # on b

          # lead of c
          c: |  # on c
            # text, not a comment
            x
            # text
          # foot of c
        # lead of list
        list:
          # lead of the first
          - x: 1  # on x
            z: 2
            # foot of z
          # lead of the second
          - - 3  # on 3
            # foot of 3
            - 4
        # the end

        # the very end
        """
    assert unchanged(text)


def test_comments_inside_flow_need_a_block() -> None:
    assert (
        form("a: {b: 1, # one\n  # two\n  c: [x,\n   z]}\nd:\n# three\n  1 # four\n")
        == "a:\n  b: 1  # one\n  # two\n  c: [x, z]\n# three\nd: 1  # four\n"
    )
    assert form("a:\n  - {b: 1, # one\n     c: 2}\n") == "a:\n  - b: 1  # one\n    c: 2\n"
    assert form("a:\n  - # one\n    b: 1\n") == "a:\n  # one\n  - b: 1\n"


def test_reordered_keys_take_their_comments_along() -> None:
    ordered = "# lead of spec\nspec: 1\nid: x  # on id\n# end\n"
    assert form("id: x  # on id\n\n# lead of spec\nspec: 1\n# end\n") == ordered
    assert unchanged(ordered)


def test_long_lines() -> None:
    words = " ".join(["word"] * 40)
    folded = form(f"a:\n  b: {words}\n")
    assert folded.startswith("a:\n  b: >-\n    word word") and to_plain(
        load_source(folded).root
    ) == {"a": {"b": words}}
    assert max(map(len, folded.splitlines())) <= fmt.WIDTH
    numbers = form(f"a: [{','.join(['1000'] * 60)}]\n")
    assert numbers.startswith("a:\n  [1000, 1000,") and unchanged(numbers)
    assert max(map(len, numbers.splitlines())) <= fmt.WIDTH
    wide = form("a: {" + ",".join(f"key{i}: {{n1: {i}}}" for i in range(20)) + "}\n")
    assert wide.startswith("a:\n  key0: {n1: 0}\n  key1: {n1: 1}\n") and unchanged(wide)
    exact = f"a: {'x' * 57} {'x' * 59}\n"
    assert len(exact) == fmt.WIDTH + 1 and unchanged(exact)


def test_windows_lines_and_document_marks_go() -> None:
    source = load_source(b"---\r\na:  1\r\n...\r\n")
    assert format_source(source) == "a: 1\n"


def test_check_format() -> None:
    assert check_format(load_source("spec: 1\nid: x\n"), ORDER) is None
    found = check_format(load_source("spec: 1\nid:  x\n", "f"), ORDER)
    assert found is not None and (found.code, found.span) == ("LG030", Span("f", 2, 1, 2, 7))
    assert check_format(load_source("id: x\nspec: 1\n"), ORDER) is not None
    assert check_format(load_source("id: x\nspec: 1\n")) is None
    assert check_format(load_source("id: x")) is not None


def test_a_formatter_that_changes_a_value_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_source("a: 1\nb: 'no'\n")
    monkeypatch.setattr(fmt, "inline", lambda scalar, flow: scalar.text)
    with pytest.raises(LlamagenError) as failure:
        format_source(source)
    assert [found.code for found in failure.value.diagnostics] == ["LG031"]
    monkeypatch.setattr(fmt, "inline", lambda scalar, flow: "2")
    with pytest.raises(LlamagenError) as failure:
        format_source(source)
    assert [found.code for found in failure.value.diagnostics] == ["LG031"]


# random documents, written in random styles with comments everywhere

KEYS = st.sampled_from(["a", "bc", "d.e", "*", "no", "1.5", "7", "x/y-z", "spec", "id"])
TEXTS = st.one_of(
    st.sampled_from(
        ["", "x", "f(x, y)", "no", "1e-5", "a: b", "a #b", "- x", "it's", '"', "[", "("]
    ),
    st.sampled_from(
        ["x\n", "x\n\n y\n", "\n", " x\nz", "a\nb\n\n\nc", "word " * 40, "w " * 70 + "x"]
    ),
    st.text(alphabet="ab #:-'\"\\\n{},[]()|>&*!%@`?.=<~é0", max_size=12),
)
LEAVES = st.one_of(TEXTS, st.integers(-99, 99), st.booleans(), st.none(), st.just(1.0e-6))
VALUES: st.SearchStrategy[Plain] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


class Scribe:
    """Writes a value as YAML, choosing indentation, style, blank lines and comments by chance."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.comments = 0

    def flip(self, often: int = 2) -> bool:
        return self.draw(st.integers(0, often)) == 0

    def comment(self) -> str:
        self.comments += 1
        return f"#c{self.comments}."

    def tail(self) -> str:
        return "   " + self.comment() if self.flip(3) else ""

    def between(self, indent: int) -> list[str]:
        out = [""] if self.flip(4) else []
        if self.flip(4):
            out.append(
                " " * (indent + self.draw(st.sampled_from([0, 0, 0, 1, 3]))) + self.comment()
            )
            out += [""] if self.flip(4) else []
        return out

    def quoted(self, text: str) -> str:
        if "\n" not in text and self.flip():
            return "'" + text.replace("'", "''") + "'"
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'

    def leaf(self, value: Plain) -> str:
        match value:
            case bool() | None:
                return {True: "true", False: "false", None: "null"}[value]
            case str():
                plain = re.fullmatch(r"[a-d][a-d ]*[a-d]", value)
                return value if plain and self.flip() else self.quoted(value)
            case float():
                return "1.0e-6"
        return str(value)

    def flow(self, value: Plain, indent: int) -> str:
        gap = self.draw(st.sampled_from([" ", "  ", "\n" + " " * (indent + 1)]))
        if gap[0] == "\n" and self.flip():
            gap = f"  {self.comment()}{gap}"
        match value:
            case list():
                return f"[{gap}" + f",{gap}".join(self.flow(v, indent) for v in value) + f"{gap}]"
            case dict():
                pairs = [f"{self.quoted(k)}: {self.flow(v, indent)}" for k, v in value.items()]
                return f"{{{gap}" + f",{gap}".join(pairs) + f"{gap}}}"
        return self.leaf(value)

    def block(self, value: Plain, indent: int) -> list[str]:
        """Lines whose first continues the line of the key or dash."""
        step = self.draw(st.sampled_from([1, 2, 4]))
        if not isinstance(value, list | dict) or not value or self.flip():
            return self.inline(value, indent)
        pad = " " * (indent + step)
        lines = [self.tail()]
        pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        for key, item in pairs:
            first, *rest = self.block(item, indent + step)
            head = f"{self.quoted(key)}:" if key is not None else "-"
            lines += [*self.between(indent + step), f"{pad}{head}{first}", *rest]
        return lines

    def inline(self, value: Plain, indent: int) -> list[str]:
        literal = isinstance(value, str) and re.fullmatch(
            r"[^\s\\](.*[^\n])?(\n[^ \n].*)*\n", value
        )
        if literal and isinstance(value, str) and self.flip():
            return [" |" + self.tail()] + [" " * (indent + 5) + v for v in value.split("\n")[:-1]]
        return (" " + self.flow(value, indent) + self.tail()).split("\n")


@st.composite
def documents(draw: st.DrawFn) -> str:
    scribe = Scribe(draw)
    lines: list[str] = []
    for key, value in draw(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)).items():
        first, *rest = scribe.block(value, 0)
        lines += [*scribe.between(0), f"{scribe.quoted(key)}:{first}", *rest]
    return "\n".join(lines + scribe.between(0)) + "\n"


@given(documents())
@settings(max_examples=300)
def test_random_documents(text: str) -> None:
    source = load_source(text)
    once = format_source(source, ORDER)
    again = load_source(once)
    assert to_plain(again.root) == to_plain(source.root)
    assert sorted(re.findall(r"#c\d+\.", once)) == sorted(re.findall(r"#c\d+\.", text))
    assert format_source(again, ORDER) == once


# --upgrade

OLD = """\
spec: 1
id: mine/old
extends: llama/3.2/1b
title: null
release: null
training: null
lineage: null
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hyperparameters: {tie_embeddings: Yes}", "hyperparameters: {tie_embeddings: true}"),
        ("hyperparameters: {tie_embeddings: 'false'}", "hyperparameters: {tie_embeddings: false}"),
        ("hyperparameters: {num_layers: '8'}", "hyperparameters: {num_layers: 8}"),
        ("hyperparameters: {norm_eps: 1e-6}", "hyperparameters: {norm_eps: 1.0e-6}"),
        ("doc: ~", "doc: null"),
        ("doc: 7", 'doc: "7"'),
        (
            "hyperparameters:\n  n_layers: 8  # of Meta\n",
            "hyperparameters:\n  num_layers: 8  # of Meta",
        ),
        (
            "patterns: {f: {default: true, at: {false: [1], }}}",
            "patterns: {f: {default: true, at: [{layers: [1], value: false}]}}",
        ),
        (
            "patterns:\n  f:\n    default: 0\n    at:\n      1: [1]  # one\n      2: [2, 3]  # two\n",
            "    at:\n      - {layers: [1], value: 1}  # one\n      - {layers: [2, 3], value: 2}  # two",
        ),
    ],
)
def test_an_upgrade_writes_the_fix_that_is_named(old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(OLD + old, encoding="utf-8")
    report = fmt.fmt([file], upgrade=True)
    assert report.upgrades
    text = file.read_text(encoding="utf-8")
    assert new in text
    assert fmt.fmt([file], upgrade=True) == fmt.FormatReport((), ()), "once is enough"


@pytest.mark.parametrize(
    "left",
    [
        "hyperparameters: {num_layers: 010}",  # octal for some
        "hyperparameters: {num_layers: 8, n_layers: 9}",  # which one?
        "patterns: {f: {default: true, at: {false: [1], local: [2]}}}",  # text beside a truth
    ],
)
def test_what_could_mean_two_things_is_left_to_people(left: str, tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(OLD + left, encoding="utf-8")
    report = fmt.fmt([file], upgrade=True)
    assert not any(one.code in ("LG101", "LG021") or "at" in one.before for one in report.upgrades)
    with pytest.raises(LlamagenError):
        Registry().load(file)


def test_a_base_in_another_file_is_not_written(tmp_path: Path) -> None:
    base, heir = tmp_path / "base.yaml", tmp_path / "heir.yaml"
    base.write_text(
        OLD.replace("mine/old", "mine/base") + "hyperparameters: {num_layers: '8'}\n",
        encoding="utf-8",
    )
    heir.write_text("spec: 1\nid: mine/heir\nextends: ./base.yaml\n", encoding="utf-8")
    assert not fmt.fmt([heir], upgrade=True).upgrades
    assert "'8'" in base.read_text(encoding="utf-8")
