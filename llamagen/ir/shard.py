"""How a graph may be cut over several ranks: tensor parallelism, experts and pipeline stages, by dataflow.

A value is whole on every rank, or each rank has an equal part of it along one axis. A linear part that reads a whole
value is tried as *column*: its result is cut along the features. One that reads a value cut along its features is
*row*: every rank has a summand of the result, which is whole after an all-reduce. What ops make of cut operands is in
the op table (``Op.cut``). Where one needs whole values, the column linears that its operand comes from are made whole
on every rank, with that as the reason, and all is derived again; so everything that is left fits together.

Training needs two facts more. A parameter that is whole where values are cut has a part of its gradient on each rank
(``Style.SHARED``), and so has a whole value that meets cut ones elsewhere than in a linear part (``Entry``): both are
summed over the ranks. Shapes of arXiv 1909.08053 come out of it, and nothing here knows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from math import gcd
from typing import TypeAlias

from llamagen.diagnostics import Span
from llamagen.ir.flatten import carried
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart, join
from llamagen.ops.dims import S
from llamagen.ops.op import (
    Cut,
    DType,
    NeedsCut,
    NeedsWhole,
    Role,
    TensorType,
    a_int,
    a_ints,
    axis_of,
)

Key: TypeAlias = tuple[str, str]
"""A block definition and the name of a part of it."""


FLOATS = (DType.MODEL, DType.FLOAT32)


class Style(Enum):
    """What a rank has of the weights of a part. A part without one is whole on each, and so is what it computes."""

    COLUMN = "a part of the result's features"
    ROW = "a part of the operand's features; results are summed over the ranks"
    VOCABULARY = "rows of some ids; results are summed over the ranks"
    HEAD = "logits of some ids, which are gathered"
    EXPERTS = "a part of every expert's features; results are summed over the ranks"
    NORM = "a part of the features that it normalises over all ranks"
    PARAMETER = "a part along one axis"
    SHARED = "all, for the rank's part of the values; its gradient is summed over the ranks"
    WHOLE = "all: it could be cut, but for the reason"


@dataclass(frozen=True, slots=True)
class Share:
    """How ranks share one part of a block definition."""

    style: Style
    units: int = 0
    """Pieces that the degree must divide; 0 where any degree will do."""
    limit: str = ""
    """What the units are."""
    pieces: tuple[int, ...] = ()
    """Sizes of what a column linear computes at once: each is cut by itself."""
    axis: int = 0
    """Of a parameter."""
    reason: str = ""
    """Why a linear part is whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole value that meets cut ones: the features ``start..start + size - 1`` of what part ``part`` returns."""

    part: str
    start: int
    size: int
    width: int
    """All its features."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A size that a degree must divide, and the parts whose it is, as ``Attention.k_proj``."""

    size: int
    what: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers that may be on several ranks: cuts are between them, and ``carried`` crosses each."""

    path: str
    layers: int
    carried: TensorType
    beside: int
    """How many values more cross: operands that every layer reads, states that are collected."""
    before: tuple[str, ...]
    """Role paths of the parts that run before the layers, on the first rank."""
    behind: tuple[str, ...]
    """And of those behind them, on the last."""
    span: Span | None


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What ``plan`` found. Keys are block definitions and names of parts; ``at`` has them by role path."""

    graph: Graph
    shares: Mapping[Key, Share]
    entries: Mapping[str, tuple[Entry, ...]]
    """Block -> whole values whose gradient is summed over the ranks."""
    reductions: Mapping[str, tuple[int, ...]]
    """Block -> features of the values that are summed over the ranks, those of blocks below left out."""
    statistics: Mapping[str, int]
    """Block -> norms over cut features: a sum of one number a token each."""
    cut: frozenset[tuple[str, str]]
    """Block and id of every value of which a rank has a part."""
    split: frozenset[tuple[str, str]]
    """Block and first result of every op that cuts such a value into pieces."""
    attentions: frozenset[tuple[int, int]]
    """Heads and key/value heads of every attention whose heads are cut."""
    keys: frozenset[Key]
    """Parts that cut keys and values come from."""
    stacks: tuple[Stack, ...]
    experts: tuple[int, ...]
    """Numbers of experts that there are, one for each kind of layer."""
    forced: Mapping[Key, str] = field(default_factory=dict)
    """Linear parts that could be cut and are not, since more is cut so, and that as the reason."""

    @property
    def at(self) -> dict[str, Share]:
        """Role path of a part -> its share; parts that are whole as all around them are left out."""
        return {
            join(here.path, name): share
            for here in self.graph.instances
            for name in here.block.parts
            if (share := self.shares.get((here.block.name, name))) is not None
        }

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The sizes that tensor-parallel degrees divide, least first."""
        found: dict[tuple[int, str], list[str]] = {}
        for (block, part), share in self.shares.items():
            if share.units:
                found.setdefault((share.units, share.limit), []).append(f"{block}.{part}")
        return tuple(Limit(*key, tuple(parts)) for key, parts in sorted(found.items()))

    @property
    def degrees(self) -> tuple[int, ...]:
        """Legal tensor-parallel degrees: 1, and divisors of all limits."""
        return divisors(gcd(*(limit.size for limit in self.limits)))

    @property
    def expert_degrees(self) -> tuple[int, ...]:
        """Legal expert-parallel degrees: each rank has as many whole experts."""
        return divisors(gcd(*self.experts))

    def stopped_by(self, degree: int) -> Limit | None:
        """The least size that ``degree`` does not divide."""
        return next((limit for limit in self.limits if limit.size % degree), None)

    def repeats(self, degree: int) -> bool:
        """Whether ``degree`` needs nothing but key/value heads to be on several ranks each, as engines can do it."""
        others = (share.units for key, share in self.shares.items() if key not in self.keys)
        return (
            self.stopped_by(degree) is not None
            and all(units % degree == 0 for units in others)
            and all(
                heads % degree == 0 and (kv % degree == 0 or degree % kv == 0)
                for heads, kv in self.attentions
            )
        )


def divisors(n: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, n + 1) if n % d == 0) or (1,)


def plan(graph: Graph, whole: Mapping[Key, str] | None = None) -> ShardPlan:
    """How ``graph`` is cut; every graph has a plan. Of two linear parts one after the other either can be column.

    Linear parts in ``whole`` stay so, for the reason there.

    Where the second may stay cut after it, as queries behind a small projection (DeepSeek), that leaves less to each
    rank: so each column part is tried as whole, and what cuts most weights is kept; of equals what sums less often.
    """
    uses = Counter({graph.root: 1})
    for block in reversed([*graph.blocks.values()]):
        for below in block.below:
            uses[below] += uses[block.name]
    sizes = {
        (block.name, part.name): uses[block.name] * sum(p.count for p in part.parameters)
        for block in graph.blocks.values()
        for part in block.parts.values()
        if isinstance(part, OpPart)
    }

    def cut_by(found: ShardPlan) -> tuple[int, int]:
        cut = sum(sizes[key] for key, share in found.shares.items() if share.style in _LESS)
        return cut, -sum(map(sum, found.reductions.values()))

    best = _derived(graph, whole or {})
    tried: set[Key] = set()
    while True:
        shares = best.shares.items()
        to_gain = sum(sizes[key] for key, share in shares if share.style is Style.WHOLE)
        columns = (key for key, share in shares if share.style is Style.COLUMN)
        key = next((k for k in columns if sizes[k] < to_gain and k not in tried), None)
        if key is None:
            return best
        tried.add(key)
        other = _derived(graph, {**best.forced, key: "more is cut behind it"})
        if cut_by(other) > cut_by(best):
            best = other


_LESS = (
    *(Style.COLUMN, Style.ROW, Style.VOCABULARY, Style.HEAD),
    *(Style.EXPERTS, Style.NORM, Style.PARAMETER),
)
"""Styles that leave a rank less to hold."""


def _derived(graph: Graph, forced: Mapping[Key, str]) -> ShardPlan:
    """The plan in which column comes first, but for parts that are ``forced`` to be whole."""
    whole = dict(forced)
    parameters: dict[Key, int] = {}
    while True:
        attempt = _Attempt(graph, whole, parameters)
        try:
            return replace(attempt.made(), forced=forced)
        except _Again as again:
            new = [key for key in again.whole if key not in whole]
            if not new and not again.parameters:  # then nothing is cut that leads to it
                cut = (Style.COLUMN, Style.PARAMETER)
                new = [key for key, share in attempt.shares.items() if share.style in cut]
            whole.update(dict.fromkeys(new, again.reason))
            parameters.update(again.parameters)
            for key in whole:
                parameters.pop(key, None)


@dataclass(frozen=True, slots=True)
class _Source:
    """Features of a column linear, or the places along the axis of a parameter, that a cut value is made of."""

    key: Key
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut value; none, here as in ``ops``, is a whole one."""

    cut: Cut
    sources: frozenset[_Source]
    what: str
    """What its units are."""


