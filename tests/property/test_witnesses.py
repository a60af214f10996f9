"""PyTorch, ONNX Runtime and the float64 reference agree on any valid spec and any way of feeding it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from llamagen.ir.reference import evaluate
from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import FloatArray, Scenario, Witness
from tests.parity.models import RandomModel
from tests.property.strategies import MIXERS, SpecText, inputs, specs


def examples(count: int) -> settings:
    """The same examples in every run: a suite must not fail by chance; fuzzing is a run of its own."""
    return settings(
        max_examples=count,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


MARGIN = 1e-4
"""Two experts whose scores are closer may change places in float32: not an error of a backend."""


def least_margin(model: RandomModel, scenario: Scenario) -> float:
    """Smallest distance between the last chosen and the first refused expert's score."""
    values: Mapping[str, Any] = evaluate(
        model.flat, model.weight, scenario.input_ids, scenario.mask, keep_values=True
    ).values
    least = np.inf
    for node in model.flat.nodes:
        if node.op == "topk":
            ordered = np.sort(values[node.operands[0]], axis=-1)[..., ::-1]
            k = node.attrs["k"]
            assert isinstance(k, int)
            if k < ordered.shape[-1]:
                least = min(least, float((ordered[..., k - 1] - ordered[..., k]).min()))
    return least


def agree(model: RandomModel, scenario: Scenario, witness: Witness, reference: FloatArray) -> None:
    reference = scenario.ending(reference)
    rounding = difference(scenario.ending(scenario.logits(model.rounded)), reference)
    assume(rounding.max_over_std < 1e-3)
    tolerance = measured_tolerance("float32", rounding)
    # one token's few logits measure no largest error: that of a hundred is three times their rms
    largest = max(tolerance.max_over_std or 0.0, 3 * tolerance.rms_over_std)
    tolerance = replace(tolerance, max_over_std=largest)
    found = difference(scenario.given(witness), reference)
    assert found.within(tolerance), (
        witness.name,
        found.max_over_std,
        found.rms_over_std,
        tolerance,
    )


def same(a: FloatArray, b: FloatArray) -> None:
    """Equal but for the rounding of float64, however a sum is cut."""
    assert difference(a, b).max_over_std < 1e-9


@examples(25)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_onnx_equals_reference(text: SpecText, data: st.DataObject) -> None:
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    assume(least_margin(model, scenario) > MARGIN)
    reference = scenario.logits(model.reference)
    agree(model, scenario, model.onnx, reference)


@examples(25)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_torch_equals_reference(text: SpecText, data: st.DataObject) -> None:
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    assume(least_margin(model, scenario) > MARGIN)
    reference = scenario.logits(model.reference)
    agree(model, scenario, model.torch, reference)


@examples(15)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_padding_behind_a_prompt(text: SpecText, data: st.DataObject) -> None:
    """What right padding means: not seen, no position, and its slot counts for windows, as it does everywhere."""
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size, right=True))
    assume(least_margin(model, scenario) > MARGIN)
    reference = scenario.logits(model.reference)
    agree(model, scenario, model.onnx, reference)
    agree(model, scenario, model.torch, reference)
    whole = scenario.cut("whole", [scenario.input_ids.shape[1]])
    same(reference, whole.logits(model.reference))


@examples(30)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_steps_equal_one_call(text: SpecText, data: st.DataObject) -> None:
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    event(f"{len(scenario.splits)} calls")
    whole = scenario.cut("whole", [scenario.input_ids.shape[1]])
    same(scenario.logits(model.reference), whole.logits(model.reference))


@examples(20)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_a_row_alone_equals_the_row_in_a_padded_batch(text: SpecText, data: st.DataObject) -> None:
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    together = scenario.logits(model.reference)
    alone = []
    for ids, mask in zip(scenario.input_ids, scenario.mask, strict=True):
        real = ids[mask > 0][None]
        row = Scenario("alone", real, np.ones_like(real), (real.shape[1],))
        alone.append(row.logits(model.reference))
    same(together, np.concatenate(alone))


@examples(15)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_rows_do_not_see_each_other(text: SpecText, data: st.DataObject) -> None:
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    order = data.draw(st.permutations(range(len(scenario.input_ids))))
    moved = Scenario("moved", scenario.input_ids[order], scenario.mask[order], scenario.splits)
    ends = np.cumsum(scenario.mask.sum(axis=1))[:-1]
    rows = np.split(scenario.logits(model.reference), ends)
    same(moved.logits(model.reference), np.concatenate([rows[i] for i in order]))


@examples(15)
@given(text=specs(kinds=MIXERS), data=st.data())
def test_positions_are_relative(text: SpecText, data: st.DataObject) -> None:
    """Shifting all positions changes nothing where they are used by rotations only.

    A gain after the rotation weighs the two sides of a pair differently, so it sees the angle.
    """
    assume("attention_temperature(" not in text and "one_hot(positions" not in text)
    assume(text.find("q = q_norm(q)") < text.find("rope(q, positions"))
    model = RandomModel.of_text(text)
    scenario = data.draw(inputs(model.vocab_size))
    shifted = Scenario(
        "shifted",
        scenario.input_ids,
        scenario.mask,
        scenario.splits,
        shift=data.draw(st.integers(1, 500)),
    )
    same(shifted.logits(model.reference), scenario.logits(model.reference))
