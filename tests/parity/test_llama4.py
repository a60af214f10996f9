"""Llama 4: the text models of the released specs, shrunk, equal to transformers in three witnesses."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import logging

from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import all_parameters
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from llamagen.verify.limits import difference, far, measured_tolerance
from llamagen.verify.scenarios import Scenario, image_scenarios, scenarios
from tests.parity.llama4 import MODELS, shrunk, text_peer, whole_peer
from tests.parity.models import RandomModel
from tests.parity.peers import PeerWitness, everything_float64

logging.set_verbosity_error()
torch.set_num_threads(1)

TOP_2 = "llama/4/scout, two experts a token"


@cache
def model_of(name: str) -> RandomModel:
    target, _, two = name.partition(", ")
    return shrunk(target, chosen=2 if two else 1)


@cache
def peer_of(name: str) -> PeerWitness:
    with everything_float64():
        return PeerWitness(text_peer(model_of(name)))


def cases(model: RandomModel) -> tuple[Scenario, ...]:
    """Prefill, and decode over the borders of chunks (5) and of temperature steps (3)."""
    return scenarios(model.vocab_size, length=9, steps=4, jump=far(model.graph, 13))


@pytest.mark.parametrize("name", [*MODELS, TOP_2])
def test_reference_equals_transformers(name: str) -> None:
    model = model_of(name)
    compared = 0
    for scenario in cases(model):
        if not scenario.plain and model.resolved.spec.hyperparameters.attention_temperature_scale:
            continue  # test_transformers_counts_padding
        found = difference(scenario.logits(model.reference), scenario.logits(peer_of(name)))
        assert found.max_over_std < 1e-11, (scenario.name, found)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", [*MODELS, TOP_2])
def test_backends_equal_the_reference(name: str) -> None:
    model = model_of(name)
    for scenario in cases(model):
        reference = scenario.logits(model.reference)
        rounding = difference(scenario.logits(model.rounded_for(scenario)), reference)
        tolerance = measured_tolerance("float32", rounding)
        for witness in (model.onnx, model.torch):
            found = difference(scenario.logits(witness), reference)
            assert found.within(tolerance), (scenario.name, witness.name, found, tolerance)


def test_transformers_counts_padding() -> None:
    """Its temperature takes the slot of a token for its position (facts 4.8); ours does not see padding.

    With a floor beyond the sequence the temperature is 1 everywhere, and padded batches agree; with steps of three
    tokens they do not, and then each of our rows is what it is alone.
    """
    flat, stepped = shrunk("llama/4/scout", floor=64), model_of("llama/4/scout")
    padded = cases(flat)[2]
    with everything_float64():
        peer = PeerWitness(text_peer(flat))
    assert difference(padded.logits(flat.reference), padded.logits(peer)).max_over_std < 1e-11
    ours, theirs = padded.logits(stepped.reference), padded.logits(peer_of("llama/4/scout"))
    assert difference(ours, theirs).max_over_std > 0.05
    rows = [s.logits(peer_of("llama/4/scout")) for s in padded.alone()]
    assert difference(ours, np.concatenate(rows)).max_over_std < 1e-11


MISTAKES = [
    ("llama/4/scout", "attention_chunk_size: 5", "attention_chunk_size: 6"),
    ("llama/4/scout", "attention_temperature_scale: 0.1", "attention_temperature_scale: 0.1001"),
    ("llama/4/scout", "attention_temperature_floor: 3", "attention_temperature_floor: 4"),
    ("llama/4/scout", "qk_norm: true", "qk_norm: false"),
    ("llama/4/scout", "scale='input'", "scale='output'"),
    ("llama/4/scout", "sigmoid(float32(score))", "softmax(float32(score))"),
    ("llama/4/scout", "layout: interleaved", "layout: half"),
    ("llama/4/scout", "every: 4", "every: 3"),
    ("llama/4/scout", "factor: 16.0", "factor: 16.1"),
    ("llama/4/maverick", "qk_norm: false", "qk_norm: true"),
    ("llama/guard/4-12b", "norm_eps: 1.0e-5", "norm_eps: 1.1e-5"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), MISTAKES)
def test_a_mistake_is_seen(name: str, right: str, wrong: str) -> None:
    text = resolved_text(model_of(name).resolved)
    assert right in text
    mutant = RandomModel.of_text(text.replace(right, wrong))
    scenario = cases(mutant)[1]
    other = RandomModel(mutant.resolved, _made=dict(model_of(name)._made))
    found = difference(scenario.logits(other.reference), scenario.logits(peer_of(name)))
    assert found.max_over_std > 1e-9


COUNTS = {
    "llama/4/scout": 107_769_861_120,
    "llama/4/maverick": 400_711_848_960,
    "llama/guard/4-12b": 11_129_164_800,
}


@pytest.mark.parametrize("spec_id", MODELS)
def test_the_text_part_has_the_published_size(spec_id: str) -> None:
    found = build(Registry().load(spec_id)).parameters
    text = [p for name, p in found.items() if name.startswith("language_model.")]
    assert sum(p.count for p in text) == COUNTS[spec_id]


WHOLE = {
    "llama/4/scout": 108_641_793_536,
    "llama/4/maverick": 401_583_781_376,
    "llama/guard/4-12b": 12_001_097_216,
}


@pytest.mark.parametrize("spec_id", MODELS)
def test_the_graphs_together_have_the_published_size(spec_id: str) -> None:
    found = all_parameters(build_all(Registry().load(spec_id)))
    assert sum(p.count for p in found.values()) == WHOLE[spec_id]


@cache
def whole_peer_of(name: str) -> torch.nn.Module:
    with everything_float64():
        return whole_peer(model_of(name))


def with_images(name: str) -> tuple[Scenario, ...]:
    model = model_of(name)
    assert model.pipeline is not None
    return image_scenarios(model.pipeline, model.graphs, model.vocab_size, steps=4)


@pytest.mark.parametrize("name", MODELS)
def test_text_with_images_equals_transformers(name: str) -> None:
    model, peer = model_of(name), PeerWitness(whole_peer_of(name))
    stretched = model.resolved.spec.hyperparameters.attention_temperature_scale is not None
    assert model.pipeline is not None
    for scenario in with_images(name):
        reference = scenario.logits(model.whole("reference"))
        # test_transformers_counts_padding: row by row it has none to count
        rows = scenario.alone(model.pipeline) if stretched else (scenario,)
        found = difference(reference, np.concatenate([row.logits(peer) for row in rows]))
        assert found.max_over_std < 1e-11, (scenario.name, found)


@pytest.mark.parametrize("name", MODELS)
def test_every_graph_equals_the_reference(name: str) -> None:
    model = model_of(name)
    for scenario in with_images(name):
        reference = scenario.logits(model.whole("reference"))
        rounding = difference(scenario.logits(model.whole("rounded")), reference)
        tolerance = measured_tolerance("float32", rounding)
        for backend in ("onnx", "torch"):
            found = difference(scenario.logits(model.whole(backend)), reference)
            assert found.within(tolerance), (scenario.name, backend, found, tolerance)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_tiles_and_their_tokens_must_agree(backend: str) -> None:
    """A tile too many, or a patch token too few, is an error and not a shifted image."""
    graphs = model_of("llama/4/scout").whole(backend).graphs
    case = with_images("llama/4/scout")[1]
    features = graphs["vision_encoder"].open().run(case.images)["image_features"]
    for wrong in (features[:2], np.concatenate([features, features[:1]])):
        given = {"input_ids": case.input_ids, "image_features": wrong}
        with pytest.raises(Exception, match=r"(?i)shape|indices|match"):
            graphs["embedding"].open().run(given)


VISION_MISTAKES = [
    ("norm_eps: 1.0e-5\n    image_size", "norm_eps: 1.1e-5\n    image_size"),
    ("rope_theta: 10000.0", "rope_theta: 10001.0"),
    ("[0, 2, 4, 1, 3, 5]", "[0, 2, 4, 3, 5, 1]"),
    ("[0, 1, 3, 2, 4, 5]", "[0, 1, 3, 4, 2, 5]"),
    ("concat(patches, expand(class_embedding, [I, 1, vision.hidden_size]), axis=1)",
     "concat(expand(class_embedding, [I, 1, vision.hidden_size]), patches, axis=1)"),
    ("return gelu(fc2(gelu(fc1(x))))", "return fc2(gelu(fc1(x)))"),
    ("return fc2(gelu(fc1(x)))", "return fc2(gelu(fc1(x), 'tanh'))"),
    ("concat(patches", "concat(2 * patches"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), VISION_MISTAKES)
def test_a_mistake_in_the_encoder_is_seen(right: str, wrong: str) -> None:
    model, case = model_of("llama/4/scout"), with_images("llama/4/scout")[1]
    text = resolved_text(model.resolved)
    assert right in text
    mutant = RandomModel.of_text(text.replace(right, wrong))
    found: Any
    expected: Any
    found, expected = (
        m.whole("reference").graphs["vision_encoder"].open().run(case.images)["image_features"]
        for m in (mutant, model)
    )
    assert np.abs(found - expected).max() / expected.std() > 1e-7
