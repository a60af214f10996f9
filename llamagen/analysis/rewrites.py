"""Profiles as rewrite tables: rules are data (spec/rules/rewrites.yaml), this file matches, applies and explains them.

Besides, two rewrites of the whole graph are code: where the rows of tokens stand, and which of them give logits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from typing import Literal, TypeAlias, get_args

from pydantic import Field

from llamagen.analysis.tables import fill, holds, load_table, value_of
from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import FlatGraph, FlatNode, Slot, flatten
from llamagen.ir.graph import Graph
from llamagen.ops.dims import B, S
from llamagen.ops.op import AttrValue, Positive, Role, State, TensorType, Tokens, a_float
from llamagen.ops.table import NODES
from llamagen.spec.expr import Static
from llamagen.spec.schema import Closed

# the table

RewrittenProfile: TypeAlias = Literal["ort-cpu", "ort-cuda", "ort-webgpu"]
"""The profiles that rewrite; ``portable`` has no rules."""

REWRITTEN_PROFILES: tuple[RewrittenProfile, ...] = get_args(RewrittenProfile)


class Need(Closed):
    """A condition, and the sentence that is said where it does not hold."""

    condition: str = Field(alias="is")
    reason: str = Field(alias="else")


class Case(Closed):
    """YAML laid over the test model: what the rule rewrites, and what it leaves when exported in ``dtype``."""

    fires: str
    silent: str
    dtype: Literal["float32", "float16"] = "float32"
    codes: Literal["none", "int4"] = "none"
    """Of the experts, in blocks of 16."""


class RewriteRow(Closed):
    """One rule as it is written."""

    title: str
    profiles: tuple[RewrittenProfile, ...] = Field(strict=False)
    pattern: str
    given: str = ""
    let: dict[str, str] = {}
    needs: tuple[Need, ...] = Field(default=(), strict=False)
    replacement: str
    why: str
    case: Case


class RewriteRows(Closed):
    version: Literal[1]
    rules: dict[str, RewriteRow]


@dataclass(frozen=True, slots=True)
class Line:
    """``results = op(operands; attributes) with weights of``. An alias ``y = x`` has no op.

    ``optional`` counts the last operands that may be absent; the operand ``-`` is never there.
    """

    results: tuple[str, ...]
    op: str | None
    operands: tuple[str, ...]
    optional: int
    splats: tuple[str, ...]
    attrs: tuple[tuple[str, str], ...]
    weights: tuple[str, ...]
    """Lines, by their first result, whose weights the new op has: one, or several to join."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row with its lines parsed. The first line of the pattern is where matching starts."""

    name: str
    row: RewriteRow
    pattern: tuple[Line, ...]
    given: tuple[Line, ...]
    replacement: tuple[Line, ...]


_LINE = re.compile(
    r"(?P<results>\w+(?:, \w+)*) = (?P<op>\w+)"
    r"(?:\((?P<operands>[^;()]*)(?:; (?P<attrs>.*))?\))?"
    r"(?: (?:with|joining) (?P<weights>\w+(?:, \w+)*))?"
)


def line_of(text: str) -> Line:
    """Parse one line. Raises LG103."""
    words = _LINE.fullmatch(text.strip())
    if words is None:
        raise LlamagenError.of("LG103", f"spec/rules/rewrites.yaml: `{text}` is not a line")
    results = tuple(words["results"].split(", "))
    weights = tuple(words["weights"].split(", ")) if words["weights"] else ()
    if words["operands"] is None:
        return Line(results, None, (words["op"],), 0, (), (), weights)
    operands = tuple(o for o in words["operands"].split(", ") if o)
    splats: list[str] = []
    attrs: list[tuple[str, str]] = []
    for word in (words["attrs"] or "").split(", "):
        if word.startswith("**"):
            splats.append(word[2:])
        elif word:
            name, _, value = word.partition("=")
            attrs.append((name, value))
    optional = sum(o.endswith("?") for o in operands)
    bare = tuple(o.removesuffix("?") for o in operands)
    return Line(results, words["op"], bare, optional, tuple(splats), tuple(attrs), weights)


