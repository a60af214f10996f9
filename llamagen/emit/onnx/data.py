"""The data of an ONNX model: files beside it, in which every weight has a place, or arrays inside.

The folder is the caller's, usually a staging folder that is published as a whole; the weights come from a function, so
that this file knows no checkpoint formats. Memory is what a few pieces of a weight take, plus the graph.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import FileRecord, TensorRecord
from llamagen.emit.onnx.builder import ELEMENTS, numpy_type
from llamagen.emit.onnx.emit import OnnxModel
from llamagen.emit.onnx.encode import encode_rows, expert_rows
from llamagen.emit.onnx.initializers import EncodingRecord, Initializer, Placement
from llamagen.emit.onnx.text import render
from llamagen.ir.graph import MAIN
from llamagen.weights.pieces import Piece, write_pieces

MODEL_FILE = "model.onnx"
DATA_SUFFIX = ".onnx_data"
"""Data of the graph STEM is in STEM.onnx_data, STEM.onnx_data_1, ...: names that transformers.js fetches, by number."""

ALIGNMENT = 4096
"""Every tensor starts on a page, so that a runtime can map it."""

SOURCES = "llamagen.sources"
"""Key in the metadata of a tensor that joins several parameters."""

ENCODING = "llamagen.encoding"
"""Key in the metadata of the codes of a quantised weight."""

MAX_DATA_FILE_BYTES = 32 * 1024**3
"""A data file is closed when the next tensor would take it past this; a larger tensor has a file of its own."""


def byte_count(entry: Initializer) -> int:
    """Bytes of a weight in its data file."""
    return prod(entry.shape) * np.dtype(numpy_type(ELEMENTS[entry.dtype])).itemsize


def plan(
    initializers: Sequence[Initializer],
    stem: str = MAIN,
    limit: int = MAX_DATA_FILE_BYTES,
    first: int = 0,
) -> tuple[Placement, ...]:
    """Offsets in the order of the table, in data files of the graph ``stem`` from number ``first`` on.

    The parts of a quantised weight, which are made together, stay in one file.
    """
    spots: list[tuple[Initializer, int, int, int]] = []
    number, end = 0, 0
    for parts in groups(initializers):
        lengths = [_aligned(byte_count(part)) for part in parts]
        if end and _aligned(end) + sum(lengths) > _aligned(limit):
            number, end = number + 1, 0
        start = _aligned(end)
        for part, length in zip(parts, lengths, strict=True):
            spots.append((part, number, start, byte_count(part)))
            end = start + byte_count(part)
            start += length
    names = [
        f"{stem}{DATA_SUFFIX}" + (f"_{i}" if i else "") for i in range(first, first + number + 1)
    ]
    return tuple(Placement(entry, names[n], offset, length) for entry, n, offset, length in spots)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def groups(initializers: Sequence[Initializer]) -> Iterator[tuple[Initializer, ...]]:
    """Initializers that are made together: one, or the parts of a quantised weight."""

    def key(entry: Initializer) -> str:
        return entry.part.weight if entry.part else entry.name

    for _, group in groupby(initializers, key):
        yield tuple(group)


def attach_external(emitted: OnnxModel, placements: Sequence[Placement]) -> None:
    """Point the initializers of ``emitted`` at their places in data files."""
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
            metadata_props=_metadata(entry),
        )


def _metadata(entry: Initializer) -> dict[str, str]:
    """What each parameter can be read back by: a JSON list of [role path, shape], and how codes are to be read.

    A parameter under its own name and a table need none; scales and zero points are named by the codes.
    """
    part, sources = (
        entry.part,
        json.dumps([[source.path, source.shape] for source in entry.sources]),
    )
    if part is not None and part.role == "codes":
        return {SOURCES: sources, ENCODING: EncodingRecord.of(part).model_dump_json()}
    if part is not None or not entry.sources or [s.path for s in entry.sources] == [entry.name]:
        return {}
    return {SOURCES: sources}


LARGE_CONSTANT_BYTES = 1 << 16
"""A computed table of this size has a place outside the model file, which stays a graph."""


def large_constants(emitted: OnnxModel) -> dict[str, ir.Value]:
    """Tables that the graph computes with and no checkpoint has, by name."""
    return {
        name: value
        for name, value in emitted.model.graph.initializers.items()
        if name not in emitted.values
        and isinstance(value.const_value, ir.Tensor)
        and value.const_value.nbytes >= LARGE_CONSTANT_BYTES
    }


def attach_arrays(emitted: OnnxModel, weight: Callable[[str], npt.NDArray[np.floating]]) -> None:
    """Put the data of small models inside, rounded or quantised. ``weight`` gives the array of a role path."""
    values = emitted.values
    for entries in groups(emitted.initializers):
        sources = [weight(source.path) for source in entries[0].sources]
        array = sources[0] if len(sources) == 1 else np.concatenate(sources)
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
    rows, how = array.astype(np.float32), entries[0].part.encoding
    arrays = encode_rows(entries, expert_rows(rows, how) if how.kind == "experts" else rows)
    return [arrays[e.name].reshape(e.shape) for e in entries]


def serialize(emitted: OnnxModel) -> bytes:
    """The bytes of ``model.onnx``, the same for the same model. The data must be attached."""
    proto = ir.to_proto(emitted.model)
    return bytes(proto.SerializeToString(deterministic=True))


# files

WeightPieces: TypeAlias = Callable[[Sequence[Placement]], Iterable[Piece]]
"""Given the place of an initializer: its sources, in order, row-major, little-endian, in its dtype.