_State: TypeAlias = "_Cut | None"
_Keys: TypeAlias = frozenset[Key]


class _Again(Exception):
    """The attempt does not work out: these parts are whole, or these parameters are cut along an axis."""

    def __init__(
        self,
        reason: str = "",
        whole: Iterable[Key] = (),
        parameters: Mapping[Key, int] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.whole, self.parameters = reason, sorted(set(whole)), parameters or {}
        assert self.whole or self.parameters, reason


@dataclass(slots=True)
class _Attempt:
    """One derivation, with what earlier ones found. ``made`` raises _Again where it does not work out."""

    graph: Graph
    whole: Mapping[Key, str]
    parameters: Mapping[Key, int]
    shares: dict[Key, Share] = field(default_factory=dict)
    entries: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    reductions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    statistics: dict[str, int] = field(default_factory=dict)
    cut: set[tuple[str, str]] = field(default_factory=set)
    split: set[tuple[str, str]] = field(default_factory=set)
    attentions: set[tuple[int, int]] = field(default_factory=set)
    keys: set[Key] = field(default_factory=set)
    units: dict[Key, tuple[int, str]] = field(default_factory=dict)
    """Pieces that stay whole of what is made of a part, and what they are."""
    bounds: dict[Key, set[int]] = field(default_factory=dict)
    """Where the features of a fused linear are cut into pieces."""
    read: list[tuple[_Source, int, str]] = field(default_factory=list)
    """Features of which some op reads so many at a time, and its name."""
    heads: frozenset[Key] = frozenset()
    called: dict[str, list[_State]] = field(default_factory=dict)

    def made(self) -> ShardPlan:
        graph = self.graph
        self.heads = frozenset(_heads(graph))
        root = graph.root_block
        results, _ = self.run(root, [None] * len(root.inputs))
        if any(results):
            raise _Again(f"{root.name} returns it", _keys(results))
        for source, grain, op in self.read:
            inside = (b for b in self.bounds.get(source.key, ()) if source.start < b < source.stop)
            if any((b - source.start) % grain for b in inside):
                raise _Again(f"{op} reads several pieces of it as one", [source.key])
        self.tied()
        shares = {key: self.finished(key, share) for key, share in self.shares.items()}
        parts = {
            (block.name, part.name): part
            for block in graph.blocks.values()
            for part in block.parts.values()
            if isinstance(part, OpPart)
        }
        unused = {
            key: Share(Style.WHOLE, reason=reason)
            for key, reason in self.whole.items()
            if parts[key].row.role in (Role.LINEAR, Role.EMBEDDING) and key not in shares
        }
        experts = (part.attrs for part in parts.values() if part.row.role is Role.EXPERTS)
        return ShardPlan(
            graph,
            shares | unused,
            {name: entries for name, entries in self.entries.items() if entries},
            self.reductions,
            self.statistics,
            frozenset(self.cut),
            frozenset(self.split),
            frozenset(self.attentions),
            frozenset(self.keys),
            tuple(_stacks(graph)),
            tuple(sorted({a_int(attrs, "num_experts") for attrs in experts})),
        )

    def run(self, block: Block, inputs: Sequence[_State]) -> tuple[list[_State], dict[int, _Keys]]:
        """States of what a block returns, and the inputs that meet cut values, with the parts those come from."""
        before = self.called.setdefault(block.name, list(inputs))
        if [s and s.cut for s in before] != [s and s.cut for s in inputs]:
            raise _Again(f"{block.name} reads whole values too", _keys([*before, *inputs]))
        body = _Body(self, block)
        body.states = {v.id: s for v, s in zip(block.inputs, inputs, strict=True)}
        for node in block.nodes:
            body.node(node)
        met = body.gradients()
        self.entries[block.name] = tuple(body.entries)
        self.reductions[block.name] = tuple(body.sums)
        self.statistics[block.name] = body.statistics
        self.cut |= {(block.name, name) for name, s in body.states.items() if s and s.cut.units}
        return [body.states.get(o) for o in block.outputs], met

    def share(self, key: Key, share: Share) -> None:
        """Every use of a part shares it in the same way."""
        if self.shares.setdefault(key, share).style is not share.style:
            raise _Again("is read in two ways", [key])

    def finished(self, key: Key, share: Share) -> Share:
        """With the units of what is made of it, and its pieces."""
        if share.style not in (Style.COLUMN, Style.PARAMETER):
            return share
        units, what = self.units[key]
        bounds = sorted(self.bounds.get(key, ()))
        pieces = tuple(b - a for a, b in pairwise(bounds))
        return replace(share, units=units, limit=what, pieces=pieces if len(pieces) > 1 else ())

    def tied(self) -> None:
        """One weight that two parts have is cut once."""
        ways = (Style.VOCABULARY, Style.HEAD, Style.COLUMN)
        ties = self.graph.ties
        paths = self.graph.op_parts if ties else ()
        keys = {path: (block.name, part.name) for path, block, part in paths}
        for path, part in ties.items():
            assert part.tied_to is not None
            pair = [keys[p.removesuffix(".weight")] for p in (path, part.tied_to)]
            shares = [self.shares.get(key) for key in pair]
            rows = [
                s is not None and s.style in ways and k not in self.bounds
                for k, s in zip(pair, shares, strict=True)
            ]
            others = [s is not None and s.style is Style.ROW for s in shares]
            if not all(rows) and (any(rows) or any(others)):
                raise _Again("shares its weight with a part that is cut in another way", pair)


@dataclass(slots=True)
class _Body:
    """One block in one attempt."""

    attempt: _Attempt
    block: Block
    states: dict[str, _State] = field(default_factory=dict)
    sums: list[int] = field(default_factory=list)
    statistics: int = 0
    met: dict[tuple[str, str], _Keys] = field(default_factory=dict)
    """Whole value and the first result of a node where it meets cut ones -> the parts that those come from."""
    entries: list[Entry] = field(default_factory=list)

    def state(self, operand: str) -> _State:
        return None if operand.startswith("@") else self.states.get(operand)

    def node(self, node: Node) -> None:
        part = self.block.part_of(node)
        states = [self.state(o) for o in node.operands]
        results: Sequence[_State]
        match part:
            case BlockPart(block=below):
                results, met = self.call(below, states)
                for i, keys in met.items():
                    self.meets(node, i, keys)
            case StackPart(blocks=blocks):
                self.layers(node, blocks, states)
                results = [None] * len(node.results)
            case OpPart() if part.row.role in _PARTS:
                results = [_PARTS[part.row.role](self, node, part, states)]
            case _:
                results = self.op(node, states)
        self.states.update(zip(node.results, results, strict=True))

    def call(self, name: str, states: Sequence[_State]) -> tuple[list[_State], dict[int, _Keys]]:
        given = [s if s and s.cut.units else None for s in states]
        return self.attempt.run(self.attempt.graph.blocks[name], given)

    def layers(self, node: Node, blocks: Iterable[str], states: Sequence[_State]) -> None:
        """What layers hand on is whole, and so is what all of them read."""
        count = carried(node)
        for below in dict.fromkeys(blocks):
            results, met = self.call(below, states)
            if _keys([*states, *results]):
                raise _Again("is carried from layer to layer", _keys([*states, *results]))
            for i, keys in met.items():
                if i < count:
                    raise _Again("meets the whole value that layers carry", keys)
                self.meets(node, i, keys)

    # parts with weights

    def embedding(self, node: Node, part: OpPart, states: Sequence[_State]) -> _State:
        if (key := self.key(part)) not in self.attempt.whole:
            self.attempt.share(key, Share(Style.VOCABULARY))
            self.sums.append(a_int(part.attrs, "features"))
        return None

    def linear(self, node: Node, part: OpPart, states: Sequence[_State]) -> _State:
        key, (state,), width = self.key(part), states, a_int(part.attrs, "out_features")
        rank = len(self.block.values[node.results[0]].type.shape)
        if state is None or not state.cut.units:
            if key in self.attempt.whole:
                return None
            if key in self.attempt.heads:
                self.attempt.share(key, Share(Style.HEAD))
                return None
            self.attempt.share(key, Share(Style.COLUMN))
            return self.made(Cut(rank - 1, width), frozenset({_Source(key, 0, width)}), rank)
        if state.cut.axis != rank - 1:
            self.attempt.share(key, Share(Style.SHARED))
            return state
        if key in self.attempt.whole:
            raise _Again(self.attempt.whole[key], _keys(states))
        self.attempt.share(key, Share(Style.ROW, state.cut.units, state.what))
        self.reads(part.op, states)
        self.sums.append(width)
        return None

    def experts(self, node: Node, part: OpPart, states: Sequence[_State]) -> _State:
        self.whole(part.op, states)
        width = a_int(part.attrs, "intermediate")
        self.attempt.share(self.key(part), Share(Style.EXPERTS, width, "expert features"))
        self.sums.append(a_int(part.attrs, "features"))
        return None

    def parameter(self, node: Node, part: OpPart, states: Sequence[_State]) -> _State:
        key = self.key(part)
        axis = self.attempt.parameters.get(key)
        if axis is None:
            return None
        shape = a_ints(part.attrs, "shape")
        self.attempt.share(key, Share(Style.PARAMETER, axis=axis))
        source = _Source(key, 0, shape[axis])
        return self.made(Cut(axis, shape[axis]), frozenset({source}), len(shape))

    def norm(self, node: Node, part: OpPart, states: Sequence[_State]) -> _State:
        """Over the features of one head it is as it was; over cut ones it needs a number of the other ranks."""
        (state,), rank = states, len(self.block.values[node.results[0]].type.shape)
        if state is None or not state.cut.units:
            return None
        if state.cut.axis != rank - 1:
            self.attempt.share(self.key(part), Share(Style.SHARED))
            return state
        self.attempt.share(self.key(part), Share(Style.NORM, state.cut.units, state.what))
        self.reads(part.op, states)
        self.statistics += 1
        return state

    # ops

    def op(self, node: Node, states: Sequence[_State]) -> Sequence[_State]:
        """As the row says; whole values that meet cut ones are remembered."""
        operands = self.attempt.graph.operand_types(self.block, node)
        results = [self.block.values[r].type for r in node.results]
        given = tuple(s.cut if s else None for s in states)
        try:
            cuts = node.row.cut_results(given, operands, results, node.attrs)
        except NeedsWhole as reason:
            self.whole(f"{node.op} {reason}", states)
            return [None] * len(results)
        except NeedsCut as needed:
            key, axis = self.parameter_of(node, needed, states)
            raise _Again(parameters={key: axis}) from None
        keys = _keys(states)
        for i, s in enumerate(states if keys else ()):
            if s is None or not s.cut.units:
                self.meets(node, i, keys)
        if node.row.role is Role.ATTENTION and cuts[0]:
            heads, kv = (t.shape[1].value for t in operands[:2])
            self.attempt.attentions.add((heads, kv))
            self.attempt.keys |= _keys(states[1:3])
        first = states[0] if states else None
        if (
            node.row.role is Role.SPLIT
            and first
            and axis_of(node.attrs, len(operands[0].shape)) == first.cut.axis
        ):
            return self.pieces(node, first, operands[0])
        sources = frozenset(source for s in states if s for source in s.sources)
        if len({s.sources for s in states if s and s.cut.units}) > 1:
            self.reads(node.op, states)
        return [
            self.made(c, sources, len(t.shape)) if c else None
            for c, t in zip(cuts, results, strict=True)
        ]

    def pieces(self, node: Node, state: _Cut, type_: TensorType) -> list[_State]:
        """What is computed at once is cut piece by piece: each rank has a part of every piece."""
        results: list[_State] = []
        axis, start = state.cut.axis, 0
        if axis != len(type_.shape) - 1 and len(set(a_ints(node.attrs, "sizes"))) > 1:
            raise _Again("is cut into unequal numbers of heads", _keys([state]))
        self.attempt.split.add((self.block.name, node.results[0]))
        whole = type_.shape[axis].value
        for size in a_ints(node.attrs, "sizes"):
            sources = set()
            for source in state.sources:
                if source.key in self.attempt.parameters:
                    raise _Again("is cut into pieces", [source.key])
                each = (source.stop - source.start) // whole
                begin = source.start + start * each
                end = begin + size * each
                self.attempt.bounds.setdefault(source.key, set()).update((begin, end))
                sources.add(_Source(source.key, begin, end))
            results.append(self.made(Cut(axis, size), frozenset(sources), len(type_.shape)))
            start += size
        return results

    def parameter_of(
        self, node: Node, needed: NeedsCut, states: Sequence[_State]
    ) -> tuple[Key, int]:
        """The parameter that an operand is, reshaped perhaps, and the axis that makes it cut as needed."""
        chain: list[Node] = []
        producer = self.producers.get(node.operands[needed.operand])
        while producer is not None and len(producer.operands) == 1 and producer.part is None:
            chain.insert(0, producer)
            producer = self.producers.get(producer.operands[0])
        part = self.block.part_of(producer) if producer else None
        if not isinstance(part, OpPart) or part.row.role is not Role.PARAMETER:
            raise _Again(f"{node.op} {needed}", _keys(states))
        key, shape = self.key(part), a_ints(part.attrs, "shape")
        graph = self.attempt.graph
        for axis, size in enumerate(shape):
            cut: Cut | None = Cut(axis, size)
            try:
                for step in chain:
                    types = graph.operand_types(self.block, step)
                    after = [self.block.values[r].type for r in step.results]
                    (cut,) = step.row.cut_results((cut,), types, after, step.attrs)
            except (NeedsWhole, NeedsCut):
                continue
            if cut and cut.axis == needed.axis and key not in self.attempt.whole:
                return key, axis
        raise _Again(f"{node.op} {needed}", _keys(states))

    def made(self, cut: Cut, sources: frozenset[_Source], rank: int) -> _Cut:
        what = "heads" if (cut.axis, rank) == (1, 4) else "features"
        known = [self.attempt.units[s.key] for s in sources if s.key in self.attempt.units]
        names = {name for units, name in known if units == cut.units}
        what = "heads" if "heads" in names or (not names and what == "heads") else "features"
        if cut.units:
            keys = frozenset(source.key for source in sources)
            if cut.units == 1:
                raise _Again(f"its {what} cannot be cut into equal parts", keys)
            for source in sources:
                before, name = self.attempt.units.get(source.key, (0, what))
                now = gcd(before, cut.units)
                self.attempt.units[source.key] = now, name if now == before else what
                grain = max(1, (source.stop - source.start) // cut.units)
                self.attempt.read.append((source, grain, what))
        return _Cut(cut, sources, what)

    def reads(self, op: str, states: Iterable[_State]) -> None:
        """An op for which the order of all features matters."""
        for source in (source for s in states if s for source in s.sources):
            self.attempt.read.append((source, source.stop - source.start, op))

    def whole(self, what: str, states: Sequence[_State]) -> None:
        if _keys(states):
            raise _Again(what, _keys(states))

    # gradients

    def meets(self, node: Node, i: int, keys: _Keys) -> None:
        value = node.operands[i]
        type_ = self.attempt.graph.type_of(self.block, value)
        if not value.startswith("@") and type_.dtype in FLOATS:
            known = self.met.get((value, node.results[0]), frozenset())
            self.met[value, node.results[0]] = known | keys

    def gradients(self) -> dict[int, _Keys]:
        """Finds where the gradients of whole values that meet cut ones are summed: behind a part, or by the caller.

        A value may be followed back only while all that is made of it meets cut values: what a column linear reads has
        its whole gradient already.
        """
        inputs: dict[int, _Keys] = {}
        names = [v.id for v in self.block.inputs]
        waiting = [(value, keys) for (value, _), keys in self.met.items()]
        followed: set[str] = set()
        checked: list[tuple[str, _Keys]] = []
        while waiting:
            value, keys = waiting.pop()
            if value in followed or value.startswith("@"):
                continue
            followed.add(value)
            checked.append((value, keys))
            node = self.producers.get(value)
            part = self.block.part_of(node) if node else None
            if node is None:
                inputs[names.index(value)] = keys
            elif isinstance(part, OpPart) and part.row.role is Role.PARAMETER:
                self.attempt.share(self.key(part), Share(Style.SHARED))
            elif part is not None:
                width = self.block.values[value].type.shape[-1].value
                self.enters(Entry(part.name, 0, width, width), node, keys)
            elif node.row.role is Role.SPLIT and self.piece_of(node, value, keys):
                pass
            else:
                waiting += [(operand, keys) for operand in node.operands]
        for value, keys in checked:
            users = [n for n in self.block.nodes if value in n.operands]
            alone = all(
                (value, n.results[0]) in self.met or followed.issuperset(n.results) for n in users
            )
            if not alone or value in self.block.outputs:
                raise _Again("meets a whole value that is used elsewhere too", keys)
        return inputs

    def enters(self, entry: Entry, node: Node, keys: _Keys) -> None:
        if len(node.results) != 1:
            raise _Again("meets one of several whole values", keys)
        if entry not in self.entries:
            self.entries.append(entry)

    def piece_of(self, node: Node, value: str, keys: _Keys) -> bool:
        """A piece of what a part returns: the gradient of those features alone is summed."""
        (operand,), sizes = node.operands, a_ints(node.attrs, "sizes")
        rank = len(self.block.values[value].type.shape)
        producer = self.producers.get(operand)
        part = self.block.part_of(producer) if producer else None
        if axis_of(node.attrs, rank) != rank - 1 or producer is None or part is None:
            return False
        if isinstance(part, OpPart) and part.row.role is Role.PARAMETER:
            return False
        if (
            sum(operand in n.operands for n in self.block.nodes) > 1
            or operand in self.block.outputs
        ):
            return False
        i = node.results.index(value)
        self.enters(Entry(part.name, sum(sizes[:i]), sizes[i], sum(sizes)), producer, keys)
        return True

    @property
    def producers(self) -> dict[str, Node]:
        return {result: node for node in self.block.nodes for result in node.results}

    def key(self, part: OpPart) -> Key:
        return self.block.name, part.name


_PARTS = {
    Role.EMBEDDING: _Body.embedding,
    Role.LINEAR: _Body.linear,
    Role.EXPERTS: _Body.experts,
    Role.PARAMETER: _Body.parameter,
    Role.NORM: _Body.norm,
}


def _keys(states: Iterable[_State]) -> _Keys:
    """Parts that cut values come from."""
    return frozenset(x.key for s in states if s and s.cut.units for x in s.sources)


# between cut regions each rank may have some of the tokens


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """How ranks share the tokens where nothing is cut (sequence parallelism, arXiv 2205.05198)."""

    gathered: Mapping[Key, bool]
    """Parts before whose first operand the tokens of all ranks come together; whether column linears alone read it,
    so that its gradient may stay a summand."""
    shared: frozenset[Key]
    """Whole parts that see a rank's tokens alone: their gradients are summed."""


def sequence_of(found: ShardPlan) -> SharedTokens | str:
    """How the tokens are shared, or why they cannot be: then with what op a rank's tokens and all of them meet."""
    tokens = _Tokens(found)
    try:
        root = found.graph.root_block
        if any(tokens.run(root, [False] * len(root.inputs))):
            return f"{root.name} returns a rank's tokens"
    except _NotShared as reason:
        return str(reason)
    return SharedTokens(tokens.gathered, frozenset(tokens.shared))


class _NotShared(Exception):
    """Where a rank's tokens meet those of all."""


@dataclass(slots=True)
class _Tokens:
    """A walk over blocks: which values are a rank's tokens (True), in a plan that is not changed any more."""

    found: ShardPlan
    gathered: dict[Key, bool] = field(default_factory=dict)
    shared: set[Key] = field(default_factory=set)

    def run(self, block: Block, inputs: Sequence[bool]) -> list[bool]:
        mine = {v.id: is_mine for v, is_mine in zip(block.inputs, inputs, strict=True)}
        for node in block.nodes:
            states = [mine.get(o, False) for o in node.operands]
            part = block.part_of(node)
            match part:
                case BlockPart():
                    results = self.call(block, node, part, states)
                case StackPart(blocks=blocks):
                    several = [
                        self.run(self.found.graph.blocks[b], states) for b in dict.fromkeys(blocks)
                    ]
                    if len(node.results) > 1 or any(r != states[:1] for r in several):
                        raise _NotShared(
                            f"layers of {node.part} do not hand on the tokens that they get"
                        )
                    results = states[:1]
                case OpPart():
                    results = [self.part(block, node, part, states)]
                case _:
                    results = [self.op(block, node, states)] * len(node.results)
            mine.update(zip(node.results, results, strict=True))
        return [mine.get(o, False) for o in block.outputs]

    def call(self, block: Block, node: Node, part: BlockPart, states: list[bool]) -> list[bool]:
        """A block that only multiplies its input by column parts gets all tokens, and so does one that must."""
        below = self.found.graph.blocks[part.block]
        if states == [True]:
            users = [n for n in below.nodes if below.inputs[0].id in n.operands]
            columns = all(
                share is not None and share.style is Style.COLUMN
                for share in (self.found.shares.get((below.name, n.part or "")) for n in users)
            )
            if not columns:
                kept = dict(self.gathered), set(self.shared)
                try:
                    return self.run(below, states)
                except _NotShared:
                    self.gathered, self.shared = kept
            self.gathered[block.name, part.name] = columns
            states = [False]
        return self.run(below, states)

    def part(self, block: Block, node: Node, part: OpPart, states: list[bool]) -> bool:
        key = (block.name, part.name)
        share = self.found.shares.get(key)
        match share.style if share else Style.WHOLE:
            case Style.VOCABULARY | Style.ROW:
                return True
            case Style.COLUMN | Style.HEAD:
                if states[0]:
                    self.gathered[key] = True
                return False
            case Style.EXPERTS:
                if not all(states):
                    raise _NotShared(f"{part.name} of {block.name} reads all tokens")
                return True
            case _ if any(states):
                self.shared.add(key)
                return self.op(block, node, states)
            case _:
                return False

    def parameters_of(self, block: Block, operand: str) -> Iterator[Key]:
        """Parameters that a value without tokens is made of."""
        node = next((n for n in block.nodes if operand in n.results), None)
        if node is None and not operand.startswith("@"):
            raise _NotShared(f"{block.name} is handed a weight for a rank's tokens")
        part = block.part_of(node) if node else None
        if isinstance(part, OpPart) and part.row.role is Role.PARAMETER:
            if (block.name, part.name) in self.found.shares:
                raise _NotShared(f"{part.name} of {block.name} is for a rank's tokens and for all")
            yield block.name, part.name
        elif node is not None:
            for below in node.operands:
                yield from self.parameters_of(block, below)

    def op(self, block: Block, node: Node, states: list[bool]) -> bool:
        """Of a rank's tokens alone, if every token of the result comes of its own, and stays in the second place."""
        if not any(states):
            return False
        graph = self.found.graph
        types = graph.operand_types(block, node)
        results = [block.values[r].type for r in node.results]
        for operand, t, is_mine in zip(node.operands, types, states, strict=True):
            if not is_mine and ((len(t.shape) > 1 and t.shape[1] == S) or S in t.shape):
                raise _NotShared(f"{node.op} of {block.name} joins a rank's tokens and all of them")
            if not is_mine:
                self.shared.update(self.parameters_of(block, operand))
        places = {t.shape.index(S) if S in t.shape else -1 for t in results}
        if places != {1} or not node.row.on_each_token(types, results, node.attrs):
            raise _NotShared(f"{node.op} of {block.name} needs the tokens of all ranks")
        return True


def _heads(graph: Graph) -> Iterator[Key]:
    """Linear parts whose results reach those of the model through elementwise ops alone."""
    waiting = [(graph.root_block, output) for output in graph.root_block.outputs]
    while waiting:
        block, value = waiting.pop()
        node = next((n for n in block.nodes if value in n.results), None)
        part = block.part_of(node) if node else None
        if node is None:
            continue
        if isinstance(part, BlockPart):
            below = graph.blocks[part.block]
            waiting.append((below, below.outputs[node.results.index(value)]))
        elif part is None and node.row.elementwise:
            waiting += [(block, operand) for operand in node.operands]
        elif isinstance(part, OpPart) and part.row.role is Role.LINEAR:
            yield block.name, part.name


def _stacks(graph: Graph) -> Iterator[Stack]:
    """Stacks that no other holds, each with what the blocks around it run before and behind it."""

    def visit(path: str, block: Block) -> Iterator[Stack]:
        def places(nodes: Iterable[Node]) -> tuple[str, ...]:
            return tuple(join(path, node.part) for node in nodes if node.part is not None)

        for i, node in enumerate(block.nodes):
            part, behind = block.part_of(node), block.nodes[i + 1 :]
            made = {v.id for v in block.inputs} | {r for n in block.nodes[:i] for r in n.results}
            late = {o for n in behind for o in n.operands if o in made} | (made & {*block.outputs})
            crossing = sum(block.values[v].type.dtype in FLOATS for v in late)
            if isinstance(part, StackPart):
                carried = graph.type_of(block, node.operands[0])
                crossing += len(node.operands) + len(node.results) - 2
                ends = places(block.nodes[:i]), places(behind)
                yield Stack(
                    join(path, part.name), len(part.blocks), carried, crossing, *ends, part.span
                )
            elif isinstance(part, BlockPart):
                for stack in visit(join(path, part.name), graph.blocks[part.block]):
                    yield replace(
                        stack,
                        beside=stack.beside + crossing,
                        before=(*places(block.nodes[:i]), *stack.before),
                        behind=(*stack.behind, *places(behind)),
                    )

    return visit("", graph.root_block)


def pipeline_stack(found: ShardPlan) -> Stack | None:
    """The layers that stages may share: there is one stack, one value crosses each cut, and each weight has a stage."""
    if len(found.stacks) != 1:
        return None
    (stack,) = found.stacks
    return None if stack.beside or set(stack.before) & set(stack.behind) else stack


def stage_layers(layers: int, stages: int) -> tuple[range, ...]:
    """The layers of each pipeline stage; where parts cannot be equal, some of the later ones have one more."""
    ends = [layers * i // stages for i in range(stages + 1)]
    return tuple(range(a, b) for a, b in pairwise(ends))
