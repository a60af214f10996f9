"""Applying the rules of a profile to a flat graph, and counting what they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeAlias

from llamagen.analysis.rewrites.match import Index, Match, match_at
from llamagen.analysis.rewrites.rows import (
    LAST_ROW,
    PACKING,
    PACKING_AROUND,
    chosen_rows,
    pack_around,
    pack_rows,
)
from llamagen.analysis.rewrites.table import Line, RewrittenProfile, Rule, rewrite_rules
from llamagen.analysis.tables import fill, holds, value_of
from llamagen.ir.flatten import CacheSlot, FlatGraph, FlatNode
from llamagen.ops.op import AttrValue, State, TensorType
from llamagen.ops.table import NODES
from llamagen.spec.expr import Static

Logits: TypeAlias = Literal["last", "all"]
"""Whether the model gives logits of the last real token of a call, [B, 1, V], or of every one, [B, S, V]."""

LOGITS = "logits"
COUNTS_POSITIONS = "grouped-query-attention"
"""The rule whose operator rotates by the positions that it counts, not by those that are given."""


@dataclass(frozen=True, slots=True)
class ExpertCodes:
    """How an export quantises experts: bits a weight, inputs that share a scale, the accuracy level of products."""

    bits: int
    block: int
    level: int


@dataclass(frozen=True, slots=True)
class Export:
    """What conditions may depend on beside the graph. ``dtype`` is the export's."""

    profile: RewrittenProfile | Literal["portable"]
    dtype: str
    weights: Literal["copied", "referenced"] = "copied"
    logits: Logits = "all"
    experts: ExpertCodes | None = None
    """None: in ``dtype``."""


