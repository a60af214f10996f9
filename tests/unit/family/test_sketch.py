"""A sketch is consistent with what was announced, and nowhere looks like the record of a model."""

from __future__ import annotations

import json

import pytest

from llamagen import api
from llamagen.analysis import cost as costs
from llamagen.analysis.check import lint
from llamagen.analysis.records import LIST_COLUMNS
from llamagen.analysis.show import card_text, sections
from llamagen.analysis.sources import matches, source_of, uncertain
from llamagen.spec.registry import Registry, is_sketch

REGISTRY = Registry()
ID = "sketch/llama-4-behemoth"
SKETCHES = [i for i in REGISTRY.ids(sketches=True) if is_sketch(i)]
ASSUMED = ("hyperparameters", "patterns", "constants", "tokenizer")


def test_the_totals_are_those_announced() -> None:
    report = api.cost(ID)
    assert abs(report.parameters.total / 2e12 - 1) < 0.02
    assert abs(report.parameters.active / 288e9 - 1) < 0.03
    assert abs(report.parameters.active_without_embedding / 288e9 - 1) < 0.02
    assert REGISTRY.load(ID).spec.hyperparameters.num_experts == 16


@pytest.mark.parametrize("spec_id", SKETCHES)
def test_no_value_is_stated_as_a_fact(spec_id: str) -> None:
    resolved = REGISTRY.load(spec_id)
    release = resolved.spec.release
    assert release is not None and release.status == "sketch"
    assert not (release.repo or release.licence or release.published_parameters or release.date)
    assert resolved.spec.training is None
    doubts = [doubt.path for doubt in uncertain(resolved)]
    for path, leaf in resolved.leaves:
        if path.startswith(ASSUMED) and leaf.origins[-1].text != "null":
            assert any(matches(doubt, path) for doubt in doubts), path
            if leaf.origins[-1].spec_id != spec_id:
                continue  # of the model it starts from, with that one's source, and marked above
            announced = path.startswith("constants.announced_") or path.endswith(".num_experts")
            assert source_of(resolved, path) == ("l4blog" if announced else "assumed"), path
    assert not lint(resolved)


def test_a_fact_in_a_sketch_is_a_finding() -> None:
    bare = "spec: 1\nid: mine/model\nextends: llama/4/scout\nrelease: {status: sketch}\n"
    found = [d.message for d in lint(REGISTRY.load_text(bare)) if d.code == "LG515"]
    assert "`hyperparameters.hidden_size` of a sketch is not marked as uncertain" in found


def test_what_goes_over_the_family_leaves_sketches_out() -> None:
    assert SKETCHES == [ID]
    assert ID not in REGISTRY.ids() and ID not in REGISTRY.ids(abstract=False)
    assert ID not in {row.id for row in api.list_models()}
    assert ID not in {row[0] for row in api.query("true", select=("id",)).rows}
    assert ID not in str(api.sql("select id from models").rows)
    (row,) = api.list_models(status="sketch")
    assert row.id == ID
    shown = dict(zip(LIST_COLUMNS, row.shown(), strict=False))
    assert all(str(shown[name]).endswith(" ?") for name in ("status", "parameters", "active"))
    assert all(str(shown[name]).endswith(" ?") for name in ("layers", "hidden", "attention"))


def test_numbers_say_that_they_are_assumed() -> None:
    report = api.cost(ID)
    assert costs.text(report).split("\n")[1].startswith("a sketch: every dimension is assumed")
    assert json.loads(costs.json_text(report))["sketch"] is True
    assert "sketch" not in costs.text(api.cost("llama/4/scout"))
    page = {section.title: section.rows for section in sections(REGISTRY.load(ID))}
    assert all(text.endswith("(assumed)") for _, text in page["size"])
    assert all(text.endswith("(uncertain)") for _, text in page["hyperparameters"])
    assert "Not a record of a model" in card_text(REGISTRY.load(ID))
    assert "uncertain: assumed" in api.explain(ID, "hyperparameters.num_layers")


def test_behemoth_itself_stays_what_was_announced() -> None:
    spec = REGISTRY.load("llama/4/behemoth").spec
    assert spec.root is None and not spec.blocks
    assert not spec.hyperparameters.model_dump(exclude_none=True, exclude_defaults=True)
