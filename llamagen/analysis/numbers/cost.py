"""What a model costs at a stated workload: memory, work, rooflines, what fits. Exact ints; times are bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llamagen.analysis.numbers.compute import FlopCount, FlopReport, count_flops, flops_of
from llamagen.analysis.numbers.hardware import Device
from llamagen.analysis.numbers.images import ImageCost, image_cost
from llamagen.analysis.numbers.memory import (
    ActivationReport,
    CacheReport,
    activations_of,
    cache_of,
)
from llamagen.analysis.numbers.parallel import tensor_parallel_degrees
from llamagen.analysis.numbers.params import (
    Component,
    ParameterReport,
    Storage,
    expert_bytes,
    storage,
    weight_bytes,
)
from llamagen.analysis.numbers.visible import visible_of
from llamagen.analysis.numbers.whole import whole_parameters, whole_weight_bytes
from llamagen.diagnostics import LlamagenError
from llamagen.ir.build_graphs import MAIN
from llamagen.ir.graph import Graph, OpPart
from llamagen.ops.op import Role, a_int

MAX_SEARCH = 2**31


@dataclass(frozen=True, slots=True)
class Workload:
    """``context`` tokens of each of ``batch`` sequences: prefill reads them all at once, decode adds one more."""

    context: int
    batch: int
    weights: Storage
    cache_bytes: int
    """Bytes of one cached number and of one activation."""
    tensor_parallel: int = 1
    images: int = 1
    """Images (or tiles, where each is an input) of a sequence, for a model that takes any."""


def workload(
    context: int,
    batch: int = 1,
    dtype: str = "bfloat16",
    tensor_parallel: int = 1,
    images: int = 1,
) -> Workload:
    """A workload in the storage format ``dtype``. Raises LG901 for sizes below 1 or an unknown dtype."""
    sizes = {"context": context, "batch": batch, "tp": tensor_parallel, "images": images}
    for name, size in sizes.items():
        if not 1 <= size <= MAX_SEARCH:
            raise LlamagenError.of("LG901", f"{name} must be from 1 to {MAX_SEARCH}, not {size}")
    form = storage(dtype)
    return Workload(context, batch, form, form.other_bits // 8, tensor_parallel, images)


@dataclass(frozen=True, slots=True)
class Phase:
    """One forward pass. ``bytes_moved`` is the least traffic: weights used, keys in sight read, new ones written."""

    flops: FlopCount
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

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


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
    """Tokens a sequence at the stated batch; the model's own limit is not applied."""


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
    """Degrees that divide every head count and every feed-forward width."""
    device: DeviceReport | None
    images: ImageCost | None
    """For a model that takes images: what they add. All other work and traffic is that of text alone."""


def cost_of(
    graph: Graph,
    load: Workload,
    device: tuple[str, Device] | None = None,
    beside: Mapping[str, Graph] | None = None,
) -> CostReport:
    """Every number of ``graph`` at ``load``, parameters and weights with those of the further graphs ``beside`` it.

    Raises LG902 for an illegal tensor-parallel degree, or several images for a model of text.
    """
    graphs = {MAIN: graph, **(beside or {})}
    degrees = tensor_parallel_degrees(graph)
    if load.tensor_parallel not in degrees:
        known = ", ".join(map(str, degrees))
        message = f"{graph.spec_id} cannot be split {load.tensor_parallel} ways"
        help = f"degrees that divide its heads and feed-forward widths: {known}"
        raise LlamagenError.of("LG902", message, help=help)
    model = Counted(graphs, load)
    images = image_cost(graphs, load.images, load.batch, load.context, load.cache_bytes)
    if images is None and load.images > 1:
        message = f"{graph.spec_id} takes no images"
        raise LlamagenError.of("LG902", message, help="leave the number of images out")
    kept = images.kept_bytes // load.batch if images is not None else 0
    report = model.device_report(*device, kept) if device is not None else None
    return CostReport(
        graph.spec_id,
        load,
        model.parameters,
        model.weights,
        model.cache,
        load.batch * model.cache.allocated(load.context, load.cache_bytes),
        load.batch * model.cache.needed(load.context, load.cache_bytes),
        model.phase(load.batch, load.context, 0),
        model.phase(load.batch, 1, load.context),
        degrees,
        report,
        images,
    )


