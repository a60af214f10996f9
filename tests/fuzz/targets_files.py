"""Targets for files that come with a model: configurations, indices, manifests, torch zips."""

# ruff: noqa: E501  lists of words

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.foreign import foreign_of
from llamagen.emit.config.importing import import_foreign
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.table import ConfigTable, known_tables
from llamagen.emit.manifest import MANIFEST, Manifest, read_manifest
from llamagen.spec.registry import Registry
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.meta_pth import read_pth
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
