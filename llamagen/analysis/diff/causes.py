"""Which changed value of the spec brings which difference about: found by changing one value at a time.

For each value A is built with B's, and B with A's. A difference that comes, or goes, with one value alone is caused by
it. A value that cannot be changed alone (the rest does not fit it) is known to have been tried in vain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llamagen.analysis.diff.features import Feature, Home, Kind, Local, signature
from llamagen.analysis.numbers import collapse
from llamagen.analysis.targets import Model
from llamagen.diagnostics import LlamagenError
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import names_read
from llamagen.spec.checks import validate
from llamagen.spec.resolve import Branch, ResolvedSpec, tree_to_plain

Path = tuple[str, ...]
Signature = Mapping[Home, Mapping[Local, object]]


@dataclass(frozen=True, slots=True)
class Influence:
    """Values that are changed together: what each model is with the other's."""

    paths: frozenset[str]
    """Dotted paths of the values."""
    sides: tuple[Signature | None, Signature | None]
    """Of A with B's values, of B with A's; none where that cannot be built."""


@dataclass(frozen=True, slots=True)
class Influences:
    models: tuple[Signature, Signature]
    tried: tuple[Influence, ...]

    def on(self, before: Feature | None, after: Feature | None) -> set[str]:
        """Paths of the values with which the difference between two features comes or goes."""
        return {
            path
            for one in self.tried
            if self._moves(0, one, before, after is None)
            or self._moves(1, one, after, before is None)
            for path in one.paths
        }

    def _moves(self, side: int, one: Influence, feature: Feature | None, alone: bool) -> bool:
        """Whether the feature is another with these values; one that the other model lacks must be gone."""
        changed = one.sides[side]
        if feature is None or changed is None:
            return False
        home, local = feature.home, _local(feature)
        now = changed.get(home, {}).get(local)
        if alone and feature.kind not in (Kind.BLOCK, Kind.EQUATION):
            return now is None
        return now != self.models[side].get(home, {}).get(local)


def _local(feature: Feature) -> Local:
    path, index = feature.own or (feature.path, feature.index)
    home = feature.home[1]
    match feature.kind:
        case Kind.EQUATION | Kind.BLOCK:
            return Kind.BLOCK, ""
        case kind if home is None:
            return kind, f"{path.rpartition('/')[2]} {index}"
        case kind:
            inside = path.rpartition("/")[2].removeprefix(collapse(home)[0])
            return kind, inside.removeprefix(".")


def influences(before: Model, after: Model, paths: Sequence[str]) -> Influences:
    """Of the values at ``paths``, which both specs have otherwise; those that only make sense together as one."""
    read = names_read(before.graphs) | names_read(after.graphs)
    together: dict[Path, list[str]] = {}
    for path in paths:
        if path.split(".")[1] not in read:
            continue  # nothing comes of it
        unit = _unit(tuple(path.split(".")), before.resolved, after.resolved, paths)
        together.setdefault(unit, []).append(path)
    a, b = before.resolved, after.resolved
    tried = tuple(
        Influence(frozenset(group), (_with_values(a, b, unit), _with_values(b, a, unit)))
        for unit, group in together.items()
    )
    return Influences((signature(before.graphs), signature(after.graphs)), tried)


def _unit(path: Path, a: ResolvedSpec, b: ResolvedSpec, changed: Sequence[str]) -> Path:
    """The mapping that is changed whole: a pattern, one whose kind differs, or one that a model lacks."""
    if path[0] == "patterns" or len(path) == 2:
        return path[:2]
    above = path[:2]
    lacks = a.find(*above) is None or b.find(*above) is None
    return above if lacks or ".".join((*above, "kind")) in changed else path


def _with_values(one: ResolvedSpec, other: ResolvedSpec, unit: Path) -> Signature | None:
    """``one`` with what ``other`` has at ``unit``; none where that cannot be built."""
    tree = _with(one.tree, unit, other.tree)
    plain = tree_to_plain(tree)
    try:
        return signature(
            build_all(replace(one, spec=validate(plain, tree), tree=tree, plain=plain))
        )
    except LlamagenError:
        return None


def _with(tree: Branch, path: Path, other: Branch) -> Branch:
    """``tree`` with what ``other`` has at ``path``, which can be nothing."""
    name, *rest = path
    entries, keys = dict(tree.entries), dict(tree.keys)
    mine, theirs = tree.entries.get(name), other.entries.get(name)
    if rest and isinstance(mine, Branch) and isinstance(theirs, Branch):
        entries[name] = _with(mine, tuple(rest), theirs)
    elif theirs is not None:
        entries[name], keys[name] = theirs, other.keys[name]
    else:
        entries.pop(name, None)
    return replace(tree, entries=entries, keys=keys)
