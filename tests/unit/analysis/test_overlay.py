"""Overlays between files: B exactly or a diagnostic, ready to save; equations and remarks beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen.analysis.diff.equations import equations, keys
from llamagen.analysis.diff.overlay import check, overlay
from llamagen.diagnostics import LlamagenError
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.source import Plain, load_source
from tests.unit.analysis import models

LAYER = "  DecoderLayer:\n"


def with_options(options: str) -> str:
    return models.TINY.replace(LAYER, f"{LAYER}    options: {options}\n")


def files(folder: Path, one: str, two: str) -> tuple[ResolvedSpec, ResolvedSpec]:
    for name, text in (("a.yaml", one), ("b.yaml", two)):
        (folder / name).write_text(text, encoding="utf-8")
    return Registry().load(folder / "a.yaml"), Registry().load(folder / "b.yaml")


def plain(resolved: ResolvedSpec) -> dict[str, Plain]:
    found = resolved.plain
    return {k: v for k, v in found.items() if k != "extends"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (with_options("{kind: full}"), with_options("{rotate: 1}")),
        (with_options("{kind: full, width: 2}"), with_options("{kind: full}")),
        (with_options("{kind: full}"), models.TINY),
        (with_options("{kind: full}"), with_options("{kind: null, width: none}")),
        (
            models.TINY + "patterns: {p: {every: 2, value: a, otherwise: b}}\n",
            models.TINY + "patterns: {p: {cycle: [a]}}\n",
        ),
        (
            models.TINY + "patterns: {p: {default: a, at: {b: [0], c: [1]}}}\n",
            models.TINY + "patterns: {p: {default: a, at: {b: [0]}}}\n",
        ),
        (
            models.TINY + "constants: {kind: 1, other: 2}\n",
            models.TINY + "constants: {kind: 3, other: 2}\n",
        ),
    ],
)
def test_what_b_lacks_is_taken_back(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "invariants: {used: kind + other > 0}\n" if "constants" in before else ""
    rule = rule or ("invariants: {used: len(p) == num_layers}\n" if "patterns" in before else "")
    a, b = files(tmp_path, before + rule, after + rule)
    monkeypatch.chdir(tmp_path)
    text = overlay(a, b)
    assert "\nextends: a.yaml\n" in text
    assert '"' not in text
    (tmp_path / "saved.yaml").write_text(text, encoding="utf-8")
    assert plain(Registry().load(tmp_path / "saved.yaml")) == plain(b)


def test_an_overlay_that_is_not_b_is_refused(tmp_path: Path) -> None:
    a, b = files(tmp_path, models.TINY, models.TINY.replace("num_layers: 2", "num_layers: 3"))
    wrong = load_source("spec: 1\nid: t/base\nextends: a.yaml\n", "wrong.yaml")
    with pytest.raises(LlamagenError) as caught:
        check(a, wrong, {k: v for k, v in plain(b).items() if k != "spec"})
    (found,) = caught.value.diagnostics
    assert found.code == "LG902"
    assert "hyperparameters.num_layers" in found.message


def test_an_overlay_names_shipped_models_by_id() -> None:
    registry = Registry()
    text = overlay(registry.load("llama/2/7b"), registry.load("llama/2/13b"))
    assert "\nextends: llama/2/7b\n" in text


def test_equations_have_their_static_arguments() -> None:
    graph = models.graph(models.SCOUT)
    lines = [e.text for b in graph.blocks.values() for e in equations(graph, b)]
    assert "scores, chosen = topk(router(x), k=1)" in lines
    assert "q = split_heads(q_proj(x), num_heads)" in lines
    assert any("causal_mask(chunk=8192)" in line for line in lines)
    assert any("theta=500000.0, layout=interleaved" in line for line in lines)
    bare = [line for b in graph.blocks.values() for line in keys(graph, b, {})]
    assert not any("k=1" in line for line in bare)
