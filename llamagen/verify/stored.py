"""The weights inside an exported folder, read from its data files when they are asked for.

Quantised ones are read back as numbers, written from ONNX Runtime's description of its operators. MatMulNBits and
GatherBlockQuantized: weight[n, k] = (code[n, k] - zero_point[n, k / block]) * scale[n, k / block]; two 4-bit codes
share a byte, the first in the low half. With minimums (other nodes add them): code * scale + minimum. In halves: two
such products, of the high halves with 16 times the scale. QMoE: as MatMulNBits for each expert. DynamicQuantizeMatMul:
weight[n, k] = code[k, n] * scale[n].
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from llamagen import files
from llamagen.diagnostics import LlamagenError, quoted
from llamagen.emit.manifest import graph_path
from llamagen.emit.onnx.adapters import inputs_of
from llamagen.emit.onnx.data import ENCODING, SOURCES
from llamagen.emit.onnx.initializers import EncodingRecord
from llamagen.ir.flatten import FlatGraph, FlatNode
from llamagen.ir.graph import MAIN
from llamagen.ops.dims import Dim
from llamagen.ops.op import Parameter
from llamagen.verify.limits import RunDType

if TYPE_CHECKING:
    import onnx


_AGAIN = "is the file whole and unchanged? `llamagen verify DIR --integrity` tells"

_PARTS: TypeAdapter[list[tuple[str, tuple[int, ...]]]] = TypeAdapter(
    list[tuple[str, tuple[int, ...]]]
)


N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are, and what they are."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def parts(self) -> tuple[Place, ...]:
        """Tensors of the file that are read."""
        return (self,)

    def read(self) -> NDArray[np.generic]:
        """The tensor's pages, mapped; nothing is copied. Raises LG622 where the file has no such bytes any more."""
        try:
            with files.open_file(self.file, files.DATA, within=self.file.parent) as file:
                about = os.fstat(file.fileno())
                key = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
                whole = _MAPPED.get(key)
                if whole is None:
                    whole = _MAPPED[key] = np.memmap(file, np.uint8, mode="r")
            end = self.offset + prod(self.shape) * self.dtype.itemsize
            found: NDArray[np.generic] = whole[self.offset : end].view(self.dtype)
            return found.reshape(self.shape)
        except (OSError, ValueError) as error:
            message = f"{quoted(str(self.file))} was changed while it was read: {error}"
            raise LlamagenError.of("LG622", message) from error


_MAPPED: WeakValueDictionary[tuple[int, ...], NDArray[np.uint8]] = WeakValueDictionary()
"""Files whose tensors are in use: a map holds a file open, and a model has more tensors than a process may open."""


