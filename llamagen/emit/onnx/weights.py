"""The weights of a graph as initializers, whole or in parts, and the value that stands for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.elements import ELEMENTS, Quantized
from llamagen.emit.onnx.initializer import Encoding, Initializer, encoded, gathered, shared_rows
from llamagen.emit.onnx.quantization import Quantization, encodings
from llamagen.ir.flatten import FlatGraph
from llamagen.ops.op import Role


@dataclass(frozen=True, slots=True)
class PlacedWeights:
    """``values`` are the initializers of ``table``, in its order; ``parameters`` maps a weight's name to its value."""

    table: tuple[Initializer, ...]
    values: tuple[ir.Value, ...]
    parameters: Mapping[str, ir.Value]


def place_weights(
    b: Builder, flat: FlatGraph, whole: Sequence[Initializer], chosen: Quantization
) -> PlacedWeights:
    """Initializers for the weights ``whole``, quantised as ``chosen``. Raises LG709."""
    choice = encodings(flat, {entry.name: entry.shape for entry in whole}, chosen)
    gathers = {n.parameters["weight"] for n in flat.nodes if n.row.role is Role.EMBEDDING}
    products = {n.parameters["weight"] for n in flat.nodes if n.row.role is Role.LINEAR}
    table: list[Initializer] = []
    values: list[ir.Value] = []
    parameters: dict[str, ir.Value] = {}
    for entry in whole:
        encoding = choice.get(entry.name)
        parts: tuple[Initializer, ...] = (entry,)
        if encoding is not None:
            parts = encoded(entry, encoding, b.scale_dtype)
            if entry.name in gathers & products:
                parts = (*parts, shared_rows(parts[0]))
            elif entry.name in gathers:
                parts = (gathered(parts[0]), *parts[1:])
        made = [b.value(p.name, ELEMENTS[p.dtype], ir.Shape(p.shape)) for p in parts]
        table += parts
        values += made
        parameters[entry.name] = (
            b.loaded(made[0]) if encoding is None else _in_parts(b, entry, encoding, parts, made)
        )
    return PlacedWeights(tuple(table), tuple(values), parameters)


def _in_parts(
    b: Builder,
    entry: Initializer,
    encoding: Encoding,
    parts: Sequence[Initializer],
    made: Sequence[ir.Value],
) -> ir.Value:
    roles = {p.part.role if p.part else "rows": value for p, value in zip(parts, made, strict=True)}
    codes, scales = roles["codes"], roles["scales"]
    points, rows = roles.get("zero_points"), roles.get("rows", codes)
    return b.quantized(entry.name, Quantized(encoding, entry.shape, codes, scales, points, rows))
