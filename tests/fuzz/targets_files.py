"""Targets for files that come with a model: configurations, indices, manifests, torch zips, GGUF, packed weights."""

# ruff: noqa: E501  lists of words

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.foreign import foreign_of
from llamagen.emit.config.importing import import_foreign
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.table import ConfigTable, known_tables
from llamagen.emit.manifest import MANIFEST, Manifest, read_manifest
from llamagen.spec.registry import Registry
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.gguf_file import PACKED, read_gguf
from llamagen.weights.gguf_hub import hub_files
from llamagen.weights.meta_pth import read_pth
from llamagen.weights.packed import decoded
from llamagen.weights.tensors import stored, unpacked, whole
from tests.fuzz.scratch import ROOT, scratch

CONFIG_WORDS = (
    '"model_type": "llama"', '"model_type": "llama4"', '"text_config": {', '"rope_scaling": {', '"rope_type": "llama3"',
    '"factor": 1e999', '"num_hidden_layers": 1000000000', '"hidden_size": -1', '"vocab_size": 4611686018427387904', "NaN",
    "Infinity", "1e400", "9" * 70, "[" * 40, '{"a":' * 40, '"\\ud800"', '"\\u0000"', '"dim": 4096', '"n_layers": 0', "null",
    '"head_dim": 0', '"num_key_value_heads": 3', '"layer_types": []', '"no_rope_layers": [1, 1, 1, 0]', '"eos_token_id": []',
)  # fmt: skip
INDEX_WORDS = (
    '"weight_map": {', '"../x.safetensors"', '"/etc/passwd"', '"a/b.safetensors"', '"model.safetensors"', '"\\u0000"', "NaN",
    '"x.safetensors": 1', "[" * 3000, '"metadata": {"total_size": -1}',
)  # fmt: skip
MANIFEST_WORDS = (
    '"files": {', '"../x"', '"sha256": null', '"format": 2', '"kind": "random"', "9" * 400, "NaN", "[" * 3000, '"\\ud800"',
)  # fmt: skip
PICKLE_WORDS = (
    "cos\nsystem\n(S'x'\ntR.",
    "\x80\x02",
    "c__builtin__\neval\n",
    "ctorch\nFloatStorage\n",
    "Q",
    "R.",
    "b.",
)


@cache
def _known() -> tuple[Registry, tuple[ConfigTable, ...]]:
    registry = Registry()
    return registry, tuple(known_tables(registry))


def config(data: bytes) -> bool:
    registry, models = _known()
    kinds = tuple(sorted({one.kind for one in models}))
    try:
        wanted = foreign_of(parse_json(data, "config.json"), kinds)
        made = import_foreign(wanted, "imported/model", models, registry)
    except LlamagenError:
        return False
    assert registry.load_text(made.text).spec.id == "imported/model"
    return True


def configs() -> list[bytes]:
    published = json.loads((ROOT / "tests/data/hf_configs.json").read_text())
    shapes = {json.dumps(sorted(one)): one for one in published.values()}
    params = {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "multiple_of": 1024,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
    }
    return [json.dumps(one, indent=2).encode() for one in [*shapes.values(), params]]


def pth(data: bytes) -> bool:
    """A whole file of torch.save."""
    path = scratch() / "consolidated.00.pth"
    path.write_bytes(data)
    try:
        found = read_pth(path)
    except LlamagenError:
        return False
    assert all(one.offset >= 0 and one.offset + one.nbytes <= len(data) for one in found)
    return True


def pth_pickle(data: bytes) -> bool:
    """The pickle inside, in a zip that is sound; nothing of it may run."""
    assert _RAN == []
    accepted = pth(_zipped(data))
    assert _RAN == [], "a pickle was executed"
    return accepted


_RAN: list[object] = []


def ran(argument: object) -> object:
    """What a pickle must not be able to call."""
    _RAN.append(argument)
    return argument


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return ran, ("x",)


