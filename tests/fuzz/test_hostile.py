"""Specs written to do harm are shown as the plain text that they are; what is refused: tests/hardness."""

from __future__ import annotations

import ast
import json
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llamagen.analysis.diff.judge import diff
from llamagen.analysis.diff.render import html_page
from llamagen.analysis.pictures import explorer_json, mermaid, tower, tower_svg, tower_text
from llamagen.analysis.targets import built
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.torch import emit_torch
from llamagen.ir.elaborate import build
from llamagen.ir.graph import Graph
from llamagen.ir.text import render
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from tests.fuzz.hostile import MARK, PAYLOADS, TINY, TOGETHER
from tests.graph_text import parse


def resolved(text: str) -> ResolvedSpec:
    return Registry().load_text(text)


def changed(before: str, after: str, text: str = TINY) -> str:
    assert text.count(before) == 1, before
    return text.replace(before, after)


PLACES = {
    "title": ("title: A model", "title: {}"),
    "doc": ("doc: A doc.", "doc: {}"),
    "doc of a block": ("doc: A layer.", "doc: {}"),
    "option": ("options: {kind: plain}", "options: {{kind: {}}}"),
    "pattern": ("kinds: {cycle: [plain, other]}", "kinds: {{cycle: [plain, {}]}}"),
    "hyperparameter": ("norm_eps: 1.0e-6", "norm_eps: 1.0e-6\n  hidden_act: {}"),
}


IN_THE_GRAPH = ("doc of a block", "option", "pattern")


def hostile(place: str, payload: str) -> str:
    before, after = PLACES[place]
    return changed(before, after.format(json.dumps(payload)))


def python_shape(source: str) -> list[type[ast.AST]]:
    return [type(n) for n in ast.walk(ast.parse(source))]


def onnx_operators(graph: Graph) -> list[str]:
    return [node.op_type for node in emit_onnx(graph).model.graph]


def lines(text: str) -> int:
    return len(text.splitlines())


SHAPES = {"svg", "title", "rect", "g", "text", "path", "polygon"}


def assert_only_shapes(svg: str) -> None:
    for element in ElementTree.fromstring(svg).iter():
        assert element.tag.rpartition("}")[2] in SHAPES
        assert not any(name.startswith("on") or "href" in name for name in element.attrib)


class Page(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@cache
def harmless(place: str) -> Graph:
    return build(resolved(hostile(place, "harmless")))


CASES = [(place, name) for place in IN_THE_GRAPH for name in PAYLOADS]


@pytest.mark.parametrize(("place", "name"), CASES)
def test_a_text_stays_a_text(place: str, name: str) -> None:
    """What is made of a hostile spec has the form of what is made of a harmless one."""
    same_form(build(resolved(hostile(place, PAYLOADS[name]))), harmless(place))


@pytest.mark.parametrize("place", PLACES)
def test_many_texts_stay_texts(place: str) -> None:
    same_form(build(resolved(hostile(place, TOGETHER))), harmless(place))


def same_form(graph: Graph, harmless: Graph) -> None:
    assert render(parse(render(graph))) == render(graph)
    assert lines(render(graph)) == lines(render(harmless))
    assert python_shape(emit_torch(graph)) == python_shape(emit_torch(harmless))
    assert onnx_operators(graph) == onnx_operators(harmless)
    assert lines(mermaid(graph)) == lines(mermaid(harmless))
    assert lines(tower_text(tower(graph))) == lines(tower_text(tower(harmless)))
    assert_only_shapes(tower_svg([tower(graph)]))
    json.loads(explorer_json({"model": graph}, {"B": 1, "S": 2, "P": 3}))


@pytest.mark.parametrize("place", PLACES)
def test_a_page_shows_a_text(place: str) -> None:
    specs = [resolved(hostile(place, text)) for text in ("harmless", TOGETHER)]
    before, after = (built(spec) for spec in specs)
    page = Page(html_page(diff(before, after)))
    assert page.tags <= PAGE_TAGS
    assert page.attributes <= {"class", "lang", "charset", "title"}


PAGE_TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "table", "tr", "th", "td", "code",
    "ul", "li",
}  # fmt: skip

COMMANDS = (
    ["show", "FILE"],
    ["check", "FILE"],
    ["resolve", "FILE", "--origins"],
    ["graph", "FILE"],
    [
        "generate",
        "FILE",
        "--to",
        "OUT",
        *["--target", "text", "--target", "torch", "--target", "onnx"],
    ],
)


@pytest.mark.parametrize("place", PLACES)
def test_commands_take_hostile_texts(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command fails on one, and nothing is written outside of the folder of the model."""
    file, out = tmp_path / "m.yaml", tmp_path / "out"
    for payload in (PAYLOADS["end of a docstring"], TOGETHER):
        file.write_text(hostile(place, payload))
        for command in COMMANDS:
            words = [{"FILE": str(file), "OUT": str(out)}.get(word, word) for word in command]
            assert main(words) in (0, 1), (command, capsys.readouterr().err)
    written = {p for p in tmp_path.rglob("*") if p.is_file()} - {file}
    assert written
    assert {p.parent for p in written} == {out / "hostile" / "model"}
    for path in written:
        if path.suffix == ".py":
            assert MARK not in code_of(path.read_text())


def code_of(source: str) -> str:
    """The identifiers of a module that are not classes: where no text of a spec may be."""
    names = [n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
    return " ".join(n for n in names if not n[0].isupper())


def test_hostile_names_of_files(tmp_path: Path) -> None:
    """An id that is a path is looked up below the roots only."""
    (tmp_path / "secret.yaml").write_text(TINY)
    root = tmp_path / "specs"
    root.mkdir()
    known = Registry((root,))
    for name in ("../secret", f"{tmp_path}/secret", "x/../../secret", "\0", "x" * 5000, "..", ""):
        with pytest.raises(LlamagenError, match="LG201"):
            known.load(name)
    (root / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(LlamagenError, match="LG201"):
        known.load("link")
