"""From a verified graph to an ONNX model without weight data: no tracing, one lowering an op."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from llamagen.analysis.rewrites import Export, Logits, rewrite
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import QuantizationRecord
from llamagen.emit.onnx.adapters import inputs_beside
from llamagen.emit.onnx.builder import ELEMENTS, Builder, Quantized, Site, onnx_shape
from llamagen.emit.onnx.initializers import (
    Initializer,
    Source,
    encoded,
    encodings,
    expert_codes,
    quantization_of,
)
from llamagen.emit.onnx.profile import (
    CONTRIB_DOMAIN,
    CPU,
    PORTABLE,
    OnnxDType,
    Profile,
    Version,
    dtype_named,
    profile_named,
    runtime_named,
)
from llamagen.emit.options import DEFAULTS, ExportOptions, one_of
from llamagen.emit.written import llamagen_version
from llamagen.ir.flatten import FlatGraph, FlatNode, Slot, flatten, known_ids
from llamagen.ir.graph import Graph
from llamagen.ops.attention import CHUNKS, CODES
from llamagen.ops.dims import Dim
from llamagen.ops.op import Role, State, TensorType

INPUT_NAMES: Mapping[str, str] = {"positions": "position_ids"}
"""Graph inputs whose name differs outside."""

LAYER_MARK = "llamagen.layer"
"""Metadata of a value that a layer of a stack hands on: the layer's role path, or several of layers that pass it."""

PACKED_LAYER_MARK = "llamagen.packed_layer"
"""The same where the real tokens of every row come first, whatever their places in the call."""

INPUT_ORDER = ("input_ids", "attention_mask", "position_ids")

AS_EXPORTED: Mapping[str, OnnxDType] = MappingProxyType({})
UNPACKED: Mapping[str, str] = MappingProxyType({})
NO_RANGES: Mapping[str, NDArray[np.float32]] = MappingProxyType({})

CacheDType: TypeAlias = Literal["int8"]
"""Of codes; without any a cache has the dtype of logits."""

LARGEST_CODE = 127
"""Of 8 bits; the kernel writes -128 too, for what is beyond the range."""

DEFAULT_MAX_CONTEXT = 131_072
"""The tables of a head of 128 features then take 64 MiB in float32; those of Scout's 10M tokens would take 5 GiB."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An emitted model: the graph, and the table of the weights that it wants, whose data data.py attaches."""

    model: ir.Model
    initializers: tuple[Initializer, ...]
    profile: Profile
    dtype: OnnxDType
    logits: Logits
    max_context: int | None
    """Tokens that tables of positions cover; None without such tables."""
    quantization: QuantizationRecord
    runtime: Version
    """Of ONNX Runtime: it and later ones have every operator of the model."""
    adapted: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    """Weights beside which adapters are inputs, and the parameters that each holds."""

    @property
    def opsets(self) -> Mapping[str, int]:
        """Versions of the operator sets in use, by domain; the standard one is ``""``."""
        return self.model.graph.opset_imports

    @property
    def fused_attention(self) -> bool:
        """Some attention is GroupQueryAttention."""
        return any(node.op_type == "GroupQueryAttention" for node in self.model.graph)

    @property
    def batched_chunks(self) -> bool:
        """Whether a call with a past may have several rows of several tokens."""
        return self.model.metadata_props.get("llamagen.chunks") != "one row"

    @property
    def in_place(self) -> bool:
        """Whether past and present caches may be one buffer, which the model appends to."""
        return self.model.metadata_props.get("llamagen.in_place") == "true"

    @property
    def cache_dtype(self) -> OnnxDType | CacheDType:
        """Of keys and values outside the graph."""
        coded = "llamagen.cache_dtype" in self.model.metadata_props
        return "int8" if coded else self.profile.io_dtypes[self.dtype]

    @property
    def session_settings(self) -> Mapping[str, str]:
        """Configuration entries of ONNX Runtime's session that suit the model.

        On a CPU float32 products read weights as they are stored at nearly the speed of weights that were packed at
        load (bench/README.md: prefill 0.94, decode 0.98): without packing such a model opens at once, and its weights
        stay pages of the file that processes share. Kernels of quantised weights need their packing.
        """
        as_stored = all(i.dtype == "float32" and i.part is None for i in self.initializers)
        on_cpu = self.profile.provider == CPU
        return {"session.disable_prepacking": "1"} if on_cpu and as_stored else {}

    @property
    def values(self) -> Mapping[str, ir.Value]:
        """The initializers' values by name."""
        values = self.model.graph.initializers
        return {i.name: values[i.name] for i in self.initializers}


