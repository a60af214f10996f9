"""A rewritten model means the same: profile, portable and reference agree on any valid spec, however it is fed."""

from __future__ import annotations

from hypothesis import assume, event, given
from hypothesis import strategies as st

from llamagen.analysis.rewrites.rewrite import Export, rewrite
from llamagen.emit.onnx.choices import Choices
from llamagen.verify.witnesses import OnnxWitness
from tests.parity.models import RandomModel
from tests.property.strategies import SpecText, inputs, specs
from tests.property.test_witnesses import MARGIN, agree, examples, least_margin

FUSED_HEADS = (16, 32, 8, 24, 20)
"""Mostly sizes that the fused attention takes, with and without the rotation inside."""

CONTEXT = 16
"""The longest drawn scenario has 10 tokens."""


@examples(60)
@given(text=specs(FUSED_HEADS), data=st.data())
def test_ort_cpu_equals_reference(text: SpecText, data: st.DataObject) -> None:
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    fired = rewrite(model.flat, Export("ort-cpu", "float32")).fired
    for rule in fired:
        event(rule)
    assume(least_margin(model, scenario) > MARGIN)
    witness = OnnxWitness.of_graph(
        model.graph, model.weight, profile="ort-cpu", choices=Choices("all", CONTEXT)
    )
    agree(model, scenario, witness, scenario.logits(model.reference))
