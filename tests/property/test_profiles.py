"""A rewritten model means the same: profile, portable and reference agree on any valid spec, however it is fed."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from hypothesis import assume, event, given
from hypothesis import strategies as st

from llamagen.analysis.rewrites import Export, rewrite
from llamagen.emit.onnx.initializers import expert_codes, quantization_of
from llamagen.emit.onnx.profile import ORT_CPU
from llamagen.emit.options import ExportOptions
from llamagen.verify.scenarios import Scenario
from llamagen.verify.witnesses import OnnxWitness
from tests.codes import INT4, OF_EXPERTS, on_codes
from tests.parity.models import RandomModel
from tests.property.strategies import KINDS, STATES, SpecText, inputs, specs
from tests.property.test_witnesses import MARGIN, agree, examples, least_margin

FUSED_HEADS = (16, 32, 8, 24, 20)
"""Mostly sizes that the fused attention takes, with and without the rotation inside."""

FUSED_KINDS = tuple(kind for kind in KINDS if kind != "chunked")

CONTEXT = 16
"""The longest drawn scenario has 10 tokens."""


def without_alibi(text: str) -> str:
    """Half of the drawn specs have it, and it stops the fused attention."""
    return text.replace(", alibi=true", "")


def with_codes(text: str, width: int) -> str:
    """Experts of ``width`` features of silu, and a hidden size of whole blocks of 16: what the fused kernel takes."""
    wide = re.sub(r"expert_intermediate_size: \d+", f"expert_intermediate_size: {width}", text)
    silu = re.sub(r"hidden_act: \w+", "hidden_act: silu", wide)
    return re.sub(r"hidden_size: \d+", "hidden_size: 32", silu)


def compare(
    text: SpecText,
    scenario: Scenario,
    *,
    last: bool = False,
    alone: bool = False,
    runtime: str = "1.32",
) -> None:
    model = RandomModel.of_text(without_alibi(text))
    for rule in rewrite(model.flat, Export("ort-cpu", "float32")).fired:
        event(rule)
    assume(least_margin(model, scenario) > MARGIN)
    logits = "last" if last else "all"
    options = ExportOptions("ort-cpu", logits=logits, max_context=CONTEXT, runtime=runtime)
    witness = OnnxWitness.of_graph(model.graph, model.weight, options)
    scenario = replace(scenario, last=last)
    rows = scenario.alone() if alone else (scenario,)
    agree(model, scenario, witness, np.concatenate([row.logits(model.reference) for row in rows]))


@examples(40)
@given(
    text=specs((16, 8), ("full", "nope", "sliding", *STATES)),
    profile=st.sampled_from(("portable", "ort-cpu")),
    width=st.sampled_from((16, 48, 32, 7, None)),
    data=st.data(),
)
def test_models_of_quantised_experts_equal_the_reference(
    text: SpecText, profile: str, width: int | None, data: st.DataObject
) -> None:
    """Weights that codes of 4 or 8 bits stand for exactly: what differs is the graph."""
    assume("moe" in text.partition("\nroot:")[0])
    encoding = replace(INT4, bits=data.draw(st.sampled_from((4, 4, 8))))
    plain = without_alibi(text)
    drawn = plain if width is None else with_codes(plain, width)
    model = on_codes(RandomModel.of_text(drawn), encoding)
    codes = replace(OF_EXPERTS, experts=f"int{encoding.bits}")
    export = Export("ort-cpu", "float32", experts=expert_codes(quantization_of(codes, ORT_CPU)))
    found = rewrite(model.flat, export)
    event(f"{profile} {encoding.bits} bits: {found.fired.get('quantized-mixture', 0) > 0}")
    for reason in found.stopped.get("quantized-mixture", ()):
        event(reason)
    scenario = data.draw(inputs(model.vocab_size))
    assume(least_margin(model, scenario) > MARGIN)
    options = ExportOptions(profile, logits="all", max_context=CONTEXT, quantize=codes)
    witness = OnnxWitness.of_graph(model.graph, model.weight, options)
    agree(model, scenario, witness, scenario.logits(model.reference))


@st.composite
def scattered(draw: st.DrawFn, vocab_size: int) -> Scenario:
    """Padding anywhere, also behind and between tokens, as clients that pad on the right leave it."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    bits = st.lists(st.booleans(), min_size=length - 1, max_size=length - 1)
    mask = np.array([[*draw(bits), True] for _ in range(batch)], dtype=np.int64)
    cut = draw(st.integers(1, length - 1))
    ids = np.random.default_rng(draw(st.integers(0, 2**16))).integers(0, vocab_size, mask.shape)
    return Scenario("scattered", ids, mask, (cut, length - cut))


@examples(50)
@given(text=specs(FUSED_HEADS, FUSED_KINDS), data=st.data())
def test_fused_models_equal_the_reference(text: SpecText, data: st.DataObject) -> None:
    compare(text, data.draw(inputs(RandomModel.of_text(text).vocab_size)))


@examples(25)
@given(text=specs((16, 24), ("chunked", "full", "nope", "tempered")), data=st.data())
def test_mixed_models_equal_the_reference(text: SpecText, data: st.DataObject) -> None:
    compare(text, data.draw(inputs(RandomModel.of_text(text).vocab_size)))


@examples(25)
@given(text=specs((16,), ("full", "sliding", "nope", "local", "tempered")), data=st.data())
def test_padding_may_stand_anywhere(text: SpecText, data: st.DataObject) -> None:
    """A token sees what it sees in its row alone; windows count tokens, not padding between them."""
    runtime = data.draw(st.sampled_from(("1.27", "1.32")))
    scenario = data.draw(scattered(RandomModel.of_text(text).vocab_size))
    if runtime == "1.27" and scenario.in_chunks:
        first, rest = scenario.splits
        scenario = replace(scenario, splits=(first, *(1,) * rest))
    compare(text, scenario, alone=True, runtime=runtime)


@examples(20)
@given(text=specs((16, 20)), data=st.data())
def test_last_logits_are_those_after_the_last_token(text: SpecText, data: st.DataObject) -> None:
    compare(text, data.draw(inputs(RandomModel.of_text(text).vocab_size)), last=True)
