"""A model over several GPUs: its shard plan as text, the bytes that each GPU holds, and what it sends for a token.

Exact ints, but for activations, which are an upper bound as those of ``cost``. The plan is ``ir/shard.py``'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from llamagen.analysis.numbers import (
    CacheLayer,
    Storage,
    activation_levels,
    cache_of,
    each_weight,
    expert_choice,
    part_bytes,
    peak,
)
from llamagen.diagnostics import LlamagenError, Span
from llamagen.ir.graph import MAIN, Graph, OpPart
from llamagen.ir.shard import (
    ShardPlan,
    Share,
    Stack,
    Style,
    pipeline_stack,
    plan,
    stage_layers,
)
from llamagen.ops.op import Role, State, a_bool, a_int
from llamagen.units import bytes_text


@dataclass(frozen=True, slots=True)
class Layout:
    """GPUs of one model: ``tp`` share each layer, ``pp`` have some of the layers, ``ep`` some of the experts.

    Groups of experts read sequences of their own: all that is no expert is in each of them.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.ep

    def __str__(self) -> str:
        several = [
            f"{name} {n}" for name, n in zip(("tp", "pp", "ep"), self.sizes, strict=True) if n > 1
        ]
        return " x ".join(several) or "one GPU"

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.tp, self.pp, self.ep


ONE_GPU = Layout()


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that every GPU of one pipeline stage holds; where they differ by a row or a head, the most."""

    layers: range
    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one token makes all GPUs exchange in a forward pass, and what of it a GPU of a stage sends at most."""

    what: str
    times: int
    bytes: int
    """Of the values, all times together."""
    sent: int
    """By one GPU, if it is done as a ring."""


@dataclass(frozen=True, slots=True)
class ParallelReport:
    plan: ShardPlan
    layout: Layout
    context: int
    batch: int
    weights: Storage
    held: tuple[Held, ...]
    """One entry a pipeline stage."""
    traffic: tuple[Traffic, ...]
    notes: tuple[str, ...]


def parallel_of(
    graphs: Mapping[str, Graph],
    layout: Layout,
    *,
    context: int,
    batch: int,
    weights: Storage,
    gpus: int | None = None,
) -> ParallelReport:
    """The text model of ``graphs`` over the GPUs of ``layout``. Raises LG906, LG907 or LG908 where it cannot be."""
    sharding = plan(graphs[MAIN])
    notes = suits(sharding, layout, gpus)
    size = weights.other_bits // 8
    return ParallelReport(
        sharding,
        layout,
        context,
        batch,
        weights,
        Holdings(graphs, sharding, layout, weights, size).at(batch, context),
        tuple(_traffic(sharding, layout, size)),
        notes,
    )


def suits(sharding: ShardPlan, layout: Layout, gpus: int | None = None) -> tuple[str, ...]:
    """Notes about a layout that is possible.

    Raises LG906 for a degree that does not divide the model, LG907 for more stages than it has layers, LG908 for a
    number of GPUs that is not a multiple of the layout's.
    """
    graph, notes = sharding.graph, list[str]()
    stop = sharding.stopped_by(layout.tp)
    if stop is not None and sharding.repeats(layout.tp):
        least = min(kv for _, kv in sharding.attentions)
        copies = layout.tp // least
        notes.append(
            f"tp {layout.tp} for {least} key/value heads: engines hold each on {copies} GPUs; parallel.py does not"
        )
    elif stop is not None:
        message = f"{graph.spec_id} cannot be cut {layout.tp} ways: {stop.parts[0]} has {stop.size} {stop.what}"
        degrees = ", ".join(map(str, sharding.degrees))
        help = f"degrees that divide every part: {degrees}"
        raise LlamagenError.of("LG906", message, _span(graph, stop.parts[0]), help=help)
    if any(n % layout.ep for n in sharding.experts) or (layout.ep > 1 and not sharding.experts):
        count = f"has {sharding.experts[0]} experts" if sharding.experts else "has no experts"
        message = f"{graph.spec_id} {count}, which are not {layout.ep} equal groups"
        degrees = ", ".join(map(str, sharding.expert_degrees))
        raise LlamagenError.of("LG906", message, help=f"numbers of groups that are: {degrees}")
    stack = pipeline_stack(sharding)
    if layout.pp > 1 and stack is None:
        message = f"{graph.spec_id} is no pipeline: it has no layers that hand on one value, with weights of their own"
        raise LlamagenError.of("LG907", message, graph.root_block.span, help="cut it with tp alone")
    if stack is not None and layout.pp > stack.layers:
        message = f"{graph.spec_id} has {stack.layers} layers, not enough for {layout.pp} stages"
        raise LlamagenError.of("LG907", message, stack.span, help=f"pp from 1 to {stack.layers}")
    if gpus is not None and gpus % layout.gpus:
        product = " x ".join(map(str, layout.sizes))
        message = f"{gpus} GPUs are not a multiple of tp x pp x ep = {product} = {layout.gpus}"
        help = f"{layout.gpus} GPUs, or a multiple: so many copies read their own data"
        raise LlamagenError.of("LG908", message, help=help)
    return tuple(notes)


