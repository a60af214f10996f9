"""Checkpoints with one fault each, for `prepare.py` of the cases."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from llamagen import api

Tensors = dict[str, tuple[dict[str, object], bytes]]


def whole(folder: str = "checkpoint", shard_bytes: int | None = None) -> Path:
    """A good random checkpoint of tiny.yaml."""
    api.random_checkpoint("tiny.yaml", folder, seed=1, dtype="float32", shard_bytes=shard_bytes)
    return Path(folder)


def read(file: Path) -> Tensors:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {n: (e, data[slice(*e["data_offsets"])]) for n, e in header.items()}


def write(file: Path, tensors: Tensors) -> None:
    header: dict[str, object] = {}
    start = 0
    for name, (entry, data) in tensors.items():
        header[name] = {**entry, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(d for _, d in tensors.values()))
