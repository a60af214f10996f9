"""What a model costs at a stated workload: memory, work, rooflines, what fits. Exact ints; times are bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen.analysis.numbers import (
    CACHE_BYTES,
    CacheReport,
    Component,
    Flops,
    ImageCost,
    ParameterReport,
    Storage,
    activation_levels,
    cache_of,
    count_flops,
    count_parameters,
    expert_bytes,
    flops_of,
    image_cost,
    peak,
    storage,
    visible_flops,
    weight_bytes,
)
from llamagen.analysis.parallel import ONE_GPU, Held, Holdings, Layout, suits
from llamagen.analysis.tables import chosen, load_table, read_table
from llamagen.diagnostics import LlamagenError
from llamagen.ir.graph import MAIN, Graph, OpPart
from llamagen.ir.shard import plan
from llamagen.ops.op import Role, a_int
from llamagen.spec.registry import is_sketch
from llamagen.spec.schema import Closed
from llamagen.units import bytes_short, bytes_text, count_text, rate_text, seconds_text

MAX_SEARCH = 2**31


class Device(Closed):
    """One device with published peaks: dense (no sparsity) and per second; memory is as sold, decimal bytes."""

    title: str
    memory_bytes: int | None = None
    """none: a host whose memory is the user's own."""
    bandwidth: float
    """Bytes per second."""
    flops: dict[str, float]
    """FLOP per second by the dtype of the operands."""
    source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s for operands of ``dtype``; storage-only formats compute in 16 bit, else in float32."""
        for name in (dtype, "bfloat16", "float16", "float32"):
            if name in self.flops:
                return self.flops[name]
        raise ValueError(f"{self.title} states no peak")


class Devices(Closed):
    version: int
    devices: dict[str, Device]


def devices() -> dict[str, Device]:
    """The devices of spec/hardware.yaml."""
    return load_table("hardware.yaml", Devices).devices


def device(name: str) -> Device:
    """The device ``name``, or that of a YAML file with the fields of one.

    Raises LG901 with the nearest known name, LG103 for a file that is none.
    """
    if name.endswith((".yaml", ".yml")):
        return read_table(Path(name), Device)
    return chosen(devices(), name, "a device of hardware.yaml")


@dataclass(frozen=True, slots=True)
class Workload:
    """``context`` tokens of each of ``batch`` sequences: prefill reads them all at once, decode adds one more."""

    context: int
    batch: int
    weights: Storage
    cache_bytes: int
    """Bytes of one cached number."""
    activation_bytes: int
    """Bytes of one activation, and of what is kept of images."""
    layout: Layout = ONE_GPU
    images: int = 1
    """Images (or tiles, where each is an input) of a sequence, for a model that takes any."""


def workload(
    context: int,
    batch: int = 1,
    dtype: str = "bfloat16",
    layout: Layout = ONE_GPU,
    images: int = 1,
    cache_dtype: str | None = None,
) -> Workload:
    """A workload in the storage format ``dtype``, keys and values in ``cache_dtype``, by default that of activations.

    Raises LG901 for sizes below 1 or an unknown dtype.
    """
    degrees = dict(zip(("tp", "pp", "ep"), layout.sizes, strict=True))
    sizes = {"context": context, "batch": batch, **degrees, "images": images}
    for name, size in sizes.items():
        if not 1 <= size <= MAX_SEARCH:
            raise LlamagenError.of("LG901", f"{name} must be from 1 to {MAX_SEARCH}, not {size}")
    form = storage(dtype)
    live = form.other_bits // 8
    kept = live if cache_dtype is None else chosen(CACHE_BYTES, cache_dtype, "a dtype of a cache")
    return Workload(context, batch, form, kept, live, layout, images)


@dataclass(frozen=True, slots=True)
class Phase:
    """One forward pass. ``bytes_moved`` is the least traffic: weights used, keys in sight read, new ones written."""

    flops: Flops[int]
    attention_visible: int
    """FLOPs of attention for the keys that queries see; the others are masked, and a kernel may skip them."""
    weight_bytes_read: int
    cache_bytes_read: int
    cache_bytes_written: int
    activation_peak: int
    tokens: int
    """New tokens of the pass, all sequences together."""

    @property
    def bytes_moved(self) -> int:
        return self.weight_bytes_read + self.cache_bytes_read + self.cache_bytes_written

    @property
    def least_flops(self) -> int:
        """Without the work for masked keys."""
        return self.flops.matmul + self.attention_visible + self.flops.head

    @property
    def intensity(self) -> float:
        """FLOP per byte moved."""
        return self.flops.total / self.bytes_moved


@dataclass(frozen=True, slots=True)
class Roofline:
    """The least time of a pass on a device: the larger of least work over peak and least traffic over bandwidth."""

    compute_seconds: float
    memory_seconds: float
    tokens: int
    stages: int = 1
    """Passes that are under way at once."""

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"

    @property
    def tokens_per_second(self) -> float:
        return self.stages * self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class DeviceReport:
    name: str
    device: Device
    prefill: Roofline
    decode: Roofline
    fits: bool | None
    """Whether weights, cache, what is kept of images and the decode activations fit; none without a stated memory."""
    max_batch: int | None
    """Sequences at the stated context."""
    max_context: int | None
    """Tokens a sequence at the stated batch; the model's own limit is not applied, but told beside it."""


