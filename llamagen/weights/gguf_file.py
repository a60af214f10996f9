"""Strict reader of GGUF headers, versions 2 and 3.

Format (ggml-org/ggml, docs/gguf.md): `GGUF`, u32 version, u64 tensors, u64 keys; keys with typed values; per tensor its
name, dimensions (the fastest first), type and offset into the data, which begins at the next multiple of
`general.alignment`. Everything is little-endian. Nothing is kept that was not counted first, and no tensor may have
bytes that are not its own.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple, TypeAlias

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import WEIGHTS, open_file, size_of
from llamagen.weights.safetensors import TensorEntry, shape_text

HEADER_LIMIT = 1 << 28
"""Bytes that keys and tensor infos may take; a tokenizer of 262,144 tokens takes 10 million."""
_TEXTS = 1 << 22
_TENSORS = 1 << 20
_KEYS = 1 << 16
_RANK = 4
_DIMENSION = 1 << 48
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
)  # fmt: skip

GgufValue: TypeAlias = "bool | int | float | str | list[str] | array[int] | array[float]"


class Packing(NamedTuple):
    """A type of elements: how many a block has, and its bytes."""

    dtype: str
    elements: int
    size: int


# ggml.h, enum ggml_type; tests compare the sizes with the package `gguf`
PACKINGS = MappingProxyType(
    {
        0: Packing("F32", 1, 4),
        1: Packing("F16", 1, 2),
        2: Packing("Q4_0", 32, 18),
        3: Packing("Q4_1", 32, 20),
        6: Packing("Q5_0", 32, 22),
        7: Packing("Q5_1", 32, 24),
        8: Packing("Q8_0", 32, 34),
        10: Packing("Q2_K", 256, 84),
        11: Packing("Q3_K", 256, 110),
        12: Packing("Q4_K", 256, 144),
        13: Packing("Q5_K", 256, 176),
        14: Packing("Q6_K", 256, 210),
        16: Packing("IQ2_XXS", 256, 66),
        17: Packing("IQ2_XS", 256, 74),
        18: Packing("IQ3_XXS", 256, 98),
        19: Packing("IQ1_S", 256, 50),
        20: Packing("IQ4_NL", 32, 18),
        21: Packing("IQ3_S", 256, 110),
        22: Packing("IQ2_S", 256, 82),
        23: Packing("IQ4_XS", 256, 136),
        29: Packing("IQ1_M", 256, 56),
        30: Packing("BF16", 1, 2),
        34: Packing("TQ1_0", 256, 54),
        35: Packing("TQ2_0", 256, 66),
        39: Packing("MXFP4", 32, 17),
    }
)
PACKED = frozenset(one.dtype for one in PACKINGS.values() if one.elements > 1)
_OTHERS = MappingProxyType(
    {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 40: "NVFP4"}
)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Tensors in the order of the file, shapes as PyTorch has them, and the keys."""

    tensors: tuple[TensorEntry, ...]
    keys: Mapping[str, GgufValue]


