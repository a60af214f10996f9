"""Small checkpoint files, written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llamagen.weights.checkpoint import Checkpoint, StoredTensor
from llamagen.weights.names import Binding
from llamagen.weights.pieces import in_turn
from llamagen.weights.safetensors import TargetDType, TensorEntry, read_header
from llamagen.weights.values import tensor_pieces

Array = npt.NDArray[np.generic]
NUMPY = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I32": np.dtype(np.int32),
}
NAMES = {numpy_type: name for name, numpy_type in NUMPY.items()}


def raw(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def save(path: Path, tensors: Mapping[str, Array]) -> Path:
    """A safetensors file, tensors in the given order."""
    table: dict[str, object] = {}
    data = b""
    for name, value in tensors.items():
        table[name] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + value.nbytes],
        }
        data += np.ascontiguousarray(value).tobytes()
    path.write_bytes(raw(json.dumps(table).encode(), data))
    return path


def checkpoint(folder: Path, tensors: Mapping[str, Array]) -> Checkpoint:
    """A folder with one model.safetensors, opened."""
    folder.mkdir(exist_ok=True)
    save(folder / "model.safetensors", tensors)
    return Checkpoint.open(folder)


def plain(folder: Path, tensors: Mapping[str, Array]) -> Checkpoint:
    """The same, each tensor as its bytes say: also float8 ones without the scales that they need."""
    folder.mkdir(exist_ok=True)
    path = save(folder / "model.safetensors", tensors)
    found = {t.name: StoredTensor(t.name, t.dtype, t.shape, (t,)) for t in read_header(path)}
    return Checkpoint(folder, "safetensors", found, {})


def ranks(folder: Path, shards: Sequence[Mapping[str, Array]]) -> Checkpoint:
    """A Meta-like checkpoint: one safetensors file per rank, joined as `.pth` shards are."""
    entries: dict[str, list[TensorEntry]] = {}
    for rank, shard in enumerate(shards):
        path = save(folder / f"rank{rank}.safetensors", shard)
        for tensor in Checkpoint.open(path).tensors.values():
            entries.setdefault(tensor.name, []).extend(tensor.entries)
    tensors = {
        name: StoredTensor(name, found[0].dtype, found[0].shape, tuple(found))
        for name, found in entries.items()
    }
    return Checkpoint(folder, "meta", tensors, {})


def written(binding: Binding, dtype: TargetDType) -> bytes:
    """What goes into a file."""
    return b"".join(in_turn(tensor_pieces(binding, dtype, 0)))


def read_tensor(binding: Binding, dtype: TargetDType) -> Array:
    """The same as an array."""
    return np.frombuffer(written(binding, dtype), NUMPY[dtype]).reshape(binding.tensor.shape)


def noise(seed: int, *shape: int, dtype: str = "F32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(NUMPY[dtype])
