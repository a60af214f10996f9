"""Where a rule fits: its pattern's lines against the ops of a flat graph, from the first line backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamagen.analysis.rewrites.table import Line, Rule
from llamagen.ir.flatten import CacheSlot, FlatNode
from llamagen.ops.op import Positive, State, TensorType, a_float
from llamagen.ops.table import NODES
from llamagen.spec.evaluate import Static


@dataclass(frozen=True)
class Index:
    """A flat graph by value: who makes it, who reads it, its type; and the slot of every cache op."""

    nodes: tuple[FlatNode, ...]
    types: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    slots: Mapping[str, CacheSlot]
    """First result of a ``cache`` op -> its slot."""
    makers: Mapping[str, int] = field(init=False)
    readers: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        makers: dict[str, int] = {}
        readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            makers.update(dict.fromkeys(node.results, i))
            for operand in node.operands:
                readers.setdefault(operand, []).append(i)
        object.__setattr__(self, "makers", makers)
        object.__setattr__(self, "readers", {k: tuple(v) for k, v in readers.items()})


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
        for name, value in self.values.items():
            maker = index.makers.get(value)
            attrs = (
                dict(index.nodes[maker].attrs) if maker is not None and name in self._made() else {}
            )
            kind = _type(index.types.get(value))
            seen[name] = {**attrs, **kind, "positive": positive(value, index)}
        return seen

    def _made(self) -> set[str]:
        lines = (*self.rule.pattern, *self.rule.given)
        return {result for line in lines for result in line.results}


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
        maker = next(
            (index.makers[match.values[r]] for r in line.results if _made(r, match, index)), None
        )
        if maker is None or not _fits(line, index.nodes[maker], match, maker):
            return None
    match.taken = {match.nodes[line.results[0]] for line in rule.pattern}
    for line in rule.pattern:
        if line.op is not None and NODES[line.op].state is State.SLOT:
            slot = index.slots[match.values[line.results[0]]]
            match.values |= {
                "past_key": slot.past_key,
                "past_value": slot.past_value,
                "present_key": slot.present_key,
                "present_value": slot.present_value,
            }
            match.bounded = slot.keep is not None
    return match if _private(match, index) else None


def _made(name: str, match: Match, index: Index) -> bool:
    return match.values.get(name) in index.makers


def _fits(line: Line, node: FlatNode, match: Match, place: int) -> bool:
    """Whether ``node`` is the op of ``line`` with operands and results that agree with what is bound."""
    if node.op != line.op or len(node.results) != len(line.results):
        return False
    if not len(line.operands) - line.optional <= len(node.operands) <= len(line.operands):
        return False
    given = (*node.operands, *[""] * (len(line.operands) - len(node.operands)))
    for name, value in (
        *zip(line.results, node.results, strict=True),
        *zip(line.operands, given, strict=True),
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