Given those of the parts of a quantised weight: all of them.
"""


def _silent(count: int) -> None:
    """Reports nothing."""


def write_models(
    models: Mapping[str, OnnxModel],
    folder: Path,
    weights: WeightPieces,
    limit: int = MAX_DATA_FILE_BYTES,
    report: Callable[[int], None] = _silent,
) -> dict[str, FileRecord]:
    """Write ``STEM.onnx`` and ``STEM.onnx.txt`` of each graph of a model, and its data file or files, into ``folder``.

    A weight that two graphs read is stored once, in data of the first. Returns the files by name. The same model and
    weights give the same bytes. Space for the data is claimed before the first weight is read, so that a disk too small
    is found at once. OSErrors and what ``weights`` raises pass through; ``report`` gets the bytes of every piece.
    Raises LG710 when ``weights`` gives another number of bytes than the tensor has.
    """
    together = together_initializers(models.values())
    placements = plan(together, next(iter(models)), limit)
    written: dict[str, FileRecord] = {}
    for location, group in groupby(placements, key=lambda spot: spot.location):
        written[location] = _write_data(folder / location, list(group), weights, report)
    return written | write_graphs(models, placements, folder)


def write_graphs(
    models: Mapping[str, OnnxModel], placements: Sequence[Placement], folder: Path
) -> dict[str, FileRecord]:
    """``STEM.onnx`` and ``STEM.onnx.txt`` of each model, whose weights lie at ``placements`` in files of ``folder``.

    Large tables of a model that no checkpoint has go into its next data file.
    """
    written: dict[str, FileRecord] = {}
    files = {spot.location for spot in placements}
    for stem, emitted in models.items():
        text = render(emitted)  # before the tables are outside: it shows how they begin
        first = sum(name.startswith(f"{stem}{DATA_SUFFIX}") for name in files)
        written |= _write_tables(emitted, folder, stem, first)
        own = {entry.name for entry in emitted.initializers}
        attach_external(emitted, [spot for spot in placements if spot.initializer.name in own])
        for suffix, data in ((".onnx", serialize(emitted)), (".onnx.txt", text.encode())):
            (folder / f"{stem}{suffix}").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            written[f"{stem}{suffix}"] = FileRecord(size=len(data), sha256=digest)
    return written


def _write_tables(emitted: OnnxModel, folder: Path, stem: str, first: int) -> dict[str, FileRecord]:
    """Computed constants that are too large for a graph, in a file of their own; nothing where there are none."""
    tables = large_constants(emitted)
    names = {element: name for name, element in ELEMENTS.items()}
    entries: list[Initializer] = []
    for name, value in tables.items():
        assert value.const_value is not None and value.dtype is not None
        shape = tuple(value.const_value.shape.numpy())
        entries.append(Initializer(name, shape, names[value.dtype], ()))
    if not entries:
        return {}

    def piece(spots: Sequence[Placement]) -> tuple[Piece]:
        (spot,) = spots
        tensor = tables[spot.initializer.name].const_value
        assert tensor is not None
        data = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
        return (Piece(data.nbytes, lambda: [(spot.offset, data)]),)

    spots = plan(entries, stem, first=first)
    location = spots[0].location
    record = _write_data(folder / location, spots, piece, _silent)
    attach_external(emitted, spots)
    return {location: record}


def together_initializers(models: Iterable[OnnxModel]) -> tuple[Initializer, ...]:
    """The weights of all models, each once, in the order they are first read. Raises LG709."""
    together: dict[str, Initializer] = {}
    for entry in (entry for model in models for entry in model.initializers):
        if together.setdefault(entry.name, entry) != entry:
            message = f"two graphs of this model read `{entry.name}` in different codes"
            help = "quantise embedding and head alike, or neither: --quantize-head, --quantize-embedding"
            raise LlamagenError.of("LG709", message, help=help)
    return tuple(together.values())


def _write_data(
    path: Path,
    placements: Sequence[Placement],
    weights: WeightPieces,
    report: Callable[[int], None],
) -> FileRecord:
    gaps: list[tuple[int, int]] = []
    end = 0
    stops: dict[int, str] = {}
    for spot in placements:
        stops[spot.offset + spot.length] = spot.initializer.name
        if spot.offset > end:
            gaps.append((end, spot.offset))
        end = spot.offset + spot.length
    places = {spot.initializer.name: spot for spot in placements}
    together = [[places[e.name] for e in g] for g in groups([s.initializer for s in placements])]
    with path.open("xb+") as file:
        _claim(file, end)
        pieces = (piece for spots in together for piece in _of_its_size(spots, weights(spots)))
        digests = write_pieces(file.fileno(), end, pieces, gaps, report, sorted(stops))
    tensors = (
        TensorRecord(name=name, stop=stop, until=digests.until[stop][:16])
        for stop, name in sorted(stops.items())
    )
    return FileRecord(size=end, sha256=digests.sha256, tensors=tuple(tensors))


def _of_its_size(spots: Sequence[Placement], pieces: Iterable[Piece]) -> Iterator[Piece]:
    length, wanted = 0, sum(spot.length for spot in spots)
    for piece in pieces:
        length += piece.length
        yield piece
    if length != wanted:
        message = f"{spots[0].initializer.name} came as {length:,} bytes, {wanted:,} were expected"
        raise LlamagenError.of("LG710", message)


def _claim(file: BinaryIO, size: int) -> None:
    """Reserve ``size`` bytes on the disk where the system can; gaps read as zeros either way.

    Where it cannot, as on macOS, a disk that is too small is found later, and nothing is published either.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    file.truncate(size)
