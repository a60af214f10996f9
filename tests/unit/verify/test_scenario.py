"""What is fed: the same tokens in other calls and orders, padding where it belongs, positions far apart."""

from __future__ import annotations

import numpy as np
import pytest

from llamagen.api import load
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.flatten import flatten, known_ids
from llamagen.ir.pipeline import pipeline_of
from llamagen.spec.registry import Registry
from llamagen.verify.limits import limit_scenarios
from llamagen.verify.scenarios import FAR, Scenario, image_scenarios, scenarios
from tests.parity.models import SPECS

CASES = {case.name: case for case in scenarios(50, 12, 5, seed=3)}


def test_seeds_are_the_inputs() -> None:
    again, other = scenarios(50, 12, 5, seed=3), scenarios(50, 12, 5, seed=4)
    for case, same, different in zip(CASES.values(), again, other, strict=True):
        assert np.array_equal(case.input_ids, same.input_ids) and case.splits == same.splits
        assert not np.array_equal(case.input_ids, different.input_ids)


def test_padding_is_on_either_side_of_the_prompt() -> None:
    left, right = CASES["left padding"].mask, CASES["right padding"].mask
    assert left[:, 12:].all() and right[:, 12:].all()
    assert left.sum() == right.sum()
    for padded, mirrored in zip(left[:, :12], right[:, :12], strict=True):
        assert np.array_equal(padded, mirrored[::-1])
    assert not right[1:, 11].any(), "padding lies between the prompt and the new tokens"
    *_, (_, _, positions, _) = CASES["right padding"].calls()
    assert positions[:, -1].tolist() == (right.sum(axis=1) - 1).tolist()


def test_decode_steps_are_single_tokens() -> None:
    assert CASES["prefill"].splits == (17,)
    for name in ("decode", "left padding", "right padding"):
        assert CASES[name].splits == (12, 1, 1, 1, 1, 1)


def test_halves_are_far_apart() -> None:
    positions = np.concatenate([call[2] for call in CASES["far apart"].calls()], axis=1)
    steps = np.diff(positions[0])
    assert sorted(set(steps.tolist())) == [1, FAR + 1]


def test_a_text_is_cut_anywhere() -> None:
    cut = CASES["cut anywhere"]
    assert cut.same_as == "prefill" and len(cut.splits) == 5 and sum(cut.splits) == 17
    assert len({tuple(scenarios(50, 12, 5, seed=s)[4].splits) for s in range(20)}) > 10


def test_rows_are_moved_with_their_logits() -> None:
    """A stand-in for logits that names row and token: what is moved is what the other order computes."""
    base, moved = CASES["left padding"], CASES["rows exchanged"]

    def named(case: Scenario) -> np.ndarray:
        return case.of_tokens([call[0][..., None].astype(np.float64) for call in case.calls()])

    assert not np.array_equal(named(base), named(moved))
    assert np.array_equal(moved.moved(named(base)), named(moved))


@pytest.mark.parametrize("last", [0, 1])
def test_a_row_ends_with_a_token(last: int) -> None:
    ids, mask = np.zeros((1, 3), np.int64), np.array([[1, 0, last]])
    if last:
        assert Scenario("holes", ids, mask, (3,)).tokens == 2
    else:
        with pytest.raises(ValueError, match="ends with a token"):
            Scenario("open", ids, mask, (3,))


@pytest.mark.parametrize("spec", ["llama/4/scout", "llama/4/maverick"])
def test_a_large_model_is_taken_across_its_chunk(spec: str) -> None:
    """3 GB of keys and values: little beside its own weights, too much for a model of a few layers."""
    flat = flatten(build(Registry().load(spec)))

    def names(parameters: int) -> set[str]:
        return {case.name for case in limit_scenarios(flat, 50, 8192 + 100, 0, parameters)}

    assert "around 8,192" in names(100 * 10**9)
    assert "around 8,192" not in names(10**6)


def test_cases_have_every_arrangement_of_tiles_and_every_count() -> None:
    """The eight of Llama 3.2 Vision, and up to its four tiles."""
    model = load(SPECS / "reduced" / "llama-3.2-11b-vision.yaml")
    graphs = build_all(model.resolved)
    pipeline = pipeline_of(graphs)
    assert pipeline is not None
    found = image_scenarios(pipeline, graphs, known_ids(graphs["model"]), 4)
    images = [case.images for case in found if case.images]
    arrangements = np.concatenate([one["aspect_ratio_ids"].ravel() for one in images])
    counts = np.concatenate([one["aspect_ratio_mask"].sum(axis=-1).ravel() for one in images])
    ratios = model.spec.hyperparameters.vision.aspect_ratios  # type: ignore[union-attr]
    assert set(arrangements) - {0} == set(range(1, len(ratios) + 1))
    assert set(counts[arrangements > 0]) == {1, 2, 3, 4}
