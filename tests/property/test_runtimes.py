"""Any valid spec, for any runtime and profile that an export can be made for, opens and means the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.onnx.profile import runtime_versions
from llamagen.emit.options import ExportOptions
from llamagen.verify.scenarios import Scenario
from llamagen.verify.witnesses import OnnxWitness
from tests.parity.models import RandomModel
from tests.property.strategies import SpecText, inputs, specs
from tests.property.test_profiles import (
    CONTEXT,
    FUSED_HEADS,
    FUSED_KINDS,
    scattered,
    without_alibi,
)
from tests.property.test_witnesses import MARGIN, agree, examples, least_margin

PROFILES = ("ort-cpu", "ort-cuda", "ort-webgpu", "portable")
"""Those for GPUs are run on the CPU here; whether their kernels are there is asked in tests/field."""
RUNTIMES = tuple(runtime_versions().runtimes)
LENGTHS = 17
"""The input of GroupQueryAttention, counted from one, that onnxruntime has from 1.32 on."""


def in_contract(scenario: Scenario, batched_chunks: bool) -> Scenario:
    """Before 1.32 a call with a past is of one row, or of one token a row."""
    if batched_chunks or not scenario.in_chunks:
        return scenario
    first, *rest = scenario.splits
    return replace(scenario, splits=(first, *(1,) * sum(rest)))


def opens_and_is_equal(text: SpecText, data: st.DataObject) -> None:
    profile, runtime = data.draw(st.sampled_from(PROFILES)), data.draw(st.sampled_from(RUNTIMES))
    model = RandomModel.of_text(without_alibi(text))
    options = ExportOptions(profile, logits="all", max_context=CONTEXT, runtime=runtime)
    emitted = emit_onnx(model.graph, options)
    fused = [n for n in emitted.model.graph if n.op_type == "GroupQueryAttention"]
    event(f"{profile} {runtime}, fused attention: {bool(fused)}")
    new = any(len(node.inputs) >= LENGTHS for node in fused)
    assert not new or (runtime == "1.32" and profile != "ort-webgpu")
    assert emitted.batched_chunks or fused
    drawn = data.draw(st.one_of(inputs(model.vocab_size), scattered(model.vocab_size)))
    scenario = in_contract(drawn, emitted.batched_chunks)
    assume(least_margin(model, scenario) > MARGIN)
    witness = OnnxWitness.of_graph(model.graph, model.weight, options)
    # windows of the fused attention count tokens, not padding between them: a row alone has none
    rows = scenario.alone() if fused else (scenario,)
    agree(model, scenario, witness, np.concatenate([row.logits(model.reference) for row in rows]))


@examples(40)
@given(text=specs(FUSED_HEADS, FUSED_KINDS), data=st.data())
def test_any_spec_for_any_runtime(text: SpecText, data: st.DataObject) -> None:
    opens_and_is_equal(text, data)


@pytest.mark.slow
@examples(400)
@given(text=specs(FUSED_HEADS), data=st.data())
def test_many_specs_for_any_runtime(text: SpecText, data: st.DataObject) -> None:
    """Chunks too."""
    opens_and_is_equal(text, data)