def _lines(text: str) -> tuple[Line, ...]:
    return tuple(line_of(line) for line in text.splitlines() if line.strip())


@cache
def rewrite_rules() -> Mapping[str, Rule]:
    """Every rule by name, in the order in which they apply."""
    rows = load_table("rules/rewrites.yaml", RewriteRows).rules
    return {
        name: Rule(name, row, _lines(row.pattern), _lines(row.given), _lines(row.replacement))
        for name, row in rows.items()
    }


# where a rule fits: its lines against the ops of a flat graph, from the first line backwards


class Index:
    """A flat graph by value: who makes it, who reads it, its type; and the slot of every cache op."""

    def __init__(
        self,
        nodes: tuple[FlatNode, ...],
        types: Mapping[str, TensorType],
        outputs: tuple[str, ...],
        slots: Mapping[str, tuple[Slot, ...]],
    ) -> None:
        self.nodes = nodes
        self.types = types
        self.outputs = outputs
        self.slots = slots
        """First result of a ``cache`` op -> its slot."""
        self.makers = {result: i for i, node in enumerate(nodes) for result in node.results}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(nodes):
            for operand in node.operands:
                self.readers.setdefault(operand, []).append(i)


@dataclass
class Match:
    """One place. ``values`` maps names of the pattern to value ids, ``nodes`` the first result of a line to its op."""

    rule: Rule
    root: int
    values: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    """Ops that the replacement stands for: those of the pattern without the given ones."""
    bounded: bool = False
    """Whether a cache of it keeps no more than a window or a chunk."""

    def scope(self, index: Index) -> dict[str, Static]:
        """What conditions see of each value: its type, and the attributes of the op that makes it."""
        seen: dict[str, Static] = {"bounded": self.bounded}
        lines = (*self.rule.pattern, *self.rule.given)
        results = {result for line in lines for result in line.results}
        for name, value in self.values.items():
            maker = index.makers.get(value)
            attrs: dict[str, Static] = {}
            if maker is not None and name in results:
                node = index.nodes[maker]
                attrs = {**dict.fromkeys(a.name for a in node.row.attrs if a.derived), **node.attrs}
            kind = _type(index.types.get(value))
            seen[name] = {**attrs, **kind, "positive": positive(value, index)}
        return seen


def _type(of: TensorType | None) -> dict[str, Static]:
    if of is None:
        return {"present": False}
    sizes: tuple[Static, ...] = tuple(d.value if d.is_static else str(d) for d in of.shape)
    return {"present": True, "dtype": str(of.dtype), "shape": sizes}


def positive(value: str, index: Index) -> bool:
    """Whether ``value`` is above 0 for all inputs, as far as the ops that make it show."""
    maker = index.makers.get(value)
    if maker is None:
        return False
    node = index.nodes[maker]
    match node.row.positive:
        case None:
            return False
        case Positive.ALWAYS:
            return True
        case Positive.KEPT:
            return value == node.results[0] and positive(node.operands[0], index)
        case Positive.OF_ALL:
            return all(positive(operand, index) for operand in node.operands)
        case Positive.BY_NUMBER:
            return a_float(node.attrs, "value") > 0 and positive(node.operands[0], index)


def match_at(rule: Rule, root: int, index: Index) -> Match | None:
    """The match of ``rule`` that begins at op ``root``; None where the wiring is another."""
    match = Match(rule, root)
    first = rule.pattern[0]
    if not _fits(first, index.nodes[root], match, root):
        return None
    for line in (*rule.pattern[1:], *rule.given):
        makers = (index.makers.get(match.values.get(result, "")) for result in line.results)
        maker = next((m for m in makers if m is not None), None)
        if maker is None or not _fits(line, index.nodes[maker], match, maker):
            return None
    match.taken = {match.nodes[line.results[0]] for line in rule.pattern}
    for line in rule.pattern:
        if line.op is not None and NODES[line.op].state is State.SLOT:
            key, value = index.slots[match.values[line.results[0]]]
            match.values |= {
                "past_key": key.past,
                "past_value": value.past,
                "present_key": key.present,
                "present_value": value.present,
            }
            match.bounded = key.keep is not None
    return match if _private(match, index) else None