@dataclass(frozen=True, slots=True)
class CostReport:
    spec_id: str
    workload: Workload
    parameters: ParameterReport
    weight_bytes: int
    cache: CacheReport
    cache_bytes: int
    """As allocated by the generated models, whole batch."""
    cache_bytes_needed: int
    """If local layers drop what no query can see any more, whole batch."""
    prefill: Phase
    decode: Phase
    tensor_parallel: tuple[int, ...]
    """Legal degrees (ir/shard.py)."""
    held: tuple[Held, ...]
    """Bytes of a GPU of each pipeline stage."""
    own_context: int | None
    """Tokens that its publisher promises, or its positions; none where that is not known."""
    notes: tuple[str, ...]
    device: DeviceReport | None
    images: ImageCost | None
    """For a model that takes images: what they add. All other work and traffic is that of text alone."""


def cost_of(
    graphs: Mapping[str, Graph],
    load: Workload,
    device: tuple[str, Device] | None = None,
    own_context: int | None = None,
) -> CostReport:
    """Every number of the text model at ``load``; parameters and weights are those of all graphs.

    A workload beyond ``own_context`` is counted all the same, and marked.

    Raises LG902 for several images for a model of text, LG906 or LG907 for devices that cannot share the model.
    """
    graph = graphs[MAIN]
    found = plan(graph)
    notes = suits(found, load.layout)
    holdings = Holdings(graphs, found, load.layout, load.weights, load.cache_bytes)
    counts = Counts(graphs, load)
    images = image_cost(graphs, load.images, load.batch, load.context, load.activation_bytes)
    if images is None and load.images > 1:
        message = f"{graph.spec_id} takes no images"
        raise LlamagenError.of("LG902", message, help="leave the number of images out")
    kept = images.kept_bytes // load.batch if images is not None else 0
    prefill = counts.phase(load.batch, load.context, 0)
    decode = counts.phase(load.batch, 1, load.context)
    return CostReport(
        graph.spec_id,
        load,
        counts.parameters,
        counts.weights,
        counts.cache,
        load.batch * counts.cache.allocated(load.context, load.cache_bytes),
        load.batch * counts.cache.needed(load.context, load.cache_bytes),
        prefill,
        decode,
        found.degrees,
        holdings.at(load.batch, load.context),
        own_context,
        notes,
        counts.on_device(*device, holdings, (prefill, decode), kept)
        if device is not None
        else None,
        images,
    )


