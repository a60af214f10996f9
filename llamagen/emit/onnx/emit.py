"""From a verified graph to an ONNX model without weight data: no tracing, one lowering an op."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from llamagen.analysis.rewrites import Export, rewrite
from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.choices import Choices, choices_of
from llamagen.emit.onnx.initializer import Initializer, Source
from llamagen.emit.onnx.model import OnnxModel
from llamagen.emit.onnx.names import onnx_shape
from llamagen.emit.onnx.profile import CONTRIB_DOMAIN, PORTABLE, OnnxDType, Profile
from llamagen.emit.onnx.quantization import expert_codes
from llamagen.emit.onnx.site import Site
from llamagen.emit.onnx.versions import runtime_named
from llamagen.emit.onnx.weights import place_weights
from llamagen.emit.version import llamagen_version
from llamagen.ir.flatten import CacheSlot, FlatGraph, FlatNode, flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.ops.attention import CHUNKS, append_to_cache
from llamagen.ops.dims import Dim, P
from llamagen.ops.op import Role, State, TensorType

INPUT_NAMES: Mapping[str, str] = {"positions": "position_ids"}
"""Graph inputs whose name differs outside."""

LAYER_MARK = "llamagen.layer"
"""Metadata of a value that a layer of a stack hands on: the layer's role path, or several of layers that pass it."""

PACKED_LAYER_MARK = "llamagen.packed_layer"
"""The same where the real tokens of every row come first, whatever their places in the call."""

INPUT_ORDER = ("input_ids", "attention_mask", "position_ids")

AS_EXPORTED: Mapping[str, OnnxDType] = MappingProxyType({})


def emit_onnx(
    graph: Graph,
    profile: Profile = PORTABLE,
    dtype: OnnxDType = "float32",
    stored: Mapping[str, OnnxDType] = AS_EXPORTED,
    choices: Choices | None = None,
) -> OnnxModel:
    """The ONNX model of ``graph``. Deterministic; needs no weights and takes well under a second.

    ``stored`` gives the dtype of parameters (by role path) whose bytes stay as a checkpoint has them: they are cast
    in the graph. ``choices`` are the profile's own where there are none. Raises LG717 for a runtime that is not known.
    """
    return _Emitter(graph, profile, dtype, stored, choices or choices_of(graph, profile)).run()