def _fits(line: Line, node: FlatNode, match: Match, place: int) -> bool:
    """Whether ``node`` is the op of ``line`` with operands and results that agree with what is bound."""
    if node.op != line.op or len(node.results) != len(line.results):
        return False
    if not len(line.operands) - line.optional <= len(node.operands) <= len(line.operands):
        return False
    operands = (*node.operands, *[""] * (len(line.operands) - len(node.operands)))
    for name, value in (
        *zip(line.results, node.results, strict=True),
        *zip(line.operands, operands, strict=True),
    ):
        if name != "_" and match.values.setdefault(name, value) != value:
            return False
    match.nodes[line.results[0]] = place
    return True


def _private(match: Match, index: Index) -> bool:
    """Whether no other op reads a value that is gone after the replacement."""
    kept = {result for line in match.rule.replacement for result in line.results}
    for line in match.rule.pattern:
        for name in line.results:
            value = match.values[name]
            if name in kept:
                continue
            if value in index.outputs or any(
                r not in match.taken for r in index.readers.get(value, ())
            ):
                return False
    return True


# applying the rules of a profile, and counting what they did

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
    slots: Mapping[str, tuple[Slot, ...]]
    """First result of each op with states in the graph before -> its slots."""
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
        return _with_logits(Rewritten(flat, flat.slots_of), export, outputs, packed=False)
    names = tuple(n for n, r in rewrite_rules().items() if export.profile in r.row.profiles)
    done = _Rewriter(flat, export).run(names)
    if any(node.row.state is State.OWN_SLOT for node in done.flat.nodes):
        packed, reason = pack_rows(done.flat)
        if reason is None:
            done = replace(done, flat=packed, fired={**done.fired, PACKING: 1})
            return _with_logits(done, export, outputs, packed=True)
        # Other layers read the positions that are given, so none may count them itself.
        again = _Rewriter(flat, export).run(tuple(n for n in names if n != COUNTS_POSITIONS))
        around, count = pack_around(again.flat)
        done = replace(
            again,
            flat=around,
            fired={**again.fired, PACKING_AROUND: count},
            stopped={**again.stopped, PACKING: {reason: 1}},
        )
    return _with_logits(done, export, outputs, packed=False)


def _with_logits(
    done: Rewritten, export: Export, outputs: Sequence[str], *, packed: bool
) -> Rewritten:
    last = [export.logits == "last" and name == LOGITS for name in outputs]
    flat = chosen_rows(done.flat, last, packed=packed)
    fired = {**done.fired, LAST_ROW: 1} if any(last) else dict(done.fired)
    return replace(done, flat=flat, fired=fired)


class _Rewriter:
    def __init__(self, flat: FlatGraph, export: Export) -> None:
        self.flat = flat
        self.export = export
        self.nodes = flat.nodes
        self.types = dict(flat.types)
        self.outputs = flat.outputs
        self.slots = flat.slots_of
        for slot in flat.slots:
            self.types |= {slot.past: slot.found, slot.present: slot.left}
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
        """What ops leave for later calls and other graphs: it stays, whoever reads them."""
        leaving = (State.SLOT, State.FIXED, State.OWN_SLOT, State.WRITTEN)
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
        nodes: list[FlatNode] = []
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
            nodes.append(
                FlatNode(
                    line.op, place, tuple(operands), tuple(results), attrs, parameters, root.span
                )
            )
        return tuple(nodes)

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


# the rows of tokens, [B, S]: real tokens to the front, and logits of the last real token alone

# The fused attention appends the real tokens of a chunk to each row's cache, one after the other, so it wants them at
# the front; clients put padding on the left, on the right or between. Where all other ops treat tokens one by one, the
# order is changed once as tokens enter and changed back as logits leave, and it costs nothing in the layers. Where some
# layers keep their own attention, it is changed around each fused one.

PACKING = "pack-rows"
PACKING_AROUND = "pack-rows-around-attention"
LAST_ROW = "last-logits"
MASK = "attention_mask"