def read_gguf(path: Path) -> GgufHeader:
    """The header of ``path``; no tensor bytes are read.

    Raises LG601 (cannot open), LG602 (malformed, or of a type that is not read), LG603 (sizes disagree).
    """
    try:
        with open_file(path, WEIGHTS) as file:
            return _Reader(path, file).header()
    except OSError as error:
        message = f"cannot read {quoted(str(path))}: {error.strerror or error}"
        raise LlamagenError.of("LG601", message, help=WEIGHTS.help) from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = size_of(file)
        self.position = 0
        self.texts = 0

    def header(self) -> GgufHeader:
        magic = self.take(4)
        if magic != b"GGUF":
            help = "fetch the real file with `git lfs pull`" if magic == b"vers" else None
            raise self.malformed("does not begin with `GGUF`", help)
        version = self.number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            if swapped in (2, 3):
                raise self.malformed(
                    "is big-endian, which is not read", "convert it with gguf-convert-endian"
                )
            raise self.malformed(f"has version {version}; 2 and 3 are read")
        tensors, keys = self.count(_TENSORS, "tensors"), self.count(_KEYS, "keys")
        values: dict[str, GgufValue] = {}
        for _ in range(keys):
            name = self.text()
            if name in values:
                raise self.malformed(f"has the key {quoted(name)} twice")
            values[name] = self.value(name, int(self.number("I")))
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment % 8:
            raise self.malformed("has an impossible `general.alignment`")
        infos = [self.info() for _ in range(tensors)]
        start = -(-self.position // alignment) * alignment
        entries = tuple(
            TensorEntry(name, packing.dtype, shape, self.path, start + offset, nbytes)
            for name, packing, shape, offset, nbytes in infos
        )
        self.check(entries, start, alignment)
        return GgufHeader(entries, MappingProxyType(values))

    def info(self) -> tuple[str, Packing, tuple[int, ...], int, int]:
        name = self.text()
        where = f"tensor {quoted(name)}"
        rank = int(self.number("I"))
        if not 0 < rank <= _RANK:
            raise self.malformed(f"gives {where} {rank} dimensions; 1 to {_RANK} are possible")
        shape = tuple(reversed([int(self.number("Q")) for _ in range(rank)]))
        number, offset = int(self.number("I")), int(self.number("Q"))
        packing = PACKINGS.get(number)
        if packing is None:
            kind = _OTHERS.get(number, f"number {number}")
            raise self.malformed(
                f"packs {where} as {kind}, which is not read",
                f"these are: {', '.join(one.dtype for one in PACKINGS.values())}",
            )
        if any(not 0 < one < _DIMENSION for one in shape) or shape[-1] % packing.elements:
            raise self.malformed(
                f"gives {where} the impossible shape {shape_text(shape)} of {packing.dtype}"
            )
        elements = 1
        for one in shape:
            elements *= one
        return name, packing, shape, offset, elements // packing.elements * packing.size

    def check(self, entries: tuple[TensorEntry, ...], start: int, alignment: int) -> None:
        """Names once, aligned, no byte twice, all within the file. Raises LG602, LG603."""
        names: set[str] = set()
        end, previous = start, "the header"
        for one in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
            if one.name in names:
                raise self.malformed(f"has the tensor {quoted(one.name)} twice")
            names.add(one.name)
            if (one.offset - start) % alignment or one.offset < end:
                message = f"in {quoted(str(self.path))} {quoted(one.name)} begins within {previous}, or is not aligned"
                raise LlamagenError.of("LG603", message)
            end, previous = one.offset + one.nbytes, quoted(one.name)
            if end > self.size:
                raise LlamagenError.of(
                    "LG603",
                    f"{quoted(str(self.path))} is truncated: it has {self.size:,} bytes, tensor {previous} needs bytes "
                    f"up to {end:,}",
                    help="the download may be incomplete; compare the size with the source",
                )

    def value(self, name: str, kind: int) -> GgufValue:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(name, kind)
        inner = int(self.number("I"))
        if inner == _STRING:
            return [self.text() for _ in range(self.count(_TEXTS, f"texts of {quoted(name)}"))]
        if inner not in _NUMBERS:
            raise self.malformed(f"has a list of the unknown type {inner} under {quoted(name)}")
        numbers = array(_NUMBERS[inner])
        count = self.count(HEADER_LIMIT, f"values of {quoted(name)}")
        # sizes of array's letters are the machine's, those of struct's the format's: equal where this runs
        numbers.frombytes(self.take(count * struct.calcsize(f"<{_NUMBERS[inner]}")))
        if struct.pack("=H", 1) != struct.pack("<H", 1):
            numbers.byteswap()
        return numbers

    def scalar(self, name: str, kind: int) -> bool | int | float:
        if kind not in _NUMBERS:
            raise self.malformed(f"has a value of the unknown type {kind} under {quoted(name)}")
        number = self.number(_NUMBERS[kind])
        if kind == _BOOL and number not in (0, 1):
            raise self.malformed(f"has a boolean that is {number} under {quoted(name)}")
        return bool(number) if kind == _BOOL else number

    def text(self) -> str:
        self.texts += 1
        if self.texts > _TEXTS:
            raise self.malformed(f"has more than {_TEXTS:,} texts")
        data = self.take(int(self.number("Q")))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.malformed(
                f"has a text at byte {self.position - len(data):,} that is not UTF-8"
            ) from None

    def count(self, limit: int, what: str) -> int:
        number = int(self.number("Q"))
        if number > limit:
            raise self.malformed(f"announces {number:,} {what}; {limit:,} are the most")
        return number

    def number(self, letter: str) -> int | float:
        size = struct.calcsize(f"<{letter}")
        return struct.unpack(f"<{letter}", self.take(size))[0]  # type: ignore[no-any-return]

    def take(self, size: int) -> bytes:
        if size > self.size - self.position:
            raise LlamagenError.of(
                "LG602",
                f"{quoted(str(self.path))} ends in its header: byte {self.position:,} announces {size:,} more, "
                f"the file has {self.size:,} in all",
                help="the download may be incomplete",
            )
        if self.position + size > HEADER_LIMIT:
            raise self.malformed(f"has a header of more than {HEADER_LIMIT:,} bytes")
        data = self.file.read(size)
        if len(data) != size:
            raise LlamagenError.of(
                "LG603", f"{quoted(str(self.path))} became shorter while it was read"
            )
        self.position += size
        return data

    def malformed(self, what: str, help: str | None = None) -> LlamagenError:
        return LlamagenError.of("LG602", f"{quoted(str(self.path))} {what}", help=help)
