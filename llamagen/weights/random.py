"""Random weights at unit scale: every bias, gate and norm gain is live.

With the usual 0.02 initialiser a wrong rotary embedding hides, zero biases hide dropped biases,
and zero gates switch cross-attention off (docs/proof.md, "Size of typical mistakes").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from math import prod, sqrt
from typing import NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

from llamagen.ops.op import InitKind
from llamagen.weights.convert import NUMPY_TYPES
from llamagen.weights.dtypes import ITEM_SIZES, TargetDType
from llamagen.weights.pieces import Bytes, Piece
from llamagen.weights.problems import problem

BLOCK = 1 << 20
"""Elements drawn from one generator. Part of the definition of the values."""


def require_seed(seed: int) -> None:
    """Raises LG901."""
    if not 0 <= seed < 1 << 63:
        raise problem("LG901", f"seed is {seed}, it must be 0 or more, of at most 63 bits")


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
        case (_, inputs):
            return inputs
        case (_, inputs, _):
            return inputs
        case _:
            return prod(shape[1:])


def random_blocks(seed: int, tensor: RandomTensor) -> Iterator[npt.NDArray[np.float32]]:
    """The values in row-major order, a block at a time.

    They depend on seed, name, shape and kind only: not on the order of tensors, nor on threads.
    matrix N(0, 1/fan_in), embedding N(0, 1), norm 1 + 0.1 N, bias 0.5 N, gate 0.6 + 0.1 N.
    """
    for block in range(-(-prod(tensor.shape) // BLOCK)):
        yield random_block(seed, tensor, block)


def random_block(seed: int, tensor: RandomTensor, block: int) -> npt.NDArray[np.float32]:
    """Elements from ``block * BLOCK`` on, at most ``BLOCK`` of them."""
    digest = hashlib.blake2b(tensor.name.encode(), digest_size=16).digest()
    key = int.from_bytes(digest, "little")
    offset, scale = _scale(tensor)
    generator = np.random.Generator(np.random.SFC64([seed, key, block]))
    size = min(BLOCK, prod(tensor.shape) - block * BLOCK)
    values = generator.standard_normal(size, dtype=np.float32)
    values *= np.float32(scale)
    if offset:
        values += np.float32(offset)
    return values


def random_rows(seed: int, tensor: RandomTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Rows [start, stop) of the tensor."""
    width = prod(tensor.shape[1:])
    first, last = start * width, stop * width
    blocks = range(first // BLOCK, -(-last // BLOCK))
    values = np.concatenate([random_block(seed, tensor, block) for block in blocks])
    skipped = first - blocks.start * BLOCK
    return values[skipped : skipped + last - first].reshape(stop - start, *tensor.shape[1:])


def random_pieces(
    seed: int, tensor: RandomTensor, dtype: TargetDType, offset: int
) -> Iterator[Piece]:
    """The tensor from byte `offset` of a file on."""
    total, item = prod(tensor.shape), ITEM_SIZES[dtype]
    for block in range(-(-total // BLOCK)):
        start = block * BLOCK
        make = partial(_made, seed, tensor, block, dtype, offset + start * item)
        yield Piece(min(BLOCK, total - start) * item, make)


def _made(
    seed: int, tensor: RandomTensor, block: int, dtype: TargetDType, offset: int
) -> list[tuple[int, Bytes]]:
    values = random_block(seed, tensor, block).astype(NUMPY_TYPES[dtype], copy=False)
    return [(offset, values.view(np.uint8))]


def _scale(tensor: RandomTensor) -> tuple[float, float]:
    match tensor.kind:
        case "matrix":
            fan_in = tensor.fan_in if tensor.fan_in is not None else default_fan_in(tensor.shape)
            return 0.0, 1.0 / sqrt(fan_in)
        case "embedding":
            return 0.0, 1.0
        case "norm":
            return 1.0, 0.1
        case "bias":
            return 0.0, 0.5
        case "gate":
            return 0.6, 0.1
        case _:
            assert_never(tensor.kind)


def random_values(
    seed: int, name: str, shape: tuple[int, ...], kind: InitKind, fan_in: int | None = None
) -> npt.NDArray[np.float32]:
    """The whole tensor in float32; what a checkpoint of the same seed holds, before rounding."""
    pieces = list(random_blocks(seed, RandomTensor(name, shape, kind, fan_in)))
    flat = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    return flat.reshape(shape)
