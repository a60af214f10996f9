"""Released models, shrunk to sizes that run in milliseconds: three witnesses and transformers agree.

Only sizes change; wiring, rotary kind and its factors, epsilon, ties and grouping are the spec's.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import logging

from llamagen.spec.families import family_of
from llamagen.spec.registry import Registry
from llamagen.verify.limits import difference, largest_of, measured_tolerance
from llamagen.verify.scenarios import scenarios
from tests.parity.models import RandomModel
from tests.parity.peers import PeerWitness, everything_float64, peer_model

logging.set_verbosity_error()
torch.set_num_threads(1)

REGISTRY = Registry()


def shrunk_text(spec_id: str) -> str:
    """A spec that extends ``spec_id`` and changes its sizes; invariants about the sizes are dropped."""
    spec = REGISTRY.load(spec_id).spec
    h = spec.hyperparameters
    grouped = h.num_kv_heads != h.num_heads
    sizes = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_layers": 2,
        "num_heads": 4 if grouped else 3,
        "num_kv_heads": 2 if grouped else 3,
        "head_dim": 10,
        "intermediate_size": 28,
        "max_positions": 128,
    }
    lines = ["spec: 1", "id: shrunk/model", f"extends: {spec_id}", "hyperparameters:"]
    lines += [f"  {name}: {size}" for name, size in sizes.items()]
    if h.rope is not None and h.rope.kind in ("llama3", "yarn"):
        lines.append("  rope: {original_max_positions: 64}")
    if spec.invariants:
        lines += ["invariants:", *(f"  {name}: null" for name in spec.invariants)]
    return "\n".join(lines) + "\n"


def text_models() -> list[str]:
    """Ids of models with the wiring of a plain Llama, one of each kind that is left after shrinking."""
    kinds: dict[str, str] = {}
    plain = REGISTRY.load("llama/1/7b").spec.blocks.keys()
    for spec_id in REGISTRY.ids(abstract=False):
        if family_of(spec_id) not in ("llama", "smollm"):
            continue  # those have transformers' own class as their peer: test_foreign.py
        spec = REGISTRY.load(spec_id).spec
        if spec.root is not None and spec.blocks.keys() == plain:
            kinds.setdefault(RandomModel.of_text(shrunk_text(spec_id)).resolved.digest, spec_id)
    return sorted(kinds.values())


@cache
def model_of(spec_id: str) -> RandomModel:
    return RandomModel.of_text(shrunk_text(spec_id))


MODELS = text_models()


def test_there_is_something_to_compare() -> None:
    kinds = [REGISTRY.load(i).spec.hyperparameters.rope for i in MODELS]
    assert {rope.kind for rope in kinds if rope is not None} == {"default", "llama3"}


@pytest.mark.parametrize("spec_id", MODELS)
def test_witnesses_agree(spec_id: str) -> None:
    model = model_of(spec_id)
    with everything_float64():
        hub = peer_model(model.resolved.spec, model.weight, list(model.parameters), "llama")
    for scenario in scenarios(model.vocab_size, length=20, steps=6):
        reference = scenario.logits(model.reference)
        exact = difference(scenario.logits(PeerWitness(hub)), reference)
        assert exact.max_over_std < 1e-12, scenario.name
        rounding = difference(scenario.logits(model.rounded), reference)
        tolerance = measured_tolerance("float32", rounding)
        for witness in (model.onnx, model.torch):
            found = difference(scenario.logits(witness), reference)
            bound = largest_of(tolerance, found.count, rounding)
            assert found.within(bound), (scenario.name, witness.name, found)
