"""From a verified graph to an ONNX model without weight data: no tracing, one lowering an op."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

import onnx_ir as ir

from llamagen.emit.onnx.builder import ELEMENTS, Builder, onnx_shape
from llamagen.emit.onnx.lower_attention import append_to_cache
from llamagen.emit.onnx.lowering import LOWERINGS
from llamagen.emit.onnx.profile import PORTABLE, OnnxDType, Profile
from llamagen.emit.onnx.site import Site
from llamagen.ir.dims import Dim, P
from llamagen.ir.flatten import CacheSlot, FlatGraph, FlatNode, flatten
from llamagen.ir.graph import Graph, TensorType, parameters

INPUT_NAMES: Mapping[str, str] = {"positions": "position_ids"}
"""Graph inputs whose name differs outside."""

INPUT_ORDER = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter of the checkpoint: its role path and shape."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight of the model: its name, its shape and its element type in the file.

    ``sources`` are the parameters it holds, by role path, joined along the first axis: one, under its own name, or
    the projections that a profile computes as one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: OnnxDType
    sources: tuple[Source, ...]

    @staticmethod
    def of(path: str, shape: tuple[int, ...], dtype: OnnxDType) -> Initializer:
        """The parameter ``path`` as it is."""
        return Initializer(path, shape, dtype, (Source(path, shape),))

    @staticmethod
    def joined(name: str, sources: Sequence[Source], dtype: OnnxDType) -> Initializer:
        """``sources``, alike but for their first sizes, as one tensor."""
        rows = sum(source.shape[0] for source in sources)
        return Initializer(name, (rows, *sources[0].shape[1:]), dtype, tuple(sources))


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """``model`` lacks the data of ``initializers``; write.py or data.py attach it."""

    model: ir.Model
    initializers: tuple[Initializer, ...]
    profile: Profile
    dtype: OnnxDType

    @property
    def opsets(self) -> Mapping[str, int]:
        """Versions of the operator sets in use, by domain; the standard one is ``""``."""
        return self.model.graph.opset_imports

    @property
    def values(self) -> Mapping[str, ir.Value]:
        """The initializers' values by name."""
        found = self.model.graph.initializers
        return {i.name: found[i.name] for i in self.initializers}


AS_EXPORTED: Mapping[str, OnnxDType] = MappingProxyType({})


def emit_onnx(
    graph: Graph,
    profile: Profile = PORTABLE,
    dtype: OnnxDType = "float32",
    stored: Mapping[str, OnnxDType] = AS_EXPORTED,
) -> OnnxModel:
    """The ONNX model of ``graph``. Deterministic; needs no weights and takes well under a second.

    ``stored`` gives the dtype of parameters (by role path) whose bytes stay as a checkpoint has them: they are cast
    in the graph.
    """
    return _Emitter(graph, profile, dtype, stored).run()


def llamagen_version() -> str:
    """Version of the installed package; ``0`` in a checkout that is not installed."""
    try:
        return version("llamagen")
    except PackageNotFoundError:
        return "0"


