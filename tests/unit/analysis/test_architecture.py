"""Saved numbers of graphs: used where they are of this very architecture, never for another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamagen.analysis import records
from llamagen.analysis.records import Architecture, architecture_of, records_of
from llamagen.analysis.sql import sql
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec

EDITED = "spec: 1\nid: edited\nextends: llama/3.2/1b\nhyperparameters: {num_layers: 15}\n"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the specs whose graphs were built."""
    found: list[str] = []
    original: Callable[[ResolvedSpec], Architecture] = records.measure

    def spy(resolved: ResolvedSpec) -> Architecture:
        found.append(resolved.spec.id)
        return original(resolved)

    monkeypatch.setattr(records, "measure", spy)
    monkeypatch.setattr(records, "_known", {})
    return found


def test_no_question_about_the_shipped_family_builds_a_graph(measured: list[str]) -> None:
    family = records_of(Registry())
    for table in ("models", "layers", "parameters"):
        assert sql(family, f"SELECT * FROM {table}").rows
    assert measured == []


def test_an_edited_spec_is_measured(measured: list[str]) -> None:
    registry = Registry()
    shipped, edited = registry.load("llama/3.2/1b"), registry.load_text(EDITED, "edited.yaml")
    whole, less = architecture_of(shipped), architecture_of(edited)
    assert measured == ["edited"]
    assert whole is not None
    assert less is not None
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048
    assert (whole.totals["params"] or 0) - (less.totals["params"] or 0) == layer
    assert len(less.cache.layers) == 15


def test_models_of_one_architecture_are_measured_once(measured: list[str]) -> None:
    for name in "ab":
        text = EDITED.replace("id: edited", f"id: {name}")
        architecture_of(Registry().load_text(text, f"{name}.yaml"))
    assert measured == ["a"]