def emit_onnx(
    graph: Graph,
    options: ExportOptions = DEFAULTS,
    stored: Mapping[str, OnnxDType] = AS_EXPORTED,
    packed: Mapping[str, str] = UNPACKED,
    ranges: Mapping[str, NDArray[np.float32]] = NO_RANGES,
    adapted: Collection[str] = (),
) -> OnnxModel:
    """The ONNX model of ``graph``. Deterministic; needs no weights and takes well under a second.

    ``stored`` gives the dtype of parameters (by role path) whose bytes stay as a checkpoint has them: they are cast
    in the graph. ``packed`` gives the types of GGUF in which parameters stay. ``ranges`` [K, H], by the names of pasts,
    are the largest keys and values that a cache in codes must hold. Adapters of the parameters ``adapted`` are inputs.
    Raises LG701 to LG709, LG717 and LG726 for options that are not possible, LG657 for adapters that are not.
    """
    return _Emitter(graph, options, stored, packed, ranges, adapted).run()


def require_codes(graph: Graph, options: ExportOptions) -> None:
    """Raises LG726 where keys and values of ``graph`` cannot be kept as the options say; needs no ranges."""
    _Emitter(graph, options, AS_EXPORTED, UNPACKED, NO_RANGES).require_codes()


def _max_context(graph: Graph, wanted: int | None) -> int:
    """Tokens that tables of positions cover: ``wanted``, or those of the model within bounds. Raises LG706."""
    known = graph.constants.get("max_positions")
    context = known if isinstance(known, int) and not isinstance(known, bool) else None
    if wanted is not None and not 1 <= wanted <= (context or wanted):
        most = f"; the model has {context:,} positions" if context else ""
        message = f"a context of {wanted:,} tokens is not possible{most}"
        raise LlamagenError.of("LG706", message, help="give a number of tokens from 1 on")
    return wanted or min(context or DEFAULT_MAX_CONTEXT, DEFAULT_MAX_CONTEXT)


