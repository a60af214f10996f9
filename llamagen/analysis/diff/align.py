"""Which feature of one model is which of another, with equal layers folded into one pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from llamagen.analysis.cost import Workload
from llamagen.analysis.diff.equations import canonical
from llamagen.analysis.diff.features import Equations, Feature, Kind, features, fused_group
from llamagen.analysis.targets import Model
from llamagen.spec.expr import Static


@dataclass(frozen=True, slots=True)
class Pair:
    """One difference, found ``times`` times. One end is none where the other model lacks it."""

    kind: Kind
    path: str
    times: int
    layers: str
    before: Feature | None
    after: Feature | None
    group: tuple[tuple[int, ...], ...] = ()
    """For weights: shapes of the tensors on the other side that hold the same rows."""
    elsewhere: bool = False
    """Of a place that one model lacks: whether both have it in other layers."""
    regrouped: bool = False
    """For equations: the same but for weights that one side has fused and the other apart."""


def pairs_of(before: Model, after: Model, load: Workload) -> Iterator[Pair]:
    """Every difference; equal features are left out. Deterministic: A's order, then what only B has.

    Of a record without wiring only what is published is compared: that a value is not known does not make it another.
    """
    wired = bool(before.graphs) and bool(after.graphs)
    a = list(features(before.resolved, before.graphs if wired else {}, load))
    b = list(features(after.resolved, after.graphs if wired else {}, load))
    plain = _folded(
        [f for f in a if isinstance(f, Feature)], [f for f in b if isinstance(f, Feature)]
    )
    # A place that one model lacks is one change; settings of its ops would only repeat it.
    whole = {Kind.SETTING} if wired else {Kind.SETTING, Kind.VALUE, Kind.TOKENIZER, Kind.NAMING}
    kept = [p for p in plain if p.kind not in whole or (p.before and p.after)]
    grouped, fused = _grouped(kept)
    lines = _folded_equations(
        [f for f in a if isinstance(f, Equations)],
        [f for f in b if isinstance(f, Equations)],
        fused,
    )
    order = list(Kind)
    yield from sorted([*grouped, *lines], key=lambda p: order.index(p.kind))


def _folded(a: Sequence[Feature], b: Sequence[Feature]) -> Iterator[Pair]:
    left, right = _by_place(a), _by_place(b)
    for kind, path in dict.fromkeys([*left, *right]):
        here, there = left.get((kind, path), {}), right.get((kind, path), {})
        groups: dict[tuple[str | None, str | None], list[tuple[int, ...]]] = {}
        for index in dict.fromkeys([*here, *there]):
            x, y = here.get(index), there.get(index)
            if x and y and _same(x.value, y.value):
                continue
            # told apart by how they are written: `1` and `1.0` are not the same change
            ends = (repr(x.value) if x else None, repr(y.value) if y else None)
            groups.setdefault(ends, []).append(index)
        for indices in groups.values():
            x, y = here.get(indices[0]), there.get(indices[0])
            layers, elsewhere = layer_text(indices), bool(here and there)
            yield Pair(kind, path, len(indices), layers, x, y, elsewhere=elsewhere)


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
            removed, added = parents.setdefault(pair.path.rsplit(".", 2)[0], ({}, {}))
            if pair.before is not None:
                removed[pair.path] = pair.before
            if pair.after is not None:
                added[pair.path] = pair.after
    for parent, (removed, added) in parents.items():
        for one, many in ((removed, added), (added, removed)):
            for path, whole in one.items():
                parts = fused_group(whole, many)
                if parts:
                    marked[path] = tuple(many[p].shape for p in parts)
                    marked.update(dict.fromkeys(parts, (whole.shape,)))
                    fused.setdefault(parent, {})[_part(path)] = tuple(map(_part, parts))
    changed = [
        replace(p, group=marked[p.path])
        if p.kind is Kind.PARAMETER and p.path in marked and not (p.before and p.after)
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
    fused: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Iterator[Pair]:
    left = {(e.path, e.index): e for e in a}
    right = {(e.path, e.index): e for e in b}
    groups: dict[
        tuple[str, tuple[str, ...] | None, tuple[str, ...] | None], list[tuple[int, ...]]
    ] = {}
    gone: set[tuple[str, tuple[int, ...]]] = set()
    for place in dict.fromkeys([*left, *right]):
        x, y = left.get(place), right.get(place)
        if x is not None and y is not None and x.canonical == y.canonical:
            continue
        if x is None or y is None:
            if _inside(place, gone):
                continue
            gone.add(place)
        key = (place[0], x.lines if x else None, y.lines if y else None)
        groups.setdefault(key, []).append(place[1])
    for (path, _, _), indices in groups.items():
        before, after = left.get((path, indices[0])), right.get((path, indices[0]))
        same = path in fused and _same_apart(before, after, fused[path])
        for pair in _line_pairs(path, len(indices), layer_text(indices), before, after):
            yield replace(pair, regrouped=same)


def _same_apart(
    x: Equations | None, y: Equations | None, fused: Mapping[str, tuple[str, ...]]
) -> bool:
    """Whether two blocks compute the same once every fused part is written as its pieces."""
    if x is None or y is None:
        return False
    texts = [canonical(e.graph, e.block, fused) for e in (x, y)]
    return texts[0] == texts[1]


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
            Feature(Kind.BLOCK, path, (), e.definition, e.definition, e.span) if e else None
            for e in (x, y)
        ]
        yield Pair(Kind.BLOCK, path, times, layers, ends[0], ends[1])
        return
    matcher = SequenceMatcher(None, x.lines, y.lines, autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag == "equal":
            continue
        before = _lines(path, x, a0, a1)
        after = _lines(path, y, b0, b1)
        yield Pair(Kind.EQUATION, path, times, layers, before, after)


def _lines(path: str, e: Equations, start: int, end: int) -> Feature | None:
    if start == end:
        return None
    text = "; ".join(e.lines[start:end])
    return Feature(Kind.EQUATION, path, (), text, text, e.spans[start])