class _Name:
    """Pickled as a global of torch, without torch."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Storage:
    def __init__(self, key: str, kind: str, count: int) -> None:
        self.id = ("storage", _Name("torch", kind), key, "cpu", count)


class _Tensor:
    def __init__(self, storage: _Storage, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments: tuple[object, ...] = (storage, 0, shape, strides, False, OrderedDict())


class _Pickler(pickle._Pickler):  # the one in Python, whose tables can be added to
    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value: object) -> object:
        return value.id if isinstance(value, _Storage) else None

    def save_name(self, value: _Name) -> None:
        self.write(f"c{value.module}\n{value.name}\n".encode())  # type: ignore[attr-defined]

    def save_tensor(self, value: _Tensor) -> None:
        rebuild = _Name("torch._utils", "_rebuild_tensor_v2")
        self.save_reduce(rebuild, value.arguments, obj=value)

    dispatch[_Name] = save_name
    dispatch[_Tensor] = save_tensor

    def save_reduce(self, function: Any, arguments: Any, *rest: Any, **more: Any) -> None:
        if isinstance(function, _Name):
            self.save(function)  # type: ignore[attr-defined]
            self.save(arguments)  # type: ignore[attr-defined]
            self.write(pickle.REDUCE)  # type: ignore[attr-defined]
            return
        super().save_reduce(function, arguments, *rest, **more)  # type: ignore[misc]


def _pickled(value: object) -> bytes:
    out = io.BytesIO()
    _Pickler(out, 2).dump(value)
    return out.getvalue()


def _zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for key in ("0", "1"):
            archive.writestr(f"archive/data/{key}", bytes(48))
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def pickles() -> list[bytes]:
    first, second = _Storage("0", "FloatStorage", 12), _Storage("1", "BFloat16Storage", 24)
    plain = {
        "a.weight": _Tensor(first, (3, 4), (4, 1)),
        "b.weight": _Tensor(second, (24,), (1,)),
        "same": _Tensor(first, (2, 2), (2, 1)),
    }
    return [
        _pickled(OrderedDict(plain)),
        _pickled(plain),
        _pickled({}),
        pickle.dumps({"a": _Bomb()}),
    ]


def zips() -> list[bytes]:
    return [_zipped(one) for one in pickles()]


def index(data: bytes) -> bool:
    """Beside it lies one small shard; whatever the index says, nothing else may be read."""
    folder = scratch() / "index"
    folder.mkdir(exist_ok=True)
    (folder / "model-00001-of-00001.safetensors").write_bytes(_SHARD)
    path = folder / "model.safetensors.index.json"
    path.write_bytes(data)
    try:
        found = Checkpoint.open(path)
    except LlamagenError:
        return False
    assert {file.parent for file in found.stamps} <= {folder}
    return True


_HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
_SHARD = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8)


def indices() -> list[bytes]:
    shard = "model-00001-of-00001.safetensors"
    sound = {"metadata": {"total_size": 8}, "weight_map": {"a": shard}}
    others = [{"weight_map": {"a": shard, "b": shard}}, {"weight_map": {"a": "../x.safetensors"}}]
    return [json.dumps(one).encode() for one in (sound, {"weight_map": {"a": shard}}, *others)]


def manifest(data: bytes) -> bool:
    (scratch() / MANIFEST).write_bytes(data)
    try:
        found = read_manifest(scratch())
    except LlamagenError:
        return False
    assert Manifest.model_validate_json(found.text()) == found
    return True


@cache
def _manifest_text() -> bytes:
    from llamagen.api import load

    folder: Path = scratch() / "exported"
    load(ROOT / "tests/cases/common/tiny.yaml").export(folder, random_weights=1)
    return (folder / MANIFEST).read_bytes()


def manifests() -> list[bytes]:
    text = _manifest_text()
    return [text, json.dumps(json.loads(text)).encode(), b"{}"]


GGUF_WORDS = (
    "GGUF", "GGUF\x02\0\0\0", "GGUF\x04\0\0\0", "\x08\0\0\0", "\x09\0\0\0", "\0" * 8, "\x7f" * 8,
    "llama.block_count", "llama.embedding_length", "llama.expert_count", "general.alignment", "general.architecture",
    "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "blk.0.attn_q.weight", "rope_freqs.weight",
    "llama.rope.scaling.type", "yarn",
)  # fmt: skip
_READ = 1 << 16
"""Elements of a matrix that is read whole: enough for every seed."""


def gguf_file(data: bytes) -> bool:
    """A whole file: its header, the files of a Hub checkpoint that it stands for, and what its tensors decode to."""
    path = scratch() / "model.gguf"
    path.write_bytes(data)
    try:
        header = read_gguf(path)
        assert sum(one.nbytes for one in header.tensors) <= len(data)
        assert all(one.offset + one.nbytes <= len(data) for one in header.tensors)
        for one in header.tensors:
            if np.prod(one.shape, dtype=object) <= _READ:
                tensor = unpacked(one) if one.dtype in PACKED else stored(one)
                assert tensor.read(whole(one.shape)).shape == one.shape
        files = hub_files(path, header)
    except LlamagenError:
        return False
    assert all(isinstance(json.loads(text), dict) for text in files.values())
    return True


def gguf_files() -> list[bytes]:
    random = np.random.default_rng(0)
    found: list[bytes] = []
    unknown = 2
    for number, kind in enumerate(("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q5_0", "F32", "F32")):
        if number > 5:  # a tokenizer that has no token for what is unknown
            unknown = 1
        path = scratch() / "seed.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, value in (
            *(
                ("block_count", 1),
                ("context_length", 64),
                ("embedding_length", 64),
                ("head_count", 4),
            ),
            *(("feed_forward_length", 96), ("head_count_kv", 2), ("layer_norm_rms_eps", 1e-5)),
            *(("vocab_size", 8), ("bos_token_id", 1), ("eos_token_id", 2)),
        ):
            getattr(writer, f"add_{name}")(value)
        writer.add_tokenizer_model("llama" if number % 2 else "gpt2")
        writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab", "c", "abc"])
        writer.add_token_types([unknown, 3, 3, 1, 1, 1, 1, 1])
        if number % 2:
            writer.add_token_scores([0.0, 0.0, 0.0, -3.0, -4.0, -1.0, -5.0, -2.0])
        else:
            writer.add_tokenizer_pre("llama-bpe")
            writer.add_token_merges(["a b", "ab c"])
        values = random.standard_normal((8, 64)).astype(np.float32)
        packing = gguf.GGMLQuantizationType[kind]
        writer.add_tensor("token_embd.weight", gguf.quantize(values, packing), raw_dtype=packing)
        writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(path.read_bytes())
        path.unlink()
    sizes, cut = struct.pack("<QQ", 64, 8), [found[2][:-1], found[2][: len(found[2]) // 2]]
    lying = [struct.pack("<QQ", *pair) for pair in ((48, 8), (64, 9), (64, 1 << 58), (1 << 62, 8))]
    return [*found, *cut, *(found[2].replace(sizes, other) for other in lying)]


PACKED_WORDS = (
    '"quant_method": "gptq"', '"quant_method": "awq"', '"checkpoint_format": "gptq_v2"', '"bits": 8', '"bits": 3', "I32", "F16",
    '"config_groups": {}', '"format": "pack-quantized"', "qweight", "qzeros", "g_idx", "weight_packed", "weight_scale", "[]",
)  # fmt: skip


def packed(data: bytes) -> bool:
    """A quantization_config on the first line, and a safetensors file behind it: every matrix is decoded."""
    folder = scratch()
    how, _, weights = data.partition(b"\n")
    (folder / "config.json").write_bytes(b'{"quantization_config": ' + how + b"}")
    (folder / "model.safetensors").write_bytes(weights)
    try:
        for one in Checkpoint.open(folder).tensors.values():
            if one.packed is not None and np.prod(one.shape, dtype=object) <= _READ:
                assert decoded(one.packed).read(whole(one.shape)).shape == one.shape
    except LlamagenError:
        return False
    finally:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    return True


def packed_files() -> list[bytes]:
    """A matrix of 16 outputs and 64 inputs in groups of 32, in each format."""
    random = np.random.default_rng(0)

    def words(*shape: int) -> NDArray[np.int32]:
        return random.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32)

    scales = random.random((2, 16)).astype(np.float16)
    groups = np.repeat(np.arange(2, dtype=np.int32), 32)
    along = {"qzeros": words(2, 2), "scales": scales}
    weights = {"num_bits": 4, "group_size": 32, "type": "int"}
    whole_bytes = {**weights, "num_bits": 8}
    rows = {"weight_scale": np.ascontiguousarray(scales.T)}
    cases: list[tuple[dict[str, object], dict[str, Any]]] = [
        ({"quant_method": "gptq", "bits": 4}, {"qweight": words(8, 16), "g_idx": groups, **along}),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, {"qweight": words(8, 16), **along}),
        ({"quant_method": "gptq", "bits": 4}, {"qweight": words(8, 16), "g_idx": groups * 2, **along}),
        ({"quant_method": "gptq", "bits": 4}, {"qweight": words(8), **along}),
        ({"quant_method": "gptq", "bits": 4}, {"qweight": words(8, 16), **along, "scales": scales[:, :8].copy()}),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, {"qweight": words(64, 2), **along}),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": {"weights": weights}}},
         {"weight_packed": words(16, 8), "weight_shape": np.array([16, 64]), **rows}),
        ({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"a": {"weights": whole_bytes}}},
         {"weight": words(16, 16).view(np.int8), **rows}),
    ]  # fmt: skip
    return [
        json.dumps(how).encode()
        + b"\n"
        + save({f"q_proj.{name}": one for name, one in parts.items()})
        for how, parts in cases
    ]
