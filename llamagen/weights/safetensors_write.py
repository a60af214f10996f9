"""Writing checkpoint folders in the Hub's format: safetensors shards, index, config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.weights.dtypes import ITEM_SIZES, element_count


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written; its bytes come later."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return element_count(self.shape) * ITEM_SIZES[self.dtype]


def write_safetensors(
    path: Path, tensors: Iterable[tuple[NewTensor, Iterable[memoryview]]]
) -> None:
    """One file; `tensors` in the order of their bytes, each with the pieces that make it.

    Raises ValueError if the pieces of a tensor do not have its size. OSErrors pass through.
    """
    listed = list(tensors)
    with path.open("xb") as out:
        out.write(header_bytes([tensor for tensor, _ in listed]))
        for tensor, pieces in listed:
            written = 0
            for piece in pieces:
                written += out.write(piece)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes, expected {tensor.nbytes}")


def header_bytes(tensors: Sequence[NewTensor]) -> bytes:
    """Length and JSON, padded with spaces so that the data begins at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.nbytes
        table[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shards(tensors: Sequence[NewTensor], limit: int | None) -> Iterator[list[NewTensor]]:
    """Consecutive tensors of at most `limit` bytes together; a larger tensor stands alone."""
    shard: list[NewTensor] = []
    size = 0
    for tensor in tensors:
        if limit is not None and shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    if shard:
        yield shard


def shard_names(count: int) -> tuple[str, ...]:
    """The Hub's file names."""
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1))


def write_index(folder: Path, files: Mapping[str, Sequence[NewTensor]]) -> None:
    """`model.safetensors.index.json` over the shards `files` (name -> tensors)."""
    weight_map = {tensor.name: file for file, group in files.items() for tensor in group}
    total = sum(tensor.nbytes for group in files.values() for tensor in group)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
