"""Which feature of one model is which of another, with equal layers folded into one pair."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from llamagen.analysis.cost import Workload
from llamagen.analysis.diff.equations import Fused
from llamagen.analysis.diff.features import (
    Equations,
    Feature,
    Home,
    Kind,
    features,
    fused_group,
)
from llamagen.analysis.diff.match import Matching
from llamagen.analysis.numbers import collapse
from llamagen.analysis.targets import Model
from llamagen.ir.graph import MAIN, OpPart, join
from llamagen.spec.expr import Static

ROOT = "the model"
"""What the block at the empty path is called."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One difference, found ``times`` times. One end is none where the other model lacks it."""

    kind: Kind
    path: str
    times: int
    layers: str
    before: Feature | None
    after: Feature | None
    place: str = ""
    """The path in the words of A, with ``NEW`` before what A has no block for."""
    group: tuple[tuple[int, ...], ...] = ()
    """For weights: shapes of the tensors on the other side that hold the same rows."""
    regrouped: bool = False
    """For equations: the same but for weights that one side has fused and the other apart."""
    reordered: bool = False
    """For equations: the same but for the order of sums or products."""


def pairs_of(before: Model, after: Model, same: Matching, load: Workload) -> Iterator[Pair]:
    """Every difference; equal features are left out. Deterministic: A's order, then what only B has.

    Of a record without wiring only what is published is compared: that a value is not known does not make it another.
    """
    wired = bool(before.graphs) and bool(after.graphs)
    a = list(features(before.resolved, before.graphs if wired else {}, load))
    b = list(features(after.resolved, after.graphs if wired else {}, load, same))
    plain = _folded(
        [f for f in a if isinstance(f, Feature)], [f for f in b if isinstance(f, Feature)]
    )
    # A place that one model lacks is one change; settings of its ops would only repeat it. Of a runtime that knows one
    # of them alone nothing is known to differ.
    whole = (
        {Kind.SETTING, Kind.RUNTIME}
        if wired
        else {Kind.SETTING, Kind.VALUE, Kind.TOKENIZER, Kind.NAMING}
    )
    kept = [p for p in plain if p.kind not in whole or (p.before and p.after)]
    grouped, fused = _grouped(kept)
    lines = _folded_equations(
        [f for f in a if isinstance(f, Equations)],
        [f for f in b if isinstance(f, Equations)],
        fused,
        _wrappers(same),
    )
    order = list(Kind)
    every = [*grouped, *_moves(after, same), *lines]
    yield from sorted(every, key=lambda p: order.index(p.kind))


