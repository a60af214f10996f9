"""Weights of a packed file that stay in its blocks: the same numbers bit by bit, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType as Packing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llamagen
from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.emit.written import Written
from llamagen.ir.elaborate import build
from llamagen.verify.stored import CodedPlace, numbers_of, stored_weights
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import bind
from llamagen.weights.quantize import KEPT, repacked
from llamagen.weights.tensors import WITH_POINTS, whole
from llamagen.weights.values import read_part

WIDTH, MIDDLE, HEADS, KV_HEADS, VOCABULARY = 64, 96, 4, 2, 50
LAYER = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // 2, WIDTH),
    "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (MIDDLE, WIDTH),
    "ffn_up": (MIDDLE, WIDTH),
    "ffn_down": (WIDTH, MIDDLE),
}


def packed_file(path: Path, types: dict[str, str], default: str, damage: str = "") -> Path:
    """A Llama of two layers; ``types`` by the tensor's name without its layer. ``damage`` has an infinite scale."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(5)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32) / 8
        kind = Packing[types.get(name.rpartition(".")[2], default)]
        data = gguf.quantize(values, kind)
        if name == damage:
            data[3, :2] = np.array([np.inf], np.float16).view(np.uint8)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    ones = np.ones(WIDTH, np.float32)
    for name in ("output_norm", *(f"blk.{i}.{n}_norm" for i in range(2) for n in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def exported(
    path: Path, out: Path, quantize: QuantizeOptions | None = None, **more: Any
) -> Written:
    options = ExportOptions(quantize=quantize or QuantizeOptions(), **more)
    return api.imported(path).export(out, options, checkpoint=path)


def decoded(path: Path) -> dict[str, np.ndarray]:
    """What the package `gguf` makes of every tensor, by role path."""
    resolved = api.imported(path).resolved
    bindings = bind(resolved, build(resolved), Checkpoint.open(path)).require()
    return {one.name: read_part(one, whole(one.tensor.shape)) for one in bindings}


GGUF = sorted(set(KEPT) - {WITH_POINTS})
"""Blocks with zero points are no type of GGUF: tests/parity/test_packed.py has them."""


@settings(max_examples=30)
@given(
    st.sampled_from(GGUF),
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 4), st.just(34))),
)
def test_any_block_is_the_same_number(packing: str, blocks: np.ndarray) -> None:
    """Whatever its bytes are, but for scales and minimums that are no numbers."""
    kind = Packing[packing]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    rows = np.ascontiguousarray(blocks[..., :size].reshape(len(blocks), -1))
    with np.errstate(invalid="ignore"):
        wanted = gguf.dequantize(rows, kind)
    found = repacked(rows, packing)
    codes = numbers_of(found.packed, KEPT[packing]).astype(np.float32)
    middle = np.float32(0 if packing == "Q4_1" else 2 ** (KEPT[packing] - 1))
    with np.errstate(invalid="ignore"):
        values = (codes - middle) * found.scales.astype(np.float32)[..., None]
        if found.minimums is not None:
            values += found.minimums.astype(np.float32)[..., None]
    assert np.array_equal(values.reshape(wanted.shape), wanted, equal_nan=True)


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
@pytest.mark.parametrize("packing", GGUF)
def test_blocks_stay_as_they_are(packing: str, profile: str, tmp_path: Path) -> None:
    """Tables and heads too; and the folder computes what the graph means with these weights."""
    path = packed_file(tmp_path / "m.gguf", {}, packing)
    written = exported(path, tmp_path / "out", profile=profile)
    (note,) = (one for one in written.notes if one.code == "LG651")
    assert f"16 in {packing}; decoded to float32: none" in note.message
    stored, wanted = stored_weights(tmp_path / "out"), decoded(path)
    for name, values in wanted.items():
        assert np.array_equal(stored.read(name), values), name
        assert isinstance(stored.places[name], CodedPlace) is (values.ndim == 2), name
    record = read_manifest(tmp_path / "out").quantization
    assert record is not None and record.accuracy_level == 1
    assert list(record.kept) == [packing] and len(record.kept[packing]) == 16
    report = llamagen.verify_folder(tmp_path / "out", ("reference",), steps=2)
    assert report.passed, report


