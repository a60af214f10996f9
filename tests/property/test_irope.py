"""Any Llama 4: three witnesses agree over the borders of chunks, with caches whole and bounded to the chunk."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from llamagen.ir.bounded import bound_caches, keeps
from llamagen.ir.flatten import flatten
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness
from tests.parity.models import RandomModel
from tests.property.irope import Irope, irope_specs, over_chunks
from tests.property.strategies import SpecText, inputs, specs
from tests.property.test_witnesses import MARGIN, agree, examples, least_margin, same

BACKENDS: dict[str, Any] = {"onnx": OnnxWitness.of_graph, "torch": TorchWitness.of_graph}


@pytest.mark.parametrize("backend", BACKENDS)
@examples(10)
@given(drawn=irope_specs(), data=st.data())
def test_llama_4_agrees(backend: str, drawn: Irope, data: st.DataObject) -> None:
    model = RandomModel.of_text(drawn.text)
    scenario = data.draw(over_chunks(drawn))
    assume(least_margin(model, scenario) > MARGIN)
    bounded = bound_caches(model.graph)
    graph = data.draw(st.sampled_from((model.graph, bounded)))
    event(f"chunked layers: {len(keeps(bounded))}, bounded: {graph is not model.graph}")
    reference = scenario.logits(model.reference)
    agree(model, scenario, BACKENDS[backend](graph, model.weight), reference)


@examples(20)
@given(drawn=irope_specs(), data=st.data())
def test_bounding_a_llama_4_changes_nothing(drawn: Irope, data: st.DataObject) -> None:
    model = RandomModel.of_text(drawn.text)
    scenario = data.draw(over_chunks(drawn))
    bounded = ReferenceWitness(flatten(bound_caches(model.graph)), model.weight)
    same(scenario.logits(bounded), scenario.logits(model.reference))


@examples(20)
@given(text=specs(), data=st.data())
def test_bounding_changes_nothing(text: SpecText, data: st.DataObject) -> None:
    """Of any decoder: windows, chunks, layers that share a slot's mask, whole slots between bounded ones."""
    assume("sliding" in text or "chunked" in text)
    model = RandomModel.of_text(text)
    graph = bound_caches(model.graph)
    assume(keeps(graph))
    scenario = data.draw(inputs(model.vocab_size))
    event(f"bounds {len(keeps(graph))}")
    bounded = ReferenceWitness(flatten(graph), model.weight)
    same(scenario.logits(bounded), scenario.logits(model.reference))


@pytest.mark.parametrize("backend", BACKENDS)
@examples(6)
@given(text=specs(), data=st.data())
def test_backends_agree_on_bounded_caches(
    backend: str, text: SpecText, data: st.DataObject
) -> None:
    assume("sliding" in text or "chunked" in text)
    model = RandomModel.of_text(text)
    graph = bound_caches(model.graph)
    assume(keeps(graph))
    scenario = data.draw(inputs(model.vocab_size))
    assume(least_margin(model, scenario) > MARGIN)
    reference = scenario.logits(model.reference)
    agree(model, scenario, BACKENDS[backend](graph, model.weight), reference)
