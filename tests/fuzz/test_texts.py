"""Texts of others in Markdown and on a terminal: whatever they hold, they are one text where they were put."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from safetensors import safe_open

from llamagen import api
from llamagen.cli import console, main
from llamagen.diagnostics.markdown import cell, code
from tests.counting import count
from tests.fuzz.hostile import PAYLOADS, TINY

MARKDOWN = MarkdownIt("commonmark").enable("table")
PIECES = st.sampled_from(
    [
        *("|", "\\", "`", "``", "[", "]", "(", ")", "![", "](", "<", ">", "&", "*", "_", "\n", "\r\n"),
        *("<b>", "</td>", "<!--", "&#124;", "&lt;", "http://e", "javascript:x"),
        *("\x1b[31m", "\u2028", " ", "a", "- ", "# "),
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20)


def inside(tokens: list[Token]) -> list[str]:
    """Kinds of what stands in the cells of a table."""
    return [t.type for token in tokens if token.type == "inline" for t in token.children or ()]


@settings(max_examples=400)
@given(TEXTS, TEXTS)
@example("a\\|b", "c")
@example("a\\", "`|`")
@example("[a](javascript:x)", "![i](http://e/x.png)")
def test_a_cell_holds_its_text(first: str, second: str) -> None:
    """Two columns stay two, nothing is HTML, a link or an image, and GitHub shows the words that were given."""
    count("texts in Markdown")
    for write in (cell, code):
        page = f"| a | b |\n|---|---|\n| {write(first)} | {write(second)} |\n\nend\n"
        tokens = MARKDOWN.parse(page)
        kinds = [t.type for t in tokens]
        assert kinds.count("tr_open") == 2 and kinds.count("td_open") == 2, page
        assert not {"html_block", "fence", "heading_open", "list_item_open"} & {*kinds}
        assert not {"html_inline", "link_open", "image"} & {*inside(tokens)}, page
        assert tokens[-2].content == "end"
    assert re.fullmatch(r"(?:\\.|[^|\\])*", cell(first)), "as GitHub looks for the end of a cell"


@given(TEXTS)
def test_words_are_shown_as_they_were(text: str) -> None:
    line = cell(text)
    (inline,) = (t for t in MARKDOWN.parseInline(f"x {line}") if t.type == "inline")
    kept = "".join(
        t.content
        for t in inline.children or ()
        if t.type in ("text", "text_special", "code_inline")
    )
    plain = text.replace("*", "").replace("_", "")
    if not {"*", "_", "&", "\0"} & {*text}:
        assert kept.split() == ["x", *plain.split()]


@given(TEXTS)
def test_a_table_on_a_terminal_has_its_rows(text: str) -> None:
    """No name of a file or a tensor moves the cursor, colours, or begins a line of its own."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        console.table(("name", "what"), [(text, "x"), ("y", text)])
        console.section("title", [("key", text)])
    shown = stream.getvalue()
    assert shown.count("\n") == 5 and len(shown.splitlines()) == 5
    assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in shown)


def test_what_a_model_says_cannot_drive_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "a\tb\n\x1b]0;title\x07 \x9b2J r\u0301\u200dz"
    for stream, expected in (
        (Terminal(), "a\tb\n\\u{1b}]0;title\\u{7} \\u{9b}2J r\u0301\u200dz"),
        (io.StringIO(), text),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        console.piece(text)
        assert stream.getvalue() == expected


HOSTILE = "x](y) | `z` <script>alert(1)</script> \\| ![i](http://e/i.png)"
ODD = "w`|<img src=x>[a](b).safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    spec = folder / "m.yaml"
    spec.write_text(TINY.replace("title: A model", f"title: {json.dumps(HOSTILE)}"))
    api.random_checkpoint(spec, folder / "c", seed=1, dtype="float32")
    (folder / "c" / "config.json").write_text(
        json.dumps({"model_type": HOSTILE, "_name_or_path": HOSTILE, "architectures": [HOSTILE]})
    )
    (folder / "c" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ '" + HOSTILE + "' }}", "bos_token": "\x1b[2J"})
    )
    (folder / "c" / "chat_template.jinja").write_text(HOSTILE)
    return folder


def test_the_readme_of_a_folder_stays_a_page(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Title of the spec and model_type of the checkpoint; a file with such a name is refused."""
    folder = shutil.copytree(checkpoint / "c", tmp_path / "c")
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        names = list(tensors.keys())
    index, out = folder / "model.safetensors.index.json", tmp_path / "out"
    words = ["export", str(checkpoint / "m.yaml"), "--checkpoint", str(folder), "--out", str(out)]
    words += ["--weights", "reference", "--ignore-config"]
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, ODD)}))
    assert main(words) == 3
    assert "LG604" in capsys.readouterr().err
    index.unlink()
    assert main(words) == 0
    tokens = MARKDOWN.parse((out / "README.md").read_text())
    assert not {"html_block"} & {t.type for t in tokens}
    assert not {"html_inline", "image"} & {*inside(tokens)}
    hrefs = [
        t.attrs["href"] for token in tokens for t in token.children or () if t.type == "link_open"
    ]
    assert all(str(href).startswith("https://") for href in hrefs)
    if (out / "genai_config.json").exists():
        json.loads((out / "genai_config.json").read_text())


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_diff_in_markdown_stays_a_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(TINY.replace("title: A model", f"title: {json.dumps(PAYLOADS[name])}"))
    assert main(["diff", str(file), "llama/2/7b", "--format", "markdown"]) == 0
    tokens = MARKDOWN.parse(capsys.readouterr().out)
    assert not {"html_inline", "link_open", "image"} & {*inside(tokens)}
    (row,) = (t for t in tokens if t.type == "inline" and "Llama 2 7B" in t.content)
    assert "html_block" not in {t.type for t in tokens} and row
