"""Whole models in ONNX Runtime against the float64 reference: prefill, decode, left padding, dtypes, structure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llamagen.emit.onnx.data import attach_arrays
from llamagen.emit.onnx.emit import OnnxModel, emit_onnx
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.options import ExportOptions
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph
from llamagen.ir.reference import evaluate
from llamagen.spec.registry import Registry

from .single import Array, feed, random_weights, rounded, session
from .specs import SPECS

MAX, RMS = 1e-5, 1.5e-6
"""docs/proof.md: float32, over the standard deviation of the reference logits."""

Cache = list[Array]


@cache
def graph_of(name: str) -> Graph:
    return build(Registry().load_text(SPECS[name], f"{name}.yaml"))


@dataclass(frozen=True)
class Pair:
    """One model twice: in ONNX Runtime and as a flat graph with the same weights."""

    running: ort.InferenceSession
    flat: FlatGraph
    weights: dict[str, Array]

    def onnx(self, ids: Array, mask: Array, past: Cache | None = None) -> tuple[Array, Cache]:
        inputs = self.running.get_inputs()
        length = 0 if past is None else past[0].shape[2]
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, length:],
        }
        for i, slot in enumerate(self.flat.slots):
            shape = [d.evaluate({"B": len(ids), "P": 0}) for d in slot.found.shape]
            arrays[slot.past] = np.zeros(shape) if past is None else past[i]
        outputs = self.running.run(None, feed(inputs, arrays))
        names = [o.name for o in self.running.get_outputs()]
        found = dict(zip(names, outputs, strict=True))
        return found["logits"], [found[slot.present] for slot in self.flat.slots]

    def reference(self, ids: Array, mask: Array, past: Cache | None = None) -> tuple[Array, Cache]:
        result = evaluate(self.flat, self.weights, ids, mask, past=past)
        return result.logits, list(result.present)


@cache
def pair(name: str, dtype: OnnxDType = "float32") -> Pair:
    graph = graph_of(name)
    weights = {n: rounded(a, dtype) for n, a in random_weights(graph).items()}
    emitted = emit_onnx(graph, ExportOptions(dtype=dtype))
    attach_arrays(emitted, weights.__getitem__)
    return Pair(session(emitted), flatten(graph), weights)


def errors(got: Array, want: Array) -> tuple[float, float]:
    difference = np.abs(got.astype(np.float64) - want) / want.std()
    return float(difference.max()), float(np.sqrt((difference**2).mean()))


def agree(got: Array, want: Array) -> None:
    worst, rms = errors(got, want)
    assert worst <= MAX
    assert rms <= RMS


IDS = np.random.default_rng(5).integers(0, 61, (3, 9))
FULL = np.ones((3, 9), np.int64)
NAMES = tuple(SPECS)


@pytest.mark.parametrize("name", NAMES)
def test_prefill(name: str) -> None:
    both = pair(name)
    agree(both.onnx(IDS, FULL)[0], both.reference(IDS, FULL)[0])


@pytest.mark.parametrize("name", NAMES)
def test_decode_step_by_step(name: str) -> None:
    """Prefill of 4 tokens, then 2, then one by one: each step equals the same positions of the whole."""
    both = pair(name)
    whole, _ = both.reference(IDS, FULL)
    past: Cache | None = None
    start = 0
    for end in (4, 6, 7, 8, 9):
        logits, past = both.onnx(IDS[:, start:end], FULL[:, :end], past)
        agree(logits, whole[:, start:end])
        start = end
    assert past is not None
    wanted = both.reference(IDS, FULL)[1]
    for got, want in zip(past, wanted, strict=True):
        agree(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_left_padded_batch_equals_its_rows_alone(name: str) -> None:
    both = pair(name)
    lengths = (9, 5, 2)
    ids, mask = IDS.copy(), FULL.copy()
    for row, length in enumerate(lengths):
        mask[row, : 9 - length] = 0
        ids[row, : 9 - length] = 7
    batched, past = both.onnx(ids, mask)
    assert np.isfinite(batched).all()
    step = np.array([[3], [4], [5]])
    next_mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
    decoded, _ = both.onnx(step, next_mask, past)
    for row, length in enumerate(lengths):
        alone = np.concatenate([ids[row : row + 1, 9 - length :], step[row : row + 1]], axis=1)
        want, _ = both.reference(alone, np.ones_like(alone))
        agree(batched[row, 9 - length :], want[0, :-1])
        agree(decoded[row], want[0, -1:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "windows", "gated"])
def test_reduced_dtypes(name: str, dtype: OnnxDType) -> None:
    """Rms against float64, up to 1.25 times what transformers shows in bfloat16 (docs/proof.md)."""
    both = pair(name, dtype)
    bound = {"float16": 0.015 / 8, "bfloat16": 0.015}[dtype]
    logits, past = both.onnx(IDS[:, :6], FULL[:, :6])
    assert errors(logits, both.reference(IDS[:, :6], FULL[:, :6])[0])[1] <= bound
    logits, _ = both.onnx(IDS[:, 6:], FULL, past)
    assert errors(logits, both.reference(IDS, FULL)[0][:, 6:])[1] <= bound


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_experts_in_reduced_dtypes(name: str, dtype: OnnxDType) -> None:
    """A few tokens flip to another expert; the median token does not."""
    both = pair(name, dtype)
    got, want = both.onnx(IDS, FULL)[0].astype(np.float64), both.reference(IDS, FULL)[0]
    per_token = np.sqrt(((got - want) ** 2).mean(axis=-1)) / want.std()
    assert np.median(per_token) <= {"float16": 0.002, "bfloat16": 0.016}[dtype]


def test_bfloat16_is_as_close_as_transformers() -> None:
    """The same weights, ids and dtype there: our rms against float64 is at most 1.25 times theirs (docs/proof.md)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    both = pair("llama", "bfloat16")
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="eager",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    )
    theirs = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    state = {n: torch.from_numpy(a).to(torch.bfloat16) for n, a in both.weights.items()}
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert (missing, extra) == (["lm_head.weight"], [])
    ids = np.random.default_rng(9).integers(0, 61, (4, 24))
    with torch.no_grad():
        found = theirs(torch.from_numpy(ids)).logits.float().numpy()
    want, _ = both.reference(ids, np.ones_like(ids))
    ours, _ = both.onnx(ids, np.ones_like(ids))
    assert errors(found, want)[1] < 0.1  # the same model
    assert errors(ours, want)[1] <= 1.25 * errors(found, want)[1]


