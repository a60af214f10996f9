"""Folders whose experts are codes: Scout with images and Mixtral, proven on the weights that the codes stand for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llamagen.api import load, random_checkpoint
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx import encode
from llamagen.emit.onnx.data import groups
from llamagen.emit.onnx.initializers import Encoding, Initializer, Placement, encoded
from llamagen.emit.onnx.session import OpenOptions
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from llamagen.runtime.session import Session
from llamagen.verify.folder import verify_folder
from llamagen.verify.integrity import check_integrity
from llamagen.verify.stored import stored_weights
from llamagen.weights.random import random_values
from llamagen.weights.tensors import Region
from tests.clients.vllm_models import spec_of
from tests.parity.models import SPECS

INT4, INT8 = QuantizeOptions("int4", 16), QuantizeOptions("int8", 16)
UNEVEN = QuantizeOptions("int4", 32, asymmetric=True)
"""Experts of 48 features are a block and a half."""


def not_packed(path: str, start: int, stop: int) -> np.ndarray:
    raise AssertionError(path)


def scout(folder: Path) -> Path:
    """Experts stored [E, in, out], one a token, that scales what the expert gets; graphs for images."""
    text = (SPECS / "reduced/llama-4-scout.yaml").read_text(encoding="utf-8")
    for before, after in (
        ("  hidden_size: 24\n", "  hidden_size: 32\n"),
        ("  expert_intermediate_size: 12\n", "  expert_intermediate_size: 48\n"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    (folder / "scout.yaml").write_text(text)
    return folder / "scout.yaml"


def mixtral(folder: Path) -> Path:
    """Experts stored [E, out, in], two a token, whose results are weighed."""
    text = (SPECS / "foreign/mixtral.yaml").read_text(encoding="utf-8")
    text = text.replace("hidden_size: 24", "hidden_size: 32").replace("head_dim: 6", "head_dim: 8")
    text = text.replace("expert_intermediate_size: 14", "expert_intermediate_size: 48")
    (folder / "mixtral.yaml").write_text(text)
    assert load(folder / "mixtral.yaml").spec.hyperparameters.hidden_size == 32
    return folder / "mixtral.yaml"


MODELS = {"scout": scout, "mixtral": mixtral}


def operators(file: Path) -> Counter[str]:
    model = onnx.load(str(file), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def proven(out: Path) -> None:
    report = verify_folder(out, ("reference",), steps=2)
    verdicts = {row.case: row.verdict for row in report.rows if "far apart" not in row.case}
    assert set(verdicts.values()) == {"equal"}, [row.cells() for row in report.rows]
    assert report.passed and len(verdicts) >= 6


FUSED = (
    INT4,
    QuantizeOptions("int4", 16, asymmetric=True),
    INT8,
    QuantizeOptions("int8", 16, asymmetric=True),
    QuantizeOptions("w8a8", 16),
    QuantizeOptions("none", 16, experts="int4"),
)
APART = (
    QuantizeOptions("int8", 16, accuracy_level=1),  # the fused kernel rounds activations
    UNEVEN,
)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("profile", "quantize"),
    [
        *(("ort-cpu", quantize) for quantize in (*FUSED, *APART)),
        *(("portable", quantize) for quantize in (INT4, FUSED[3], UNEVEN)),
    ],
)
def test_the_computation_is_proven(
    model: str, profile: str, quantize: QuantizeOptions, tmp_path: Path
) -> None:
    """Prefill, decode, padded batches, and for Scout images in text, through every graph."""
    out = tmp_path / "out"
    load(MODELS[model](tmp_path)).export(
        out, ExportOptions(quantize=quantize, profile=profile, max_context=64), random_weights=1
    )
    found = operators(out / "model.onnx")
    fused = profile == "ort-cpu" and quantize in FUSED
    assert (found["QMoE"] > 0, found["Scan"] > 0, found["MoE"]) == (fused, not fused, 0)
    if model == "scout":
        assert operators(out / "decoder.onnx")["QMoE"] == found["QMoE"]
    proven(out)
    assert check_integrity(out, lambda done, total: None).whole


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes(profile: str, dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    load(mixtral(tmp_path)).export(
        out,
        ExportOptions(quantize=INT4, profile=profile, dtype=dtype, max_context=64),
        random_weights=1,
    )
    assert verify_folder(out, ("reference",), steps=3).passed


@pytest.mark.parametrize("codes", [NOT_QUANTIZED, QuantizeOptions("int4"), QuantizeOptions("int8")])
@pytest.mark.parametrize("model", ["mixtral", "llama4_text"])
def test_the_graph_for_cuda_is_proven_on_the_cpus_kernels(
    model: str, codes: QuantizeOptions, tmp_path: Path
) -> None:
    """In float16, which both have: logarithms of weights are rounded to it."""
    out = tmp_path / "out"
    options = ExportOptions("ort-cuda", "float16", quantize=codes, max_context=64, runtime="1.32")
    load(spec_of(model, tmp_path)).export(out, options, random_weights=1)
    found = operators(out / "model.onnx")
    fused = "MoE" if codes is NOT_QUANTIZED else "QMoE"
    assert found[fused] >= 2 and found["Scan"] == 0
    report = verify_folder(out, ("reference",), steps=3)
    assert report.passed, [row.cells() for row in report.rows]


@pytest.mark.parametrize(
    ("codes", "operator"), [(NOT_QUANTIZED, "Gemm"), (INT4, "MatMulNBits"), (INT8, "MatMulNBits")]
)
def test_sizes_without_a_kernel_stay_apart(
    codes: QuantizeOptions, operator: str, tmp_path: Path
) -> None:
    """Experts of 12 features, and blocks of 16: one expert at a time."""
    out = tmp_path / "out"
    load(SPECS / "reduced/llama-4-scout.yaml").export(
        out, ExportOptions("ort-cuda", "float16", quantize=codes), random_weights=1
    )
    found = operators(out / "model.onnx")
    assert found["MoE"] == found["QMoE"] == 0 and found["Scan"] == 8
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    inner = Counter(
        node.op_type
        for scan in model.graph.node
        if scan.op_type == "Scan"
        for chosen in next(a.g for a in scan.attribute if a.name == "body").node
        if chosen.op_type == "If"
        for node in next(a.g for a in chosen.attribute if a.name == "then_branch").node
    )
    assert inner[operator] == 2 * 8


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("quantize", [INT4, INT8, UNEVEN], ids=["int4", "int8", "uneven"])
def test_weights_are_near_those_of_the_checkpoint(
    model: str, quantize: QuantizeOptions, tmp_path: Path
) -> None:
    """Uniform steps of 2 / 2^bits of the largest of 16 normal numbers; routers and norms are exact."""
    spec = MODELS[model](tmp_path)
    load(spec).export(tmp_path / "out", ExportOptions(quantize=quantize), random_weights=1)
    stored = stored_weights(tmp_path / "out")
    seen: set[str] = set()
    for path, parameter in load(spec).parameters.items():
        if path.startswith(("vision_model", "multi_modal")):
            continue
        true = random_values(1, path, parameter.shape, parameter.kind)
        error = np.sqrt(np.square(stored.read(path).astype("f4") - true).mean()) / true.std()
        kind = path.rpartition(".")[2]
        if "experts.gate_up_proj" in path or "experts.down_proj" in path:
            seen.add(kind)
            low, high = (0.002, 0.007) if quantize is INT8 else (0.04, 0.11)
            assert low < error < high, (path, error)
        if "router" in path or ".gate.weight" in path or "norm" in path:
            seen.add("exact")
            assert error == 0, path
    assert seen == {"gate_up_proj", "down_proj", "exact"}


def test_experts_are_chosen_apart(tmp_path: Path) -> None:
    model = load(mixtral(tmp_path))
    for name, quantize in (
        ("int8", QuantizeOptions("int4", 16, experts="int8")),
        ("none", QuantizeOptions("int4", 16, experts="none")),
        ("w8a8", QuantizeOptions("w8a8", 16)),
    ):
        model.export(tmp_path / name, ExportOptions(quantize=quantize), random_weights=1)
        record = read_manifest(tmp_path / name).quantization
        assert record is not None
        assert record.experts == name.replace("w8a8", "int8")
        assert record.linear == quantize.scheme
    path = next(p for p in model.parameters if "experts.down_proj" in p)
    p = model.parameters[path]
    exact = random_values(1, path, p.shape, p.kind)
    assert np.array_equal(stored_weights(tmp_path / "none").read(path), exact)
    proven(tmp_path / "none")


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_and_random_weights_give_the_same_codes(model: str, tmp_path: Path) -> None:
    """Scout's checkpoint has experts [E, in, out], Mixtral's a tensor for each expert and half."""
    spec = MODELS[model](tmp_path)
    random_checkpoint(spec, tmp_path / "checkpoint", seed=1, dtype="float32", shard_bytes=90_000)
    loaded = load(spec)
    sources: tuple[tuple[str, dict[str, Any]], ...] = (
        ("a", {"checkpoint": tmp_path / "checkpoint"}),
        ("b", {"random_weights": 1}),
    )
    for name, source in sources:
        loaded.export(tmp_path / name, ExportOptions(quantize=INT4), **source)
    for file in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_stack_is_read_a_part_of_an_expert_at_a_time() -> None:
    """At Scout's width: rectangles of at most EXPERT_ELEMENTS, which together are every weight once."""
    shape = (2, 5120, 16384)
    whole = Initializer.of("w", shape, "bfloat16")
    how = Encoding("experts", 4, 32, True, 4, transposed=True, paired=True)
    entries = encoded(whole, how, "float32")
    assert list(groups(entries)) == [entries]
    assert [e.shape for e in entries] == [(2, 16384, 5120 // 2), (2, 16384, 5120 // 32)]
    asked: list[Region] = []

    def part(path: str, region: Region) -> np.ndarray:
        asked.append(region)
        return np.zeros([stop - start for start, stop in region], np.float32)

    spots = [Placement(e, "f", 0, int(np.prod(e.shape)) * (4 if i else 1)) for i, e in enumerate(entries)]  # fmt: skip
    pieces = list(encode.encoded_pieces(spots, part, not_packed, {}))
    assert sum(piece.length for piece in pieces) == sum(spot.length for spot in spots)
    for piece in (pieces[0], pieces[-1]):
        del asked[:]
        piece.make()
        sizes = [np.prod([stop - start for start, stop in region]) for region in asked]
        assert len(sizes) == 2 and 0 < sum(sizes) <= encode.EXPERT_ELEMENTS
    assert asked[-1][2][1] == 16384 and asked[0][2][1] == 8192


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_parts_are_those_of_the_whole(
    transposed: bool, paired: bool, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of a few rows that are read apart give the bytes that all experts at once give."""
    monkeypatch.setattr(encode, "EXPERT_ELEMENTS", 1000)
    inputs, outputs = 150, 22
    shape = (3, inputs, outputs) if transposed else (3, outputs, inputs)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    how = Encoding("experts", bits, 32, False, 4, transposed, paired)  # type: ignore[arg-type]
    entries = encoded(Initializer.of("w", shape, "float32"), how, "float32")
    found = encode.encode_rows(entries, encode.expert_rows(weight, how))

    def part(path: str, region: Region) -> np.ndarray:
        return weight[tuple(slice(*span) for span in region)]

    for entry in entries:
        whole = found[entry.name].reshape(-1).view(np.uint8)
        made = np.zeros(len(whole), np.uint8)
        spots = [Placement(e, "f", 0, found[e.name].nbytes) for e in entries]
        for piece in encode.encoded_pieces(spots, part, not_packed, {}):
            (offset, data), *_ = [
                place for place, e in zip(piece.make(), entries, strict=True) if e is entry
            ]
            made[offset : offset + len(data)] = data
        assert np.array_equal(made, whole), entry.name


def test_it_generates(tmp_path: Path) -> None:
    """As it is used, activations in int8."""
    model = load(scout(tmp_path))
    options = (("out", QuantizeOptions("int8", 16)), ("plain", QuantizeOptions()))
    for name, quantize in options:
        model.export(
            tmp_path / name,
            ExportOptions(quantize=quantize, profile="ort-cpu", max_context=64),
            random_weights=1,
        )
    found, exact = (
        Session(tmp_path / n, OpenOptions(threads=1)).step([3, 1, 4, 1, 5])
        for n in ("out", "plain")
    )
    assert np.corrcoef(found, exact)[0, 1] > 0.99
