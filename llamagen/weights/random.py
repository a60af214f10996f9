"""Random weights at unit scale: every bias, gate and norm gain is live; and whole checkpoints of them.

With the usual 0.02 initialiser a wrong rotary embedding hides, zero biases hide dropped biases, and zero gates switch
cross-attention off (docs/proof.md, "Size of typical mistakes").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod, sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import LlamagenError
from llamagen.ops.op import InitKind
from llamagen.recorded_folder import recorded_folder
from llamagen.weights.checkpoint import (
    FLOAT8,
    SCALE_SUFFIX,
    write_json,
    write_tensors,
)
from llamagen.weights.pieces import Bytes, Piece, in_turn
from llamagen.weights.safetensors import ITEM_SIZES, NewTensor, TargetDType
from llamagen.weights.values import NUMPY_TYPES

BLOCK = 1 << 20
"""Elements drawn from one generator. Part of the definition of the values."""

_LARGEST = np.float32(448)
"""The largest float8_e4m3fn."""

_SCALES: MappingProxyType[InitKind, tuple[float, float]] = MappingProxyType(
    {"embedding": (0.0, 1.0), "norm": (1.0, 0.1), "bias": (0.0, 0.5), "gate": (0.6, 0.1)}
)
"""Mean and standard deviation; those of a matrix depend on its shape."""


def require_seed(seed: int) -> None:
    """Raises LG901."""
    if not 0 <= seed < 1 << 63:
        message = f"seed is {seed}, it must be 0 or more, of at most 63 bits"
        raise LlamagenError.of("LG901", message)


class RandomTensor(NamedTuple):
    """`fan_in` (of a matrix) defaults to what `default_fan_in` says."""

    name: str
    shape: tuple[int, ...]
    kind: InitKind
    fan_in: int | None = None


def default_fan_in(shape: tuple[int, ...]) -> int:
    """Inputs per output: [out, in] -> in, [experts, in, out] -> in, [out, *kernel] -> kernel."""
    match shape:
        case () | (_,):
            return 1
        case (_, inputs) | (_, inputs, _):
            return inputs
        case _:
            return prod(shape[1:])


def random_block(seed: int, tensor: RandomTensor, block: int) -> npt.NDArray[np.float32]:
    """Elements from ``block * BLOCK`` on, at most ``BLOCK`` of them, in row-major order.

    They depend on seed, name, shape and kind only: not on the order of tensors, nor on threads.
    matrix N(0, 1/fan_in), embedding N(0, 1), norm 1 + 0.1 N, bias 0.5 N, gate 0.6 + 0.1 N.
    """
    digest = hashlib.blake2b(tensor.name.encode(), digest_size=16).digest()
    key = int.from_bytes(digest, "little")
    generator = np.random.Generator(np.random.SFC64([seed, key, block]))
    size = min(BLOCK, prod(tensor.shape) - block * BLOCK)
    values = generator.standard_normal(size, dtype=np.float32)
    if tensor.kind == "matrix":
        fan_in = default_fan_in(tensor.shape) if tensor.fan_in is None else tensor.fan_in
        offset, scale = 0.0, 1.0 / sqrt(fan_in)
    else:
        offset, scale = _SCALES[tensor.kind]
    values *= np.float32(scale)
    if offset:
        values += np.float32(offset)
    return values


def random_rows(seed: int, tensor: RandomTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Rows [start, stop) of the tensor."""
    width = prod(tensor.shape[1:])
    first, last = start * width, stop * width
    blocks = range(first // BLOCK, -(-last // BLOCK))
    empty = np.empty(0, np.float32)
    values = np.concatenate([empty, *(random_block(seed, tensor, block) for block in blocks)])
    skipped = first - blocks.start * BLOCK
    return values[skipped : skipped + last - first].reshape(stop - start, *tensor.shape[1:])


def random_values(
    seed: int, name: str, shape: tuple[int, ...], kind: InitKind, fan_in: int | None = None
) -> npt.NDArray[np.float32]:
    """The whole tensor in float32; what a checkpoint of the same seed holds, before rounding."""
    tensor = RandomTensor(name, shape, kind, fan_in)
    return random_rows(seed, tensor, 0, shape[0] if shape else 1).reshape(shape)


def random_pieces(
    seed: int, tensor: RandomTensor, dtype: TargetDType, offset: int
) -> Iterator[Piece]:
    """The tensor from byte `offset` of a file on."""

    def make(block: int, at: int) -> list[tuple[int, Bytes]]:
        values = random_block(seed, tensor, block).astype(NUMPY_TYPES[dtype], copy=False)
        return [(at, values.view(np.uint8))]

    total, item = prod(tensor.shape), ITEM_SIZES[dtype]
    for block, start in enumerate(range(0, total, BLOCK)):
        length = min(BLOCK, total - start) * item
        yield Piece(length, partial(make, block, offset + start * item))


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

    float8 is as Meta's FP8 releases have it: linear parts and experts, but not the head, as codes with scales, and
    everything else in bfloat16. Memory does not depend on the sizes. ``progress`` is called with (bytes written, bytes
    in all). Raises LG630 to LG634 as `staged_folder` does.
    """
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    done = 0

    def counted(blocks: Iterator[memoryview]) -> Iterator[memoryview]:
        nonlocal done
        for block in blocks:
            yield block
            done += block.nbytes
            if progress is not None:
                progress(done, total)

    new: list[tuple[NewTensor, Iterator[memoryview]]] = []
    for tensor in tensors:
        matrix = tensor.kind == "matrix" and len(tensor.shape) in (2, 3)
        if dtype != "F8_E4M3":
            new.append((NewTensor(tensor.name, dtype, tensor.shape), _plain(seed, tensor, dtype)))
        elif matrix and not tensor.name.endswith("lm_head.weight"):
            new += _float8(seed, tensor)
        else:
            new.append((NewTensor(tensor.name, "BF16", tensor.shape), _plain(seed, tensor, "BF16")))
    total = sum(one.nbytes for one, _ in new)
    with recorded_folder(folder, "llamagen checkpoint 1", overwrite, reads) as staging:
        write_tensors(staging, [(one, counted(blocks)) for one, blocks in new], max_shard_bytes)
        if config is not None:
            write_json(staging / "config.json", dict(config))


def _plain(seed: int, tensor: RandomTensor, dtype: TargetDType) -> Iterator[memoryview]:
    return in_turn(random_pieces(seed, tensor, dtype, 0))


def _float8(
    seed: int, tensor: RandomTensor
) -> tuple[tuple[NewTensor, Iterator[memoryview]], tuple[NewTensor, Iterator[memoryview]]]:
    """Codes and, once those are written, a float32 scale for each output."""
    rows, *inner = tensor.shape
    outputs: tuple[int, ...] = (rows, 1)
    if len(inner) == 2:
        swapped = tensor.name.endswith("down_proj")
        outputs = (rows, inner[1], 1) if swapped else (rows, 1, inner[1])
    arrays: list[npt.NDArray[np.float32]] = []

    def codes() -> Iterator[memoryview]:
        step = max(1, BLOCK // prod(inner))
        for start in range(0, rows, step):
            x = random_rows(seed, tensor, start, min(start + step, rows))
            scale = np.abs(x).max(axis=1, keepdims=True) / _LARGEST
            scale[scale == 0] = 1
            arrays.append(scale)
            yield (x / scale).astype(NUMPY_TYPES["F8_E4M3"]).view(np.uint8).reshape(-1).data

    def scales() -> Iterator[memoryview]:
        yield np.concatenate(arrays).reshape(-1).view(np.uint8).data

    return (
        (NewTensor(tensor.name, FLOAT8, tensor.shape), codes()),
        (NewTensor(tensor.name + SCALE_SUFFIX, "F32", outputs), scales()),
    )