class Counts:
    """What is counted once and evaluated at several workloads."""

    def __init__(self, graphs: Mapping[str, Graph], load: Workload) -> None:
        self.graphs = graphs
        self.graph = graphs[MAIN]
        self.load = load
        self.parameters = count_parameters(graphs)
        self.weights = weight_bytes(graphs, load.weights)
        self.cache = cache_of(self.graph)
        self.flops = flops_of(self.graph)
        self.activations = activation_levels(self.graph, load.activation_bytes)

    def phase(self, batch: int, new: int, past: int) -> Phase:
        load = self.load
        return Phase(
            count_flops(self.flops, batch, new, past),
            visible_flops(self.graph, batch, new, past),
            self.weights_read(batch * new),
            batch * self.cache.needed(past, load.cache_bytes),
            batch * self.cache.allocated(new, load.cache_bytes),
            peak(self.activations, {"B": batch, "S": new, "P": past}),
            batch * new,
        )

    def weights_read(self, tokens: int) -> int:
        """Bytes of weights that a pass of ``tokens`` must read at least once.

        Of an embedding that no head shares only the rows looked up; of routed experts at most those chosen.
        """
        idle = sum(
            size // experts * (experts - min(experts, tokens * chosen))
            for (experts, chosen), size in expert_bytes(self.graph, self.load.weights).items()
        )
        unread = 0
        if not self.parameters.tied:
            size = self.load.weights.other_bits
            embedding = self.parameters.of(Component.EMBEDDING) * size // 8
            parts = (p for b in self.graph.blocks.values() for p in b.parts.values())
            width = sum(
                a_int(part.attrs, "features")
                for part in parts
                if isinstance(part, OpPart) and part.row.role is Role.EMBEDDING
            )
            unread = max(0, embedding - tokens * width * size // 8)
        return weight_bytes({MAIN: self.graph}, self.load.weights) - idle - unread

    def on_device(
        self,
        name: str,
        device: Device,
        holdings: Holdings,
        phases: tuple[Phase, Phase],
        kept: int,
    ) -> DeviceReport:
        """``kept`` are bytes of images beside each sequence."""
        load, layout = self.load, self.load.layout
        fits: bool | None = None
        max_batch: int | None = None
        max_context: int | None = None
        if (memory := device.memory_bytes) is not None:

            def fit(batch: int, context: int) -> bool:
                fullest = max(held.total for held in holdings.at(batch, context))
                return fullest + -(-batch // layout.ep) * kept <= memory

            fits = fit(load.batch, load.context)
            max_batch = largest(lambda b: fit(b, load.context))
            max_context = largest(lambda n: fit(load.batch, n))

        def roofline(phase: Phase) -> Roofline:
            at_once = layout.tp * layout.ep  # stages are one after the other
            return Roofline(
                phase.least_flops / (device.peak(load.weights.name) * at_once),
                phase.bytes_moved / (device.bandwidth * at_once),
                phase.tokens,
                layout.pp,
            )

        prefill, decode = map(roofline, phases)
        return DeviceReport(name, device, prefill, decode, fits, max_batch, max_context)

    def resident(self, batch: int, context: int) -> int:
        """Bytes that decode holds at once on one device: weights, the whole cache, activations."""
        activations = peak(self.activations, {"B": batch, "S": 1, "P": context})
        cache = batch * self.cache.allocated(context, self.load.cache_bytes)
        return self.weights + cache + activations


def largest(fits: Callable[[int], bool]) -> int:
    """The largest n below 2^31 for which ``fits`` holds, 0 if none; ``fits`` must be monotone."""
    low, high = 0, 1
    while high < MAX_SEARCH and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# as text and JSON; units only here, and every number with its workload


def text(report: CostReport) -> str:
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: CostReport) -> Iterator[str]:
    load = report.workload
    size = 8 * load.cache_bytes
    yield f"{report.spec_id} at {load.context} tokens, batch {load.batch}, weights in {load.weights.name}"
    if report.own_context is not None and load.context > report.own_context:
        yield f"beyond the {report.own_context:,} tokens that the model is made for"
    if is_sketch(report.spec_id):
        yield "a sketch: every dimension is assumed, so no number below is a fact about a model"
    yield ""
    yield f"parameters            {count_text(report.parameters.total)}"
    for row in report.parameters.components:
        used = f", {row.active:,} a token" if row.active != row.count else ""
        yield f"  {row.component.value:<19} {row.count:,}{used}"
    yield f"used by a token       {count_text(report.parameters.active)}"
    if report.parameters.active_without_embedding != report.parameters.active:
        without = count_text(report.parameters.active_without_embedding)
        yield f"  without embedding   {without}"
    yield ""
    yield f"weights               {bytes_text(report.weight_bytes)}"
    yield f"KV cache a token      {bytes_text(report.cache.per_token(load.cache_bytes))} in {size} bit"
    yield f"KV cache              {bytes_text(report.cache_bytes)} for {load.batch} x {load.context} tokens"
    kept = [layer.keep for layer in report.cache.layers if layer.keep is not None]
    if kept:
        yield (
            f"  bounded             {len(kept)} of {len(report.cache.layers)} layers keep at most "
            f"{max(kept):,} tokens"
        )
    if report.cache_bytes_needed != report.cache_bytes:
        yield (
            f"  still visible       {bytes_text(report.cache_bytes_needed)}: "
            f"{report.cache.local_layers} of {len(report.cache.layers)} layers are local"
        )
    yield ""
    yield from _phase("prefill", report.prefill, f"{load.batch} x {load.context} new tokens")
    yield from _phase("decode", report.decode, f"{load.batch} x 1 token after {load.context}")
    if report.images is not None:
        yield from _images(report, report.images)
    degrees = ", ".join(map(str, report.tensor_parallel))
    yield f"tensor parallel       {degrees}"
    yield from (f"note: {note}" for note in report.notes)
    if load.layout.gpus > 1:
        yield f"of each GPU           {load.layout}"
        for held in report.held:
            sizes = (held.weights, held.cache, held.activations, held.total)
            parts = "{} weights, {} KV cache, {} activations: {}".format(*map(bytes_short, sizes))
            layers = f"layers {held.layers.start}..{held.layers.stop - 1}"
            yield f"  {layers if load.layout.pp > 1 else 'all alike':<19} {parts}"
    if report.device is not None:
        yield ""
        yield from _device(report, report.device)


def _phase(name: str, phase: Phase, what: str) -> Iterator[str]:
    flops = phase.flops
    yield f"{name}: {what}"
    yield f"  FLOPs               {count_text(flops.total)}"
    yield f"    matrix products   {flops.matmul:,}"
    yield f"    attention         {flops.attention:,}"
    if phase.attention_visible != flops.attention:
        yield f"      keys in sight   {phase.attention_visible:,}"
    yield f"    head              {flops.head:,}"
    yield f"  bytes moved         {bytes_text(phase.bytes_moved)} at least"
    yield f"  intensity           {phase.intensity:,.2f} FLOP/B"
    yield f"  activations         {bytes_text(phase.activation_peak)} at most, unfused"


def _images(report: CostReport, images: ImageCost) -> Iterator[str]:
    load = report.workload
    yield f"images: {load.batch} x {images.count} of {', '.join(images.inputs)}"
    yield f"  encoder FLOPs       {count_text(images.encoder.total)}"
    yield f"    attention         {images.encoder.attention:,}"
    if images.tokens:
        yield f"  tokens              {images.tokens} of the {load.context} of each sequence"
    yield f"  kept                {bytes_text(images.kept_bytes)} while text is generated"
    yield f"  activations         {bytes_text(images.activation_peak)} at most, unfused"
    yield f"  text beside them    {count_text(images.prefill.total)} FLOPs prefill"
    yield f"                      {count_text(images.decode.total)} FLOPs decode"


def _device(report: CostReport, on: DeviceReport) -> Iterator[str]:
    device = on.device
    several = report.workload.layout.gpus
    count = f"{several} x " if several > 1 else ""
    yield f"on {count}{device.title} [{device.source}]"
    for name, roof in (("prefill", on.prefill), ("decode", on.decode)):
        rate = rate_text(roof.tokens_per_second, "tokens")
        yield f"  {name:<19} {rate} at most ({_duration(roof.seconds)} a pass), bound by {roof.bound}"
    if on.fits is None:
        yield "  fits                the device states no memory"
        return
    yield f"  fits                {'yes' if on.fits else 'no'}"
    seen = ""
    if report.images is not None:
        many = "images" if report.images.count > 1 else "image"
        seen = f", each sequence with {report.images.count} {many}"
    yield f"  largest batch       {on.max_batch} at {report.workload.context} tokens{seen}"
    own, most = report.own_context, on.max_context or 0
    beyond = f"; the model is made for {own:,}" if own is not None and most > own else ""
    yield f"  longest context     {most:,} tokens at batch {report.workload.batch}{seen}{beyond}"


def _duration(seconds: float) -> str:
    if seconds >= 60:
        return seconds_text(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def json_text(report: CostReport) -> str:
    """Schema version 1; bytes, FLOPs and tokens as ints, times in seconds."""
    load = report.workload
    document: dict[str, object] = {
        "version": 1,
        "id": report.spec_id,
        "sketch": is_sketch(report.spec_id),
        "workload": {
            "context": load.context,
            "batch": load.batch,
            "weights": load.weights.name,
            "cache_bytes_per_value": load.cache_bytes,
            "activation_bytes_per_value": load.activation_bytes,
            "tensor_parallel": load.layout.tp,
            "pipeline_parallel": load.layout.pp,
            "expert_parallel": load.layout.ep,
        },
        "parameters": {
            "total": report.parameters.total,
            "active": report.parameters.active,
            "active_without_embedding": report.parameters.active_without_embedding,
            "components": {
                c.component.value: {"count": c.count, "active": c.active}
                for c in report.parameters.components
            },
        },
        "weight_bytes": report.weight_bytes,
        "kv_bytes_per_token": report.cache.per_token(load.cache_bytes),
        "kv_cache": "bounded" if report.cache.bounded else "full",
        "kv_bytes": report.cache_bytes,
        "kv_bytes_visible": report.cache_bytes_needed,
        "prefill": _phase_json(report.prefill),
        "decode": _phase_json(report.decode),
        "tensor_parallel_degrees": list(report.tensor_parallel),
        "bytes_of_a_gpu": [
            {"weights": h.weights, "kv": h.cache, "activations": h.activations, "total": h.total}
            for h in report.held
        ],
        "own_context": report.own_context,
        "notes": list(report.notes),
    }
    if (images := report.images) is not None:
        document["images"] = {
            "count": images.count,
            "inputs": list(images.inputs),
            "encoder_flops": images.encoder.total,
            "encoder_flops_attention": images.encoder.attention,
            "tokens": images.tokens,
            "kept_bytes": images.kept_bytes,
            "activation_bytes_peak": images.activation_peak,
            "prefill_flops": images.prefill.total,
            "decode_flops": images.decode.total,
        }
    if (on := report.device) is not None:
        document["device"] = {
            "name": on.name,
            "title": on.device.title,
            "source": on.device.source,
            "prefill": _roofline_json(on.prefill),
            "decode": _roofline_json(on.decode),
            "fits": on.fits,
            "max_batch": on.max_batch,
            "max_context": on.max_context,
        }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _phase_json(phase: Phase) -> dict[str, object]:
    return {
        "new_tokens": phase.tokens,
        "flops": phase.flops.total,
        "flops_matmul": phase.flops.matmul,
        "flops_attention": phase.flops.attention,
        "flops_attention_visible": phase.attention_visible,
        "flops_head": phase.flops.head,
        "weight_bytes_read": phase.weight_bytes_read,
        "cache_bytes_read": phase.cache_bytes_read,
        "cache_bytes_written": phase.cache_bytes_written,
        "activation_bytes_peak": phase.activation_peak,
    }


def _roofline_json(roof: Roofline) -> dict[str, object]:
    return {
        "seconds": roof.seconds,
        "bound": roof.bound,
        "tokens_per_second": roof.tokens_per_second,
    }