@pytest.mark.parametrize("profile", ["portable", "ort-cpu", "ort-cuda"])
def test_eight_bits_are_two_products_of_four_on_a_cpu(profile: str, tmp_path: Path) -> None:
    """Its kernel for eight bits in float32 decodes the whole weight at each call; CUDA's does not."""
    path = packed_file(tmp_path / "m.gguf", {}, "Q8_0")
    exported(path, tmp_path / "out", profile=profile)
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    numbers = [
        {a.name: a.i for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    ]
    assert {(n["bits"], n["accuracy_level"]) for n in numbers} == {
        (8 if profile == "ort-cuda" else 4, 1)
    }
    stored, wanted = stored_weights(tmp_path / "out"), decoded(path)
    assert all(np.array_equal(stored.read(name), values) for name, values in wanted.items())


def test_other_types_are_decoded_and_named(tmp_path: Path) -> None:
    """Q5_0 has no kernel; and of weights that a profile joins, all stay or none."""
    types = {"attn_v": "Q8_0", "ffn_down": "Q5_0", "output": "F16"}
    path = packed_file(tmp_path / "m.gguf", types, "Q4_0")
    exported(path, tmp_path / "out")
    record = read_manifest(tmp_path / "out").quantization
    assert record is not None
    down = tuple(f"model.layers.{i}.mlp.down_proj.weight" for i in range(2))
    assert record.decoded == {"Q5_0": down}
    assert {name: len(paths) for name, paths in record.kept.items()} == {"Q4_0": 11, "Q8_0": 2}
    exported(path, tmp_path / "joined", profile="ort-cpu")
    record = read_manifest(tmp_path / "joined").quantization
    assert record is not None
    assert {name: len(paths) for name, paths in record.decoded.items()} == {
        "Q4_0": 4,
        "Q5_0": 2,
        "Q8_0": 2,
    }
    wanted = decoded(path)
    for out in ("out", "joined"):
        stored = stored_weights(tmp_path / out)
        assert all(np.array_equal(stored.read(name), wanted[name]) for name in wanted)
        assert llamagen.verify_folder(tmp_path / out, ("reference",), steps=2).passed


def test_in_half_precision_blocks_stay_too(tmp_path: Path) -> None:
    path = packed_file(tmp_path / "m.gguf", {"output": "Q4_1"}, "Q4_0")
    exported(path, tmp_path / "out", dtype="float16", profile="ort-cuda")
    stored = stored_weights(tmp_path / "out")
    wanted = decoded(path)
    for name in ("lm_head.weight", "model.layers.1.self_attn.k_proj.weight"):
        assert np.array_equal(stored.read(name), wanted[name])


@pytest.mark.parametrize(
    ("options", "dtype"), [(QuantizeOptions("none"), "float32"), (None, "bfloat16")]
)
def test_decoded_where_asked_or_not_exact(
    options: QuantizeOptions | None, dtype: str, tmp_path: Path
) -> None:
    """bfloat16 does not hold the scales, which are float16."""
    path = packed_file(tmp_path / "m.gguf", {}, "Q4_1")
    written = exported(path, tmp_path / "out", options, dtype=dtype)
    (note,) = (one for one in written.notes if one.code == "LG651")
    assert f"as they are: none; decoded to {dtype}: 16 in Q4_1" in note.message
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    assert "MatMulNBits" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    "options",
    [
        QuantizeOptions("int4"),
        QuantizeOptions("none", head="int8"),
        QuantizeOptions(embedding="int4"),
    ],
)
def test_quantising_twice_is_refused(options: QuantizeOptions, tmp_path: Path) -> None:
    path = packed_file(tmp_path / "m.gguf", {"ffn_up": "Q5_1"}, "Q8_0")
    with pytest.raises(LlamagenError) as caught:
        exported(path, tmp_path / "out", options)
    (one,) = caught.value.diagnostics
    assert one.code == "LG719" and str(path) in one.message
    assert "14 in Q8_0" in one.message and "2 in Q5_1" in one.message
    assert one.help is not None and "--requantize" in one.help
    assert not (tmp_path / "out").exists()


def test_requantize_does_what_is_asked(tmp_path: Path) -> None:
    path = packed_file(tmp_path / "m.gguf", {}, "Q8_0")
    exported(path, tmp_path / "out", QuantizeOptions("int4", requantize=True))
    record = read_manifest(tmp_path / "out").quantization
    assert record is not None and record.linear == "int4" and not record.kept


@pytest.mark.parametrize("packing", GGUF)
def test_a_scale_that_is_no_number(packing: str, tmp_path: Path) -> None:
    path = packed_file(tmp_path / "m.gguf", {}, packing, damage="blk.1.ffn_up")
    with pytest.raises(LlamagenError) as caught:
        exported(path, tmp_path / "out")
    (one,) = caught.value.diagnostics
    assert one.code == "LG620" and "layers.1.mlp.up_proj.weight'[3, " in one.message
    assert not (tmp_path / "out").exists()
