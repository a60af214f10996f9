"""Caches bounded to a window or a chunk: what they keep, that nobody misses the rest, and where they stay whole."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

from llamagen.analysis.numbers import cache_of
from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.ir.bounded import bound_caches, keeps, with_caches
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph
from llamagen.ir.reference import evaluate
from llamagen.ir.text import render
from llamagen.ir.verify import verify
from llamagen.spec.registry import Registry
from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import Scenario, image_scenarios, scenarios
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness
from tests.graph_text import parse
from tests.parity.llama4 import shrunk
from tests.parity.models import RandomModel

torch.set_num_threads(1)

LOCAL = {
    "cohere2",
    "gemma2",
    "gemma3",
    "gpt_oss_attention",
    "mistral",
    "olmo3",
    "phi3",
    "starcoder2",
}
MODELS = ("llama/4/scout", "llama/4/maverick", *(f"foreign/{n}" for n in sorted(LOCAL)))


@cache
def model_of(name: str) -> RandomModel:
    return shrunk(name) if name.startswith("llama/") else RandomModel.named(name)


def cases(model: RandomModel) -> tuple[Scenario, ...]:
    """A prefill longer than a chunk, decode over borders, left padding, and prompts in pieces of any length."""
    made = scenarios(model.vocab_size, length=9, steps=6)
    # A chunk counts true positions, a slot the last tokens it was given: padding goes on the left (verify says so too).
    chunked = any(node.attrs.get("chunk") is not None for node in model.graph.prelude)
    made = tuple(c for c in made if not c.shift and not (chunked and c.has_holes))
    prefill, decode, padded, *more = made
    odd = decode.cut("pieces", (2, 7, 1, 3, 1, 1))
    return prefill, decode, padded, *more, odd, padded.cut("padded pieces", (1, 3, 4, 1, 6))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_whole_cache(name: str) -> None:
    model = model_of(name)
    graph = bound_caches(model.graph)
    verify(graph, thorough=True)
    assert keeps(graph) and parse(render(graph)) == graph
    exact = ReferenceWitness(flatten(graph), model.weight)
    backends = [w.of_graph(graph, model.weight) for w in (OnnxWitness, TorchWitness)]
    for case in cases(model):
        reference = case.logits(model.reference)
        assert difference(case.logits(exact), reference).max_over_std < 1e-11, case.name
        rounding = difference(case.logits(model.rounded), reference)
        tolerance = measured_tolerance("float32", rounding)
        for witness in backends:
            found = difference(case.logits(witness), reference)
            assert found.within(tolerance), (case.name, witness.name, found, tolerance)


def kept(graph: Graph, tokens: int) -> list[int]:
    slots = flatten(graph).slots
    return [tokens if slot.keep is None else min(tokens, slot.keep) for slot in slots]


@pytest.mark.parametrize("name", ["llama/4/scout", "foreign/gemma3", "foreign/mistral"])
def test_no_more_than_the_bound_is_kept(name: str) -> None:
    """Exactly, in every call and backend: also after a prefill of three chunks, of which nothing is held."""
    model = model_of(name)
    graph = bound_caches(model.graph)
    flat = flatten(graph)
    onnx_session = OnnxWitness.of_graph(graph, model.weight).session
    torch_model = TorchWitness.of_graph(graph, model.weight).model
    outputs = [o.name for o in onnx_session.get_outputs()]
    empty = {
        i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32)
        for i in onnx_session.get_inputs()
        if i.name.startswith("past")
    }
    past_reference, past_onnx, seen = None, empty, 0
    kept_by_torch = sys.modules[type(torch_model).__module__].KVCache()
    generator = np.random.default_rng(0)
    for new in (17, 1, 1, 4, 1):
        seen += new
        ids = generator.integers(0, model.vocab_size, (2, new))
        mask = np.ones((2, seen), np.int64)
        place = np.arange(seen - new, seen)[None].repeat(2, axis=0)
        result = evaluate(flat, model.weight, ids, mask, past=past_reference)
        past_reference = result.present
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": place, **past_onnx}
        found = dict(zip(outputs, onnx_session.run(outputs, feeds), strict=True))
        past_onnx = {
            n.replace("present", "past_key_values"): v for n, v in found.items() if "." in n
        }
        with torch.no_grad():
            torch_model(torch.from_numpy(ids), cache=kept_by_torch)
        want = kept(graph, seen)
        assert [x.shape[2] for x in past_reference] == want
        assert [past_onnx[s.past].shape[2] for s in flat.slots] == want
        assert kept_by_torch.tokens == seen
        for i, slot in enumerate(flat.slots):
            k = kept_by_torch.slots[i]
            tokens = k.shape[2] if slot.keep is not None else seen
            assert tokens == want[i]
            rows = k.untyped_storage().nbytes() // (k[:, :, :1].numel() * k.element_size())
            assert slot.keep is None or rows <= slot.keep + 1, "a view of more than is kept"


@pytest.mark.parametrize("name", ["llama/4/scout", "foreign/mistral"])
def test_one_token_less_is_missed(name: str) -> None:
    """The bound is the least there is: with one key fewer some token reads what is gone."""
    model = model_of(name)
    graph = bound_caches(model.graph)
    (keep,) = keeps(graph)
    less = parse(
        render(graph)
        .replace(f'"keep": {keep}', f'"keep": {keep - 1}')
        .replace(f"P{keep}", f"P{keep - 1}")
    )
    verify(less)
    decode = cases(model)[1]
    witness = ReferenceWitness(flatten(less), model.weight)
    found = difference(decode.logits(witness), decode.logits(model.reference))
    assert found.max_over_std > 1e-2


def test_three_of_four_layers_of_scout_keep_a_chunk() -> None:
    slots = flatten(bound_caches(build(Registry().load("llama/4/scout")))).slots
    assert [slot.keep for slot in slots][::2] == [8191, 8191, 8191, None] * 12


def test_a_model_that_reads_everything_is_refused() -> None:
    graph = build(Registry().load("llama/guard/4-12b"))
    assert bound_caches(graph) is graph
    with pytest.raises(LlamagenError) as caught:
        with_caches({"model": graph}, "bounded")
    assert [d.code for d in caught.value.diagnostics] == ["LG705"]


SHARED = """
spec: 1
id: drawn/shared
extends: foreign/mistral
blocks:
  Attention:
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))
      k = {k}
      near = attention(q, k, v, mask='causal', window=2)
      far = attention(q, k, v, mask='causal'{far})
      return o_proj(merge_heads(near + far))