def test_bfloat16_values_are_rounded() -> None:
    """Logits and caches leave as float32 that hold bfloat16 values."""
    logits, past = pair("llama", "bfloat16").onnx(IDS, FULL)
    for array in (logits, *past[0]):
        assert array.dtype == np.float32
        assert np.array_equal(array, rounded(array, "bfloat16").astype(np.float32))


def emitted(name: str, dtype: OnnxDType = "float32") -> OnnxModel:
    return emit_onnx(graph_of(name), ExportOptions(dtype=dtype))


@pytest.mark.parametrize("name", NAMES)
def test_initializers_are_the_checkpoint(name: str) -> None:
    """Names and shapes are those of the parameters; what is computed is small and lies under a slash."""
    model = emitted(name)
    wanted = {n: p.shape for n, p in graph_of(name).parameters.items()}
    assert {i.name: i.shape for i in model.initializers} == wanted
    others = set(model.model.graph.initializers) - set(wanted)
    assert all(n.startswith("/") for n in others)
    sizes = [model.model.graph.initializers[n].shape for n in others]
    assert all(s is not None and s.numpy().__len__() <= 4 for s in sizes)


def test_a_tied_head_reads_the_embedding() -> None:
    model = emitted("llama").model
    users = {n.op_type for n, _ in model.graph.initializers["model.embed_tokens.weight"].uses()}
    assert users == {"Gather", "Gemm"}
    assert "lm_head.weight" not in model.graph.initializers


def test_a_block_called_twice_has_two_sets_of_values() -> None:
    """The reference reads the same flat graph, so only the names themselves show a mix-up."""
    results = [r for n in flatten(graph_of("twice")).nodes for r in n.results]
    assert len(set(results)) == len(results)
    mlp = [n for n in flatten(graph_of("twice")).nodes if n.path == "model.layers.0.mlp.down_proj"]
    assert len(mlp) == 2
    assert mlp[0].operands != mlp[1].operands


def test_names_of_inputs_and_outputs() -> None:
    graph = emitted("llama").model.graph
    past = [f"past_key_values.{i}.{what}" for i in range(4) for what in ("key", "value")]
    assert [v.name for v in graph.inputs] == ["input_ids", "attention_mask", "position_ids", *past]
    present = [f"present.{i}.{what}" for i in range(4) for what in ("key", "value")]
    assert [v.name for v in graph.outputs] == ["logits", *present]
    shapes = {v.name: [str(d) for d in v.shape or ()] for v in (*graph.inputs, *graph.outputs)}
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.0.key"] == ["batch_size", "2", "past_sequence_length", "8"]
    assert shapes["present.3.value"] == ["batch_size", "2", "total_sequence_length", "8"]
    assert shapes["logits"] == ["batch_size", "sequence_length", "61"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_standard_operators_only(name: str, dtype: OnnxDType) -> None:
    model = emitted(name, dtype).model
    assert dict(model.opset_imports) == {"": 24}
    kinds = {n.domain for n in ir.traversal.RecursiveGraphIterator(model.graph)}
    assert kinds == {""}


def test_no_node_is_unused_and_names_are_unique() -> None:
    for name in NAMES:
        graph = emitted(name, "bfloat16").model.graph
        outputs = {id(v) for v in graph.outputs}
        for node in graph:
            assert any(v.uses() or id(v) in outputs for v in node.outputs), node.name
        nodes = list(ir.traversal.RecursiveGraphIterator(graph))
        assert len({n.name for n in nodes}) == len(nodes)
        values = [v.name for n in nodes for v in n.outputs]
        assert len(set(values)) == len(values)


def test_metadata() -> None:
    model = emitted("llama", "bfloat16").model
    assert model.metadata_props["llamagen.spec_id"] == "test/llama"
    assert model.metadata_props["llamagen.spec_digest"] == graph_of("llama").digest
    assert model.metadata_props["llamagen.profile"] == "portable"
    assert model.metadata_props["llamagen.dtype"] == "bfloat16"
    assert model.metadata_props["llamagen.io_dtype"] == "float32"


def test_every_op_type_is_known_to_the_opset() -> None:
    """No operator is newer than the opset that the file declares."""
    for name in NAMES:
        for node in ir.traversal.RecursiveGraphIterator(emitted(name).model.graph):
            assert onnx.defs.get_schema(node.op_type, 24).since_version <= 24
