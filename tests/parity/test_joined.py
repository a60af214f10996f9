"""One class that joins text and images: logits, gradients and generated ids, against transformers and the pieces."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.joined import NAME, joined
from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import (
    NOTHING,
    FloatArray,
    IntArray,
    Scenario,
    Session,
    Values,
    image_scenarios,
)
from llamagen.verify.witnesses import CORRECTIONS, TorchWitness
from tests.parity import llama4, mllama
from tests.parity.models import RandomModel
from tests.parity.peers import PeerWitness, everything_float64

torch.set_num_threads(1)

MLLAMA = (mllama.WIDE, mllama.TALL)
MODELS = (*MLLAMA, *llama4.MODELS)


@cache
def model_of(name: str) -> RandomModel:
    return mllama.shrunk(name) if name in MLLAMA else llama4.shrunk(name)


@cache
def source_of(name: str) -> str:
    whole = joined(model_of(name).graphs)
    assert whole is not None
    return emit_torch(whole)


def made(name: str, dtype: torch.dtype = torch.float32, **options: str) -> Any:
    """The class that `generate` writes, with all weights of the model."""
    found = getattr(load_module(source_of(name)), NAME)(**options)
    state = {p: torch.from_numpy(model_of(name).weight(p)) for p in model_of(name).all_parameters}
    found.load_state_dict(state)
    return found.to(dtype).eval()


def peer_of(name: str) -> PeerWitness:
    library = mllama if name in MLLAMA else llama4
    with everything_float64():
        corrections = CORRECTIONS["mllama"] if name in MLLAMA else ()
        return PeerWitness(library.whole_peer(model_of(name)), corrections=corrections)


def cases(name: str) -> tuple[Scenario, ...]:
    model = model_of(name)
    if name in MLLAMA:
        return tuple(mllama.story(model, story) for story in mllama.STORIES)
    assert model.pipeline is not None
    return image_scenarios(model.pipeline, model.graphs, model.vocab_size, steps=4)


def tensors(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = {name: torch.from_numpy(np.array(v)) for name, v in values.items()}
    return {n: v if v.dtype == torch.int64 else v.to(dtype) for n, v in found.items()}


class Whole:
    """The class as a witness."""

    name = "whole"

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        return _Calls(self.model, images)


class _Calls:
    """Images go with the first call, and what is beside the tokens with every one if there are images."""

    def __init__(self, model: Any, images: Values) -> None:
        self.model, self.images, self.seen = model, images, bool(images)
        self.cache = sys.modules[type(model).__module__].KVCache()

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        tokens = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
        given = {**tokens, **self.images, **(beside if self.seen else {})}
        with torch.no_grad():
            logits = self.model(**tensors(given, self.model.dtype), cache=self.cache)
        self.images = NOTHING
        return np.asarray(logits.double().numpy(), dtype=np.float64)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str) -> None:
    """In float64, through a cache, of padded batches; where transformers errs (witnesses.py) corrected."""
    model, peer = model_of(name), peer_of(name)
    stretched = model.resolved.spec.hyperparameters.attention_temperature_scale is not None
    for attention in ("sdpa", "eager"):
        ours = made(name, torch.float64, attention=attention)
        for case in cases(name):
            # its temperature counts padding (test_llama4.py): row by row there is none
            rows = case.alone(model.pipeline) if stretched else (case,)
            expected = np.concatenate([row.logits(peer) for row in rows])
            with everything_float64():
                found = difference(case.logits(Whole(ours)), expected)
            assert found.max_over_std < 1e-11, (case.name, attention, found)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_onnx_graphs(name: str) -> None:
    model, ours = model_of(name), Whole(made(name))
    for case in cases(name):
        reference = case.logits(model.whole("reference"))
        rounding = difference(case.logits(model.whole("rounded")), reference)
        tolerance = measured_tolerance("float32", rounding)
        for witness in (ours, model.whole("onnx")):
            assert difference(case.logits(witness), reference).within(tolerance), case.name


@pytest.mark.parametrize("name", MODELS)
def test_text_alone_is_what_the_text_model_says(name: str) -> None:
    """Bit for bit, with and without a cache: without images nothing of them is computed."""
    model, ours = model_of(name), made(name)
    text: Any = TorchWitness.of_graph(model.graph, model.weight).model
    case = cases(name)[0]
    ids = torch.from_numpy(case.input_ids).clamp(max=model.vocab_size - 2)
    ours.see = None
    with torch.no_grad():
        expected = text(ids)
        assert torch.equal(ours(ids), expected)
        assert torch.equal(
            ours.generate(ids, max_new_tokens=5), text.generate(ids, max_new_tokens=5)
        )


@pytest.mark.parametrize("name", MODELS)
def test_ids_generated_are_those_of_the_onnx_graphs(name: str) -> None:
    """Images, a prompt of several rows, and the likeliest next token six times."""
    model, ours = model_of(name), made(name)
    case = next(c for c in cases(name) if c.name in ("a batch", "images padded batch"))
    prompt = case.splits[0]
    case = replace(
        case,
        input_ids=case.input_ids[:, :prompt],
        mask=case.mask[:, :prompt],
        splits=(prompt,),
        beside={n: v[:, :prompt] for n, v in case.beside.items()},
    )
    images = tensors({**case.images, **case.beside}, torch.float32)
    ids, mask = torch.from_numpy(case.input_ids), torch.from_numpy(case.mask)
    found = ours.generate(ids, attention_mask=mask, max_new_tokens=6, **images)
    session, given, seen = model.whole("onnx").start(case.images), case.input_ids, case.mask
    beside, new = case.beside, prompt
    for _ in range(6):
        positions = np.maximum(np.cumsum(seen, axis=1) - 1, 0)
        logits = session.step(given[:, -new:], seen, positions[:, -new:], beside)
        given = np.concatenate([given, logits[:, -1].argmax(-1)[:, None]], axis=1)
        seen = np.pad(seen, ((0, 0), (0, 1)), constant_values=1)
        beside, new = {n: v[:, -1:] for n, v in beside.items()}, 1
    assert np.array_equal(found.numpy(), given)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_transformers(name: str) -> None:
    """In float64, of every weight: those of the encoder too."""
    ours, peer = made(name, torch.float64), peer_of(name)
    case = cases(name)[0]
    labels = torch.from_numpy(case.input_ids).clone()
    labels[labels >= model_of(name).vocab_size] = -100
    with everything_float64(), ExitStack() as around:
        for correction in peer.corrections:
            around.enter_context(correction.apply(peer.model))
        ids = torch.from_numpy(case.input_ids)
        images = tensors({**case.images, **case.beside}, torch.float64)
        found = ours.loss(ids, labels, **images)
        found.backward()
        expected = peer.model(input_ids=ids, **images, use_cache=False).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(
            expected.flatten(0, 1), labels[:, 1:].flatten()
        )
        expected.backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    wanted = {n: p.grad for n, p in peer.model.named_parameters()}
    called = mllama.peer_name if name in MLLAMA else str
    for path, parameter in ours.named_parameters():
        want = wanted[called(path)]
        assert (parameter.grad is None) == (want is None), path
        if want is not None:
            assert (parameter.grad - want).abs().max() <= 1e-6 * want.abs().max(), path
    assert ours.vision_model.class_embedding.grad.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_all_that_it_needs(name: str, tmp_path: Path) -> None:
    ours = made(name)
    save_file(ours.state_dict(), tmp_path / "model.safetensors")
    loaded = type(ours).from_pretrained(tmp_path)
    case = cases(name)[0]
    assert np.array_equal(case.logits(Whole(loaded)), case.logits(Whole(ours)))
    assert set(ours.state_dict()) == set(model_of(name).all_parameters)


def test_an_image_may_come_after_text_and_again() -> None:
    """Of Llama 3.2: a cache that has seen text alone takes images later, and other images after those."""
    model, ours = model_of(mllama.WIDE), made(mllama.WIDE)
    case = mllama.story(model, "image first")
    given = tensors({**case.images, **case.beside}, torch.float32)
    text = torch.randint(0, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy(case.input_ids)
    cache = sys.modules[type(ours).__module__].KVCache()
    mask = given["cross_attention_mask"]
    with torch.no_grad():
        pieces = [ours(text, cache=cache), ours(ids, **given, cache=cache)]
        unseen = torch.nn.functional.pad(mask, (0, 0, 0, 0, 5, 0))
        whole = ours(torch.cat((text, ids), dim=1), **{**given, "cross_attention_mask": unseen})
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=2e-5)
        other = {**given, "pixel_values": given["pixel_values"].flip(-1)}
        again = [ours(ids, **i, cache=cache) for i in (other, given)]
        assert not torch.equal(*again) and len(cache.cross) == 3
