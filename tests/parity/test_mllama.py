"""Llama 3.2 Vision: the released specs, shrunk, equal to transformers where that does what the authors' code does.

transformers 5.23 departs from it in two places (llamagen/verify/witnesses.py). With exactly these corrected the
difference is that of float64 rounding; without one of them it is of the size of the logits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import logging

from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN, all_parameters
from llamagen.ir.verify import verify
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import FloatArray, Scenario
from llamagen.verify.witnesses import (
    CORRECTIONS,
    LATE_STATES,
    UNMASKED_ROWS,
    Correction,
    GraphsWitness,
    TorchWitness,
)
from tests.parity.mllama import STORIES, TALL, WIDE, shrunk, story, whole_peer
from tests.parity.models import RandomModel
from tests.parity.peers import PeerWitness, everything_float64

logging.set_verbosity_error()
torch.set_num_threads(1)

BOTH = CORRECTIONS["mllama"]
WITH_IMAGES = [name for name in STORIES if name != "no image"]


@cache
def model_of(name: str) -> RandomModel:
    return shrunk(name)


@cache
def case_of(name: str, case: str) -> Scenario:
    return story(model_of(name), case)


@cache
def reference_of(name: str, case: str) -> FloatArray:
    return case_of(name, case).logits(model_of(name).whole("reference"))


@cache
def library_of(name: str) -> torch.nn.Module:
    with everything_float64():
        return whole_peer(model_of(name))


def peer_of(name: str, corrections: tuple[Correction, ...]) -> PeerWitness:
    return PeerWitness(library_of(name), corrections=corrections)


def apart(name: str, case: str, corrections: tuple[Correction, ...]) -> float:
    found = case_of(name, case).logits(peer_of(name, corrections))
    return difference(found, reference_of(name, case)).max_over_std


@pytest.mark.parametrize("name", [WIDE, TALL])
@pytest.mark.parametrize("case", STORIES)
def test_reference_equals_corrected_transformers(name: str, case: str) -> None:
    assert apart(name, case, BOTH) < 1e-12


@pytest.mark.parametrize("case", WITH_IMAGES)
def test_transformers_takes_states_one_layer_late(case: str) -> None:
    """Every case with an image is off by the size of the logits without this correction."""
    assert apart(WIDE, case, (UNMASKED_ROWS,)) > 0.5


def test_transformers_mixes_images_into_text_before_them() -> None:
    """Without this correction only an image at the very start is right."""
    assert apart(WIDE, "image first", (LATE_STATES,)) < 1e-12
    for case in WITH_IMAGES[1:]:
        assert apart(WIDE, case, (LATE_STATES,)) > 0.5, case


def test_late_states_are_all_that_the_first_correction_changes() -> None:
    """Our spec with states after the layers is the library as it is, but for the rows."""
    text = resolved_text(model_of(WIDE).resolved)
    late = RandomModel.of_text(
        text.replace("collect=vision.intermediate_layers", "collect=[2, 3, 5]")
    )
    assert late.resolved.digest != model_of(WIDE).resolved.digest
    case = case_of(WIDE, "several images")
    found = case.logits(same_weights(late).whole("reference"))
    peer = case.logits(peer_of(WIDE, (UNMASKED_ROWS,)))
    assert difference(found, peer).max_over_std < 1e-12


def same_weights(other: RandomModel) -> RandomModel:
    return RandomModel(other.resolved, _made=dict(model_of(WIDE)._made))


@pytest.mark.parametrize("case", STORIES)
def test_every_graph_equals_the_reference(case: str) -> None:
    model, scenario, reference = model_of(WIDE), case_of(WIDE, case), reference_of(WIDE, case)
    rounding = difference(scenario.logits(model.whole("rounded")), reference)
    tolerance = measured_tolerance("float32", rounding)
    for backend in ("onnx", "torch"):
        found = difference(scenario.logits(model.whole(backend)), reference)
        assert found.within(tolerance), (backend, found, tolerance)


def test_eager_attention_of_the_generated_modules_is_the_same() -> None:
    """It spreads a row that sees nothing over all image tokens; what comes of it is multiplied by zero."""
    model = model_of(WIDE)
    pieces = {}
    for name, graph in model.graphs.items():
        module = getattr(load_module(emit_torch(graph)), graph.root)(attention="eager")
        given = TorchWitness.of_graph(graph, model.weight)
        module.load_state_dict(given.model.state_dict())
        pieces[name] = TorchWitness(module.eval(), outputs=graph.output_names)
    eager = GraphsWitness("eager", pieces, model.pipeline)
    found = case_of(WIDE, "a batch").logits(eager)
    assert difference(found, reference_of(WIDE, "a batch")).max_over_std < 1e-5


def test_text_before_an_image_may_go_through_the_text_graph() -> None:
    """The caches of both graphs are the same slots: the decoder takes over when the image comes."""
    case, model = case_of(WIDE, "text first"), model_of(WIDE)
    ids, mask, positions, _ = next(replace(case, splits=(2, 6, 4)).calls())
    first = {"input_ids": ids, "attention_mask": mask, "positions": positions}
    witness = model.whole("onnx")
    text, decoder = (witness.graphs[name].open() for name in (MAIN, "decoder"))
    pieces = [text.run(first)["logits"]]
    decoder.past = text.past  # type: ignore[attr-defined]
    seen = witness.graphs["vision_encoder"].open().run(case.images)
    for ids, mask, positions, beside in list(replace(case, splits=(2, 6, 4)).calls())[1:]:
        given = {"input_ids": ids, "attention_mask": mask, "positions": positions}
        pieces.append(decoder.run({**given, **beside, **seen})["logits"])
    found = np.concatenate(pieces, axis=1)[case.mask > 0].astype(np.float64)
    assert difference(found, reference_of(WIDE, "text first")).max_over_std < 1e-5


def test_a_row_without_an_image_is_text_alone() -> None:
    """It sees nothing in the batch: it is what the text graph, which has no cross-attention, says."""
    case = case_of(WIDE, "a batch")
    tokens = int(case.mask[2].sum())
    row = Scenario("row", case.input_ids[2:, -tokens:], case.mask[2:, -tokens:], (tokens,))
    alone = row.logits(model_of(WIDE).whole("reference"))
    assert difference(alone, reference_of(WIDE, "a batch")[-tokens:]).max_over_std < 1e-12


MISTAKES = [
    ("norm_eps: 1.0e-5\n    image_size", "norm_eps: 1.1e-5\n    image_size"),
    ("collect=vision.intermediate_layers", "collect=[0, 1, 3]"),
    ("permute(s, [0, 1, 3, 2])", "s"),
    (", 8)", ", 12)"),
    ("concat(expand(class_embedding, [B * I, vision.max_tiles, 1, vision.hidden_size]), x, axis=2)",
     "concat(x, expand(class_embedding, [B * I, vision.max_tiles, 1, vision.hidden_size]), axis=2)"),
    ("(1 - tanh(gate)) * embedding", "embedding"),
    ("x = reshape(layernorm_post(x), ", "x = reshape(0 * layernorm_post(x) + x, "),
    ("concat(global_transformer(x), states)", "concat(layernorm_post(global_transformer(x)), states)"),
    ("tanh(gate_attn) * a if gated else a", "gate_attn * a if gated else a"),
    ("tile_mask(aspect_ratio_mask, tokens, ceil_to(tokens, 8))",
     "tile_mask(aspect_ratio_mask, ceil_to(tokens, 8), ceil_to(tokens, 8))"),
    ("k = k_norm(split_heads(k_proj(x), num_kv_heads))",
     "k = split_heads(k_proj(x), num_kv_heads) + 0 * k_norm(split_heads(k_proj(x), num_kv_heads))"),
    ("m = mlp(post_attention_layernorm(h)) * seen",
     "m = mlp(post_attention_layernorm(h)) * (0 * seen + 1)"),
    ("tanh(cross_attn_mlp_gate)", "cross_attn_mlp_gate"),
    ("return fc2(gelu(fc1(x)))", "return fc2(gelu(fc1(x), 'tanh'))"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), MISTAKES)
def test_a_mistake_is_seen(right: str, wrong: str) -> None:
    text = resolved_text(model_of(WIDE).resolved)
    assert right in text
    reference_of(WIDE, "a batch")  # makes the weights
    mutant = same_weights(RandomModel.of_text(text.replace(right, wrong)))
    case = case_of(WIDE, "a batch")
    found = case.cut("whole", [case.input_ids.shape[1]]).logits(mutant.whole("reference"))
    assert difference(found, reference_of(WIDE, "a batch")).max_over_std > 1e-7


WHOLE = {
    "llama/3.2/11b-vision": 10_642_941_475,
    "llama/3.2/11b-vision-instruct": 10_670_220_835,
    "llama/3.2/90b-vision": 88_593_355_323,
    "llama/3.2/90b-vision-instruct": 88_593_355_323,
    "llama/guard/3-11b-vision": 10_670_220_835,
}


@pytest.mark.parametrize("spec_id", WHOLE)
def test_the_graphs_together_have_the_published_size(spec_id: str) -> None:
    graphs = build_all(Registry().load(spec_id))
    assert sum(p.count for p in all_parameters(graphs).values()) == WHOLE[spec_id]
    for graph in graphs.values():
        verify(graph, thorough=True)
