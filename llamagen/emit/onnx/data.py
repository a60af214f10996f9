"""Where an ONNX model finds the data of its weights: a file beside it, or arrays in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.emit.onnx.builder import ELEMENTS, numpy_type
from llamagen.emit.onnx.model import Initializer, OnnxModel
from llamagen.weights.pieces import Piece

ALIGNMENT = 4096
"""Every tensor starts on a page, so that a runtime can map it."""

SOURCES = "llamagen.sources"
"""Key in the metadata of a tensor that joins several parameters."""

MAX_DATA_FILE_BYTES = 32 * 1024**3
"""A data file is closed when the next tensor would take it past this; a larger tensor has a file of its own."""


def byte_count(entry: Initializer) -> int:
    """Bytes of a weight in its data file."""
    return prod(entry.shape) * np.dtype(numpy_type(ELEMENTS[entry.dtype])).itemsize


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the bytes of one initializer lie: file name, offset and length in bytes."""

    initializer: Initializer
    location: str
    offset: int
    length: int


def plan(
    initializers: Sequence[Initializer],
    stem: str = "model.onnx.data",
    limit: int = MAX_DATA_FILE_BYTES,
) -> tuple[Placement, ...]:
    """Offsets in the order of the table. One file is called ``stem``; of several, file n is ``stem-0000n``."""
    spots: list[tuple[Initializer, int, int, int]] = []
    number, end = 0, 0
    for entry in initializers:
        length = byte_count(entry)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if offset and offset + length > limit:
            number, offset = number + 1, 0
        spots.append((entry, number, offset, length))
        end = offset + length
    names = [stem if number == 0 else f"{stem}-{i + 1:05d}" for i in range(number + 1)]
    return tuple(Placement(entry, names[n], offset, length) for entry, n, offset, length in spots)


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
            metadata_props=_sources(entry),
        )


def _sources(entry: Initializer) -> dict[str, str]:
    """Under ``SOURCES``, a JSON list of [role path, shape]; nothing for a parameter under its own name or a table."""
    if not entry.sources or [source.path for source in entry.sources] == [entry.name]:
        return {}
    return {SOURCES: json.dumps([[source.path, source.shape] for source in entry.sources])}


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
    """Put the data of small models inside, rounded to the model's dtype. ``weight`` gives the array of a role path."""
    values = emitted.values
    for entry in emitted.initializers:
        kind = numpy_type(ELEMENTS[entry.dtype])
        parts = [weight(source.path).astype(kind) for source in entry.sources]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if array.shape != entry.shape:
            raise ValueError(f"{entry.name} has shape {array.shape}, the model wants {entry.shape}")
        values[entry.name].const_value = ir.Tensor(np.ascontiguousarray(array), name=entry.name)


def serialize(emitted: OnnxModel) -> bytes:
    """The bytes of ``model.onnx``, the same for the same model. The data must be attached."""
    proto = ir.to_proto(emitted.model)
    return bytes(proto.SerializeToString(deterministic=True))
