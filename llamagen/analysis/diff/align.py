"""Which feature of one model is which of another, with equal layers folded into one pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Protocol, TypeAlias

from llamagen.analysis.cost import Workload
from llamagen.analysis.diff.equations import canonical
from llamagen.analysis.diff.features import Equations, Feature, Kind, features
from llamagen.ir.graph import Graph
from llamagen.spec.expr import Static
from llamagen.spec.resolve import ResolvedSpec


class Comparable(Protocol):
    @property
    def resolved(self) -> ResolvedSpec: ...
    @property
    def graphs(self) -> Mapping[str, Graph]: ...


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


def pairs_of(before: Comparable, after: Comparable, load: Workload) -> Iterator[Pair]:
    """Every difference; equal features are left out. Deterministic: A's order, then what only B has.

    Of a record without wiring only what is published is compared: that a value is not known does not make it another.
    """
    wired = bool(before.graphs) and bool(after.graphs)
    a = list(features(before.resolved, before.graphs if wired else {}, load))
    b = list(features(after.resolved, after.graphs if wired else {}, load))
    plain = list(
        _folded(
            [f for f in a if isinstance(f, Feature)],
            [f for f in b if isinstance(f, Feature)],
        )
    )
    # A place that one model lacks is one change; settings of its ops would only repeat it.
    whole = {Kind.SETTING} if wired else {Kind.SETTING, Kind.VALUE, Kind.TOKENIZER, Kind.NAMING}
    kept = [p for p in plain if p.kind not in whole or (p.before and p.after)]
    grouped, fused = _grouped(kept)
    lines = list(
        _folded_equations(
            [f for f in a if isinstance(f, Equations)],
            [f for f in b if isinstance(f, Equations)],
            fused,
        )
    )
    order = list(Kind)
    found = [*grouped, *lines]
    yield from sorted(found, key=lambda p: order.index(p.kind))


_Ends: TypeAlias = "tuple[Static, Static, str, str]"
"""Both values and the names of their types: ``1`` and ``1.0`` are not the same change."""


def _folded(a: Sequence[Feature], b: Sequence[Feature]) -> Iterator[Pair]:
    left = _by_place(a)
    right = _by_place(b)
    for key in dict.fromkeys([*left, *right]):
        groups: dict[_Ends, list[tuple[int, ...]]] = {}
        ends: dict[_Ends, tuple[Feature | None, Feature | None]] = {}
        here, there = left.get(key, {}), right.get(key, {})
        for index in dict.fromkeys([*here, *there]):
            x, y = here.get(index), there.get(index)
            if x is not None and y is not None and _same(x, y):
                continue
            same: _Ends = (
                x.value if x else None,
                y.value if y else None,
                type(x.value).__name__ if x else "",
                type(y.value).__name__ if y else "",
            )
            groups.setdefault(same, []).append(index)
            ends.setdefault(same, (x, y))
        for both, indices in groups.items():
            x, y = ends[both]
            kind, path = key
            yield Pair(
                kind, path, len(indices), layer_text(indices), x, y, elsewhere=bool(here and there)
            )


def _same(x: Feature, y: Feature) -> bool:
    return x.value == y.value and isinstance(x.value, bool) == isinstance(y.value, bool)


def _by_place(
    items: Sequence[Feature],
) -> dict[tuple[Kind, str], dict[tuple[int, ...], Feature]]:
    found: dict[tuple[Kind, str], dict[tuple[int, ...], Feature]] = {}
    for item in items:
        found.setdefault((item.kind, item.path), {}).setdefault(item.index, item)
    return found


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
    alone = [p for p in pairs if p.kind is Kind.PARAMETER and (p.before is None or p.after is None)]
    marked: dict[int, tuple[tuple[int, ...], ...]] = {}
    parents: dict[str, list[Pair]] = {}
    for pair in alone:
        parents.setdefault(pair.path.rsplit(".", 2)[0], []).append(pair)
    for parent, several in parents.items():
        removed = [p for p in several if p.after is None and p.before]
        added = [p for p in several if p.before is None and p.after]
        for one, many in ((removed, added), (added, removed)):
            for whole in one:
                match = _pieces(whole, many)
                if match:
                    marked[id(whole)] = tuple(_shape(p) for p in match)
                    marked.update({id(p): (_shape(whole),) for p in match})
                    names = tuple(_part(p.path) for p in match)
                    fused.setdefault(parent, {})[_part(whole.path)] = names
    changed = [replace(p, group=marked[id(p)]) if id(p) in marked else p for p in pairs]
    return changed, fused


def _part(path: str) -> str:
    """``gate_proj`` of ``model.layers.*.mlp.gate_proj.weight``."""
    return path.rsplit(".", 2)[-2]


def _pieces(whole: Pair, candidates: Sequence[Pair]) -> list[Pair]:
    feature = whole.before or whole.after
    found = {p.path: p for p in candidates}
    ends = {path: end for path, p in found.items() if (end := p.before or p.after) is not None}
    return [found[path] for path in fused_group(feature, ends)] if feature is not None else []


def fused_group(whole: Feature, candidates: Mapping[str, Feature]) -> tuple[str, ...]:
    """Paths of consecutive candidates whose rows are the pieces that the result of ``whole`` is split into."""
    paths = list(candidates)
    shape = _sizes(whole)
    for start in range(len(paths)):
        for end in range(start + 2, len(paths) + 1):
            shapes = [_sizes(candidates[p]) for p in paths[start:end]]
            rows = tuple(s[0] for s in shapes)
            same = all(s[1:] == shape[1:] for s in shapes)
            if rows in whole.parts and sum(rows) == shape[0] and same:
                return tuple(paths[start:end])
    return ()


def _shape(pair: Pair) -> tuple[int, ...]:
    feature = pair.before or pair.after
    return _sizes(feature) if feature is not None else ()


def _sizes(feature: Feature) -> tuple[int, ...]:
    value = feature.value
    return tuple(n for n in value if isinstance(n, int)) if isinstance(value, tuple) else ()


def _folded_equations(
    a: Sequence[Equations],
    b: Sequence[Equations],
    fused: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Iterator[Pair]:
    left = {(e.path, e.index): e for e in a}
    right = {(e.path, e.index): e for e in b}
    groups: dict[tuple[str, tuple[str, ...] | None, tuple[str, ...] | None], list[_Place]] = {}
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
        groups.setdefault(key, []).append(_Place(place[1], x, y))
    for (path, _, _), places in groups.items():
        first = places[0]
        layers = layer_text([p.index for p in places])
        same = path in fused and _same_apart(first.before, first.after, fused[path])
        for pair in _line_pairs(path, len(places), layers, first.before, first.after):
            yield replace(pair, regrouped=same)


def _same_apart(
    x: Equations | None, y: Equations | None, fused: Mapping[str, tuple[str, ...]]
) -> bool:
    """Whether two blocks compute the same once every fused part is written as its pieces."""
    if x is None or y is None:
        return False
    texts = [canonical(e.graph, e.block, fused) for e in (x, y)]
    return texts[0] == texts[1]


@dataclass(frozen=True, slots=True)
class _Place:
    index: tuple[int, ...]
    before: Equations | None
    after: Equations | None


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
