"""Which block, part and weight of one model is which of another: by what they compute, not by what they are called.

Blocks are paired from the root down. A block that only wraps another (`language_model`) is stepped over when what is
in it is more alike; the layers of a stack are paired in order, so that inserted and removed ones are seen as that;
parts are paired by their names, then by what is computed around them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from llamagen.ir.graph import Block, BlockPart, Graph, OpPart, StackPart, join

LEAST = 0.4
"""Blocks that are less alike than this are two different blocks."""
MARGIN = 0.1
"""How much more alike what is inside a block must be for the block to be taken for a wrapper of it."""
GAP = 0.15
"""Layers that are this much more alike are worth a gap between those before them."""
WRAPPERS = 3
"""Blocks around one another that are looked through."""


Pairs: TypeAlias = Mapping[str, str]
"""Names or paths of B -> those of A."""


@dataclass(frozen=True, slots=True)
class Matching:
    """The blocks of B in the words of A."""

    blocks: Mapping[str, Pairs] = field(default_factory=dict)
    """By graph: role paths of the blocks that A has too."""
    renamed: Mapping[tuple[str, str], Pairs] = field(default_factory=dict)
    """By graph and role path in B of such a block: its parts that have another name in A."""

    def block(self, graph: str, path: str) -> str | None:
        """The role path in A of a block of B, if A has it."""
        return self.blocks.get(graph, {}).get(path)

    def name(self, graph: str, path: str, part: str) -> str:
        """The name in A of a part of the block at ``path``."""
        return self.renamed.get((graph, path), {}).get(part, part)

    def names(self, graph: str, path: str) -> frozenset[tuple[str, str]]:
        """Parts of the block at ``path`` that have another name in A, with that name."""
        return frozenset(self.renamed.get((graph, path), {}).items())


def match(before: Mapping[str, Graph], after: Mapping[str, Graph]) -> Matching:
    """Pairs of the blocks of each graph that both models have."""
    blocks: dict[str, Pairs] = {}
    renamed: dict[tuple[str, str], Pairs] = {}
    for name, graph in after.items():
        if name in before:
            matcher = _Matcher(before[name], graph)
            matcher.align(("", before[name].root_block), ("", graph.root_block))
            blocks[name] = matcher.pairs
            renamed.update({(name, path): names for path, names in matcher.renamed.items()})
    return Matching(blocks, renamed)


_Place: TypeAlias = tuple[str, Block]


class _Matcher:
    def __init__(self, a: Graph, b: Graph) -> None:
        self.a = a
        self.b = b
        self.pairs: dict[str, str] = {}
        self.renamed: dict[str, dict[str, str]] = {}
        self.bags: dict[tuple[int, str], Counter[str]] = {}
        self.alike: dict[tuple[str, str], float] = {}
        self.named: dict[tuple[str, str], Pairs] = {}

    def align(self, x: _Place, y: _Place) -> None:
        """Pair two blocks, or one of them with what the other wraps, and all that is below them."""
        (a_path, a), (b_path, b) = self.unwrapped(x, y)
        self.pairs[b_path] = a_path
        key = (a.name, b.name)
        if key not in self.named:
            self.named[key] = same_parts(a, b)
        renamed = {theirs: mine for theirs, mine in self.named[key].items() if theirs != mine}
        for mine, theirs in self.best(a, b):
            here, there = a.parts[mine], b.parts[theirs]
            if isinstance(here, StackPart) and isinstance(there, StackPart):
                renamed |= {theirs: mine} if mine != theirs else {}
                for i, j in self.layers(here.blocks, there.blocks):
                    self.align(
                        (join(a_path, f"{mine}.{i}"), self.a.blocks[here.blocks[i]]),
                        (join(b_path, f"{theirs}.{j}"), self.b.blocks[there.blocks[j]]),
                    )
            elif isinstance(here, BlockPart) and isinstance(there, BlockPart):
                ends = join(a_path, mine), join(b_path, theirs)
                self.align(
                    (ends[0], self.a.blocks[here.block]), (ends[1], self.b.blocks[there.block])
                )
                if mine != theirs and self.pairs.get(ends[1]) == ends[0]:
                    renamed[theirs] = mine
        if renamed:
            self.renamed[b_path] = renamed

    def unwrapped(self, x: _Place, y: _Place) -> tuple[_Place, _Place]:
        best, most = (x, y), self.likeness(x[1], y[1])
        inside = [(one, y) for one in _inside(self.a, x)] + [(x, one) for one in _inside(self.b, y)]
        for pair in inside:
            if (likeness := self.likeness(pair[0][1], pair[1][1])) > most + MARGIN:
                best, most = pair, likeness - MARGIN
        return best

    def best(self, a: Block, b: Block) -> Iterator[tuple[str, str]]:
        """Pairs of parts that are blocks, the most alike of all ways to pair them."""
        likeness: dict[tuple[str, str], float] = {}
        for mine, here in a.parts.items():
            for theirs, there in b.parts.items():
                if isinstance(here, OpPart) or type(here) is not type(there):
                    continue
                alike = [
                    self.through(self.a.blocks[p], self.b.blocks[q])
                    for p in set(here.below)
                    for q in set(there.below)
                ]
                likeness[mine, theirs] = max(alike, default=1.0) + 0.1 * (mine == theirs)
        pairs = _most({pair: x for pair, x in likeness.items() if x >= LEAST})
        yield from ((mine, pairs[mine]) for mine in a.parts if mine in pairs)

    def through(self, a: Block, b: Block) -> float:
        """How alike two blocks are, or one and what the other wraps."""
        (_, x), (_, y) = self.unwrapped(("", a), ("", b))
        return self.likeness(x, y)

    def layers(self, a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
        """Pairs of layers in the order of both stacks: the most alike, with few gaps; of equals the first."""
        gain = {
            (p, q): self.through(self.a.blocks[p], self.b.blocks[q]) - LEAST
            for p in set(a)
            for q in set(b)
        }
        size = (len(a) + 1) * (len(b) + 1)
        # The most that is to be gained from layers i and j on, by whether a gap before them is open.
        most = {gap: [0.0] * size for gap in (False, True)}
        at = [i * (len(b) + 1) for i in range(len(a) + 1)]
        for i in reversed(range(len(a))):
            for j in reversed(range(len(b))):
                taken = gain[a[i], b[j]] + most[False][at[i + 1] + j + 1]
                left = max(most[True][at[i + 1] + j], most[True][at[i] + j + 1])
                most[True][at[i] + j] = max(taken, left)
                most[False][at[i] + j] = max(taken, left - GAP)
        pairs, i, j, gap = [], 0, 0, False
        while i < len(a) and j < len(b):
            taken = gain[a[i], b[j]] + most[False][at[i + 1] + j + 1]
            if most[gap][at[i] + j] == taken:
                pairs.append((i, j))
                i, j, gap = i + 1, j + 1, False
            elif most[True][at[i] + j + 1] >= most[True][at[i + 1] + j]:
                j, gap = j + 1, True
            else:
                i, gap = i + 1, True
        return pairs

    def likeness(self, a: Block, b: Block) -> float:
        """0 for nothing in common, 1 for the same ops and parts: what is inside, what stands in the block itself."""
        key = (a.name, b.name)
        if key not in self.alike:
            deep = _common(self.bag(self.a, a), self.bag(self.b, b))
            own = _common(_own(a), _own(b))
            self.alike[key] = 0.6 * deep + 0.35 * own + 0.05 * (a.definition == b.definition)
        return self.alike[key]

    def bag(self, graph: Graph, block: Block) -> Counter[str]:
        """The ops of a block and of the different blocks below it."""
        key = (id(graph), block.name)
        if key not in self.bags:
            counted = Counter(node.op for node in block.nodes if not node.row.control)
            for name in sorted(set(block.below)):
                counted |= self.bag(graph, graph.blocks[name])
            self.bags[key] = counted
        return self.bags[key]


def _inside(graph: Graph, place: _Place, depth: int = WRAPPERS) -> Iterator[_Place]:
    """Blocks that stand in a block as parts of their own, not as layers of a stack."""
    path, block = place
    for name, part in block.parts.items() if depth else ():
        if isinstance(part, BlockPart):
            below = join(path, name), graph.blocks[part.block]
            yield below
            yield from _inside(graph, below, depth - 1)


def _own(block: Block) -> Counter[str]:
    words = Counter(node.op for node in block.nodes)
    words.update(f"part {name}" for name in block.parts)
    return words


def _common(a: Counter[str], b: Counter[str]) -> float:
    whole = a.total() + b.total()
    return 2 * (a & b).total() / whole if whole else 1.0


def same_parts(a: Block, b: Block) -> dict[str, str]:
    """Parts with weights of b -> those of a: by name, then by shape and by what is computed around them."""
    mine, theirs = ({n: p for n, p in one.parts.items() if isinstance(p, OpPart)} for one in (a, b))
    pairs = {n: n for n, p in theirs.items() if n in mine and mine[n].op == p.op}
    left = [p for n, p in mine.items() if n not in pairs]
    right = [p for n, p in theirs.items() if n not in pairs]
    likeness: dict[tuple[str, str], float] = {}
    for i, here in enumerate(left):
        for j, there in enumerate(right):
            shapes = [[q.shape for q in p.parameters] for p in (here, there)]
            places = _around(a, here.name), _around(b, there.name)
            around = places[0] == places[1]
            # One shape is not enough: what reads the result, or what reads that, is the same too.
            read = any(x == y for x, y in zip(*(p[1:3] for p in places), strict=True))
            if here.op == there.op and (around or (read and shapes[0] == shapes[1])):
                nearby = 0.1 / (1 + abs(i - j))
                likeness[here.name, there.name] = 2 * around + (shapes[0] == shapes[1]) + nearby
    return pairs | {theirs: mine for mine, theirs in _most(likeness).items()}


def _most(likeness: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """Of all ways to pair names the one with the greatest sum."""
    one_way = all(
        sum(pair[end] == other[end] for other in likeness) == 1
        for pair in likeness
        for end in (0, 1)
    )
    if one_way:
        return dict(list(likeness))
    import networkx as nx  # takes a quarter of a second, and names mostly agree

    graph: nx.Graph[tuple[int, str]] = nx.Graph()
    for (mine, theirs), weight in likeness.items():
        graph.add_edge((0, mine), (1, theirs), weight=weight)
    return {min(pair)[1]: max(pair)[1] for pair in nx.max_weight_matching(graph)}


def _around(block: Block, part: str) -> tuple[tuple[str, ...], ...]:
    """The ops that make a part's operands, and those that read its results and theirs."""
    made = {r: node.op for node in block.nodes for r in node.results}
    uses = [node for node in block.nodes if node.part == part]
    results = {r for node in uses for r in node.results}
    readers = [node for node in block.nodes if results & set(node.operands)]
    after = {r for node in readers for r in node.results}
    return (
        tuple(made.get(o, "input") for node in uses for o in node.operands),
        tuple(sorted(node.op for node in readers)),
        tuple(sorted(node.op for node in block.nodes if after & set(node.operands))),
        ("output",) if results & set(block.outputs) else (),
    )