def pack_rows(flat: FlatGraph) -> tuple[FlatGraph, str | None]:
    """The graph with its inputs [B, S, ...] packed at the entry, or the reason why it cannot be."""
    for node in flat.nodes:
        operands = [flat.types[o] for o in node.operands if o]
        results = [flat.types[r] for r in node.results]
        if not node.row.on_each_token(operands, results, node.attrs):
            where = f"at {node.path}" if node.path else "for all layers"
            return flat, f"`{node.op}` {where} mixes tokens"
    packed: dict[str, str] = {}
    entry: list[FlatNode] = []
    types = dict(flat.types)
    for name in flat.inputs:
        shape = types[name].shape
        if S in shape and shape[:2] != (B, S):
            return flat, f"tokens are another dimension of `{name}`"
        if S in shape:
            packed[name] = f"{name}/packed"
            types[packed[name]] = types[name]
            entry.append(FlatNode("pack_rows", "", (name, MASK), (packed[name],), {}, {}, None))
    nodes = [replace(n, operands=tuple(packed.get(o, o) for o in n.operands)) for n in flat.nodes]
    used = {o for n in nodes for o in n.operands}
    entry = [n for n in entry if n.results[0] in used]
    return replace(flat, nodes=(*entry, *nodes), types=types), None


def pack_around(flat: FlatGraph) -> tuple[FlatGraph, int]:
    """Rows packed before every fused attention and unpacked behind it; how many attentions."""
    types = dict(flat.types)
    nodes: list[FlatNode] = []
    packed: dict[str, str] = {}
    count = 0
    for node in flat.nodes:
        if node.row.state is not State.OWN_SLOT:
            nodes.append(node)
            continue
        count += 1
        for operand in filter(None, node.operands[:3]):
            if operand not in packed:
                packed[operand] = f"{operand}/packed"
                types[packed[operand]] = types[operand]
                entry = (operand, MASK), (packed[operand],)
                nodes.append(FlatNode("pack_rows", node.path, *entry, {}, {}, None))
        operands = tuple(packed.get(o, o) for o in node.operands[:3]) + node.operands[3:]
        result, *presents = node.results
        inside = f"{result}/packed"
        types[inside] = types[result]
        nodes.append(replace(node, operands=operands, results=(inside, *presents)))
        nodes.append(FlatNode("unpack_rows", node.path, (inside, MASK), (result,), {}, {}, None))
    return replace(flat, nodes=tuple(nodes), types=types), count


def chosen_rows(flat: FlatGraph, last: Sequence[bool], *, packed: bool) -> FlatGraph:
    """The last real row of outputs for which ``last`` says so, and all rows of the others where the client put them.

    The rows are chosen as early as possible: before the head, and before the norm where nothing else reads its operand.
    """
    for i, output in enumerate(flat.outputs):
        if (last[i] or packed) and S in flat.types[output].shape:
            flat = _at(flat, i, "last_row" if last[i] else "unpack_rows", packed)
    return flat


def _at(flat: FlatGraph, output: int, op: str, packed: bool) -> FlatGraph:
    makers = {r: i for i, n in enumerate(flat.nodes) for r in n.results}
    readers: dict[str, int] = {}
    for node in flat.nodes:
        for operand in node.operands:
            readers[operand] = readers.get(operand, 0) + 1
    value = flat.outputs[output]
    chain: list[int] = []
    while value in makers and readers.get(value, 0) + flat.outputs.count(value) == 1:
        node = flat.nodes[makers[value]]
        one = len(node.operands) == len(node.results) == 1
        if node.row.tokens is not Tokens.ALONE or not one:
            break
        chain.append(makers[value])
        value = node.operands[0]
    types = dict(flat.types)
    name = f"{value}/{op}"
    attrs = {"packed": packed}
    (types[name],) = NODES[op].shape([types[value]], attrs)
    chosen = FlatNode(op, "", (value, MASK), (name,), attrs, {}, None)
    nodes = list(flat.nodes)
    for i in reversed(chain):
        operand = name if nodes[i].operands[0] == value else nodes[i].operands[0]
        nodes[i] = replace(nodes[i], operands=(operand,))
        (types[nodes[i].results[0]],) = nodes[i].row.shape([types[operand]], nodes[i].attrs)
    nodes.insert(makers[value] + 1 if value in makers else 0, chosen)
    outputs = list(flat.outputs)
    if not chain:
        outputs[output] = name
    return replace(flat, nodes=tuple(nodes), types=types, outputs=tuple(outputs))


