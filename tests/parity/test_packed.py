"""Weights packed by AWQ, GPTQ and compressed-tensors: decoded to what their own packages or documented bytes mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify.limits import Tolerance
from llamagen.verify.stored import CodedPlace, stored_weights
from llamagen.weights.packed import Kind, decoded, find_packed
from llamagen.weights.safetensors import read_header
from llamagen.weights.tensors import WITH_POINTS
from tests.parity.published import exported, llama, require_equal

Made = tuple[dict[str, torch.Tensor], torch.Tensor]
"""What is stored of a matrix, by the end of its name, and the matrix that it means."""


def in_words(codes: NDArray[np.uint32], bits: int, order: tuple[int, ...]) -> NDArray[np.int32]:
    """[N, M] codes along M into words; the i-th place of a word, from the lowest bits on, has the code order[i]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // len(order)), np.uint32)
    for place, at in enumerate(order):
        words |= codes[:, at :: len(order)] << np.uint32(place * bits)
    return words.view(np.int32)


def gptq(
    generator: np.random.Generator,
    shape: tuple[int, int],
    size: int,
    kind: Kind,
    bits: int,
    act: bool,
    middle: bool = False,
) -> Made:
    """AutoGPTQ's `pack`: codes along inputs, zero points along outputs, less one in the first format."""
    outputs, inputs = shape
    codes = generator.integers(0, 1 << bits, (inputs, outputs), dtype=np.uint32)
    first = kind == "gptq"
    zeros = generator.integers(int(first), 1 << bits, (inputs // size, outputs), dtype=np.uint32)
    zeros[...] = 1 << bits - 1 if middle else zeros
    scales = generator.normal(0, 0.48 / (1 << bits), (inputs // size, outputs)).astype(np.float16)
    group = np.arange(inputs, dtype=np.int32) // size
    if act:
        generator.shuffle(group)
    order = tuple(range(32 // bits))
    stored: dict[str, NDArray[Any]] = {
        "qweight": in_words(np.ascontiguousarray(codes.T), bits, order).T,
        "qzeros": in_words(zeros - np.uint32(first), bits, order),
        "scales": scales,
        "g_idx": group,
    }
    means = (codes.astype(np.float32) - zeros[group].astype(np.float32)) * scales[group]
    return tensors(stored), torch.from_numpy(np.ascontiguousarray(means.T))


def awq(
    generator: np.random.Generator, shape: tuple[int, int], size: int, middle: bool = False
) -> Made:
    """AutoAWQ's `WQLinear_GEMM.from_linear`: all along outputs, in the order of its kernel."""
    outputs, inputs = shape
    codes = generator.integers(0, 16, (inputs, outputs), dtype=np.uint32)
    zeros = generator.integers(0, 16, (inputs // size, outputs), dtype=np.uint32)
    zeros[...] = 8 if middle else zeros
    scales = generator.normal(0, 0.03, (inputs // size, outputs)).astype(np.float16)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    stored: dict[str, NDArray[Any]] = {
        "qweight": in_words(codes, 4, order),
        "qzeros": in_words(zeros, 4, order),
        "scales": scales,
    }
    group = np.arange(inputs) // size
    means = (codes.astype(np.float32) - zeros[group].astype(np.float32)) * scales[group]
    return tensors(stored), torch.from_numpy(np.ascontiguousarray(means.T))


def tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def scheme_of(size: int | None, bits: int = 4, symmetric: bool = True) -> QuantizationScheme:
    strategy = "channel" if size is None else "group"
    weights = QuantizationArgs(
        num_bits=bits, type="int", strategy=strategy, group_size=size, symmetric=symmetric
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def compressed(
    generator: np.random.Generator,
    shape: tuple[int, int],
    scheme: QuantizationScheme,
    words: bool,
    half: bool = False,
) -> Made:
    """By the package compressed-tensors, there and back; with ``half`` its scales are stored in float16."""
    weights = scheme.weights
    assert weights is not None
    groups = 1 if weights.group_size is None else shape[1] // weights.group_size
    half = 1 << weights.num_bits - 1
    zeros = generator.integers(-half, half, (shape[0], groups)).astype(np.int8)
    state = {
        "weight": torch.from_numpy(generator.standard_normal(shape).astype(np.float32)),
        "weight_scale": torch.from_numpy(generator.uniform(0.02, 0.05, (shape[0], groups)).astype(np.float32)),
        "weight_zero_point": torch.from_numpy(zeros * (not weights.symmetric)),
    }  # fmt: skip
    if half:
        state["weight_scale"] = state["weight_scale"].half().float()
    peer = PackedQuantizationCompressor if words else NaiveQuantizationCompressor
    stored = dict(peer.compress(state, scheme))
    means = peer.decompress(stored, scheme)["weight"]
    if half:
        stored["weight_scale"] = stored["weight_scale"].half()
    return stored, means


def require_decoded(made: Made, kind: Kind, bits: int, folder: Path, seed: int) -> None:
    stored, means = made
    save_file({f"m.{name}": tensor for name, tensor in stored.items()}, folder / "m.safetensors")
    entries = {entry.name: entry for entry in read_header(folder / "m.safetensors")}
    found, taken, findings = find_packed(entries, kind, bits)
    assert not findings and taken == set(entries)
    tensor = decoded(found["m.weight"])
    assert tensor.shape == tuple(means.shape)
    generator = np.random.default_rng(seed)
    cuts = [sorted(map(int, generator.integers(0, size + 1, 2))) for size in tensor.shape]
    for (first, last), (start, stop) in (((0, tensor.shape[0]), (0, tensor.shape[1])), cuts):
        ours = tensor.read(((first, last), (start, stop))).view(np.float32)
        np.testing.assert_array_equal(ours, means[first:last, start:stop].numpy())


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["gptq 2", "gptq 4", "gptq 8", "gptq_v2 4", "awq 4", "words 4", "words 8", "bytes 8"]),
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([16, 32]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_random_matrices_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, form: str, rows: int, groups: int, size: int,
    act: bool, symmetric: bool,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    word, number = form.split()
    kind: Kind = word  # type: ignore[assignment]
    bits, shape = int(number), (16 * rows, size * groups)
    match kind:
        case "awq":
            made = awq(generator, shape, size)
        case "words" | "bytes":
            grouped = size if kind == "words" and act else None
            made = compressed(
                generator, shape, scheme_of(grouped, bits, symmetric), kind == "words"
            )
        case _:
            made = gptq(generator, shape, size, kind, bits, act)
    require_decoded(made, kind, bits, tmp_path_factory.mktemp("packed"), seed)


def float8(generator: np.random.Generator, shape: tuple[int, int], whole: bool) -> Made:
    values = torch.from_numpy(generator.standard_normal(shape).astype(np.float32)).to(
        torch.float8_e4m3fn
    )
    scale = torch.from_numpy(
        generator.uniform(0.05, 0.2, (1,) if whole else (shape[0], 1)).astype(np.float32)
    )
    return {
        "weight": values,
        "weight_scale": scale,
        "input_scale": torch.ones(1),
    }, values.float() * scale


def of_llmcompressor(form: str, bits: int) -> dict[str, object]:
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 16}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


FORMS: dict[str, tuple[dict[str, object], Callable[[np.random.Generator, tuple[int, int]], Made]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 16}, lambda g, s: gptq(g, s, 16, "gptq", 4, False)),
    "gptq, inputs in another order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "checkpoint_format": "gptq_v2"},
        lambda g, s: gptq(g, s, 16, "gptq_v2", 4, True),
    ),
    "gptq, no zero points, inputs in another order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        lambda g, s: gptq(g, s, 32, "gptq", 4, True, middle=True),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, lambda g, s: awq(g, s, 32)),
    "w4a16": (of_llmcompressor("pack-quantized", 4), lambda g, s: compressed(g, s, scheme_of(16), True)),
    "w8a8": (of_llmcompressor("int-quantized", 8), lambda g, s: compressed(g, s, scheme_of(None, 8), False)),
    "fp8 by tensor": (of_llmcompressor("float-quantized", 8), lambda g, s: float8(g, s, True)),
    "fp8 by output": (of_llmcompressor("float-quantized", 8), lambda g, s: float8(g, s, False)),
}  # fmt: skip


def packed_model(
    folder: Path, how: dict[str, object], make: Callable[..., Made]
) -> torch.nn.Module:
    """A model's folder with its projections packed; the model that they mean."""
    model, generator = llama(), np.random.default_rng(1)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if "_proj" not in name:
            state[name] = tensor
            continue
        stored, means = make(generator, tuple(tensor.shape))
        state |= {f"{name.removesuffix('weight')}{part}": value for part, value in stored.items()}
        tensor.copy_(means)
    model.config.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": how}))
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_model_is_exported_as_what_it_means(form: str, tmp_path: Path) -> None:
    model = packed_model(tmp_path / "model", *FORMS[form])
    out = exported(tmp_path / "model", tmp_path / "out")
    stored = stored_weights(out)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(stored.read(name), tensor.numpy())
    require_equal(out, model)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


OF_CODES = Tolerance(1.5e-4, 1.5e-5)
"""Products of codes are summed block by block (llamagen/verify/limits.py has the same factor)."""
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
STAY: dict[str, tuple[str, dict[str, object], Callable[[np.random.Generator, tuple[int, int]], Made]]] = {
    "gptq": ("Q4_0", GPTQ, lambda g, s: gptq(g, s, 32, "gptq", 4, False, middle=True)),
    "gptq, a group is an input": ("Q4_0", GPTQ, lambda g, s: gptq(g, s, s[1], "gptq", 4, False, middle=True)),
    "gptq, 8 bits": ("Q8_0", {**GPTQ, "bits": 8}, lambda g, s: gptq(g, s, 32, "gptq", 8, False, middle=True)),
    "awq": ("Q4_0", {"quant_method": "awq", "bits": 4}, lambda g, s: awq(g, s, 32, middle=True)),
    "awq, zero points": (
        WITH_POINTS, {"quant_method": "awq", "bits": 4}, lambda g, s: awq(g, s, 32),
    ),
    "gptq, zero points": (
        WITH_POINTS, {**GPTQ, "checkpoint_format": "gptq_v2"},
        lambda g, s: gptq(g, s, 32, "gptq_v2", 4, False),
    ),
    "w4a16": (
        "Q4_0", of_llmcompressor("pack-quantized", 4),
        lambda g, s: compressed(g, s, scheme_of(32), True, half=True),
    ),
    "w8a16": (
        "Q8_0", of_llmcompressor("int-quantized", 8),
        lambda g, s: compressed(g, s, scheme_of(None, 8), False, half=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", STAY)
def test_matrices_whose_groups_are_blocks_stay_packed(form: str, tmp_path: Path) -> None:
    """To the bit, with zero points or without; and as others they can be decoded, or quantised if that is asked for."""
    packing, how, make = STAY[form]
    model = packed_model(tmp_path / "model", how, make)
    out = exported(tmp_path / "model", tmp_path / "out")
    record = read_manifest(out).quantization
    assert record is not None and not record.decoded
    assert {name: len(paths) for name, paths in record.kept.items()} == {packing: 14}
    stored = stored_weights(out)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(stored.read(name), tensor.numpy())
        assert isinstance(stored.places[name], CodedPlace) is ("_proj" in name)
    require_equal(out, model, OF_CODES)
    asked = ExportOptions(quantize=QuantizeOptions("int4"))
    with pytest.raises(LlamagenError, match="LG719"):
        exported(tmp_path / "model", tmp_path / "again", asked)
    plain = ExportOptions(quantize=QuantizeOptions("none"))
    require_equal(exported(tmp_path / "model", tmp_path / "plain", plain), model)


def refused(folder: Path) -> str:
    with pytest.raises(LlamagenError) as caught:
        exported(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()
    return " ".join(f"{one.code} {one.message} {one.help}" for one in caught.value.diagnostics)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "marlin-24"),
        ({"quant_method": "awq", "bits": 4}, "make no packed matrix"),
    ],
    ids=str,
)
def test_a_format_that_is_not_read_is_named(
    how: dict[str, object], said: str, tmp_path: Path
) -> None:
    packed_model(tmp_path / "model", how, FORMS["gptq"][1])
    text = refused(tmp_path / "model")
    assert "LG627" in text and said in text


def test_packed_tensors_of_which_nothing_is_said(tmp_path: Path) -> None:
    packed_model(tmp_path / "model", *FORMS["gptq"])
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    assert "quantization_config" in refused(tmp_path / "model")


def test_groups_that_do_not_exist(tmp_path: Path) -> None:
    def damaged(generator: np.random.Generator, shape: tuple[int, int]) -> Made:
        stored, means = gptq(generator, shape, 16, "gptq", 4, act=True)
        stored["g_idx"][3] = 99
        return stored, means

    packed_model(tmp_path / "model", FORMS["gptq"][0], damaged)
    assert "groups that do not exist" in refused(tmp_path / "model")
