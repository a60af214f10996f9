"""Writing the files of an ONNX model: weights streamed into data files, then the graph, then its text.

The folder is the caller's, usually a staging folder that is published as a whole; the weights come from a function, so
that this file knows no checkpoint formats. Memory is what a few pieces of a weight take, plus the graph.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import FileRecord, TensorRecord
from llamagen.emit.onnx.data import (
    MAX_DATA_FILE_BYTES,
    attach_external,
    groups,
    large_constants,
    plan,
    serialize,
    table_entry,
    table_piece,
)
from llamagen.emit.onnx.initializer import Initializer, Placement
from llamagen.emit.onnx.model import OnnxModel
from llamagen.emit.onnx.text import render
from llamagen.weights.pieces import Piece, write_pieces

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
TABLES_SUFFIX = ".onnx.tables"

WeightPieces: TypeAlias = Callable[[Sequence[Placement]], Iterable[Piece]]
"""Given the place of an initializer: its sources, in order, row-major, little-endian, in its dtype.

Given those of the parts of a quantised weight: all of them.
"""


def _silent(count: int) -> None:
    """Reports nothing."""


def write_model(
    emitted: OnnxModel,
    folder: Path,
    weights: WeightPieces,
    limit: int = MAX_DATA_FILE_BYTES,
    report: Callable[[int], None] = _silent,
) -> dict[str, FileRecord]:
    """Write ``model.onnx``, its data file or files and ``model.onnx.txt`` into ``folder``; returns them by name.

    The same model and weights give the same bytes. Space for the data is claimed before the first weight is read, so
    that a disk too small is found at once. OSErrors and what ``weights`` raises pass through; ``report`` gets the
    bytes of every piece. Raises LG710 when ``weights`` gives another number of bytes than the tensor has.
    """
    return write_models({MODEL_FILE.partition(".")[0]: emitted}, folder, weights, limit, report)


def write_models(
    models: Mapping[str, OnnxModel],
    folder: Path,
    weights: WeightPieces,
    limit: int = MAX_DATA_FILE_BYTES,
    report: Callable[[int], None] = _silent,
) -> dict[str, FileRecord]:
    """The same for several graphs of one model, ``NAME.onnx`` each: a weight that two of them read is stored once."""
    together = together_initializers(models.values())
    placements = plan(together, DATA_FILE, limit)
    written: dict[str, FileRecord] = {}
    for location, group in groupby(placements, key=lambda spot: spot.location):
        written[location] = _write_data(folder / location, list(group), weights, report)
    return written | write_graphs(models, placements, folder)


def write_graphs(
    models: Mapping[str, OnnxModel], placements: Sequence[Placement], folder: Path
) -> dict[str, FileRecord]:
    """``NAME.onnx`` and ``NAME.onnx.txt`` of each model, whose weights lie at ``placements`` in files of ``folder``.

    Large tables of a model that no checkpoint has go into ``NAME.onnx.tables``.
    """
    written: dict[str, FileRecord] = {}
    for stem, emitted in models.items():
        text = render(emitted)  # before the tables are outside: it shows how they begin
        written |= _write_tables(emitted, folder, f"{stem}{TABLES_SUFFIX}")
        own = {entry.name for entry in emitted.initializers}
        attach_external(emitted, [spot for spot in placements if spot.initializer.name in own])
        for suffix, data in ((".onnx", serialize(emitted)), (".onnx.txt", text.encode())):
            (folder / f"{stem}{suffix}").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            written[f"{stem}{suffix}"] = FileRecord(size=len(data), sha256=digest)
    return written


def _write_tables(emitted: OnnxModel, folder: Path, location: str) -> dict[str, FileRecord]:
    """Computed constants that are too large for a graph, in a file of their own; nothing where there are none."""
    tables = large_constants(emitted)
    spots = plan([table_entry(value) for value in tables.values()], location)
    if not spots:
        return {}
    places = {spot.initializer.name: spot.offset for spot in spots}
    pieces = {name: table_piece(value, places[name]) for name, value in tables.items()}
    record = _write_data(
        folder / location, spots, lambda given: (pieces[given[0].initializer.name],), _silent
    )
    attach_external(emitted, spots)
    return {location: record}


def together_initializers(models: Iterable[OnnxModel]) -> tuple[Initializer, ...]:
    """The weights of all models, each once, in the order they are first read. Raises LG709."""
    found: dict[str, Initializer] = {}
    for entry in (entry for model in models for entry in model.initializers):
        if found.setdefault(entry.name, entry) != entry:
            message = f"two graphs of this model read `{entry.name}` in different codes"
            help = "quantise embedding and head alike, or neither: --quantize-head, --quantize-embedding"
            raise LlamagenError.of("LG709", message, help=help)
    return tuple(found.values())


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
        if spot.initializer.shares is not None:
            continue
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
    length, wanted = 0, sum(spot.length for spot in spots if spot.initializer.shares is None)
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