"""


@pytest.mark.parametrize(
    ("far", "k", "bounds"),
    [
        (", window=4", "k", (3,)),
        (", chunk=6", "k", (5,)),
        ("", "k", ()),
        (", window=4", "rms_normalize(k, norm_eps) * 0.5", (3,)),
    ],
)
def test_the_widest_reader_decides(far: str, k: str, bounds: tuple[int, ...]) -> None:
    """Also through ops on each token alone."""
    model = RandomModel.of_text(SHARED.format(far=far, k=k).lstrip())
    graph = bound_caches(model.graph)
    assert keeps(graph) == bounds
    assert {s.reach for s in cache_of(model.graph).layers} == {bounds[0] + 1 if bounds else None}
    backends = [w.of_graph(graph, model.weight) for w in (OnnxWitness, TorchWitness)]
    for case in cases(model):
        reference = case.logits(model.reference)
        exact = case.logits(ReferenceWitness(flatten(graph), model.weight))
        assert difference(exact, reference).max_over_std < 1e-11
        rounding = difference(case.logits(model.rounded), reference)
        tolerance = measured_tolerance("float32", rounding)
        assert all(difference(case.logits(w), reference).within(tolerance) for w in backends)


def test_keys_that_something_else_reads_stay_whole() -> None:
    def bounds(k: str) -> tuple[int, ...]:
        text = SHARED.format(far=", window=4", k=k)
        text = text.replace("near + far))", "near + far)) * mean(k_proj(x))")
        return keeps(bound_caches(RandomModel.of_text(text.lstrip()).graph))

    assert bounds("k") == (3,)
    assert bounds("permute(permute(k, [0, 1, 3, 2]), [0, 1, 3, 2])") == ()
    assert bounds("k + mean(k, axis=2)") == ()


@pytest.mark.parametrize("backend", ["reference", "onnx", "torch"])
def test_images_with_a_bounded_decoder(backend: str) -> None:
    model = model_of("llama/4/scout")
    bounded = model.bounded()
    assert model.pipeline is not None and keeps(bounded.graphs["decoder"])
    for case in image_scenarios(model.pipeline, model.graphs, model.vocab_size, steps=4):
        reference = case.logits(model.whole("reference"))
        rounding = difference(case.logits(model.whole("rounded")), reference)
        found = difference(case.logits(bounded.whole(backend)), reference)
        if backend == "reference":
            assert found.max_over_std < 1e-11, case.name
        assert found.within(measured_tolerance("float32", rounding)), (case.name, found)


def test_the_file_says_what_a_slot_wants() -> None:
    """Dimensions of their own for bounded slots, words for whoever feeds them, and the kind among the properties."""
    made = emit_onnx(with_caches({"model": model_of("llama/4/scout").graph}, "bounded")["model"])
    proto = onnx_ir.to_proto(made.model)
    inputs = {i.name: i for i in proto.graph.input}
    outputs = {o.name: o for o in proto.graph.output}

    def tokens(value: onnx.ValueInfoProto) -> str:
        return value.type.tensor_type.shape.dim[2].dim_param

    assert tokens(inputs["past_key_values.0.key"]) == "past_sequence_length_4"
    assert tokens(outputs["present.0.value"]) == "present_sequence_4"
    assert tokens(inputs["past_key_values.3.key"]) == "past_sequence_length"
    assert "at most the last 4 tokens" in inputs["past_key_values.0.key"].doc_string
    assert not inputs["past_key_values.3.key"].doc_string
    assert {p.key: p.value for p in proto.metadata_props}["llamagen.cache"] == "bounded"


@torch.no_grad()
def test_the_bounded_module_compiles_whole() -> None:
    model = model_of("foreign/gemma3")
    module = TorchWitness.of_graph(bound_caches(model.graph), model.weight).model
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    made = sys.modules[type(module).__module__]
    cache, cache_compiled = made.KVCache(), made.KVCache()
    for piece in ids.split((6, 1, 1, 1), dim=1):
        expected = module(piece, cache=cache)
        found = compiled(piece, cache=cache_compiled)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
