"""Quantised folders: proven on the weights that their codes stand for, whatever is quantised and however."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from llamagen.api import load, random_checkpoint
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.emit.written import Written
from llamagen.runtime.session import Session
from llamagen.verify.folder import verify_folder
from llamagen.verify.stored import CodedPlace, stored_weights
from llamagen.weights.random import random_values
from tests.parity.models import SPECS

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"
FOREIGN = SPECS / "foreign"
INT4, INT8, W8A8 = QuantizeOptions("int4"), QuantizeOptions("int8"), QuantizeOptions("w8a8")
ALL_INT4 = QuantizeOptions("int4", head="int4", sensitive="int4")


def exported(spec: Path, out: Path, quantize: QuantizeOptions, **options: object) -> Written:
    chosen = ExportOptions(quantize=quantize, **options)  # type: ignore[arg-type]
    return load(spec).export(out, chosen, random_weights=1)


def changed(folder: Path, *words: str) -> Path:
    """The dense spec with words replaced by others, pair by pair."""
    text = DENSE.read_text(encoding="utf-8")
    for before, after in zip(words[::2], words[1::2], strict=True):
        assert text.count(before) == 1
        text = text.replace(before, after)
    (folder / "changed.yaml").write_text(text)
    return folder / "changed.yaml"


def operators(out: Path) -> Counter[str]:
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
@pytest.mark.parametrize(
    "quantize",
    [
        INT4,
        QuantizeOptions("int4", 64, asymmetric=True, head="int8", embedding="int8"),
        QuantizeOptions("int8", 16, head="none"),
        QuantizeOptions("int8", 64, asymmetric=True, embedding="int4", accuracy_level=1),
        W8A8,
        QuantizeOptions("w8a8", head="int4", embedding="int8"),
    ],
    ids=lambda q: f"{q.scheme}-{q.block_size}-{q.asymmetric}",
)
def test_the_computation_is_proven(profile: str, quantize: QuantizeOptions, tmp_path: Path) -> None:
    exported(DENSE, tmp_path / "out", quantize, profile=profile)
    report = verify_folder(tmp_path / "out", ("reference",), steps=3)
    assert report.passed, [row.cells() for row in report.rows]
    assert {row.verdict for row in report.rows} == {"equal"}


@pytest.mark.parametrize(
    ("spec", "quantize"),
    [
        ("gpt_neox", QuantizeOptions("int4", 32)),  # 24 features: no whole block; biases
        ("mixtral", QuantizeOptions("int8", 16, asymmetric=True)),  # a router, experts
        ("gemma2", QuantizeOptions("int4", 16, embedding="none")),  # tied, capped logits
        ("phi", W8A8),
        ("gpt_neox", QuantizeOptions("int8", 32, accuracy_level=1)),
    ],
)
@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
def test_other_architectures(
    spec: str, quantize: QuantizeOptions, profile: str, tmp_path: Path
) -> None:
    exported(FOREIGN / f"{spec}.yaml", tmp_path / "out", quantize, profile=profile)
    report = verify_folder(tmp_path / "out", ("reference",), steps=3)
    assert report.passed, [row.cells() for row in report.rows]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes(dtype: str, tmp_path: Path) -> None:
    quantize = QuantizeOptions("int4", 32, embedding="int8")
    exported(DENSE, tmp_path / "out", quantize, dtype=dtype)
    assert verify_folder(tmp_path / "out", ("reference",), steps=3).passed


def test_weights_are_near_those_of_the_checkpoint(tmp_path: Path) -> None:
    """int4 in blocks of 32 normal numbers: 1/16 of the largest, uniform, is 8 % of their spread."""
    exported(DENSE, tmp_path / "out", ALL_INT4, profile="ort-cpu")
    stored = stored_weights(tmp_path / "out")
    for path, parameter in load(DENSE).parameters.items():
        true = random_values(1, path, parameter.shape, parameter.kind)
        error = np.sqrt(np.square(stored.read(path).astype("f4") - true).mean()) / true.std()
        quantised = len(parameter.shape) == 2 and "embed" not in path
        assert (0.05 < error < 0.11) if quantised else error == 0, path


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("spec", ["foreign/gpt_neox", "reduced/llama-3.2-1b"])
def test_halves_are_the_same_codes(spec: str, asymmetric: bool, tmp_path: Path) -> None:
    """Products in float32 have codes of 8 bits in halves of 4, which changes no weight; tied tables too."""
    found = []
    for level in (1, 4):
        quantize = QuantizeOptions("int8", 32, asymmetric, accuracy_level=level)
        exported(SPECS / f"{spec}.yaml", tmp_path / str(level), quantize)
        found.append(stored_weights(tmp_path / str(level)))
    halves, whole = found
    coded = {n for n, place in whole.places.items() if isinstance(place, CodedPlace)}
    assert coded == {n for n, p in halves.places.items() if isinstance(p, CodedPlace)} != set()
    for name in coded:
        assert np.array_equal(halves.read(name), whole.read(name)), name
    assert verify_folder(tmp_path / "1", ("reference",), steps=2).passed


def test_what_suffers_most_has_eight_bits(tmp_path: Path) -> None:
    """The head, and what goes down and into attention in some layers, whatever it is called.

    With four bits the first, the last and every third; beside w8a8 all, there gate and up too, and the head is as the
    others.
    """

    def in_blocks_of_8_bits(spec: Path, quantize: QuantizeOptions, profile: str) -> set[str]:
        exported(
            spec,
            out := tmp_path / f"{spec.stem}-{quantize.scheme}-{profile}",
            quantize,
            profile=profile,
        )
        coded = (
            (p, one) for p, one in stored_weights(out).places.items() if isinstance(one, CodedPlace)
        )
        return {p for p, one in coded if (one.record.kind, one.record.bits) == ("blocks", 8)}

    spec = changed(tmp_path, "num_layers: 2", "num_layers: 5")
    parts = ("mlp.down_proj", *(f"self_attn.{name}_proj" for name in "qkv"))
    for profile in ("portable", "ort-cpu"):
        wide = in_blocks_of_8_bits(spec, INT4, profile)
        thirds = {f"model.layers.{i}.{part}.weight" for i in (0, 2, 4) for part in parts}
        assert wide == {"lm_head.weight", *thirds}
        wide = in_blocks_of_8_bits(spec, W8A8, profile)
        every = (*parts, "self_attn.o_proj")
        more = {
            f"model.layers.{i}.mlp.{name}_proj.weight" for i in (0, 2, 4) for name in ("gate", "up")
        }
        assert wide == more | {
            f"model.layers.{i}.{part}.weight" for i in range(5) for part in every
        }
    neox = FOREIGN / "gpt_neox.yaml"
    wide = in_blocks_of_8_bits(neox, QuantizeOptions("int4", head="int4"), "portable")
    assert {p.split(".", 3)[-1] for p in wide} == {
        "attention.query_key_value.weight",
        "mlp.dense_4h_to_h.weight",
    }


def test_a_table_has_blocks_that_fit_its_rows(tmp_path: Path) -> None:
    """64 features are no block of 128."""
    exported(DENSE, tmp_path / "out", QuantizeOptions("int4", 128, embedding="int4"))
    places = stored_weights(tmp_path / "out").places
    blocks = {p: one.record.block for p, one in places.items() if isinstance(one, CodedPlace)}
    assert blocks.pop("model.embed_tokens.weight") == 64 and set(blocks.values()) == {128}
    assert verify_folder(tmp_path / "out", ("reference",), steps=2).passed


def test_layers_are_compared_with_exact_products_too(tmp_path: Path) -> None:
    exported(DENSE, tmp_path / "out", INT4)
    report = verify_folder(tmp_path / "out", ("reference",), steps=2, layers=True)
    found = [row.onnx for row in report.layers if row.onnx is not None]
    assert found and max(difference.max_over_std for difference in found) < 1e-5


def test_routers_stay_as_they_are(tmp_path: Path) -> None:
    spec = FOREIGN / "mixtral.yaml"
    exported(spec, tmp_path / "out", QuantizeOptions("int4", 16))
    stored = stored_weights(tmp_path / "out")
    exact = {
        path
        for path, p in load(spec).parameters.items()
        if np.array_equal(stored.read(path), random_values(1, path, p.shape, p.kind))
    }
    changed = sorted({path.split(".")[-2] for path in set(load(spec).parameters) - exact})
    assert changed == ["experts", "k_proj", "lm_head", "o_proj", "q_proj", "v_proj"]


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    spec = changed(tmp_path, "hyperparameters:", "hyperparameters:\n  tie_embeddings: true")
    exported(spec, tmp_path / "out", QuantizeOptions("int4", head="int8"))
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    codes = "model.embed_tokens.weight_codes"
    (stored,) = (t for t in model.graph.initializer if t.name == codes)
    table = load(spec).parameters["model.embed_tokens.weight"].shape
    assert math.prod(stored.dims) == table[0] * table[1]
    readers = sorted(n.op_type for n in model.graph.node if codes in n.input)
    assert readers == ["Gather", "MatMulNBits"]
    assert verify_folder(tmp_path / "out", ("reference",), steps=2).passed


def test_packed_projections_are_one_product(tmp_path: Path) -> None:
    """The fused attention has heads of 16: queries, keys and values are one weight of codes."""
    spec = changed(tmp_path, "num_heads: 8\n", "num_heads: 4\n", "head_dim: 8", "head_dim: 16")
    exported(spec, tmp_path / "out", QuantizeOptions("int4", asymmetric=True), profile="ort-cpu")
    found = operators(tmp_path / "out")
    assert found["GroupQueryAttention"] == 2 and found["MatMulNBits"] == 5 * 2 + 1
    report = verify_folder(tmp_path / "out", ("reference", "torch"), steps=3)
    # the fused attention counts positions itself: no caller can set them far apart
    cells = [row.cells() for row in report.rows if "far apart" not in row.case]
    assert len(cells) >= 6 and {c[-1] for c in cells} == {"equal"}, cells


def test_a_checkpoint_and_random_weights_give_the_same_codes(tmp_path: Path) -> None:
    random_checkpoint(DENSE, tmp_path / "checkpoint", seed=1, dtype="float32", shard_bytes=70_000)
    model = load(DENSE)
    sources: tuple[tuple[str, dict[str, Any]], ...] = (
        ("a", {"checkpoint": tmp_path / "checkpoint"}),
        ("b", {"random_weights": 1}),
    )
    for name, source in sources:
        model.export(tmp_path / name, ExportOptions(quantize=W8A8), **source)
    for file in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    hashes = [read_manifest(tmp_path / name).files["model.onnx_data"] for name in "ab"]
    assert hashes[0] == hashes[1]


def test_the_manifest_says_what_is_quantised(tmp_path: Path) -> None:
    exported(DENSE, tmp_path / "out", QuantizeOptions("int4", 64, True, 1, "int8"))
    found = read_manifest(tmp_path / "out").quantization
    assert found is not None
    assert found.model_dump() == {
        "linear": "int4",
        "head": "int8",
        "sensitive": "int8",
        "embedding": "none",
        "tied": "int8",
        "experts": "int4",
        "block_size": 64,
        "symmetric": False,
        "accuracy_level": 1,
        "method": "rtn",
        "calibration": None,
        "kept": {},
        "decoded": {},
    }
    exported(DENSE, tmp_path / "plain", QuantizeOptions())
    assert read_manifest(tmp_path / "plain").quantization is None


def test_it_generates(tmp_path: Path) -> None:
    """Also with activations in int8, as it is used."""
    exported(DENSE, tmp_path / "out", INT8, profile="ort-cpu")
    exported(DENSE, tmp_path / "plain", QuantizeOptions(), profile="ort-cpu")
    found, exact = (
        Session(tmp_path / n, OpenOptions(threads=1)).step([3, 1, 4, 1, 5])
        for n in ("out", "plain")
    )
    assert np.corrcoef(found, exact)[0, 1] > 0.995


@pytest.mark.parametrize(
    ("quantize", "code", "words"),
    [
        (QuantizeOptions("int5"), "LG707", "did you mean `int8`?"),
        (QuantizeOptions("int4", head="q8"), "LG707", "known: none, int4, int8, w8a8"),
        (QuantizeOptions("int4", embedding="w8a8"), "LG707", "known: none, int4, int8"),
        (QuantizeOptions("int4", experts="w8a8"), "LG707", "known: none, int4, int8"),
        (QuantizeOptions("int4", 48), "LG708", "16, 32, 64, 128, 256"),
        (QuantizeOptions("int4", accuracy_level=3), "LG708", "0, 1, 4"),
        (QuantizeOptions("int4", method="gptq"), "LG707", "known: rtn, search"),
        (QuantizeOptions("int4", method="search"), "LG718", "without a tokenizer.json"),
        (QuantizeOptions("int8", method="search"), "LG718", "no projection has four bits"),
        (QuantizeOptions("int4", calibrate=DENSE), "LG718", "without a tokenizer.json"),
        (QuantizeOptions("int4", method="rtn", calibrate=DENSE), "LG718", "looks at no text"),
    ],
)
def test_what_is_refused(quantize: QuantizeOptions, code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        exported(DENSE, tmp_path / "out", quantize)
    (one,) = caught.value.diagnostics
    assert one.code == code and words in f"{one.message} {one.help}"
    assert not (tmp_path / "out").exists()


def test_w8a8_has_no_kernel_on_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        exported(DENSE, tmp_path / "out", W8A8, profile="ort-cuda", dtype="float16")
    assert caught.value.diagnostics[0].code == "LG707"


def test_references_are_not_quantised(tmp_path: Path) -> None:
    random_checkpoint(DENSE, tmp_path / "checkpoint")
    with pytest.raises(LlamagenError) as caught:
        load(DENSE).export(
            tmp_path / "out",
            ExportOptions(weights="reference", quantize=INT4),
            checkpoint=tmp_path / "checkpoint",
        )
    assert caught.value.diagnostics[0].code == "LG707"


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize(
    ("largest", "dtype", "fits"),
    [
        (99840.0, "float16", False),
        (60160.0, "float16", True),
        (99840.0, "bfloat16", True),
        (99840.0, "float32", True),
    ],
)
def test_values_beyond_the_dtype_are_refused_as_codes_too(
    largest: float, dtype: str, fits: bool, scheme: str, asymmetric: bool, tmp_path: Path
) -> None:
    """A scale that fits is not enough: kernels multiply it with its codes."""
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    random_checkpoint(DENSE, checkpoint)
    state = load_file(checkpoint / "model.safetensors")
    path = "model.layers.1.mlp.down_proj.weight"
    state[path][3, 2] = largest
    state[path][3, 3] = -largest
    save_file(state, checkpoint / "model.safetensors", {"format": "pt"})
    options = QuantizeOptions(scheme, asymmetric=asymmetric)
    if fits:
        load(DENSE).export(out, ExportOptions(dtype=dtype, quantize=options), checkpoint=checkpoint)
        return
    with pytest.raises(LlamagenError, match="99840, which float16 cannot hold") as caught:
        load(DENSE).export(out, ExportOptions(dtype=dtype, quantize=options), checkpoint=checkpoint)
    assert [d.code for d in caught.value.diagnostics] == ["LG621"]
    assert path in caught.value.diagnostics[0].message and not out.exists()
