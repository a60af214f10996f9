"""A random checkpoint in the Hub's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from llamagen.weights.dtypes import TargetDType
from llamagen.weights.pieces import in_parallel
from llamagen.weights.random import RandomTensor, random_pieces
from llamagen.weights.random_float8 import Float8Tensor, is_projection
from llamagen.weights.safetensors_write import (
    NewTensor,
    checkpoint_folder,
    shard_names,
    shards,
    write_index,
    write_json,
    write_safetensors,
)


def write_random_checkpoint(
    folder: Path,
    tensors: Sequence[RandomTensor],
    seed: int,
    dtype: TargetDType | Literal["F8_E4M3"],
    max_shard_bytes: int | None = None,
    config: Mapping[str, object] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    reads: Sequence[Path] = (),
) -> None:
    """A folder in the Hub's format: model.safetensors, or shards and an index; config.json.

    Memory does not depend on the sizes. ``progress`` is called with (bytes written, bytes in all).
    Raises LG630 to LG634 as `staged_folder` does.
    """
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    makers: dict[str, Callable[[], Iterator[memoryview]]] = {}
    new: list[NewTensor] = []
    for tensor in tensors:
        for one, make in _written(seed, tensor, dtype):
            new.append(one)
            makers[one.name] = make
    groups = list(shards(new, max_shard_bytes))
    files = dict(zip(shard_names(len(groups)), groups, strict=True))
    total, done = sum(tensor.nbytes for tensor in new), 0

    def count(pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        nonlocal done
        for piece in pieces:
            yield piece
            done += piece.nbytes
            if progress is not None:
                progress(done, total)

    with checkpoint_folder(folder, overwrite, reads) as staging:
        for file, group in files.items():
            write_safetensors(
                staging / file,
                ((tensor, count(makers[tensor.name]())) for tensor in group),
            )
        if len(files) > 1:
            write_index(staging, files)
        if config is not None:
            write_json(staging / "config.json", dict(config))


def _written(
    seed: int, tensor: RandomTensor, dtype: TargetDType | Literal["F8_E4M3"]
) -> Iterator[tuple[NewTensor, Callable[[], Iterator[memoryview]]]]:
    """What is stored of a tensor, in order: itself, or float8 codes and then their scales."""
    if dtype == "F8_E4M3" and is_projection(tensor):
        made = Float8Tensor(seed, tensor)
        yield made.new[0], made.codes
        yield made.new[1], made.scales
        return
    plain: TargetDType = "BF16" if dtype == "F8_E4M3" else dtype
    yield NewTensor(tensor.name, plain, tensor.shape), partial(_encoded, seed, tensor, plain)


def _encoded(seed: int, tensor: RandomTensor, dtype: TargetDType) -> Iterator[memoryview]:
    pieces = random_pieces(seed, tensor, dtype, 0)
    for _, made in in_parallel(pieces, lambda piece: piece.make()):
        for _, data in made:
            yield data.data
