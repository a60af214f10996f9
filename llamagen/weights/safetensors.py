"""Files of the safetensors format: a strict reader of headers, and a writer; the types of their elements.

Format (huggingface/safetensors, README "Format"): u64 little-endian header length N, N bytes of JSON that begin with
`{` and may end in spaces, then the data; `data_offsets` are relative to the data, without holes. The reference reader
0.8 lets duplicate keys and a leading space through; this one refuses them, and everything else that could give a tensor
bytes that are not its own. Free of numpy: listing a checkpoint's headers must stay cheap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import WEIGHTS, open_file, size_of

WeightDType = Literal["F32", "F16", "BF16", "F8_E4M3"]
"""Types that a weight can be read from."""

TargetDType = Literal["F32", "F16", "BF16"]
"""Types that a weight can be written in."""

WEIGHT_DTYPES: tuple[WeightDType, ...] = get_args(WeightDType)

ITEM_SIZES = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
        **dict.fromkeys(("U32", "I32", "F32"), 4),
        **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
    }
)
"""Bytes per element of every dtype that a header may name.

Source: safetensors 0.8 `Dtype`, without its sub-byte types (F4, F6_*), which no LLaMA file uses.
"""

HEADER_LIMIT = 100_000_000
"""Longest header in bytes; the reference reader has the same bound."""

_DIMENSION_LIMIT = 1 << 48
_RANK_LIMIT = 16
_INCOMPLETE = "the download may be incomplete"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One stored tensor: contiguous, row-major, little-endian, `nbytes` from `offset` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def parse_strict(text: bytes) -> object:
    """The value of a UTF-8 JSON text without duplicate keys, NaN or endless nesting.

    Raises ValueError with the end of a sentence.
    """

    def table_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table: dict[str, object] = {}
        for key, value in pairs:
            if key in table:
                raise ValueError(f"it has the key {quoted(key)} twice")
            table[key] = value
        return table

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    try:
        value: object = json.loads(
            text.decode("utf-8"), object_pairs_hook=table_of, parse_constant=refuse
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


# Reading


def read_header(path: Path, within: Path | None = None) -> tuple[TensorEntry, ...]:
    """The tensors of `path`, found `within` a folder, in the order of their bytes; no values are read.

    Raises LG601 (cannot open), LG602 (header malformed), LG603 (offsets and sizes disagree).
    """
    where = quoted(str(path))
    try:
        with open_file(path, WEIGHTS, within=within) as file:
            size = size_of(file)
            length = _header_length(where, file.read(8), size)
            text = file.read(length)
    except OSError as error:
        message = f"cannot read {where}: {error.strerror or error}"
        raise LlamagenError.of("LG601", message, help=WEIGHTS.help) from error
    if len(text) != length:
        raise LlamagenError.of("LG603", f"{where} became shorter while it was read")
    if text[:1] != b"{":
        raise LlamagenError.of(
            "LG602",
            f"the header of {where} begins with {ascii(text[:1])[1:]}, not with '{{'",
            help="the format requires '{' as the first byte of the header",
        )
    try:
        table = parse_strict(text)
    except ValueError as error:
        message = f"the header of {where} is not usable JSON: {error}"
        raise LlamagenError.of("LG602", message) from error
    assert isinstance(table, dict), "it begins with a brace"
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        message = f"__metadata__ in the header of {where} must map strings to strings"
        raise LlamagenError.of("LG602", message)
    entries = [_entry(path, name, value, 8 + length) for name, value in table.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes, entry.name))
    _require_no_holes(where, entries, 8 + length, size)
    return tuple(entries)


def header_digest(path: Path) -> str:
    """sha256 of the length prefix and the header; `path` has been read with `read_header`."""
    with open_file(path, WEIGHTS) as file:
        prefix = file.read(8)
        text = file.read(min(int.from_bytes(prefix, "little"), HEADER_LIMIT))
    return hashlib.sha256(prefix + text).hexdigest()


def _header_length(where: str, prefix: bytes, size: int) -> int:
    length, help = int.from_bytes(prefix, "little"), _INCOMPLETE
    if prefix.startswith(b"version"):
        help = "fetch the real file with `git lfs pull`"
    if len(prefix) < 8:
        message = f"{where} has {size:,} bytes, too few for a safetensors file"
    elif prefix == b"version ":
        message = f"{where} is a Git LFS pointer, not the file"
    elif length > HEADER_LIMIT:
        message = (
            f"{where} announces a header of {length:,} bytes; the format allows {HEADER_LIMIT:,}"
        )
        help = "this is probably not a safetensors file"
    elif length < 2 or 8 + length > size:
        message = f"{where} announces a header of {length:,} bytes but has {size:,} bytes in all"
    else:
        return length
    raise LlamagenError.of("LG602", message, help=help)


def _entry(path: Path, name: str, value: object, start: int) -> TensorEntry:
    where = f"tensor {quoted(name)} in the header of {quoted(str(path))}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        message = f"{where} must have exactly dtype, shape and data_offsets"
        raise LlamagenError.of("LG602", message)
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise LlamagenError.of(
            "LG602",
            f"{where} has the dtype {quoted(str(dtype))}, which we do not know",
            help="use the checkpoint before quantisation, in bfloat16, float16 or float32",
        )
    shape = _integers(value["shape"], _DIMENSION_LIMIT)
    if shape is None or len(shape) > _RANK_LIMIT:
        raise LlamagenError.of("LG602", f"{where} has an impossible shape")
    offsets = _integers(value["data_offsets"], 1 << 62)
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise LlamagenError.of("LG603", f"{where} has impossible data_offsets")
    begin, end = offsets
    nbytes = prod(shape) * ITEM_SIZES[dtype]
    if end - begin != nbytes:
        raise LlamagenError.of(
            "LG603",
            f"{where} is {dtype} {shape_text(shape)}, which takes {nbytes:,} bytes, but its "
            f"data_offsets span {end - begin:,}",
        )
    return TensorEntry(name, dtype, shape, path, start + begin, nbytes)


def _integers(value: object, limit: int) -> tuple[int, ...] | None:
    # `type is int`: True is an int too, and JSON can say 1.0
    if not isinstance(value, list) or any(type(n) is not int or not 0 <= n < limit for n in value):
        return None
    return tuple(value)


def _require_no_holes(where: str, entries: list[TensorEntry], start: int, size: int) -> None:
    position, previous = start, "the header"
    for entry in entries:
        name = quoted(entry.name)
        if entry.offset < position:
            raise LlamagenError.of(
                "LG603",
                f"in {where} tensor {name} begins {position - entry.offset:,} bytes before the end of {previous}",
                help="two tensors must not share bytes",
            )
        if entry.offset > position:
            between = f"{entry.offset - position:,} bytes between {previous} and {name}"
            raise LlamagenError.of("LG603", f"in {where} {between} belong to no tensor")
        position, previous = entry.offset + entry.nbytes, name
        if position > size:
            raise LlamagenError.of(
                "LG603",
                f"{where} is truncated: it has {size:,} bytes, tensor {name} needs bytes up to {position:,}",
                help=f"{_INCOMPLETE}; compare the size with the source",
            )
    if position != size:
        left = f"{size - position:,} bytes after {previous}"
        raise LlamagenError.of("LG603", f"{where} has {left} that belong to no tensor")


# Writing


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written; its bytes come later."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]


def header_bytes(tensors: Iterable[NewTensor]) -> bytes:
    """Length and JSON, padded with spaces so that the data begins at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        shape = list(tensor.shape)
        table[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    path: Path, tensors: Sequence[tuple[NewTensor, Iterable[memoryview]]]
) -> None:
    """One file; `tensors` in the order of their bytes, each with the blocks that make it.

    Raises ValueError if the blocks of a tensor do not have its size. OSErrors pass through.
    """
    with path.open("xb") as out:
        out.write(header_bytes(tensor for tensor, _ in tensors))
        for tensor, blocks in tensors:
            written = sum(map(out.write, blocks))
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes, expected {tensor.nbytes}")