class _Emitter:
    def __init__(
        self,
        graph: Graph,
        options: ExportOptions,
        stored: Mapping[str, OnnxDType],
        packed: Mapping[str, str],
        ranges: Mapping[str, NDArray[np.float32]],
        adapted: Collection[str] = (),
    ) -> None:
        profile = profile_named(options.profile)
        self.cache_dtype: CacheDType | None = None
        if (kept := options.cache_dtype) is not None:
            message = f"keys and values cannot be kept in {kept!r}; known: int8"
            self.cache_dtype = one_of(kept, get_args(CacheDType), "LG726", message)
        self.ranges = ranges
        self.max_context = _max_context(graph, options.max_context)
        self.logits: Logits = profile.logits
        if (name := options.logits) is not None:
            message = (
                f"a model gives the logits of the `last` token of a call or of `all`, not {name!r}"
            )
            self.logits = one_of(name, get_args(Logits), "LG704", message)
        weights: Literal["copied", "referenced"] = (
            "copied" if options.mode == "copy" else "referenced"
        )
        # What was packed by others is computed as exactly as it is kept. WebAssembly knows no other products, and a
        # browser's GPU is then as exact: its kernels of level 4 were off by up to 0.9 of the logits' spread
        in_float32 = bool(packed) or options.for_browsers
        self.quantization = quantization_of(options.quantize, profile, in_float32)
        dtype = dtype_named(options.dtype)
        self.graph = graph
        # half the bytes of float32, and codes are chosen for scales as they are; a runtime casts them at load
        half: OnnxDType = (
            "float16" if options.for_browsers else "bfloat16"
        )  # no browser's operator reads bfloat16
        self.scales: OnnxDType = half if dtype == "float32" else dtype
        self.stored = stored
        self.packed = packed
        codes = expert_codes(self.quantization)
        export = Export(profile.name, dtype, weights, self.logits, codes)
        self.rewritten = rewrite(flatten(graph), export, graph.output_names)
        self.flat: FlatGraph = self.rewritten.flat
        self.runtime = runtime_named(options.runtime, profile.provider)
        self.b = Builder(profile, dtype, None, self.max_context, self.runtime)
        self.values: dict[str, ir.Value] = {}
        self.parameters: dict[str, ir.Value] = {}
        self.adapted = frozenset(adapted)
        self.adapters: dict[str, tuple[ir.Value, ...]] = {}
        """By the name of a weight."""
        self.named: set[int] = set()
        self.presents: dict[str, ir.Value] = {}
        self.slots: list[Slot] = list(self.flat.slots)
        self.written: list[ir.Value] = []
        self.own_slots = tuple(n for n in self.flat.nodes if n.row.state is State.OWN_SLOT)
        self.fused = {r for n in self.own_slots for r in n.results}
        """Results of attention that keeps its own cache, which the caller may hold in a longer buffer."""
        self.bounded = any(slot.keep is not None for slot in self.slots)

    def require_codes(self) -> None:
        if self.cache_dtype is None or not self.slots:
            return
        apart = [slot.path for slot in self.slots if slot.present not in self.fused]
        help = f"leave out --cache-dtype {self.cache_dtype}"
        if self.b.profile.name != "ort-cpu":
            why = f"operators of {self.b.profile.name} have no such cache"
            help = "--profile ort-cpu"
        elif not self.b.has_input(*CODES):
            why = f"onnxruntime {self.runtime} has no kernel for it"
            help = "--runtime 1.32"
        elif apart:
            why = f"the attention of `{apart[0]}` is not {CODES[0]}"
        else:
            return
        message = f"keys and values cannot be kept in {self.cache_dtype}: {why}"
        raise LlamagenError.of("LG726", message, help=help)

    def run(self) -> OnnxModel:
        self.require_codes()
        b, dtype = self.b, self.b.dtype
        inputs = self.inputs()
        taken = {value.name for value in inputs}
        context = self.context()
        table, weights = self.place_weights()
        beside = self.place_adapters(table)
        adapters = tuple(value for values in self.adapters.values() for value in values)
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
            [*inputs, *adapters],
            outputs,
            nodes=nodes,
            initializers=(*weights, *constants, *adapters),
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
                "llamagen.logits": self.logits,
                **({"llamagen.cache_dtype": str(self.cache_dtype)} if b.cache_scales else {}),
                **self.vocabulary(),
                **({} if context is None else {"llamagen.max_context": str(context)}),
                **({"llamagen.in_place": "true"} if self.in_place() else {}),
                **({"llamagen.chunks": "one row"} if self.one_row() else {}),
                **({"llamagen.window": "tokens"} if self.windows() else {}),
                "llamagen.positions": "given" if "position_ids" in taken else "counted",
            },
        )
        return OnnxModel(
            model,
            table,
            b.profile,
            dtype,
            self.logits,
            context,
            self.quantization,
            self.runtime,
            beside,
        )

    def vocabulary(self) -> dict[str, str]:
        """How many ids a text can be of, where it is not the logits that say so."""
        if "logits" not in self.graph.output_names:
            return {}
        outputs = dict(zip(self.graph.output_names, self.flat.outputs, strict=True))
        width, known = self.flat.types[outputs["logits"]].shape[-1], known_ids(self.graph)
        same = not width.is_static or known == width.value
        return {} if same else {"llamagen.vocabulary": str(known)}

    def in_place(self) -> bool:
        """Whether every cache may be one buffer for past and present."""
        return bool(self.slots) and all(slot.present in self.fused for slot in self.slots)

    def one_row(self) -> bool:
        """Whether a call of several tokens with a past may have one row only."""
        return bool(self.own_slots) and not self.b.has_input(*CHUNKS)

    def windows(self) -> bool:
        """Whether fused attention has a window: it counts tokens, not padding between them."""
        return any(n.attrs["window"] is not None for n in self.own_slots)

    def context(self) -> int | None:
        """Tokens that tables of positions cover, if there are such tables."""
        rotated = any(n.attrs["rotary"] for n in self.own_slots)
        return self.max_context if rotated else None

    def table(self) -> tuple[Initializer, ...]:
        """Each parameter once, in the order of the graph; joined ones where the first of them was."""
        dtype, shapes = self.b.dtype, {n: p.shape for n, p in self.graph.parameters.items()}
        joined = {paths[0]: name for name, paths in self.rewritten.joined.items()}
        inside = {path for paths in self.rewritten.joined.values() for path in paths}
        table: list[Initializer] = []
        for path, shape in shapes.items():
            if path in joined:
                name = joined[path]
                sources = [Source(p, shapes[p]) for p in self.rewritten.joined[name]]
                table.append(Initializer.joined(name, sources, dtype))
            elif path not in inside:
                table.append(Initializer.of(path, shape, self.stored.get(path, dtype)))
        return tuple(table)

    def place_weights(self) -> tuple[tuple[Initializer, ...], tuple[ir.Value, ...]]:
        """The weights, whole or in parts, and the value of each; ``parameters`` get what stands for them."""
        b, whole = self.b, self.table()
        kept: dict[str, str] = {}
        for entry in whole:  # weights that are joined stay as they are if all can
            types = {self.packed.get(source.path) for source in entry.sources}
            if len(types) == 1 and (packing := types.pop()) is not None:
                kept[entry.name] = packing
        shapes = {entry.name: entry.shape for entry in whole}
        how = encodings(self.flat, shapes, self.quantization, kept, b.profile.provider)
        table: list[Initializer] = []
        values: list[ir.Value] = []
        for entry in whole:
            name = entry.name
            parts: tuple[Initializer, ...] = (entry,)
            if name in how:
                experts = how[name].kind == "experts"
                parts = encoded(entry, how[name], b.scale_dtype if experts else self.scales)
            stored = [b.value(p.name, ELEMENTS[p.dtype], ir.Shape(p.shape)) for p in parts]
            table += parts
            values += stored
            if name not in how:
                self.parameters[name] = b.loaded(stored[0])
                continue
            roles = {p.part.role: v for p, v in zip(parts, stored, strict=True) if p.part}
            codes, points = roles["codes"], roles.get("zero_points")
            wide = roles["scales"]
            if how[name].kind == "blocks":
                wide = b.to(wide, b.model)
            lows = roles.get("minimums")
            if lows is not None:
                # code * scale + minimum as (code - 8) * scale + low. Codes around 0 lose less in sums, and a low is
                # exact in float32, which a zero point of -minimum / scale is not: it would have to be rounded
                steps, middle = b.to(roles["scales"], b.FLOAT), b.number(8.0, b.FLOAT)
                with b.within(name):
                    lows = b.op("Add", b.to(lows, b.FLOAT), b.op("Mul", steps, middle))
                    lows = b.op("Transpose", b.to(lows, b.model), perm=[1, 0])
            quantized = Quantized(how[name], entry.shape, codes, wide, points, lows)
            if how[name].halves:
                # (16 high + low - 128) * scale = (high - 8) * 16 scale + low * scale
                with b.within(name):
                    steps = b.op("Mul", wide, b.number(16.0, b.model))
                high, low = replace(how[name], bits=4), replace(how[name], bits=4, symmetric=False)
                codes = roles["low_codes"]
                rest = (wide, roles["low_zero_points"])
                quantized = replace(
                    quantized,
                    encoding=high,
                    scales=steps,
                    more=Quantized(low, entry.shape, codes, *rest),
                )
            self.parameters[name] = b.quantized(name, quantized)
        return tuple(table), tuple(values)

    def place_adapters(self, table: Sequence[Initializer]) -> Mapping[str, tuple[Source, ...]]:
        """Inputs beside the weights of projections that adapters change. Raises LG657 where there is no such weight."""
        held = {one.part.weight if one.part else one.name: one.sources for one in table}
        wanted = {
            name: held[name]
            for name in (
                n.parameters["weight"] for n in self.flat.nodes if n.row.role is Role.LINEAR
            )
            if any(source.path in self.adapted for source in held[name])
        }
        missing = self.adapted - {source.path for sources in wanted.values() for source in sources}
        if missing:
            what = (
                f"`{min(missing)}` is no projection of its own in the profile {self.b.profile.name}"
            )
            message = f"no adapter can be kept beside it: {what}"
            raise LlamagenError.of("LG657", message, help="merge the adapter: --adapter DIR")
        for name, sources in wanted.items():
            shape = (sum(source.shape[0] for source in sources), sources[0].shape[1])
            self.adapters[name] = inputs_beside(name, shape, self.b.model)
        return wanted

    def with_adapter(self, node: FlatNode, x: ir.Value, product: ir.Value) -> ir.Value:
        """``product`` with what an adapter of its weight adds: x A B."""
        if node.parameters["weight"] not in self.adapters:
            return product
        value = self.b.to(x, self.b.model)
        for factor in self.adapters[node.parameters["weight"]]:
            value = self.b.op("MatMul", value, factor)
        return self.b.op("Add", product, value)

    def inputs(self) -> list[ir.Value]:
        named: dict[str, ir.Value] = {}
        dims: list[tuple[ir.Value, Sequence[Dim]]] = []
        read = {o for n in self.flat.nodes for o in n.operands}
        for value in self.graph.inputs:
            if self.b.profile is not PORTABLE and value.id not in read:
                continue  # positions that the fused attention counts itself
            name = INPUT_NAMES.get(value.id, value.id)
            named[name] = self.input(name, value.type)
            self.values[value.id] = self.b.inside(named[name], value.type.dtype)
            dims.append((named[name], value.type.shape))
        order = [n for n in INPUT_ORDER if n in named]
        order += [n for n in named if n not in INPUT_ORDER]
        inputs = [named[n] for n in order]
        for name, id in self.flat.handed_in.items():
            of = self.flat.types[id]
            inputs.append(self.input(name, of))
            self.values[id] = self.b.inside(inputs[-1], of.dtype)
        for slot in self.slots:
            past = self.values[slot.past] = self.past(slot.past, slot.found)
            inputs.append(past)
            if slot.present in self.fused:
                past.shape = _buffer(slot.found.shape, "past_buffer")
                continue
            past.doc_string = _past_words(slot)
            dims.append((past, slot.found.shape))
        self.sizes(dims)
        return inputs

    def past(self, name: str, of: TensorType) -> ir.Value:
        if self.cache_dtype is None:
            return self.input(name, of)
        largest = self.ranges[name]
        steps = np.where(largest > 0, largest, 1) / np.float32(LARGEST_CODE)
        scale = self.b.constant(f"{name}_scale", steps.astype(np.float32)[None, :, None])
        self.b.cache_scales[name] = scale
        return self.b.value(name, ir.DataType.INT8, onnx_shape(of.shape))

    def input(self, name: str, of: TensorType) -> ir.Value:
        element = self.b.element(of.dtype)
        outside = self.b.io if element is self.b.model else element
        return self.b.value(name, outside, onnx_shape(of.shape))

    def sizes(self, dims: Sequence[tuple[ir.Value, Sequence[Dim]]]) -> None:
        """B, S, T, I, bounded pasts (and P where no input has T) read off the inputs' shapes."""
        b, known = self.b, dict[str, ir.Value]()
        read = {"B", "S", "P", "P + S", "I"}
        read |= {str(slot.found.shape[2]) for slot in self.slots if slot.of_tokens}
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
        slots = self.rewritten.slots.get(node.results[0], ())
        if state is State.WRITTEN:
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
                tuple(self.values[slot.past] for slot in slots),
            )
            assert node.row.onnx is not None, node.op
            results = node.row.onnx(b, site, operands)
            if node.row.role is Role.LINEAR:
                results = (self.with_adapter(node, operands[0], results[0]),)
        results, left = results[: len(node.results)], results[len(node.results) :]
        for slot, value in zip(slots, left, strict=True):
            kept = onnx_shape(slot.left.shape)
            if slot.keep is not None:
                kept = _buffer(slot.left.shape, f"present_sequence_{slot.keep}")
            self.present(slot.present, value, kept)
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
        presents = [self.presents[slot.present] for slot in self.slots]
        taken = {id(v) for v in presents}
        results: list[ir.Value] = []
        outputs = [
            (name, self.values[inner], self.flat.types[inner])
            for name, inner in zip(self.graph.output_names, self.flat.outputs, strict=True)
        ]
        for (name, inner), value in zip(self.flat.handed_out.items(), self.written, strict=True):
            outputs.append((name, value, self.flat.types[inner]))
        for name, value, of in outputs:
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


def _past_words(slot: Slot) -> str | None:
    """What a runtime must hand over; a slot that keeps everything needs no words."""
    if slot.keep is None:
        return None
    present = slot.present.rpartition(".")[0]
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
