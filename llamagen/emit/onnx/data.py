"""Where an ONNX model finds the data of its weights: a file beside it, or arrays in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.emit.onnx.elements import ELEMENTS, numpy_type
from llamagen.emit.onnx.encode import encode_rows, expert_rows
from llamagen.emit.onnx.initializer import ExpertEncoding, Initializer, Placement
from llamagen.emit.onnx.model import OnnxModel
from llamagen.emit.onnx.records import EncodingRecord
from llamagen.weights.pieces import Piece

ALIGNMENT = 4096
"""Every tensor starts on a page, so that a runtime can map it."""

SOURCES = "llamagen.sources"
"""Key in the metadata of a tensor that joins several parameters."""

ENCODING = "llamagen.encoding"
"""Key in the metadata of the codes of a quantised weight."""

MAX_DATA_FILE_BYTES = 32 * 1024**3
"""A data file is closed when the next tensor would take it past this; a larger tensor has a file of its own."""


def byte_count(entry: Initializer) -> int:
    """Bytes of a weight in its data file; of one that shares another's, those."""
    return prod(entry.shape) * np.dtype(numpy_type(ELEMENTS[entry.dtype])).itemsize


def plan(
    initializers: Sequence[Initializer],
    stem: str = "model.onnx.data",
    limit: int = MAX_DATA_FILE_BYTES,
) -> tuple[Placement, ...]:
    """Offsets in the order of the table. One file is called ``stem``; of several, file n is ``stem-0000n``.

    The parts of a quantised weight, which are made together, stay in one file.
    """
    spots: list[tuple[Initializer, int, int, int]] = []
    number, end = 0, 0
    for parts in groups(initializers):
        lengths = [0 if part.shares else _aligned(byte_count(part)) for part in parts]
        if end and _aligned(end) + sum(lengths) > _aligned(limit):
            number, end = number + 1, 0
        start = _aligned(end)
        for part, length in zip(parts, lengths, strict=True):
            offset = start
            if part.shares is not None:
                offset = next(o for e, _, o, _ in spots if e.name == part.shares)
            spots.append((part, number, offset, byte_count(part)))
            end = max(end, offset + byte_count(part))
            start += length
    names = [stem if number == 0 else f"{stem}-{i + 1:05d}" for i in range(number + 1)]
    return tuple(Placement(entry, names[n], offset, length) for entry, n, offset, length in spots)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def groups(initializers: Sequence[Initializer]) -> Iterator[tuple[Initializer, ...]]:
    """Initializers that are made together: one, or the parts of a quantised weight."""

    def key(entry: Initializer) -> str:
        if entry.shares is not None:
            return entry.shares.removesuffix("_codes")
        return entry.part.weight if entry.part else entry.name

    for _, found in groupby(initializers, key):
        yield tuple(found)


def attach_external(emitted: OnnxModel, placements: Sequence[Placement]) -> None:
    """Point the initializers of ``emitted`` at their places in data files.

    What a tensor joins is written beside it, so that each parameter can be read back out of the folder.
    """
    values = emitted.model.graph.initializers
    for spot in placements:
        entry = spot.initializer
        value = values[entry.name]
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            spot.location,
            spot.offset,
            spot.length,
            value.dtype,
            shape=ir.Shape(entry.shape),
            name=entry.name,
            metadata_props=_about(entry),
        )


def _about(entry: Initializer) -> dict[str, str]:
    """Under ``SOURCES``, a JSON list of [role path, shape]; nothing for a parameter under its own name or a table.

    Codes say under ``ENCODING`` how they are read; scales and zero points say nothing.
    """
    part = entry.part
    if part is not None and part.role == "codes":
        record = EncodingRecord.of(part)
        return {SOURCES: _sources(entry), ENCODING: record.model_dump_json()}
    if part is not None or not entry.sources or [s.path for s in entry.sources] == [entry.name]:
        return {}
    return {SOURCES: _sources(entry)}


def _sources(entry: Initializer) -> str:
    return json.dumps([[source.path, source.shape] for source in entry.sources])


LARGE_CONSTANT_BYTES = 1 << 16
"""A computed table of this size has a place outside the model file, which stays a graph."""


def large_constants(emitted: OnnxModel) -> dict[str, ir.Value]:
    """Tables that the graph computes with and no checkpoint has, by name."""
    weights = emitted.values
    found: dict[str, ir.Value] = {}
    for name, value in emitted.model.graph.initializers.items():
        data = value.const_value
        if (
            name not in weights
            and isinstance(data, ir.Tensor)
            and data.nbytes >= LARGE_CONSTANT_BYTES
        ):
            found[name] = value
    return found


def table_entry(value: ir.Value) -> Initializer:
    """A table as an initializer that has no sources."""
    (dtype,) = (name for name, element in ELEMENTS.items() if element is value.dtype)
    assert value.name is not None and value.const_value is not None
    return Initializer(value.name, tuple(value.const_value.shape.numpy()), dtype, ())


def table_piece(value: ir.Value, offset: int) -> Piece:
    """The bytes of a table at ``offset`` of a file."""
    assert value.const_value is not None
    data = np.ascontiguousarray(value.const_value.numpy()).reshape(-1).view(np.uint8)
    return Piece(data.nbytes, lambda: [(offset, data)])


def attach_arrays(emitted: OnnxModel, weight: Callable[[str], npt.NDArray[np.floating]]) -> None:
    """Put the data of small models inside, rounded or quantised. ``weight`` gives the array of a role path."""
    values = emitted.values
    for entries in groups(emitted.initializers):
        parts = [weight(source.path) for source in entries[0].sources]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for entry, data in zip(entries, _arrays(entries, array), strict=True):
            if data.shape != entry.shape:
                raise ValueError(
                    f"{entry.name} has shape {data.shape}, the model wants {entry.shape}"
                )
            values[entry.name].const_value = ir.Tensor(np.ascontiguousarray(data), name=entry.name)


def _arrays(
    entries: Sequence[Initializer], array: npt.NDArray[np.floating]
) -> list[npt.NDArray[np.generic]]:
    """Data of initializers that are made together of one array."""
    if entries[0].part is None:
        return [array.astype(numpy_type(ELEMENTS[entries[0].dtype]))]
    rows = array.astype(np.float32)
    if isinstance(entries[0].part.encoding, ExpertEncoding):
        rows = expert_rows(rows, entries[0].part.encoding)
    found = encode_rows(entries, rows)
    codes = entries[0].name
    return [found[e.name if e.shares is None else codes].reshape(e.shape) for e in entries]


def serialize(emitted: OnnxModel) -> bytes:
    """The bytes of ``model.onnx``, the same for the same model. The data must be attached."""
    proto = ir.to_proto(emitted.model)
    return bytes(proto.SerializeToString(deterministic=True))