def _span(graph: Graph, part: str) -> Span | None:
    block, _, name = part.partition(".")
    return graph.blocks[block].parts[name].span


# bytes


class Holdings:
    """What GPUs hold, counted once for any workload."""

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        sharding: ShardPlan,
        layout: Layout,
        weights: Storage,
        cache_bytes: int,
    ) -> None:
        """``cache_bytes`` are those of a cached number."""
        graph, stack, shares = graphs[MAIN], pipeline_stack(sharding), sharding.at
        self.layout, self.cache_bytes = layout, cache_bytes
        self.stages = stage_layers(stack.layers if stack else 0, layout.pp)
        self.weights = [0] * layout.pp
        for _, path, block, part in each_weight(graphs):
            key = (block.name, part.name)
            held = _part_held(sharding, key, part, shares.get(path), layout, weights)
            self.weights[_stage(stack, self.stages, path)] += held
            if layout.pp > 1 and any(t.tied_to == f"{path}.weight" for t in graph.ties.values()):
                self.weights[-1] += held
        block_of = {here.path: here.block for here in graph.instances}

        def ranks_of(path: str, value: str) -> int:
            is_cut = path in block_of and (block_of[path].name, value) in sharding.cut
            return layout.tp if is_cut else 1

        self.slots: list[tuple[int, int, CacheLayer]] = []
        """Stage of each slot, the key/value heads of it that a GPU has, and the slot."""
        for slot in cache_of(graph).layers:
            (node, *_) = (n for n in block_of[slot.path].nodes if n.row.state is State.SLOT)
            heads = -(-slot.kv_heads // ranks_of(slot.path, node.results[0]))
            self.slots.append((_stage(stack, self.stages, slot.path), heads, slot))
        self.live = activation_levels(
            graph, weights.other_bits // 8, lambda value: ranks_of(*value.rpartition("/")[::2])
        )

    def at(self, batch: int, context: int) -> tuple[Held, ...]:
        """For each pipeline stage what a GPU of it holds while it makes a token after ``context`` others."""
        sequences = -(-batch // self.layout.ep)
        cache = [0] * self.layout.pp
        for stage, heads, slot in self.slots:
            values = heads * (slot.key_dim + slot.value_dim) * slot.kept(context)
            cache[stage] += sequences * self.cache_bytes * values
        live = peak(self.live, {"B": sequences, "S": 1, "P": context})
        return tuple(
            Held(layers, self.weights[i], cache[i], live) for i, layers in enumerate(self.stages)
        )


def _stage(stack: Stack | None, stages: tuple[range, ...], path: str) -> int:
    """The pipeline stage that a part is on: that of its layer, the last for what runs behind them, else the first."""
    if stack is None:
        return 0
    if path.startswith(f"{stack.path}."):
        layer = int(path.removeprefix(f"{stack.path}.").partition(".")[0])
        return next(i for i, layers in enumerate(stages) if layer in layers)
    behind = any(f"{path}.".startswith(f"{part}.") for part in stack.behind)
    return len(stages) - 1 if behind else 0


def _part_held(
    sharding: ShardPlan,
    key: tuple[str, str],
    part: OpPart,
    share: Share | None,
    layout: Layout,
    form: Storage,
) -> int:
    """Bytes of the weights of a part that one rank has."""
    total, tp = part_bytes(part, form), layout.tp
    match share.style if share else Style.WHOLE:
        case Style.SHARED | Style.WHOLE:
            return total
        case Style.VOCABULARY:
            rows = a_int(part.attrs, "rows")
            return total // rows * -(-rows // tp)
        case Style.HEAD:
            rows = a_int(part.attrs, "out_features")
            return total // rows * -(-rows // tp)
        case Style.ROW:
            bias = a_int(part.attrs, "out_features") * form.other_bits // 8
            whole = bias if a_bool(part.attrs, "bias") else 0
            return whole + -(-(total - whole) // tp)
        case Style.EXPERTS:
            return -(-total // (tp * layout.ep))
        case _ if share and key in sharding.keys and share.units % tp:
            # engines repeat heads: a rank has at least one
            pieces = share.pieces or (1,)
            heads = [share.units] * len(pieces)
            if len(pieces) > 1:
                heads[0] = max(n for n, _ in sharding.attentions)
            held = sum(p / min(tp, h) for p, h in zip(pieces, heads, strict=True))
            return -(-int(total * held) // sum(pieces))
        case _:
            return -(-total // tp)


# traffic


def _traffic(sharding: ShardPlan, layout: Layout, size: int) -> Iterator[Traffic]:
    blocks = [here.block for here in sharding.graph.instances]
    tp, pp, ep = layout.sizes
    widths = [width for block in blocks for width in sharding.reductions[block.name]]
    if tp > 1 and widths:
        total = sum(widths) * size
        yield Traffic("all-reduce", len(widths), total, 2 * total * (tp - 1) // tp)
    norms = sum(sharding.statistics[block.name] for block in blocks)
    if tp > 1 and norms:
        yield Traffic("all-reduce of norms", norms, norms * 4, 2 * norms * 4 * (tp - 1) // tp)
    heads = [key for key, share in sharding.shares.items() if share.style is Style.HEAD]
    for block, name in heads if tp > 1 else ():
        part = sharding.graph.blocks[block].parts[name]
        assert isinstance(part, OpPart)
        total = a_int(part.attrs, "out_features") * size
        yield Traffic("gather of logits", 1, total, total * (tp - 1) // tp)
    stack = pipeline_stack(sharding)
    if pp > 1 and stack is not None:
        width = stack.carried.shape[-1].value * size
        yield Traffic("to the next stage", pp - 1, (pp - 1) * width, width)
    if ep > 1:
        sent = [
            2 * expert_choice(sharding.graph, block, part)[1] * a_int(part.attrs, "features") * size
            for _, block, part in sharding.graph.op_parts
            if part.row.role is Role.EXPERTS
        ]
        total = sum(sent)
        yield Traffic("to experts and back", 2 * len(sent), total, total * (ep - 1) // ep)


# as text and JSON


def plan_text(sharding: ShardPlan) -> str:
    """The plan for any number of ranks: what golden files hold."""
    return "".join(f"{line}\n" for line in _plan_lines(sharding))


def _plan_lines(sharding: ShardPlan) -> Iterator[str]:
    yield f"tensor parallel       {', '.join(map(str, sharding.degrees))}"
    for limit in sharding.limits:
        by_block = groupby(limit.parts, lambda part: part.partition(".")[0])
        parts = (f"{b}: {', '.join(p.partition('.')[2] for p in ps)}" for b, ps in by_block)
        yield f"  {f'{limit.size:,} {limit.what}':<19} {'; '.join(parts)}"
    if sharding.experts:
        yield f"expert parallel       {', '.join(map(str, sharding.expert_degrees))}"
    stack = pipeline_stack(sharding)
    if stack is None:
        yield "pipeline              none: no one value crosses between its layers"
    else:
        yield f"pipeline              up to {stack.layers} stages of {stack.path}, {stack.carried} crosses"
        yield f"  first               {', '.join(stack.before) or 'nothing more'}"
        yield f"  last                {', '.join(stack.behind) or 'nothing more'}"
    for block in sharding.graph.blocks.values():
        shares = {n: s for (b, n), s in sharding.shares.items() if b == block.name}
        sums = ", ".join(map(str, sharding.reductions[block.name]))
        if not shares:
            continue
        yield ""
        yield block.name + (f": all-reduce of {sums} features" if sums else "")
        for name in block.parts:
            if name in shares:
                yield f"  {name:<19} {_share_text(shares[name])}"
        for entry in sharding.entries.get(block.name, ()):
            of = f" {entry.start}..{entry.start + entry.size - 1} of {entry.width}"
            features = "" if entry.size == entry.width else f", features{of}"
            yield f"  gradient of {entry.part}{features} is summed: it meets cut values"


def _share_text(share: Share) -> str:
    words = {
        Style.NORM: "norm over all ranks",
        Style.SHARED: "shared, its gradient is summed",
        Style.PARAMETER: f"cut along axis {share.axis}",
        Style.WHOLE: f"replicated: {share.reason}",
        Style.EXPERTS: "experts, the features of each",
    }
    pieces = f", pieces of {', '.join(map(str, share.pieces))}" if share.pieces else ""
    return words.get(share.style, share.style.name.lower()) + pieces


def text(report: ParallelReport) -> str:
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: ParallelReport) -> Iterator[str]:
    layout, name = report.layout, report.plan.graph.spec_id
    gpus = f"{layout.gpus} GPUs: {layout}" if layout.gpus > 1 else str(layout)
    yield f"{name} over {gpus}, weights in {report.weights.name}"
    for note in report.notes:
        yield f"note: {note}"
    yield ""
    yield from _plan_lines(report.plan)
    yield ""
    yield f"bytes of a GPU at {report.context} tokens, batch {report.batch}"
    for i, held in enumerate(report.held):
        if layout.pp > 1:
            yield f"  stage {i}: layers {held.layers.start}..{held.layers.stop - 1}"
        yield f"  weights             {bytes_text(held.weights)}"
        yield f"  KV cache            {bytes_text(held.cache)}"
        yield f"  activations         {bytes_text(held.activations)} at most, unfused, in decode"
        yield f"  together            {bytes_text(held.total)}"
    yield ""
    yield "traffic of a token" if report.traffic else "traffic of a token    none"
    for one in report.traffic:
        times = f"{one.times} x, " if one.times > 1 else ""
        yield f"  {one.what:<19} {times}{bytes_text(one.bytes)}; a GPU sends {bytes_text(one.sent)}"


def json_text(report: ParallelReport) -> str:
    """Schema version 1; all sizes are ints, bytes unless they say otherwise."""
    sharding, stack = report.plan, pipeline_stack(report.plan)
    parts: dict[str, object] = {}
    for (block, name), share in sharding.shares.items():
        row: dict[str, object] = {"style": share.style.name.lower()}
        if share.units:
            row["units"] = share.units
        if share.pieces:
            row["pieces"] = list(share.pieces)
        if share.style is Style.PARAMETER:
            row["axis"] = share.axis
        if share.reason:
            row["reason"] = share.reason
        parts[f"{block}.{name}"] = row
    document = {
        "version": 1,
        "id": sharding.graph.spec_id,
        "tensor_parallel_degrees": list(sharding.degrees),
        "expert_parallel_degrees": list(sharding.expert_degrees),
        "limits": [
            {"size": limit.size, "what": limit.what, "parts": list(limit.parts)}
            for limit in sharding.limits
        ],
        "pipeline": None
        if stack is None
        else {
            "layers": stack.layers,
            "path": stack.path,
            "crosses": str(stack.carried),
            "first": list(stack.before),
            "last": list(stack.behind),
        },
        "parts": parts,
        "gradients_summed": {
            block: [
                {"part": e.part, "start": e.start, "size": e.size, "width": e.width}
                for e in entries
            ]
            for block, entries in sharding.entries.items()
        },
        "layout": dict(zip(("tp", "pp", "ep"), report.layout.sizes, strict=True)),
        "workload": {
            "context": report.context,
            "batch": report.batch,
            "weights": report.weights.name,
        },
        "bytes_of_a_gpu": [
            {
                "layers": [held.layers.start, held.layers.stop],
                "weights": held.weights,
                "kv": held.cache,
                "activations": held.activations,
                "total": held.total,
            }
            for held in report.held
        ],
        "traffic_of_a_token": [
            {"what": one.what, "times": one.times, "bytes": one.bytes, "sent_by_a_gpu": one.sent}
            for one in report.traffic
        ],
        "notes": list(report.notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
