"""Conflicts and uncertain values that still concern a spec: what an heir overrides is settled there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from llamagen.spec.record import Conflict, Uncertain
from llamagen.spec.resolved import Branch, Leaf, ResolvedSpec, Tree
from llamagen.spec.source_nodes import Seq

T = TypeVar("T", Conflict, Uncertain)


def conflicts(resolved: ResolvedSpec) -> tuple[Conflict, ...]:
    """Disagreements about values that no later spec of the chain wrote anew."""
    return _open(resolved, "conflicts", resolved.spec.conflicts)


def uncertain(resolved: ResolvedSpec) -> tuple[Uncertain, ...]:
    """Inferred values that no later spec of the chain wrote anew."""
    return _open(resolved, "uncertain", resolved.spec.uncertain)


def _open(resolved: ResolvedSpec, section: str, stated: Sequence[T]) -> tuple[T, ...]:
    leaf = resolved.leaf(section)
    if leaf is None or not isinstance(leaf.node, Seq):
        return tuple(stated)
    files = resolved.files
    kept: list[T] = []
    for entry, node in zip(stated, leaf.node.items, strict=True):
        about = resolved.find(*entry.path.split("."))
        if about is None and "*" not in entry.path:
            continue  # an heir went over to something that has no such value
        if last_written(about, files) <= files.index(node.span.file):
            kept.append(entry)
    return tuple(kept)


def last_written(tree: Tree | None, files: Sequence[str]) -> int:
    """The latest of a chain's ``files`` that wrote something at or below ``tree``; -1 for a path with a wildcard."""
    match tree:
        case None:
            return -1
        case Leaf(origins=origins):
            return files.index(origins[-1].span.file)
        case Branch(entries=entries):
            return max((last_written(below, files) for below in entries.values()), default=-1)