class _Emitter:
    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        dtype: OnnxDType,
        stored: Mapping[str, OnnxDType],
        choices: Choices,
    ) -> None:
        self.graph = graph
        self.stored = stored
        self.choices = choices
        codes = expert_codes(choices.quantization)
        export = Export(profile.name, dtype, choices.weights, choices.logits, codes)
        self.rewritten = rewrite(flatten(graph), export, graph.output_names)
        self.flat: FlatGraph = self.rewritten.flat
        self.runtime = runtime_named(choices.runtime, profile.provider)
        self.b = Builder(profile, dtype, None, choices.max_context, self.runtime)
        self.values: dict[str, ir.Value] = {}
        self.parameters: dict[str, ir.Value] = {}
        self.named: set[int] = set()
        self.presents: dict[str, ir.Value] = {}
        self.slots: list[CacheSlot] = list(self.flat.slots)
        self.written: list[ir.Value] = []
        self.own_slots = tuple(n for n in self.flat.nodes if n.row.state is State.OWN_SLOT)
        self.fused = {r for n in self.own_slots for r in n.results}
        """Results of attention that keeps its own cache, which the caller may hold in a longer buffer."""
        self.bounded = any(slot.keep is not None for slot in self.slots)

    def run(self) -> OnnxModel:
        b, dtype = self.b, self.b.dtype
        inputs = self.inputs()
        taken = {value.name for value in inputs}
        context = self.context()
        placed = place_weights(b, self.flat, self.table(), self.choices.quantization)
        table, weights = placed.table, placed.values
        self.parameters = dict(placed.parameters)
        self.named |= {id(v) for v in (*inputs, *weights, *self.parameters.values())}
        for node in self.flat.nodes:
            self.lower(node)
        self.mark_layers()
        outputs = self.outputs()
        nodes = _used(b.nodes, outputs)
        constants = [c for c in b.constants if c.uses()]
        opsets = {"": b.profile.opset}
        if any(node.domain for node in nodes):
            opsets[CONTRIB_DOMAIN] = 1
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=(*weights, *constants),
            opset_imports=opsets,
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
                "llamagen.logits": self.choices.logits,
                **({} if context is None else {"llamagen.max_context": str(context)}),
                **({"llamagen.in_place": "true"} if self.in_place() else {}),
                **({"llamagen.chunks": "one row"} if self.one_row() else {}),
                **({"llamagen.window": "tokens"} if self.windows() else {}),
                "llamagen.positions": "given" if "position_ids" in taken else "counted",
            },
        )
        return OnnxModel(model, table, b.profile, dtype, self.choices.logits, context, self.runtime)

    def in_place(self) -> bool:
        """Whether every cache may be one buffer for past and present."""
        return bool(self.slots) and all(slot.present_key in self.fused for slot in self.slots)

    def one_row(self) -> bool:
        """Whether a call of several tokens with a past may have one row only."""
        return bool(self.own_slots) and not self.b.has_input(*CHUNKS)

    def windows(self) -> bool:
        """Whether fused attention has a window: it counts tokens, not padding between them."""
        return any(n.attrs["window"] is not None for n in self.own_slots)

    def context(self) -> int | None:
        """Tokens that tables of positions cover, if there are such tables."""
        rotated = any(n.attrs["rotary"] for n in self.own_slots)
        return self.choices.max_context if rotated else None

    def table(self) -> tuple[Initializer, ...]:
        """Each parameter once, in the order of the graph; joined ones where the first of them was."""
        dtype, shapes = self.b.dtype, {n: p.shape for n, p in parameters(self.graph).items()}
        joined = {paths[0]: name for name, paths in self.rewritten.joined.items()}
        inside = {path for paths in self.rewritten.joined.values() for path in paths}
        found: list[Initializer] = []
        for path, shape in shapes.items():
            if path in joined:
                name = joined[path]
                sources = [Source(p, shapes[p]) for p in self.rewritten.joined[name]]
                found.append(Initializer.joined(name, sources, dtype))
            elif path not in inside:
                found.append(Initializer.of(path, shape, self.stored.get(path, dtype)))
        return tuple(found)

    def inputs(self) -> list[ir.Value]:
        made: dict[str, ir.Value] = {}
        dims: list[tuple[ir.Value, Sequence[Dim]]] = []
        read = {o for n in self.flat.nodes for o in n.operands}
        for value in self.graph.inputs:
            if self.b.profile is not PORTABLE and value.id not in read:
                continue  # positions that the fused attention counts itself
            name = INPUT_NAMES.get(value.id, value.id)
            made[name] = self.input(name, value.type)
            self.values[value.id] = self.b.inside(made[name], value.type.dtype)
            dims.append((made[name], value.type.shape))
        order = [n for n in INPUT_ORDER if n in made]
        order += [n for n in made if n not in INPUT_ORDER]
        found = [made[n] for n in order]
        for name, id in self.flat.handed_in.items():
            of = self.flat.types[id]
            found.append(self.input(name, of))
            self.values[id] = self.b.inside(found[-1], of.dtype)
        for slot in self.slots:
            for name, new in ((slot.past_key, slot.key), (slot.past_value, slot.value)):
                shape = (*new.shape[:2], slot.past, new.shape[3])
                self.values[name] = self.input(name, TensorType(new.dtype, shape))
                if slot.present_key in self.fused:
                    self.values[name].shape = _buffer(shape, "past_buffer")
                    found.append(self.values[name])
                    continue
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
        state = node.row.state
        if state is State.READ:
            return  # its results are inputs
        # The prelude has no path; what it computes is named for its first result.
        b.scope = _scope(node.path or node.results[0])
        operands = tuple(self.values[o] for o in node.operands if o)
        if state is State.SLOT:
            results = self.cache(node, operands)
        elif state is State.WRITTEN:
            self.written += operands
            results = operands
        else:
            types = self.flat.types
            site = Site(
                node.attrs,
                tuple(types[o] for o in node.operands if o),
                tuple(types[r] for r in node.results),
                {local: self.parameters[path] for local, path in node.parameters.items()},
                tuple(self.values[o] if o else None for o in node.operands),
            )
            assert node.row.onnx is not None, node.op
            results = node.row.onnx(b, site, operands)
        for name, value in zip(node.results, results, strict=True):
            self.values[name] = value
            if state is State.OWN_SLOT and name != node.results[0]:
                self.present(name, value, _buffer(types[name].shape, "present_buffer"))
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
        slot = self.rewritten.slots[node.results[0]]
        results: list[ir.Value] = []
        for new, of, past, present in (
            (operands[0], slot.key, slot.past_key, slot.present_key),
            (operands[1], slot.value, slot.past_value, slot.present_value),
        ):
            outside, inside = append_to_cache(self.b, new, self.values[past], slot.keep)
            kept = onnx_shape((*of.shape[:2], of.shape[2] + P, of.shape[3]))
            if slot.keep is not None:
                kept = _buffer(of.shape, f"present_sequence_{slot.keep}")
            self.present(present, outside, kept)
            results.append(inside)
        return tuple(results)

    def mark_layers(self) -> None:
        """Say in the model which values are the residual stream, so that ``verify`` can look at them."""
        packed = any(n.row.role is Role.PACKING and not n.path for n in self.flat.nodes)
        mark = PACKED_LAYER_MARK if packed else LAYER_MARK
        for layer in self.flat.layers:
            if layer.value in self.values:  # a rewrite may have no such value
                marks = self.values[layer.value].metadata_props
                marks[mark] = f"{marks[mark]} {layer.path}" if mark in marks else layer.path

    def present(self, name: str, value: ir.Value, shape: ir.Shape) -> None:
        value.name = self.b.name(name)
        value.shape = shape
        self.named.add(id(value))
        self.presents[name] = value

    def outputs(self) -> list[ir.Value]:
        b = self.b
        b.scope = ""
        names = [n for s in self.slots for n in (s.present_key, s.present_value)]
        presents = [self.presents[name] for name in names]
        taken = {id(v) for v in presents}
        results: list[ir.Value] = []
        made = [
            (name, self.values[inner], self.flat.types[inner])
            for name, inner in zip(self.graph.output_names, self.flat.outputs, strict=True)
        ]
        for (name, inner), value in zip(self.flat.handed_out.items(), self.written, strict=True):
            made.append((name, value, self.flat.types[inner]))
        for name, value, of in made:
            if value.dtype is b.model:
                value = b.to(value, b.io)
            if value.producer() is None or id(value) in taken:
                value = b.op("Identity", value)
            taken.add(id(value))
            value.name = b.name(name)
            value.shape = onnx_shape(of.shape)
            results.append(value)
        return [*results, *presents]


def _buffer(shape: Sequence[Dim], name: str) -> ir.Shape:
    """A cache [B, K, tokens, H] of a length that the caller chooses: at least the tokens in it."""
    fixed = onnx_shape(shape)
    return ir.Shape([*fixed[:2], name, fixed[3]])


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