# words about profiles: their rules, and what the rules do to a model

_SHOWN: Mapping[RewrittenProfile, tuple[str, ...]] = {
    "ort-cpu": ("float32", "float16"),
    "ort-cuda": ("float16", "float32"),
    "ort-webgpu": ("float16",),
}
"""Dtypes whose rewrites differ; bfloat16 is rewritten like float16 on CUDA, and without skip-norm on the CPU."""

_CODES = ExpertCodes(bits=4, block=32, level=4)
"""What `--quantize int4` gives."""

_PACKING = """\
Where every attention is fused, ids (and positions, where they are still read) are sorted once as they enter, and hidden
states go back to the places of their tokens before the head. Padding may stand anywhere. Where another attention
remains (chunks), rows are sorted around each fused one instead, and rotations stay outside, by the positions given."""

_LAST_ROW = """\
The head is the largest product of a prompt, and only its last row is used to generate. `--logits last` is the default
of these profiles; `--logits all` keeps every row."""

_WHOLE: Mapping[str, tuple[str, str]] = {
    PACKING: ("Real tokens to the front of their row", _PACKING),
    LAST_ROW: ("Logits of the last real token of a call", _LAST_ROW),
}
"""Rewrites of the whole graph: title and why."""


def rules_text(profile: RewrittenProfile) -> str:
    """Every rule of ``profile`` in the order in which it applies, as it is written."""
    lines = [f"{profile}: the graph rewritten for operators of ONNX Runtime, rule by rule."]
    for rule in rewrite_rules().values():
        if profile in rule.row.profiles:
            lines += ["", *_rule(rule)]
    for name, (title, why) in _WHOLE.items():
        lines += ["", f"{name}: {title}", f"  why: {' '.join(why.split())}"]
    return "".join(f"{line}\n" for line in lines)


def _rule(rule: Rule) -> Iterator[str]:
    row = rule.row
    yield f"{rule.name}: {row.title}"
    yield from (f"  - {line}" for line in row.pattern.splitlines())
    yield from (f"    {line}" for line in row.given.splitlines())
    yield from (f"  + {line}" for line in row.replacement.splitlines())
    yield from (f"  if {need.condition}, else {need.reason}" for need in row.needs)
    yield f"  why: {' '.join(row.why.split())}"


def profiles_text(graphs: Mapping[str, Graph]) -> str:
    """How often each rule applies to each graph, and why it does not, for each profile and dtype."""
    return "".join(
        f"{name}.onnx\n{_graph(graph)}" if len(graphs) > 1 else _graph(graph)
        for name, graph in graphs.items()
    )


def _graph(graph: Graph) -> str:
    flat = flatten(graph)
    choices: list[ExpertCodes | None] = [None]
    if any(node.row.role is Role.EXPERTS for node in flat.nodes):
        choices.append(_CODES)
    lines: list[str] = []
    for profile in REWRITTEN_PROFILES:
        for dtype, codes in product(_SHOWN[profile], choices):
            export = Export(profile, dtype, logits="last", experts=codes)
            done = rewrite(flat, export, graph.output_names)
            kind = dtype if codes is None else f"{dtype}, experts int{codes.bits}"
            lines.append(f"{profile} {kind}: {len(flat.nodes)} ops become {len(done.flat.nodes)}")
            lines += (f"  {count:5} {name}" for name, count in done.fired.items() if count)
            lines += (
                f"  {count:5} not {name}: {reason}"
                for name, reasons in done.stopped.items()
                for reason, count in reasons.items()
            )
    return "".join(f"{line}\n" for line in lines)