def _moves(after: Model, pairs: Matching) -> Iterator[Pair]:
    """Blocks and weights that stand elsewhere, each with all that is in it."""
    places: dict[tuple[str, str], list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for graph, blocks in pairs.blocks.items():
        front = "" if graph == MAIN else f"{graph}/"
        known = pairs.blocks[MAIN] if graph != MAIN else {}
        for b_path, a_path in blocks.items():
            if known.get(b_path) != a_path and a_path != _expected(b_path, blocks):
                (a, i), (b, j) = collapse(a_path), collapse(b_path)
                places.setdefault((front + a, front + b), []).append((i, j))
            for theirs, mine in pairs.names(graph, b_path) if b_path not in known else ():
                block = next(x.block for x in after.graphs[graph].instances if x.path == b_path)
                part = block.parts[theirs]
                if isinstance(part, OpPart) and part.parameters:
                    (a, i), (b, j) = (
                        collapse(join(path, name))
                        for path, name in ((a_path, mine), (b_path, theirs))
                    )
                    places.setdefault((front + a, front + b), []).append((i, j))
    for (a, b), indices in places.items():
        layers, others = (layer_text([pair[end] for pair in indices]) for end in (0, 1))
        texts = [path or ROOT for path in (a, b)]
        if layers != others:
            texts = [f"{texts[0]} {layers}".strip(), f"{texts[1]} {others}".strip()]
        ends = [Feature(Kind.MOVED, a, (), text, text, None) for text in texts]
        yield Pair(Kind.MOVED, a, len(indices), layers, ends[0], ends[1])


def _expected(path: str, blocks: Mapping[str, str]) -> str | None:
    """Where A has a block of B if it stands in A's block as in B's."""
    above = path
    while above:
        above = above.rpartition(".")[0]
        if above in blocks:
            return join(blocks[above], path[len(above) :].removeprefix("."))
    return "" if not path else None


def _wrappers(pairs: Matching) -> tuple[frozenset[Home], frozenset[Home]]:
    """What stands above blocks that both models have, in each of them."""
    sides: tuple[set[Home], set[Home]] = set(), set()
    for graph, blocks in pairs.blocks.items():
        for ends in blocks.items():
            for side, path in zip(sides, reversed(ends), strict=True):
                while path:
                    path = path.rpartition(".")[0]
                    side.add((graph, path))
    return frozenset(sides[0]), frozenset(sides[1])


def _folded(a: Sequence[Feature], b: Sequence[Feature]) -> Iterator[Pair]:
    left, right = _by_place(a), _by_place(b)
    groups: dict[tuple[object, ...], list[tuple[Feature | None, Feature | None]]] = {}
    for place in dict.fromkeys([*left, *right]):
        here, there = left.get(place, {}), right.get(place, {})
        for index in dict.fromkeys([*here, *there]):
            x, y = here.get(index), there.get(index)
            if x and y and _same(x.value, y.value):
                continue
            # What B alone has is told by B's own path. Values are told apart by how they are written: `1` is not `1.0`.
            path = y.own[0] if x is None and y is not None and y.own is not None else place[1]
            ends = repr(x.value) if x else None, repr(y.value) if y else None
            groups.setdefault((place[0], path, ends), []).append((x, y))
    for group in groups.values():
        x, y = group[0]
        one = x or y
        assert one is not None
        indices = [_index(x, y) for x, y in group]
        path = one.path if x is not None or one.own is None else one.own[0]
        layers = layer_text(indices)
        yield Pair(one.kind, path, len(group), layers, x, y, place=one.path)


def _index(x: Feature | Equations | None, y: Feature | Equations | None) -> tuple[int, ...]:
    """In A; in B of what B alone has."""
    if x is not None:
        return x.index
    assert y is not None
    return y.own[1] if y.own is not None else y.index


def _same(x: Static, y: Static) -> bool:
    return x == y and isinstance(x, bool) == isinstance(y, bool)


def _by_place(
    items: Sequence[Feature],
) -> dict[tuple[Kind, str], dict[tuple[int, ...], Feature]]:
    places: dict[tuple[Kind, str], dict[tuple[int, ...], Feature]] = {}
    for item in items:
        places.setdefault((item.kind, item.path), {}).setdefault(item.index, item)
    return places


def layer_text(indices: Sequence[tuple[int, ...]]) -> str:
    """``0-31`` or ``3,7,11``; empty when there is only one place. Regular strides are kept short: ``3,7,...,47``."""
    numbers = sorted({i[0] for i in indices if i})
    if not numbers:
        return ""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    if len(texts) > 4:
        texts = [*texts[:2], "...", texts[-1]]
    return ",".join(texts)


def _grouped(
    pairs: Sequence[Pair],
) -> tuple[list[Pair], Mapping[str, Mapping[str, tuple[str, ...]]]]:
    """Mark weights that only one side has, but whose rows the other side keeps in other tensors.

    Also, by block, the fused parts and the parts that they are made of.
    """
    fused: dict[str, dict[str, tuple[str, ...]]] = {}
    marked: dict[str, tuple[tuple[int, ...], ...]] = {}
    parents: dict[str, tuple[dict[str, Feature], dict[str, Feature]]] = {}
    for pair in pairs:
        if pair.kind is Kind.PARAMETER and (pair.before is None) != (pair.after is None):
            removed, added = parents.setdefault(pair.place.rsplit(".", 2)[0], ({}, {}))
            if pair.before is not None:
                removed[pair.place] = pair.before
            if pair.after is not None:
                added[pair.place] = pair.after
    for parent, (removed, added) in parents.items():
        for one, many in ((removed, added), (added, removed)):
            for path, whole in one.items():
                parts = fused_group(whole, many)
                if parts:
                    marked[path] = tuple(many[p].shape for p in parts)
                    marked.update(dict.fromkeys(parts, (whole.shape,)))
                    fused.setdefault(parent, {})[_part(path)] = tuple(map(_part, parts))
    changed = [
        replace(p, group=marked[p.place])
        if p.kind is Kind.PARAMETER and p.place in marked and not (p.before and p.after)
        else p
        for p in pairs
    ]
    return changed, fused


def _part(path: str) -> str:
    """``gate_proj`` of ``model.layers.*.mlp.gate_proj.weight``."""
    return path.rsplit(".", 2)[-2]


def _folded_equations(
    a: Sequence[Equations],
    b: Sequence[Equations],
    fused: Mapping[str, Fused],
    wrappers: tuple[frozenset[Home], frozenset[Home]],
) -> Iterator[Pair]:
    left = {(e.path, e.index): e for e in a}
    right = {(e.path, e.index): e for e in b}
    groups: dict[
        tuple[str, tuple[str, ...] | None, tuple[str, ...] | None],
        list[tuple[Equations | None, Equations | None]],
    ] = {}
    gone: set[tuple[str, tuple[int, ...]]] = set()
    meanings: dict[tuple[object, ...], tuple[str, ...]] = {}

    def meaning(e: Equations) -> tuple[str, ...]:
        key = (id(e.graph), e.block.name, e.names)
        if key not in meanings:
            meanings[key] = e.meaning()
        return meanings[key]

    for place in dict.fromkeys([*left, *right]):
        x, y = left.get(place), right.get(place)
        if x is not None and y is not None and meaning(x) == meaning(y):
            continue
        if x is None or y is None:
            one, side = (x, wrappers[0]) if y is None else (y, wrappers[1])
            assert one is not None
            if _inside(place, gone) or (one.home in side and _only_calls(one)):
                continue
            gone.add(place)
        path = y.own[0] if x is None and y is not None and y.own is not None else place[0]
        key = (path, x.lines if x else None, y.lines if y else None)
        groups.setdefault(key, []).append((x, y))
    for (path, _, _), group in groups.items():
        x, y = group[0]
        regrouped = reordered = False
        if x is not None and y is not None:
            apart = fused.get(path)
            regrouped = apart is not None and x.meaning(apart) == y.meaning(apart)
            reordered = x.meaning(rounded=False) == y.meaning(rounded=False)
        layers = layer_text([_index(*ends) for ends in group])
        for pair in _line_pairs(path, len(group), layers, x, y):
            yield replace(pair, regrouped=regrouped, reordered=reordered)


def _only_calls(one: Equations) -> bool:
    """Whether a block does nothing but run others: around a block that both have it is a path, no change of its own."""
    parts = one.block.parts.values()
    return all(n.row.control for n in one.block.nodes) and not any(
        isinstance(part, OpPart) for part in parts
    )


def _inside(place: tuple[str, tuple[int, ...]], gone: set[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a block above ``place`` is already reported as absent."""
    graph, _, _ = place[0].rpartition("/")
    if graph and place[0] != f"{graph}/" and (f"{graph}/", ()) in gone:
        return True
    words = place[0].split(".")
    for n in range(1, len(words)):
        above = ".".join(words[:n])
        if (above, place[1][: above.count("*")]) in gone:
            return True
    return False


def _line_pairs(
    path: str, times: int, layers: str, x: Equations | None, y: Equations | None
) -> Iterator[Pair]:
    if x is None or y is None:
        ends = [
            Feature(
                Kind.BLOCK,
                e.path,
                e.index,
                e.block.definition,
                e.block.definition,
                e.block.span,
                home=e.home,
                own=e.own,
            )
            if e
            else None
            for e in (x, y)
        ]
        yield Pair(Kind.BLOCK, path, times, layers, ends[0], ends[1])
        return
    mine = x.compared()
    theirs = _with_names_of(x, mine, y)
    changed = [
        (_lines(x, a0, a1), _lines(y, b0, b1))
        for tag, a0, a1, b0, b1 in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
    # Lines that are the same by name can stand for other values: then what is returned differs.
    last = _lines(x, -1, None), _lines(y, -1, None)
    for before, after in changed or [last]:
        yield Pair(Kind.EQUATION, path, times, layers, before, after)


def _with_names_of(x: Equations, mine: Sequence[str], y: Equations) -> list[str]:
    """The lines of ``y``, with the names that ``x`` has for the same inputs and for values computed alike."""
    names = {
        second.id: first.id for first, second in zip(x.block.inputs, y.block.inputs, strict=False)
    }
    targets = {right: left for left, _, right in (line.partition(" = ") for line in mine) if right}
    lines: list[str] = []
    for line in y.compared():
        here = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), line)
        _, sign, right = here.partition(" = ")
        if sign and right in targets:
            own = line.partition(" = ")[0]
            names.update(zip(own.split(", "), targets[right].split(", "), strict=False))
            here = f"{targets[right]} = {right}"
        lines.append(here)
    return lines


def _lines(e: Equations, start: int, end: int | None) -> Feature | None:
    if start == end:
        return None
    text = "; ".join(e.lines[start:end])
    return Feature(
        Kind.EQUATION, e.path, e.index, text, text, e.spans[start], home=e.home, own=e.own
    )
