"""Strict reader of safetensors headers.

Format (huggingface/safetensors, README "Format"): u64 little-endian header length N, N bytes of
JSON that begin with `{` and may end in spaces, then the data; `data_offsets` are relative to the
data, without holes. The reference reader 0.8 lets duplicate keys and a leading space through;
this one refuses them, and everything else that could give a tensor bytes that are not its own.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from llamagen.files import WEIGHTS, open_file
from llamagen.weights.dtypes import ITEM_SIZES, element_count
from llamagen.weights.problems import problem, quoted, shape_text
from llamagen.weights.strict_json import parse_strict

HEADER_LIMIT = 100_000_000
"""Longest header in bytes; the reference reader has the same bound."""

_DIMENSION_LIMIT = 1 << 48
_RANK_LIMIT = 16


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One stored tensor: contiguous, row-major, little-endian, `nbytes` from `offset` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Tensors in the order of their bytes, and the `__metadata__` strings."""

    tensors: tuple[TensorEntry, ...]
    metadata: tuple[tuple[str, str], ...]


def read_header(path: Path, within: Path | None = None) -> SafetensorsHeader:
    """The header of `path`, found `within` a folder; no tensor bytes are read.

    Raises LG601 (cannot open), LG602 (header malformed), LG603 (offsets and sizes disagree).
    """
    try:
        with open_file(path, WEIGHTS, within=within) as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(8), size)
            text = file.read(length)
    except OSError as error:
        message = f"cannot read {quoted(str(path))}: {error.strerror or error}"
        raise problem("LG601", message, help=WEIGHTS.help) from error
    if len(text) != length:
        raise problem("LG603", f"{quoted(str(path))} became shorter while it was read")
    table = _parse(path, text)
    metadata = _metadata(path, table.pop("__metadata__", {}))
    start = 8 + length
    entries = [_entry(path, name, value, start) for name, value in table.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes, entry.name))
    _check_layout(path, entries, start, size)
    return SafetensorsHeader(tuple(entries), metadata)


def header_digest(path: Path) -> str:
    """sha256 of the length prefix and the header; `path` has been read with `read_header`."""
    with open_file(path, WEIGHTS) as file:
        prefix = file.read(8)
        text = file.read(min(int.from_bytes(prefix, "little"), HEADER_LIMIT))
    return hashlib.sha256(prefix + text).hexdigest()


def _header_length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise problem(
            "LG602",
            f"{quoted(str(path))} has {size:,} bytes, too few for a safetensors file",
            help=_pointer_help(prefix),
        )
    length = int.from_bytes(prefix, "little")
    if prefix == b"version ":
        raise problem(
            "LG602",
            f"{quoted(str(path))} is a Git LFS pointer, not the file",
            _pointer_help(prefix),
        )
    if length > HEADER_LIMIT:
        raise problem(
            "LG602",
            f"{quoted(str(path))} announces a header of {length:,} bytes; the format allows "
            f"{HEADER_LIMIT:,}",
            help="this is probably not a safetensors file",
        )
    if length < 2 or 8 + length > size:
        raise problem(
            "LG602",
            f"{quoted(str(path))} announces a header of {length:,} bytes but has {size:,} bytes "
            "in all",
            help="the download may be incomplete",
        )
    return length


def _pointer_help(prefix: bytes) -> str:
    if prefix.startswith(b"version"):
        return "fetch the real file with `git lfs pull`"
    return "the download may be incomplete"


def _parse(path: Path, text: bytes) -> dict[str, object]:
    if text[:1] != b"{":
        raise problem(
            "LG602",
            f"the header of {quoted(str(path))} begins with {ascii(text[:1])[1:]}, not with '{{'",
            help="the format requires '{' as the first byte of the header",
        )
    try:
        table = parse_strict(text)
    except ValueError as error:
        raise problem(
            "LG602", f"the header of {quoted(str(path))} is not usable JSON: {error}"
        ) from error
    if not isinstance(table, dict):
        raise problem("LG602", f"the header of {quoted(str(path))} is not a JSON object")
    return table


def _metadata(path: Path, value: object) -> tuple[tuple[str, str], ...]:
    if isinstance(value, dict):
        pairs = [(key, text) for key, text in value.items() if isinstance(text, str)]
        if len(pairs) == len(value):
            return tuple(pairs)
    raise problem(
        "LG602", f"__metadata__ in the header of {quoted(str(path))} must map strings to strings"
    )


def _entry(path: Path, name: str, value: object, start: int) -> TensorEntry:
    where = f"tensor {quoted(name)} in the header of {quoted(str(path))}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise problem("LG602", f"{where} must have exactly dtype, shape and data_offsets")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise problem(
            "LG602",
            f"{where} has the dtype {quoted(str(dtype))}, which we do not know",
            help="use the checkpoint before quantisation, in bfloat16, float16 or float32",
        )
    shape = _integers(value["shape"], _DIMENSION_LIMIT)
    if shape is None or len(shape) > _RANK_LIMIT:
        raise problem("LG602", f"{where} has an impossible shape")
    offsets = _integers(value["data_offsets"], 1 << 62)
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise problem("LG603", f"{where} has impossible data_offsets")
    begin, end = offsets
    nbytes = element_count(shape) * ITEM_SIZES[dtype]
    if end - begin != nbytes:
        raise problem(
            "LG603",
            f"{where} is {dtype} {shape_text(shape)}, which takes {nbytes:,} bytes, but its "
            f"data_offsets span {end - begin:,}",
        )
    return TensorEntry(name, dtype, shape, path, start + begin, nbytes)


def _integers(value: object, limit: int) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    # `type is int`: True is an int too, and JSON can say 1.0
    numbers = tuple(item for item in value if type(item) is int and 0 <= item < limit)
    return numbers if len(numbers) == len(value) else None


def _check_layout(path: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    position = start
    previous = "the header"
    for entry in entries:
        if entry.offset < position:
            raise problem(
                "LG603",
                f"in {quoted(str(path))} tensor {quoted(entry.name)} begins "
                f"{position - entry.offset:,} bytes before the end of {previous}",
                help="two tensors must not share bytes",
            )
        if entry.offset > position:
            raise problem(
                "LG603",
                f"in {quoted(str(path))} {entry.offset - position:,} bytes between {previous} "
                f"and {quoted(entry.name)} belong to no tensor",
            )
        position = entry.offset + entry.nbytes
        previous = quoted(entry.name)
        if position > size:
            raise problem(
                "LG603",
                f"{quoted(str(path))} is truncated: it has {size:,} bytes, tensor "
                f"{quoted(entry.name)} needs bytes up to {position:,}",
                help="the download may be incomplete; compare the size with the source",
            )
    if position != size:
        raise problem(
            "LG603",
            f"{quoted(str(path))} has {size - position:,} bytes after {previous} that belong to "
            "no tensor",
        )
