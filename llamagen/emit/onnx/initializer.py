"""The weights of an ONNX model before they have data: names, shapes, and the parameters they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from llamagen.emit.onnx.profile import OnnxDType

StorageDType: TypeAlias = OnnxDType | Literal["uint8", "int8"]
"""Element type of a weight in its file."""

PartRole: TypeAlias = Literal["codes", "scales", "zero_points"]


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter of the checkpoint: its role path and shape."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockEncoding:
    """4 or 8 bits a weight and a scale for ``block`` weights of a row; MatMulNBits computes with it."""

    bits: Literal[4, 8]
    block: int
    symmetric: bool
    accuracy_level: int
    """What MatMulNBits multiplies in: 0 its own choice, 1 float32, 4 activations as int8 by block."""


@dataclass(frozen=True, slots=True)
class ChannelEncoding:
    """int8 and a scale for each row, stored transposed; DynamicQuantizeMatMul quantises the activations too."""


@dataclass(frozen=True, slots=True)
class ExpertEncoding:
    """The matrices of experts in blocks along their inputs: codes [E, outputs, bytes], however the parameter lies."""

    blocks: BlockEncoding
    transposed: bool
    """The parameter is [E, inputs, outputs]."""
    paired: bool
    """Rows of the gate and of the linear half in turns, as QMoE reads them; in the parameter the gate comes first."""


Encoding: TypeAlias = BlockEncoding | ChannelEncoding | ExpertEncoding


@dataclass(frozen=True, slots=True)
class Part:
    """What an initializer holds of the quantised weight ``weight``."""

    weight: str
    role: PartRole
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight of the model: its name, its shape and its element type in the file.

    ``sources`` are the parameters it holds, by role path, joined along the first axis: one, under its own name, or
    the projections that a profile computes as one. A quantised weight is two or three initializers, one ``part`` each;
    one that ``shares`` has the bytes of another in another shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: StorageDType
    sources: tuple[Source, ...]
    part: Part | None = None
    shares: str | None = None

    @staticmethod
    def of(path: str, shape: tuple[int, ...], dtype: OnnxDType) -> Initializer:
        """The parameter ``path`` as it is."""
        return Initializer(path, shape, dtype, (Source(path, shape),))

    @staticmethod
    def joined(name: str, sources: Sequence[Source], dtype: OnnxDType) -> Initializer:
        """``sources``, alike but for their first sizes, as one tensor."""
        rows = sum(source.shape[0] for source in sources)
        return Initializer(name, (rows, *sources[0].shape[1:]), dtype, tuple(sources))


def encoded(whole: Initializer, encoding: Encoding, scales: OnnxDType) -> tuple[Initializer, ...]:
    """The parts of ``whole`` [N, K], or [E, N, K] and [E, K, N] of experts, codes first."""
    name, (*_, rows, columns) = whole.name, whole.shape

    def part(role: PartRole, shape: tuple[int, ...], dtype: StorageDType) -> Initializer:
        about = Part(name, role, encoding)
        return Initializer(f"{name}_{role}", shape, dtype, whole.sources, about)

    match encoding:
        case ChannelEncoding():
            return part("codes", (columns, rows), "int8"), part("scales", (rows,), "float32")
        case BlockEncoding(bits=bits, block=block, symmetric=symmetric):
            blocks = -(-columns // block)
            codes = part("codes", (rows, blocks, block * bits // 8), "uint8")
            found = (codes, part("scales", (rows, blocks), scales))
            if symmetric:
                return found
            return *found, part("zero_points", (rows, -(-blocks * bits // 8)), "uint8")
        case ExpertEncoding(blocks=inner, transposed=transposed):
            if transposed:
                rows, columns = columns, rows
            experts, blocks = whole.shape[0], -(-columns // inner.block)
            sizes: list[tuple[PartRole, int, StorageDType]] = [
                ("codes", blocks * inner.block * inner.bits // 8, "uint8"),
                ("scales", blocks, scales),
            ]
            if not inner.symmetric:
                sizes.append(("zero_points", -(-blocks * inner.bits // 8), "uint8"))
            return tuple(part(role, (experts, rows, size), dtype) for role, size, dtype in sizes)


def gathered(codes: Initializer) -> Initializer:
    """Codes [N, blocks, bytes] as GatherBlockQuantized reads them, [N, blocks * bytes], alone."""
    rows, blocks, size = codes.shape
    return replace(codes, shape=(rows, blocks * size))


def shared_rows(codes: Initializer) -> Initializer:
    """The same for a table that is a head too: the bytes of ``codes`` a second time."""
    shape = gathered(codes).shape
    return Initializer(f"{codes.name}_rows", shape, "uint8", (), None, codes.name)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the bytes of one initializer lie: file name, offset and length in bytes."""

    initializer: Initializer
    location: str
    offset: int
    length: int
