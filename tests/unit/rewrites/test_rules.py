"""Every rule has a case in which it rewrites and one in which it must not; both mean what the model means."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from llamagen.analysis.rewrites import Export, Rewritten, line_of, rewrite, rewrite_rules
from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.initializers import expert_codes, quantization_of
from llamagen.emit.onnx.profile import ORT_CPU
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import scenarios
from llamagen.verify.witnesses import OnnxWitness
from tests.codes import OF_EXPERTS, on_codes
from tests.parity.models import RandomModel
from tests.unit.analysis.models import overlaid, text

RULES = rewrite_rules()
TINY = text(
    "t/base", vocab=32, hidden=32, layers=2, heads=2, kv=2, head_dim=16, ffn=48, positions=64,
    rope="{kind: default, theta: 100.0}",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rules")


def case_of(overlay: str, folder: Path) -> RandomModel:
    return RandomModel(overlaid(overlay, folder, base=TINY))


def codes_of(name: str) -> QuantizeOptions:
    return OF_EXPERTS if RULES[name].row.case.codes == "int4" else NOT_QUANTIZED


def rewritten(model: RandomModel, name: str, dtype: str = "float32") -> Rewritten:
    profile = RULES[name].row.profiles[0]
    return rewrite(
        model.flat,
        Export(profile, dtype, experts=expert_codes(quantization_of(codes_of(name), ORT_CPU))),
    )


@cache
def same_meaning(name: str, overlay: str, folder: Path) -> None:
    codes = codes_of(name)
    model = (
        case_of(overlay, folder) if codes is NOT_QUANTIZED else on_codes(case_of(overlay, folder))
    )
    profile = RULES[name].row.profiles[0]
    options = ExportOptions(profile, logits="all", max_context=64, quantize=codes)
    witness = OnnxWitness.of_graph(model.graph, model.weight, options)
    for scenario in scenarios(model.vocab_size, 6, 3):
        if scenario.shift:  # far positions are a matter of rotations, not of rules
            continue
        reference = scenario.logits(model.reference)
        rounding = difference(scenario.logits(model.rounded), reference)
        found = difference(scenario.logits(witness), reference)
        assert found.within(measured_tolerance("float32", rounding)), (scenario.name, found)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_fires(name: str, folder: Path) -> None:
    overlay = RULES[name].row.case.fires
    found = rewritten(case_of(overlay, folder), name)
    assert found.fired.get(name, 0) > 0, (dict(found.fired), dict(found.stopped))
    same_meaning(name, overlay, folder)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_stopped(name: str, folder: Path) -> None:
    """By a condition that says why; a rule without conditions by another wiring."""
    case = RULES[name].row.case
    found = rewritten(case_of(case.silent, folder), name, case.dtype)
    if RULES[name].row.needs:
        assert found.stopped.get(name), (dict(found.fired), dict(found.stopped))
    else:
        assert name not in found.fired
    if case.dtype == "float32":
        same_meaning(name, case.silent, folder)


def test_webgpu_gets_no_soft_cap(folder: Path) -> None:
    """Its kernel takes one and computes without."""
    capped = rewrite(RandomModel.named("foreign/gemma2").flat, Export("ort-webgpu", "float32"))
    fits = case_of(RULES["grouped-query-attention"].row.case.fires, folder)
    plain = rewrite(fits.flat, Export("ort-webgpu", "float32"))
    assert "the WebGPU kernel passes over a soft cap" in capped.stopped["grouped-query-attention"]
    assert not any(node.op == "GroupQueryAttention" for node in capped.flat.nodes)
    assert any(node.op == "GroupQueryAttention" for node in plain.flat.nodes)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_told_in_full(name: str) -> None:
    row = RULES[name].row
    assert row.title and row.why.strip().endswith(".")
    assert all(not need.reason.endswith(".") for need in row.needs)


def test_the_flat_graph_stays_one(folder: Path) -> None:
    """Every operand is made before it is read, every value once, and every result has a type."""
    for row in (rule.row for rule in RULES.values()):
        flat = rewrite(case_of(row.case.fires, folder).flat, Export("ort-cpu", "float32")).flat
        known = {*flat.inputs, *(slot.past for slot in flat.slots)}
        for node in flat.nodes:
            assert set(filter(None, node.operands)) <= known, node
            assert not set(node.results) & known, node
            assert set(node.results) <= set(flat.types)
            known |= set(node.results)
        assert set(flat.outputs) <= known


@pytest.mark.parametrize("line", ["y = f(x", "y f(x)", "y = f(x) of z", "= f(x)", "y = f(x; a=1"])
def test_what_is_not_a_line_is_refused(line: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        line_of(line)
    assert caught.value.diagnostics[0].code == "LG103"
