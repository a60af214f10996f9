"""Writing checkpoint folders in the Hub's format: safetensors shards, index, config."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from llamagen.diagnostics import LlamagenError
from llamagen.files import MANIFEST, read_bytes
from llamagen.spec.naming import Closed
from llamagen.weights.dtypes import ITEM_SIZES, element_count
from llamagen.writing import Listing, staged_folder

RECORD = "llamagen.json"


class CheckpointRecord(Closed):
    """What llamagen wrote into a checkpoint folder, by which it knows it again. No other tool reads this file."""

    format: Literal["llamagen checkpoint 1"] = "llamagen checkpoint 1"
    files: dict[str, int]
    """Bytes of every file but this one, by its path in the folder."""


def _recorded_files(folder: Path) -> Collection[str]:
    data = read_bytes(folder / RECORD, MANIFEST, within=folder)
    try:
        return CheckpointRecord.model_validate_json(data, strict=True).files
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LlamagenError.of("LG634", first["msg"]) from error


CHECKPOINT = Listing(RECORD, _recorded_files)
"""How a checkpoint folder says that llamagen wrote it."""


@contextmanager
def checkpoint_folder(out: Path, overwrite: bool, reads: Sequence[Path]) -> Iterator[Path]:
    """A folder to write a checkpoint into, as `staged_folder` gives it; its record is added at the end."""
    with staged_folder(out, CHECKPOINT, overwrite, reads) as staging:
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        sizes = {path.relative_to(staging).as_posix(): path.stat().st_size for path in files}
        record = CheckpointRecord(files=sizes)
        (staging / RECORD).write_text(
            record.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n"
        )


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
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
