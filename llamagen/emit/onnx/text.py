"""The canonical text of an ONNX model: what golden files hold. Equal models give equal bytes.

One line a node, in execution order. Layers that repeat are written once: ``layers 1..15, i`` stands for fifteen copies
in which ``{i}`` is the layer's number and ``{i-1}`` the one before; ``by 4`` for groups of four that repeat::

    onnx llama/3.2/1b portable float32 opset 24
    input input_ids: int64[batch_size, sequence_length]
    layers 0..15, i:
      weight model.layers.{i}.input_layernorm.weight: float[2048]
    /model/norm: float[batch_size, sequence_length, 2048] = RMSNormalization(/model/layers.15/add, model.norm.weight)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from llamagen.emit.onnx.emit import OnnxModel

_LAYER = re.compile(r"(?<![\w])([A-Za-z_]\w*)\.(\d+)(?=[./:\s,)]|$)")
"""A component of a path with a number: ``layers.3``, ``present.3``."""

_LONGEST_CYCLE = 8
"""Layers of at most this many kinds in turn are still written once."""

_Group: TypeAlias = tuple[int | None, list[str]]
"""A layer's number and its lines; None for lines outside layers."""

_SHOWN_CONSTANT = 8
"""A constant of at most this many elements is written in full."""


def render(emitted: OnnxModel) -> str:
    """The text of ``emitted``; neither the version of llamagen nor the place of the data shows in it."""
    return "".join(f"{line}\n" for line in _lines(emitted))


def uncollapsed(emitted: OnnxModel) -> Iterator[str]:
    """The lines of ``render`` with every layer written out."""
    for section in _sections(emitted):
        yield from section


def _lines(emitted: OnnxModel) -> Iterator[str]:
    for section in _sections(emitted):
        yield from _collapsed(section)


def _sections(emitted: OnnxModel) -> Iterator[Iterable[str]]:
    graph = emitted.model.graph
    weights = emitted.values
    beside = {*weights, *(v.name for v in graph.inputs)}
    yield (
        f"onnx {graph.name} {emitted.profile.name} {emitted.dtype} opset {emitted.profile.opset}",
        f"digest {emitted.model.metadata_props['llamagen.spec_digest']}",
    )
    yield (f"input {_typed(v)}" for v in graph.inputs)
    yield (f"weight {_typed(v)}" for v in weights.values())
    yield (
        f"constant {_typed(value)}{_data(value)}"
        for name, value in graph.initializers.items()
        if name not in beside
    )
    yield (line for node in graph for line in _node(node, ""))
    yield (f"output {_typed(v)}" for v in graph.outputs)


def _typed(value: ir.Value) -> str:
    assert value.dtype is not None
    kind = value.dtype.name.lower()
    return f"{value.name}: {kind}" if value.shape is None else f"{value.name}: {kind}{_dims(value)}"


def _dims(value: ir.Value) -> str:
    shape = value.shape
    assert shape is not None
    return "[" + ", ".join("?" if d is None else str(d) for d in map(_dim, shape)) + "]"


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim


def _data(value: ir.Value) -> str:
    tensor = value.const_value
    assert tensor is not None
    array = np.asarray(tensor.numpy())
    if array.size > _SHOWN_CONSTANT or value.name is None:
        shown = ", ".join(repr(x) for x in array.reshape(-1)[:_SHOWN_CONSTANT].tolist())
        return f" = {shown}, ... (sum {float(array.astype(np.float64).sum())!r})"
    return f" = {array.tolist()!r}"


def _node(node: ir.Node, indent: str) -> Iterator[str]:
    inputs = ", ".join("-" if v is None else str(v.name) for v in node.inputs)
    outputs = ", ".join(_typed(v) if v.name else "-" for v in node.outputs)
    plain = [a for a in node.attributes.values() if a.type is not ir.AttributeType.GRAPH]
    words = "".join(f" {a.name}={_attribute(a)}" for a in plain)
    yield f"{indent}{outputs} = {node.op_type}({inputs}){words}"
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            inputs = ", ".join(_typed(v) for v in graph.inputs)
            yield f"{indent}  {attribute.name}({inputs})"
            for inner in graph:
                yield from _node(inner, indent + "    ")
            yield f"{indent}    return {', '.join(str(v.name) for v in graph.outputs)}"


def _attribute(attribute: ir.Attr) -> str:
    match attribute.type:
        case ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            return f"{tensor.dtype.name.lower()}{tensor.numpy().tolist()!r}"
        case ir.AttributeType.INTS:
            return str(list(attribute.as_ints()))
        case ir.AttributeType.FLOAT:
            return repr(float(np.float32(attribute.as_float()).astype(str)))
        case _:
            return str(attribute.value)


def _collapsed(lines: Iterable[str]) -> Iterator[str]:
    """Runs of layers with equal lines, or of equal groups of up to ``_LONGEST_CYCLE`` layers, written once."""
    groups = [
        (n, [line for _, line in g]) for n, g in groupby(_numbered(lines), key=lambda p: p[0])
    ]
    start = 0
    while start < len(groups):
        number, first = groups[start]
        period, repeats = _longest_run(groups, start) if number is not None else (1, 1)
        if number is None or repeats == 1:
            yield from first
            start += 1
            continue
        end = start + period * repeats
        step = f" by {period}" if period > 1 else ""
        yield f"layers {number}..{number + period * repeats - 1}{step}, i:"
        yield from (f"  {line}" for line in _general(groups[start : start + period], number))
        start = end


def _longest_run(groups: Sequence[_Group], start: int) -> tuple[int, int]:
    """(layers a cycle, cycles) that cover the most layers from ``start``; the shortest such cycle."""
    best, covered = (1, 1), 1
    for period in range(1, _LONGEST_CYCLE + 1):
        number = groups[start][0]
        pattern = _cycle(groups, start, period, number)
        repeats = 1
        while number is not None and pattern is not None:
            at, of = start + period * repeats, number + period * repeats
            if _cycle(groups, at, period, of) != pattern:
                break
            repeats += 1
        if repeats > 1 and period * repeats > covered:
            best, covered = (period, repeats), period * repeats
    return best


def _cycle(
    groups: Sequence[_Group], start: int, period: int, number: int | None
) -> list[str] | None:
    """The general lines of ``period`` consecutive layers beginning with layer ``number``; None if they are not."""
    part = groups[start : start + period]
    if number is None or [n for n, _ in part] != list(range(number, number + period)):
        return None
    return _general(part, number)


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int | None, str]]:
    """Each line with the number of the layer it defines something of; a subgraph belongs to its node."""
    number: int | None = None
    for line in lines:
        if not line.startswith(" "):
            match = _LAYER.search(line.split(": ", 1)[0] + " ")
            number = int(match[2]) if match else None
        yield number, line


def _general(groups: Sequence[_Group], number: int) -> list[str]:
    """Lines with numbers of layers written relative to layer ``number``."""

    def replace(match: re.Match[str]) -> str:
        offset = int(match[2]) - number
        return f"{match[1]}.{{i{offset:+d}}}" if offset else f"{match[1]}.{{i}}"

    return [_LAYER.sub(replace, line) for _, lines in groups for line in lines]