class Counted:
    """The parts of a report that are computed once and evaluated at several workloads."""

    def __init__(self, graphs: Mapping[str, Graph], load: Workload) -> None:
        graph = graphs[MAIN]
        self.graph = graph
        self.load = load
        self.parameters: ParameterReport = whole_parameters(graphs)
        self.weights = whole_weight_bytes(graphs, load.weights)
        self.text_weights = weight_bytes(graph, load.weights)
        self.cache = cache_of(graph)
        self.flops: FlopReport = flops_of(graph)
        self.visible = visible_of(graph)
        self.activations: ActivationReport = activations_of(graph, load.cache_bytes)
        self.expert_bytes = expert_bytes(graph, load.weights)
        self.embedding = self.parameters.of(Component.EMBEDDING) * load.weights.other_bits // 8

    def phase(self, batch: int, new: int, past: int) -> Phase:
        load = self.load
        return Phase(
            count_flops(self.flops, batch, new, past),
            self.visible.flops(batch, new, past),
            self.weights_read(batch * new),
            batch * self.cache.needed(past, load.cache_bytes),
            batch * self.cache.allocated(new, load.cache_bytes),
            self.activations.peak({"B": batch, "S": new, "P": past}),
            batch * new,
        )

    def weights_read(self, tokens: int) -> int:
        """Bytes of weights that a pass of ``tokens`` must read at least once.

        Of an embedding that no head shares only the rows looked up; of routed experts at most those chosen.
        """
        idle = sum(
            size // experts * (experts - min(experts, tokens * chosen))
            for (experts, chosen), size in self.expert_bytes.items()
        )
        unread = 0
        if not self.parameters.tied:
            rows = tokens * _embedding_width(self.graph) * self.load.weights.other_bits // 8
            unread = max(0, self.embedding - rows)
        return self.text_weights - idle - unread

    def device_report(self, name: str, device: Device, kept: int) -> DeviceReport:
        """``kept`` are bytes of images beside each sequence."""
        load = self.load
        prefill = self.phase(load.batch, load.context, 0)
        decode = self.phase(load.batch, 1, load.context)
        fits: bool | None = None
        max_batch: int | None = None
        max_context: int | None = None
        if device.memory_bytes is not None:
            memory = device.memory_bytes * load.tensor_parallel

            def fit(batch: int, context: int) -> bool:
                return self.resident(batch, context) + batch * kept <= memory

            fits = fit(load.batch, load.context)
            max_batch = largest(lambda b: fit(b, load.context))
            max_context = largest(lambda n: fit(load.batch, n))
        return DeviceReport(
            name,
            device,
            self.roofline(prefill, device),
            self.roofline(decode, device),
            fits,
            max_batch,
            max_context,
        )

    def resident(self, batch: int, context: int) -> int:
        """Bytes that decode holds at once: weights, the whole cache, activations."""
        peak = self.activations.peak({"B": batch, "S": 1, "P": context})
        cache = batch * self.cache.allocated(context, self.load.cache_bytes)
        return self.weights + cache + peak

    def roofline(self, phase: Phase, device: Device) -> Roofline:
        degree = self.load.tensor_parallel
        return Roofline(
            phase.least_flops / (device.peak(self.load.weights.name) * degree),
            phase.bytes_moved / (device.bandwidth * degree),
            phase.tokens,
        )


def largest(fits: Callable[[int], bool]) -> int:
    """The largest n below 2^31 for which ``fits`` holds, 0 if none; ``fits`` must be monotone."""
    low, high = 0, 1
    while high < MAX_SEARCH and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _embedding_width(graph: Graph) -> int:
    return sum(
        a_int(part.attrs, "features")
        for block in graph.blocks.values()
        for part in block.parts.values()
        if isinstance(part, OpPart) and part.row.role is Role.EMBEDDING
    )