class _Emitter:
    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        dtype: OnnxDType,
        stored: Mapping[str, OnnxDType],
    ) -> None:
        self.graph = graph
        self.stored = stored
        self.flat: FlatGraph = flatten(graph)
        self.b = Builder(profile, dtype)
        self.values: dict[str, ir.Value] = {}
        self.parameters: dict[str, ir.Value] = {}
        self.named: set[int] = set()
        self.presents: list[ir.Value] = []
        self.slots: list[CacheSlot] = list(self.flat.slots)
        self.bounded = any(slot.keep is not None for slot in self.slots)

    def run(self) -> OnnxModel:
        b, dtype = self.b, self.b.dtype
        inputs = self.inputs()
        table = tuple(
            Initializer.of(path, p.shape, self.stored.get(path, dtype))
            for path, p in parameters(self.graph).items()
        )
        weights = [b.value(t.name, ELEMENTS[t.dtype], ir.Shape(t.shape)) for t in table]
        for entry, weight in zip(table, weights, strict=True):
            self.parameters[entry.name] = b.loaded(weight)
        self.named |= {id(v) for v in (*inputs, *weights, *self.parameters.values())}
        for node in self.flat.nodes:
            self.lower(node)
        outputs = self.outputs()
        nodes = _used(b.nodes, outputs)
        constants = [c for c in b.constants if c.uses()]
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=(*weights, *constants),
            opset_imports={"": b.profile.opset},
            name=self.graph.spec_id,
        )
        model = ir.Model(
            graph,
            ir_version=b.profile.ir_version,
            producer_name="llamagen",
            producer_version=llamagen_version(),
            doc_string=f"{self.graph.spec_id}, {b.profile.name} profile, {dtype}",
            metadata_props={
                "llamagen.spec_id": self.graph.spec_id,
                "llamagen.spec_digest": self.graph.digest,
                "llamagen.version": llamagen_version(),
                "llamagen.profile": b.profile.name,
                "llamagen.dtype": dtype,
                "llamagen.cache": "bounded" if self.bounded else "full",
                "llamagen.io_dtype": b.profile.io_dtypes[dtype],
            },
        )
        return OnnxModel(model, table, b.profile, dtype)

    def inputs(self) -> list[ir.Value]:
        made: dict[str, ir.Value] = {}
        dims: list[tuple[ir.Value, Sequence[Dim]]] = []
        for value in self.graph.inputs:
            name = INPUT_NAMES.get(value.id, value.id)
            made[name] = self.input(name, value.type)
            self.values[value.id] = self.b.inside(made[name], value.type.dtype)
            dims.append((made[name], value.type.shape))
        order = [n for n in INPUT_ORDER if n in made]
        order += [n for n in made if n not in INPUT_ORDER]
        found = [made[n] for n in order]
        for slot in self.slots:
            for name, new in ((slot.past_key, slot.key), (slot.past_value, slot.value)):
                shape = (*new.shape[:2], slot.past, new.shape[3])
                self.values[name] = self.input(name, TensorType(new.dtype, shape))
                self.values[name].doc_string = _past_words(slot)
                found.append(self.values[name])
                dims.append((self.values[name], shape))
        self.sizes(dims)
        return found

    def input(self, name: str, of: TensorType) -> ir.Value:
        element = self.b.element(of.dtype)
        outside = self.b.io if element is self.b.model else element
        return self.b.value(name, outside, onnx_shape(of.shape))

    def sizes(self, dims: Sequence[tuple[ir.Value, Sequence[Dim]]]) -> None:
        """B, S, T, I, bounded pasts (and P where no input has T) read off the inputs' shapes."""
        b, known = self.b, dict[str, ir.Value]()
        read = {"B", "S", "P", "P + S", "I"} | {str(slot.past) for slot in self.slots}
        b.scope = "/shapes"
        for value, shape in dims:
            for axis, dim in enumerate(shape):
                text = str(dim)
                if text not in known and text in read:
                    known[text] = b.op(
                        "Shape", value, dtype=ir.DataType.INT64, start=axis, end=axis + 1
                    )
        b.give_sizes(known)

    def lower(self, node: FlatNode) -> None:
        b = self.b
        # The prelude has no path; what it computes is named for its first result.
        b.scope = _scope(node.path or node.results[0])
        operands = tuple(self.values[o] for o in node.operands)
        if node.op == "cache":
            results = self.cache(node, operands)
        else:
            types = self.flat.types
            site = Site(
                node.attrs,
                tuple(types[o] for o in node.operands),
                tuple(types[r] for r in node.results),
                {local: self.parameters[path] for local, path in node.parameters.items()},
            )
            results = LOWERINGS[node.op](b, site, operands)
        for name, value in zip(node.results, results, strict=True):
            self.values[name] = value
            self.describe(node, name, value)

    def describe(self, node: FlatNode, name: str, value: ir.Value) -> None:
        """Give a result its shape and a name, once: the one from the equations, else the part's or the op's."""
        if id(value) in self.named:
            return
        self.named.add(id(value))
        path, _, local = name.rpartition("/")
        place = f"{_scope(path)}/{local}"
        if not local.isidentifier():
            place = _scope(node.path) if node.parameters else f"{_scope(node.path)}/{node.op}"
        value.name = self.b.name(place)
        value.shape = onnx_shape(self.flat.types[name].shape)

    def cache(self, node: FlatNode, operands: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
        slot = self.slots[len(self.presents) // 2]
        results: list[ir.Value] = []
        for new, of, past, present in (
            (operands[0], slot.key, slot.past_key, slot.present_key),
            (operands[1], slot.value, slot.past_value, slot.present_value),
        ):
            outside, inside = append_to_cache(self.b, new, self.values[past], slot.keep)
            outside.name = self.b.name(present)
            if slot.keep is None:
                outside.shape = onnx_shape((*of.shape[:2], of.shape[2] + P, of.shape[3]))
            else:
                batch, heads = onnx_shape(of.shape[:2])
                kept = f"present_sequence_{slot.keep}"
                outside.shape = ir.Shape([batch, heads, kept, of.shape[3].value])
            self.named.add(id(outside))
            self.presents.append(outside)
            results.append(inside)
        return tuple(results)

    def outputs(self) -> list[ir.Value]:
        b = self.b
        b.scope = ""
        taken = {id(v) for v in self.presents}
        results: list[ir.Value] = []
        for name, inner in zip(self.graph.output_names, self.flat.outputs, strict=True):
            value, of = self.values[inner], self.flat.types[inner]
            if value.dtype is b.model:
                value = b.to(value, b.io)
            if value.producer() is None or id(value) in taken:
                value = b.op("Identity", value)
            taken.add(id(value))
            value.name = b.name(name)
            value.shape = onnx_shape(of.shape)
            results.append(value)
        return [*results, *self.presents]


def _past_words(slot: CacheSlot) -> str | None:
    """What a runtime must hand over; a slot that keeps everything needs no words."""
    if slot.keep is None:
        return None
    present = slot.present_key.rpartition(".")[0]
    return (
        f"what the call before returned as {present}: at most the last {slot.keep} tokens, all that a later one can "
        "read here. attention_mask covers every token nevertheless."
    )


def _scope(path: str) -> str:
    """``model.layers.3.self_attn`` -> ``/model/layers.3/self_attn``."""
    return "/" + re.sub(r"\.(?!\d+(?:\.|$))", "/", path) if path else ""


def _used(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that an output depends on, in order; the others release their operands."""
    wanted = {id(v) for v in outputs}
    kept: list[ir.Node] = []
    for node in reversed(nodes):
        if any(id(v) in wanted or v.uses() for v in node.outputs):
            kept.append(node)
            continue
        for i in range(len(node.inputs)):
            node.replace_input_with(i, None)
    return kept[::-1]