@dataclass(frozen=True, slots=True)
class CodedPlace:
    """A quantised parameter, [N, K] or experts: rows from ``first`` on of its codes, scales and zero points."""

    shape: tuple[int, ...]
    first: int
    record: EncodingRecord
    codes: Place
    scales: Place
    zero_points: Place | None
    minimums: Place | None = None
    low_codes: Place | None = None
    low_zero_points: Place | None = None

    @property
    def parts(self) -> tuple[Place, ...]:
        more = (self.zero_points, self.minimums, self.low_codes, self.low_zero_points)
        return (self.codes, self.scales, *(part for part in more if part is not None))

    def read(self) -> NDArray[np.float32]:
        """The numbers that the codes stand for, rounded to float32."""
        part = slice(self.first, self.first + self.shape[0])
        scales = self.scales.read()[part].astype(np.float32)
        if self.record.kind == "channels":
            return self.codes.read()[:, part].T.astype(np.float32) * scales[:, None]
        codes = self._numbers(self.codes, self.low_codes, (*scales.shape, -1))
        points = np.full(scales.shape, 2.0 ** (self.record.bits - 1), np.float32)
        if self.zero_points is not None:
            shape = (*scales.shape[:-1], -1)
            numbers = self._numbers(self.zero_points, self.low_zero_points, shape)
            points = numbers[..., : scales.shape[-1]]
        lows = None if self.minimums is None else self.minimums.read()[part].astype(np.float32)
        if lows is None:
            codes -= points[..., None]
        codes *= scales[..., None]
        if lows is not None:
            codes += lows[..., None]
        return self._as_parameter(codes)

    def _numbers(
        self, whole: Place, low: Place | None, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """The codes or zero points of the rows, one an element; halves put together."""
        part = slice(self.first, self.first + self.shape[0])
        bits = self.record.bits if low is None else 4
        numbers = numbers_of(whole.read()[part].reshape(shape), bits)
        if low is not None:
            numbers = 16 * numbers + numbers_of(low.read()[part].reshape(shape), bits)
        return numbers.astype(np.float32)

    def steps(self) -> NDArray[np.float32]:
        """How far apart the numbers are that neighbouring codes stand for, at each element."""
        part = slice(self.first, self.first + self.shape[0])
        scales = np.abs(self.scales.read()[part].astype(np.float32))
        if self.record.kind == "channels":
            return np.broadcast_to(scales[:, None], self.shape)
        assert self.record.block is not None
        shape = (*scales.shape, self.record.block)
        return self._as_parameter(np.broadcast_to(scales[..., None], shape))

    def at_ends(self) -> NDArray[np.bool_]:
        """Which elements have the least or the largest code of their block: what is beyond is clipped to it."""
        assert self.record.block is not None
        part = slice(self.first, self.first + self.shape[0])
        scales = self.scales.read()[part]
        codes = self._numbers(self.codes, self.low_codes, (*scales.shape, -1))
        return self._as_parameter((codes == 0) | (codes == 2**self.record.bits - 1))

    def _as_parameter(self, blocks: NDArray[N]) -> NDArray[N]:
        """Elements [..., rows, blocks, elements of a block] in the parameter's order, without what fills up rows."""
        *before, count, size = blocks.shape
        inputs = self.shape[-2 if self.record.transposed else -1]
        found = blocks.reshape(*before, count * size)[..., :inputs]
        if self.record.paired:
            experts, rows = found.shape[:2]
            found = found.reshape(experts, rows // 2, 2, inputs).swapaxes(1, 2)
            found = found.reshape(experts, rows, inputs)
        return found.swapaxes(-1, -2) if self.record.transposed else found


@dataclass(frozen=True, slots=True)
class AdaptedPlace:
    """A parameter with what an adapter of the folder adds to it."""

    base: Place | CodedPlace
    down: NDArray[np.float32]
    """[in, r]"""
    up: NDArray[np.float32]
    """[r, out]"""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self) -> NDArray[np.float64]:
        """W + (A B)^T, rounded nowhere."""
        product = self.down.astype(np.float64) @ self.up.astype(np.float64)
        return self.base.read().astype(np.float64) + product.T


_FACTOR = " factor "


def in_three_products(flat: FlatGraph, adapted: Mapping[str, AdaptedPlace]) -> FlatGraph:
    """``flat`` as a folder computes it: x W + (x A) B. What x A is rounded by goes into every result alike, so that
    attention may gather it: rounding the sum of the weights tells less."""
    nodes: list[FlatNode] = []
    types = dict(flat.types)
    for node in flat.nodes:
        path = node.parameters.get("weight", "")
        if path not in adapted:
            nodes.append(node)
            continue
        (result,), rank = node.results, adapted[path].down.shape[1]
        base, low, up = (f"{result} {what}" for what in ("base", "down", "up"))
        types |= {base: types[result], up: types[result]}
        types[low] = replace(types[result], shape=(*types[result].shape[:-1], Dim.of(rank)))
        plain = {**node.attrs, "bias": False}
        down, widen = {**plain, "out_features": rank}, {**plain, "in_features": rank}
        factors = ({"weight": f"{path}{_FACTOR}{name}"} for name in "AB")
        nodes += (
            replace(node, results=(base,)),
            replace(node, results=(low,), attrs=down, parameters=next(factors)),
            replace(node, operands=(low,), results=(up,), attrs=widen, parameters=next(factors)),
            FlatNode("add", node.path, (base, up), (result,), {}, {}, node.span),
        )
    return replace(flat, nodes=tuple(nodes), types=types)


def numbers_of(stored: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """One number an element: of each byte first the low half, then the high one, where there are 4 bits."""
    plain = np.asarray(stored, np.uint8)
    if bits == 8:
        return plain
    return np.stack([plain & 15, plain >> 4], axis=-1).reshape(*plain.shape[:-1], -1)


@dataclass(frozen=True)
class StoredWeights:
    """``read`` maps a tensor's pages, or decodes a quantised one; ``metadata`` are the model's properties."""

    places: Mapping[str, Place | CodedPlace]
    metadata: Mapping[str, str]
    held: Mapping[str, tuple[str, ...]]
    """By the name that it has in the graph, the parameters that a weight holds."""
    adapted: Mapping[str, AdaptedPlace] = field(default_factory=dict)
    """Those of ``places`` that an adapter changes."""

    @property
    def dtype(self) -> RunDType:
        match self.metadata.get("llamagen.dtype"):
            case "float32" | "float16" | "bfloat16" as dtype:
                return dtype
            case other:
                raise LlamagenError.of("LG773", f"the model's dtype is {other!r}, not one of ours")

    @property
    def coded(self) -> bool:
        """Whether some weight is stored in codes."""
        return any(isinstance(place, CodedPlace) for place in self.places.values())

    @property
    def rounds_activations(self) -> bool:
        """Whether the graph itself rounds what some weight is multiplied with, as w8a8 does."""
        coded = (place for place in self.places.values() if isinstance(place, CodedPlace))
        return any(place.record.kind == "channels" for place in coded)

    def read(self, path: str) -> NDArray[np.generic]:
        """The tensor of a role path, as stored; of a quantised one, what it stands for. Raises KeyError."""
        return (self.adapted if path in self.adapted else self.places)[path].read()

    def read_apart(self, path: str) -> NDArray[np.generic]:
        """As ``in_three_products`` names them: a weight itself, and the factors of what is added to it."""
        whole, _, factor = path.partition(_FACTOR)
        if factor:
            place = self.adapted[whole]
            return (place.down if factor == "A" else place.up).T
        return self.places[path].read()

    def with_adapter(self, given: Mapping[str, NDArray[np.float32]]) -> StoredWeights:
        """With what an adapter gives the inputs A [in, r] and B [r, out] beside weights. Raises LG773 for others."""
        adapted: dict[str, AdaptedPlace] = {}
        rest = dict(given)
        for name, paths in self.held.items():
            first, second = inputs_of(name)
            if first not in rest or second not in rest:
                continue
            down, up, end = rest.pop(first), rest.pop(second), 0
            places = [self.places[path] for path in paths]
            rows, width = sum(place.shape[0] for place in places), places[0].shape[1]
            if down.shape[:1] != (width,) or up.shape != (down.shape[-1], rows):
                message = (
                    f"an adapter's `{first}` {list(down.shape)} and {list(up.shape)} fit no weight"
                )
                raise LlamagenError.of("LG773", message, help=_AGAIN)
            for path, place in zip(paths, places, strict=True):
                start, end = end, end + place.shape[0]
                adapted[path] = AdaptedPlace(place, down, up[:, start:end])
        if rest:
            message = f"an adapter's `{min(rest)}` is beside no weight of the model"
            raise LlamagenError.of("LG773", message, help=_AGAIN)
        return replace(self, adapted=adapted)

    def require_dtype(self) -> None:
        """Raises LG773 where the graph says a dtype that none of its weights has: it chooses the tolerances."""
        found = {p.dtype.name for p in self.places.values() if isinstance(p, Place)}
        if found and self.dtype not in found:
            message = f"the model says that it is in {self.dtype}, its weights are {', '.join(sorted(found))}"
            raise LlamagenError.of("LG773", message, help=_AGAIN)

    def joined(self, other: StoredWeights) -> StoredWeights:
        """With the weights that only another graph of the folder has."""
        return replace(self, places={**other.places, **self.places})

    def require(self, wanted: Mapping[str, Parameter], file: str) -> None:
        """Raises LG773 unless there is each parameter in its shape, whole in its file."""
        for path, parameter in wanted.items():
            place = self.places.get(path)
            if place is None:
                raise LlamagenError.of("LG773", f"{file} has no weight `{path}`")
            if place.shape != parameter.shape:
                message = f"`{path}` is {list(place.shape)} in {file}"
                raise LlamagenError.of("LG773", f"{message}, the spec says {list(parameter.shape)}")
            for part in place.parts:
                end = part.offset + prod(part.shape) * part.dtype.itemsize
                if end > part.file.stat().st_size:
                    raise LlamagenError.of("LG773", f"{part.file.name} ends inside `{path}`")


def stored_weights(folder: Path, name: str = MAIN) -> StoredWeights:
    """What the text model, or another graph of ``folder``, points at. Raises LG713, LG770, LG773, LG775."""
    file = graph_path(folder, name)
    if not files.exists(file):
        help = "`llamagen export ID --checkpoint DIR --out DIR` writes such a folder"
        raise LlamagenError.of("LG770", f"{str(file.parent)!r} has no {file.name}", help=help)
    model = graph_of(file)
    plain = external_places(file.parent, model)
    places: dict[str, Place | CodedPlace] = {}
    held: dict[str, tuple[str, ...]] = {}
    for tensor in model.graph.initializer:
        if tensor.name not in plain:
            continue
        about = {p.key: p.value for p in tensor.metadata_props}
        if ENCODING in about:
            found: Mapping[str, Place | CodedPlace] = _coded(tensor.name, about, plain)
        else:
            found = _places(tensor.name, plain[tensor.name], about.get(SOURCES))
        places |= found
        held[tensor.name.removesuffix("_codes")] = tuple(found)
    return StoredWeights(places, {p.key: p.value for p in model.metadata_props}, held)


def graph_of(file: Path) -> onnx.ModelProto:
    """A graph of an exported folder, without the data of its weights. Raises LG713, LG770."""
    import onnx

    data = files.read_bytes(file, files.GRAPH, within=file.parent)
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors share no public base class
        raise LlamagenError.of("LG770", f"{file} is not an ONNX model: {error}") from error


def external_places(folder: Path, model: onnx.ModelProto) -> dict[str, Place]:
    """Name -> place of every initializer whose data is in a file. Raises LG773."""
    import onnx

    return {
        tensor.name: _place(folder, tensor)
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def _coded(
    name: str, about: Mapping[str, str], plain: Mapping[str, Place]
) -> dict[str, CodedPlace]:
    """Role path -> its rows of the quantised tensor whose codes are ``name``. Raises LG773."""
    try:
        record = EncodingRecord.model_validate_json(about[ENCODING], strict=True)
        parts = _PARTS.validate_json(about.get(SOURCES, ""), strict=True)
        scales = plain[record.scales]
        points = None if record.zero_points is None else plain[record.zero_points]
        named = (record.minimums, record.low_codes, record.low_zero_points)
        more = [None if name is None else plain[name] for name in named]
    except (ValueError, KeyError) as error:
        message = f"`{name}` does not say what its codes stand for"
        raise LlamagenError.of("LG773", message) from error
    places: dict[str, CodedPlace] = {}
    first = 0
    for path, shape in parts:
        places[path] = CodedPlace(shape, first, record, plain[name], scales, points, *more)
        first += shape[0]
    if scales.shape[0] != first:
        message = f"`{name}` has scales for {scales.shape[0]} rows, but joins {first}"
        raise LlamagenError.of("LG773", message)
    return places


def _places(name: str, whole: Place, joined: str | None) -> dict[str, Place]:
    """Role path -> its part of a tensor; parts lie one after the other. Raises LG773."""
    if joined is None:
        return {name: whole}
    try:
        parts = _PARTS.validate_json(joined, strict=True)
    except ValueError as error:
        message = f"`{name}` does not say which parameters it joins: {joined[:80]!r}"
        raise LlamagenError.of("LG773", message) from error
    rows, *rest = whole.shape
    if any(list(shape[1:]) != rest or not shape for _, shape in parts) or rows != sum(
        shape[0] for _, shape in parts
    ):
        shapes = ", ".join(f"`{path}` {list(shape)}" for path, shape in parts)
        message = f"`{name}` is {list(whole.shape)}, but joins {shapes or 'nothing'}"
        raise LlamagenError.of("LG773", message)
    places: dict[str, Place] = {}
    start = whole.offset
    for path, shape in parts:
        places[path] = Place(whole.file, start, shape, whole.dtype)
        start += prod(shape) * whole.dtype.itemsize
    return places


def _place(folder: Path, tensor: onnx.TensorProto) -> Place:
    from onnx import helper

    fields = {entry.key: entry.value for entry in tensor.external_data}
    name = fields.get("location", "")
    file = folder / name
    if name != Path(name).name or not files.exists(file):
        raise LlamagenError.of(
            "LG773", f"the data of `{tensor.name}` is not in this folder: {name!r}"
        )
    try:
        dtype: np.dtype[np.generic] = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        offset = int(fields.get("offset", "0"))
    except (KeyError, ValueError) as error:
        message = f"`{tensor.name}` has no type or place in {name!r} that ONNX knows"
        raise LlamagenError.of("LG773", message, help=_AGAIN) from error
    if offset < 0 or any(size < 0 for size in tensor.dims):
        message = f"`{tensor.name}` cannot lie where the model says, at {offset:,} of {name!r}"
        raise LlamagenError.of("LG773", message, help=_AGAIN)
    return Place(files.checked(file, files.DATA, within=folder), offset, tuple(tensor.dims), dtype)
