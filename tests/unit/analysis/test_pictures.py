"""Towers, SVG and Model Explorer: folding, escaping, totals."""

from __future__ import annotations

import json
import re
import sys
from io import BytesIO
from xml.etree import ElementTree

import pytest
from PIL import Image

import llamagen
from llamagen.analysis.diff.equations import equations
from llamagen.analysis.diff.judge import Verdict, diff
from llamagen.analysis.numbers import cache_of
from llamagen.analysis.pictures import (
    Box,
    cache_curve,
    cache_plot,
    changed_paths,
    diff_svg,
    explorer_json,
    mermaid,
    runs,
    tower,
    tower_svg,
    tower_text,
)
from llamagen.analysis.targets import built
from llamagen.cli import main
from tests.unit.analysis import models

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("aaaa", [(0, ("a",), 4)]),
        ("aaabaaab", [(0, tuple("aaab"), 2)]),
        ("aab", [(0, ("a",), 2), (2, ("b",), 1)]),
        ("a", [(0, ("a",), 1)]),
    ],
)
def test_runs(names: str, found: list[tuple[int, tuple[str, ...], int]]) -> None:
    assert list(runs(list(names))) == found


def test_tower_folds_layers() -> None:
    shown = tower_text(tower(models.graph(models.LLAMA_3_8B)))
    assert "layers: DecoderLayer ×32  218.11 M" in shown
    assert "q_proj  linear 4096×4096  16.78 M" in shown
    assert shown.count("down_proj(") == 1


def test_tower_folds_patterns() -> None:
    shown = tower_text(tower(models.graph(models.SCOUT)))
    assert "layers: 4 layers in turn ×12" in shown
    assert "layers: DecoderLayer(kind=chunked) ×3" in shown


@pytest.mark.parametrize("source", [models.LLAMA_2_7B, models.LLAMA_32_1B, models.SCOUT])
def test_a_tower_holds_every_parameter(source: str) -> None:
    from llamagen.analysis.numbers import count_parameters

    graph = models.graph(source)
    assert tower(graph).parameters == count_parameters({"model": graph}).total


def test_equations_read_as_written() -> None:
    graph = models.graph(models.LLAMA_3_8B)
    lines = [e.text for e in equations(graph, graph.blocks["DecoderLayer"])]
    assert lines == [
        "h = x + self_attn(input_layernorm(x))",
        "return h + mlp(post_attention_layernorm(h))",
    ]


def test_svg_escapes_text() -> None:
    hostile = Box("a", '</text><script>x&"', ('<b attr="1">',), 0, 1, ())
    svg = tower_svg([hostile])
    assert "<script" not in svg
    assert texts(svg) == ['</text><script>x&"', '<b attr="1">']


def test_diff_svg_colours_what_changed() -> None:
    a, b = (built(models.spec(s)) for s in (models.LLAMA_2_7B, models.LLAMA_3_8B))
    marks = changed_paths(diff(a, b))
    assert marks["model.layers.*.self_attn.k_proj"] is Verdict.BREAKING
    assert marks["lm_head"] is Verdict.CONVERTIBLE
    assert "model.layers.*.self_attn.q_proj" not in marks
    page = ElementTree.fromstring(
        diff_svg(
            [tower(models.graph(models.LLAMA_2_7B))],
            [tower(models.graph(models.LLAMA_3_8B))],
            marks,
        )
    )
    fills = {g.get("data-path"): g[0].get("fill") for g in page.iter(f"{SVG}g")}
    assert fills["model.layers.*.self_attn.k_proj"] == "#f6c9cd"
    assert fills["model.layers.*.self_attn.q_proj"] not in ("#f6c9cd", "#f7e3b5")


def test_plot_bends_where_layers_are_local() -> None:
    curve = dict(cache_curve("scout", cache_of(models.graph(models.SCOUT))).points)
    assert curve[4096] == 2 * curve[2048]
    assert curve[131072] < 16 * curve[8192] / 2
    caches = [cache_of(models.graph(m)) for m in (models.LLAMA_3_8B, models.SCOUT)]
    svg = cache_plot(zip("ab", caches, strict=True))
    assert {"a", "b", "context (tokens)", "128K"} <= set(texts(svg))
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}polyline"))) == 2


def test_explorer_has_every_node_and_number() -> None:
    graph = models.graph(models.TINY)
    sizes = {"B": 1, "S": 1, "P": 3}
    document = json.loads(explorer_json({"model": graph}, sizes))
    nodes = document["graphs"][0]["nodes"]
    ids = {n["id"] for n in nodes}
    assert len(ids) == len(nodes)
    made = {(n["id"], r["id"]): r["attrs"][0] for n in nodes for r in n["outputsMetadata"]}
    edges = [e for n in nodes for e in n["incomingEdges"]]
    assert all((e["sourceNodeId"], e["sourceNodeOutputId"]) in made for e in edges)
    assert any(e["sourceNodeOutputId"] == "1" for e in edges), "values of a cache"
    by_label = {n["label"]: n for n in nodes}
    assert by_label["lm_head"]["namespace"] == ""
    assert by_label["embed_tokens"]["namespace"] == "model"
    logits = made[by_label["logits"]["incomingEdges"][0]["sourceNodeId"], "0"]
    assert logits["key"] == "shape"
    assert logits["value"].startswith("model[B, S, ")
    data = [{a["key"]: a["value"] for a in n["attrs"]} for n in nodes]
    from llamagen.analysis.numbers import count_flops, count_parameters, flops_of

    total = count_parameters({"model": graph}).total
    assert sum(int(d.get("parameters", 0)) for d in data) == total
    flops = count_flops(flops_of(graph), 1, 1, 3).total
    assert sum(int(d.get("flops", 0)) for d in data) == flops
    cached = cache_of(graph).per_token(1) * 4
    assert sum(int(d.get("cache_values", 0)) for d in data) == cached


def test_mermaid_folds_layers_in_turn() -> None:
    label = next(
        line for line in mermaid(models.graph(models.SCOUT)).splitlines() if "layers:" in line
    )
    assert label.count(" x ") == 3
    assert "12 x (3 x " in label


@pytest.mark.parametrize(
    "line",
    [
        "graph llama/3.2/1b --as png",
        "plot llama/3.2/1b --format png",
        "diff llama/3/8b llama/3.1/8b --format png",
    ],
)
def test_a_png_without_what_draws_it_says_what_to_install(
    line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(line.split()) == 2
    said = capfd.readouterr()
    assert not said.out
    assert "llamagen[png]" in said.err


def test_a_png_is_the_svg_drawn(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Twice as many pixels as the SVG has units, in several colours."""
    assert main(["plot", "llama/3.2/1b", "--format", "png"]) == 0
    drawn = Image.open(BytesIO(capfdbinary.readouterr().out))
    svg = llamagen.plot(["llama/3.2/1b"])
    size = re.search(r'<svg [^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None and drawn.format == "PNG"
    assert all(abs(a - 2 * float(b)) < 1 for a, b in zip(drawn.size, size.groups(), strict=True))
    assert len(drawn.convert("RGB").getcolors(1 << 20) or ()) > 20
