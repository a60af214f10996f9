"""generated/reports/ tells of the models, inputs and rules of now; what was measured is within its tolerance."""

from __future__ import annotations

import json

import pytest

from llamagen.api import load
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import MAIN
from llamagen.verify.report import ReportDocument, document, html_text, json_text
from llamagen.verify.scenarios import scenarios
from tests.alarms import FILE as ALARMS
from tests.field.__main__ import FILE as FIELD
from tests.graph_mutants import FILE as MUTANTS
from tests.reports import REPORTS, SPECS, STEPS, TOKENS, names, verified

FIX = "run `python -m tests.reports`"
MEASURED = ("max_over_std", "rms_over_std")


def committed(name: str) -> ReportDocument:
    return ReportDocument.model_validate_json((REPORTS / f"{name}.json").read_text())


def test_every_reduced_model_has_its_report_and_nothing_else_is_there() -> None:
    wanted = {f"{name}{suffix}" for name in names() for suffix in (".json", ".html")}
    wanted |= {ALARMS.name, FIELD.name, MUTANTS.name}
    assert {path.name for path in REPORTS.iterdir()} == wanted, FIX
    generations = {load(SPECS / f"{name}.yaml").spec.extends for name in names()}
    found = {"/".join((one or "").split("/")[:2]) for one in generations}
    assert found >= {f"llama/{n}" for n in ("1", "2", "3", "3.1", "3.2", "4")}


@pytest.mark.parametrize("name", names())
def test_a_report_is_about_the_model_of_now(name: str) -> None:
    found, model = committed(name), load(SPECS / f"{name}.yaml")
    assert json_text(found) == (REPORTS / f"{name}.json").read_text(), FIX
    assert html_text(found) == (REPORTS / f"{name}.html").read_text(), FIX
    assert (found.model, found.spec_digest) == (model.id, model.graph.digest), FIX
    assert (found.parameters, found.seed) == (model.parameter_count, TOKENS), FIX
    flat = flatten(model.graph)
    cases = scenarios(flat.types[flat.outputs[0]].shape[-1].value, 12, STEPS, TOKENS)
    assert [c.name for c in found.cases][: len(cases)] == [c.name for c in cases], FIX
    assert found.cases[4].calls == cases[4].splits, FIX
    assert {one.path for one in flat.layers} == {
        layer.path for one in found.layers for layer in one.layers if layer.graph == MAIN
    }, FIX


@pytest.mark.parametrize("name", names())
def test_a_report_is_good_news(name: str) -> None:
    """Every witness, every case; whatever was not compared says why."""
    found = committed(name)
    assert found.passed and {c.witness for c in found.comparisons} == {
        *("spec", "reference", "torch", "transformers")
    }
    for one in found.comparisons:
        assert one.verdict == "equal" or (one.verdict == "skipped" and one.note), one
    for layers in found.layers:
        assert all(row.onnx and row.torch for row in layers.layers)
    assert {limit.proof for limit in found.limits} <= {"run"}, "lengths at which a model changes"


def unmeasured(found: ReportDocument) -> object:
    """Without what this machine and its packages decide."""

    def without(value: object) -> object:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in (*MEASURED, "versions")}
        return [without(v) for v in value] if isinstance(value, list) else value

    return without(json.loads(json_text(found)))


@pytest.mark.parametrize(
    "name", [n if n == "llama-3.2-1b" else pytest.param(n, marks=pytest.mark.slow) for n in names()]
)
def test_verifying_again_tells_the_same(name: str) -> None:
    """All but the digits; those stay within a factor of four, or far below every tolerance."""
    before, now = committed(name), document(verified(name))
    assert unmeasured(now) == unmeasured(before), FIX
    for one, other in zip(before.comparisons, now.comparisons, strict=True):
        if one.error is not None and other.error is not None:
            low, high = sorted((one.error.rms_over_std, other.error.rms_over_std))
            assert high < 4 * max(low, 1e-7), (one, other)