@dataclass(frozen=True)
class Rewritten:
    """``joined`` maps a new weight's name to the role paths that make it, first to last along the first axis."""

    flat: FlatGraph
    slots: Mapping[str, CacheSlot]
    """First result of each ``cache`` op that is left -> its slot."""
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fired: Mapping[str, int] = field(default_factory=dict)
    """Rule -> places."""
    stopped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rule -> reason -> places where the wiring fits and a condition does not hold."""


def rewrite(flat: FlatGraph, export: Export, outputs: Sequence[str] = (LOGITS,)) -> Rewritten:
    """The graph as the profile of ``export`` has it. The IR's meaning is kept, also for padded rows.

    ``outputs`` are the names of the graph's outputs: only one of the name ``logits`` can be cut to the last row.
    """
    if export.profile == "portable":
        return _with_logits(Rewritten(flat, cache_slots(flat)), export, outputs, packed=False)
    names = tuple(n for n, r in rewrite_rules().items() if export.profile in r.row.profiles)
    found = _Rewriter(flat, export).run(names)
    if any(node.row.state is State.OWN_SLOT for node in found.flat.nodes):
        packed, reason = pack_rows(found.flat)
        if reason is None:
            fired = {**found.fired, PACKING: 1}
            return _with_logits(
                replace(found, flat=packed, fired=fired), export, outputs, packed=True
            )
        # Other layers read the positions that are given, so none may count them itself.
        again = _Rewriter(flat, export).run(tuple(n for n in names if n != COUNTS_POSITIONS))
        around, count = pack_around(again.flat)
        found = replace(
            again,
            flat=around,
            fired={**again.fired, PACKING_AROUND: count},
            stopped={**again.stopped, PACKING: {reason: 1}},
        )
    return _with_logits(found, export, outputs, packed=False)


def _with_logits(
    found: Rewritten, export: Export, outputs: Sequence[str], *, packed: bool
) -> Rewritten:
    last = [export.logits == "last" and name == LOGITS for name in outputs]
    flat = chosen_rows(found.flat, last, packed=packed)
    fired = {**found.fired, LAST_ROW: 1} if any(last) else dict(found.fired)
    return replace(found, flat=flat, fired=fired)


def cache_slots(flat: FlatGraph) -> dict[str, CacheSlot]:
    """First result of each ``cache`` op -> its slot."""
    caches = (n.results[0] for n in flat.nodes if n.row.state is State.SLOT)
    return dict(zip(caches, flat.slots, strict=True))


class _Rewriter:
    def __init__(self, flat: FlatGraph, export: Export) -> None:
        self.flat = flat
        self.export = export
        self.nodes = flat.nodes
        self.types = dict(flat.types)
        self.outputs = flat.outputs
        self.slots = cache_slots(flat)
        for slot in flat.slots:
            for new, past, present in (
                (slot.key, slot.past_key, slot.present_key),
                (slot.value, slot.past_value, slot.present_value),
            ):
                self.types[past] = TensorType(new.dtype, (*new.shape[:2], slot.past, new.shape[3]))
                shape = (*new.shape[:2], new.shape[2] + slot.past, new.shape[3])
                self.types[present] = TensorType(new.dtype, shape)
        self.joined: dict[str, tuple[str, ...]] = {}
        self.fired: Counter[str] = Counter()
        self.stopped: dict[str, Counter[str]] = {}

    def run(self, names: tuple[str, ...]) -> Rewritten:
        for name in names:
            self.apply(rewrite_rules()[name])
        nodes = ordered(self.nodes, (*self.outputs, *self.presents()))
        flat = replace(self.flat, nodes=nodes, types=self.types, outputs=self.outputs)
        return Rewritten(flat, self.slots, self.joined, dict(self.fired), self.stopped)

    def presents(self) -> tuple[str, ...]:
        """What the caches leave: they stay, whoever reads them."""
        leaving = (State.SLOT, State.OWN_SLOT, State.WRITTEN)
        return tuple(r for node in self.nodes if node.row.state in leaving for r in node.results)

    def apply(self, rule: Rule) -> None:
        """One pass: places do not overlap, for a replaced op is not matched again in it."""
        index = Index(self.nodes, self.types, self.outputs, self.slots)
        gone: set[int] = set()
        new: dict[int, tuple[FlatNode, ...]] = {}
        aliases: dict[str, str] = {}
        for root, node in enumerate(self.nodes):
            if node.op != rule.pattern[0].op:
                continue
            match = match_at(rule, root, index)
            if match is None or match.taken & gone:
                continue
            scope = self.scope(match, index)
            reason = self.reason(rule, scope) or self.shared_weights(match, index)
            if reason is not None:
                self.stopped.setdefault(rule.name, Counter())[reason] += 1
                continue
            gone |= match.taken
            new[root] = self.replacement(match, index, scope, aliases)
            self.fired[rule.name] += 1
        nodes = [
            n
            for i, node in enumerate(self.nodes)
            for n in (new.get(i, ()) if i in gone else (node,))
        ]
        self.nodes = tuple(_renamed(n, aliases) for n in nodes)
        self.outputs = tuple(_last(o, aliases) for o in self.outputs)

    def scope(self, match: Match, index: Index) -> dict[str, Static]:
        scope, codes = match.scope(index), self.export.experts
        scope |= {
            "profile": self.export.profile,
            "dtype": self.export.dtype,
            "weights": self.export.weights,
            "codes": None if codes is None else asdict(codes),
        }
        for name, text in match.rule.row.let.items():
            scope[name] = value_of(text, scope)
        return scope

    def reason(self, rule: Rule, scope: Mapping[str, Static]) -> str | None:
        """Why the rule must not apply; None if it may."""
        for need in rule.row.needs:
            if not holds(need.condition, scope):
                return fill(need.reason, scope)
        return None

    def shared_weights(self, match: Match, index: Index) -> str | None:
        """A tied weight is never stored a second time inside a joined one."""
        for line in match.rule.replacement:
            if len(line.weights) < 2:
                continue
            paths = {
                p for w in line.weights for p in index.nodes[match.nodes[w]].parameters.values()
            }
            readers = Counter(
                p for n in self.nodes for p in set(n.parameters.values()) if p in paths
            )
            if max(readers.values(), default=1) > 1:
                return "a weight serves another op too"
        return None

    def replacement(
        self, match: Match, index: Index, scope: Mapping[str, Static], aliases: dict[str, str]
    ) -> tuple[FlatNode, ...]:
        made: list[FlatNode] = []
        values = match.values
        root = index.nodes[match.root]
        for line in match.rule.replacement:
            operands = [values[o] if o != "-" else "" for o in line.operands]
            if line.op is None:
                aliases[values[line.results[0]]] = operands[0]
                continue
            while operands and not operands[-1]:
                operands.pop()
            attrs = self.attrs(match, index, line, scope)
            path, parameters = self.weights(match, index, line)
            place = path or root.path
            kinds = NODES[line.op].shape([self.types[o] for o in operands if o], attrs)
            results: list[str] = []
            for name, kind in zip(line.results, kinds, strict=True):
                if name not in values:
                    values[name] = self.fresh(f"{place}/{name}")
                self.types[values[name]] = kind
                results.append(values[name])
            made.append(
                FlatNode(
                    line.op, place, tuple(operands), tuple(results), attrs, parameters, root.span
                )
            )
        return tuple(made)

    def attrs(
        self, match: Match, index: Index, line: Line, scope: Mapping[str, Static]
    ) -> dict[str, AttrValue]:
        attrs: dict[str, AttrValue] = {}
        for name in line.splats:
            attrs |= index.nodes[match.nodes[name]].attrs
        for name, text in line.attrs:
            value = value_of(text, scope)
            assert value is None or isinstance(value, int | float | bool | str), (name, value)
            attrs[name] = value
        return attrs

    def weights(self, match: Match, index: Index, line: Line) -> tuple[str, dict[str, str]]:
        """Where the op is and its parameters: those of one line, or those of several joined under a name of all."""
        if not line.weights:
            return "", {}
        sources = [index.nodes[match.nodes[name]] for name in line.weights]
        if len(sources) == 1:
            return sources[0].path, dict(sources[0].parameters)
        parents = {node.path.rpartition(".")[0] for node in sources}
        first = sources[0].path.rpartition(".")[0]
        names = [
            node.path.rpartition(".")[2] if len(parents) == 1 else node.path for node in sources
        ]
        path = f"{first}.{'+'.join(names)}"
        parameters: dict[str, str] = {}
        for local in sources[0].parameters:
            parameters[local] = f"{path}.{local}"
            self.joined[parameters[local]] = tuple(node.parameters[local] for node in sources)
        return path, parameters

    def fresh(self, name: str) -> str:
        if name not in self.types:
            return name
        count = 2
        while f"{name}~{count}" in self.types:
            count += 1
        return f"{name}~{count}"


def _last(value: str, aliases: Mapping[str, str]) -> str:
    while value in aliases:
        value = aliases[value]
    return value


def _renamed(node: FlatNode, aliases: Mapping[str, str]) -> FlatNode:
    operands = tuple(_last(o, aliases) for o in node.operands)
    return node if operands == node.operands else replace(node, operands=operands)


def ordered(nodes: tuple[FlatNode, ...], wanted: tuple[str, ...]) -> tuple[FlatNode, ...]:
    """The ops that ``wanted`` depends on, each after what it reads, otherwise in the order given."""
    makers = {r: i for i, n in enumerate(nodes) for r in n.results}
    needed: set[int] = set()
    open_ = [makers[w] for w in wanted if w in makers]
    while open_:
        i = open_.pop()
        if i not in needed:
            needed.add(i)
            open_ += [makers[o] for o in nodes[i].operands if o in makers]
    done: set[int] = set()
    order: list[int] = []
    for i in sorted(needed):
        stack = [i]
        while stack:
            top = stack[-1]
            read = (makers[o] for o in nodes[top].operands if o in makers)
            waiting = [i for i in read if i not in done]
            if top in done:
                stack.pop()
            elif waiting:
                stack += waiting
            else:
                done.add(top)
                order.append(top)
                stack.pop()
    return tuple(nodes[i] for i in order)
