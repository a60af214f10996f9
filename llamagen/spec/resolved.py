"""A validated spec, its merged tree, and where everything in it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from llamagen.diagnostics import Diagnostic, Span
from llamagen.spec.source_nodes import Key, Plain, Scalar, Seq

if TYPE_CHECKING:
    from llamagen.spec.schema import Spec

ARCHITECTURE = ("root", "graphs", "hyperparameters", "constants", "patterns", "blocks")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a leaf's value was written: the spec that wrote it and the place."""

    spec_id: str
    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value of the merged tree; ``origins`` from the first base that wrote it to the one that counts."""

    node: Scalar | Seq
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A mapping of the merged tree. ``keys`` are the keys as last written."""

    entries: Mapping[str, Tree]
    keys: Mapping[str, Key]
    span: Span


Tree: TypeAlias = "Leaf | Branch"


@dataclass(frozen=True)
class ResolvedSpec:
    """A validated spec and where everything in it comes from."""

    spec: Spec
    tree: Branch
    plain: Mapping[str, Plain] = field(compare=False, repr=False)
    """``tree`` as plain data."""
    chain: tuple[str, ...]
    """Ids from the first base to the spec itself."""
    files: tuple[str, ...]
    """Their files; two may claim one id."""
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of the architecture (wiring and numbers, not the record), hex."""
        kept = {key: self.plain[key] for key in ARCHITECTURE if key in self.plain}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def leaves(self) -> tuple[tuple[str, Leaf], ...]:
        """Every leaf with its dotted path, in file order."""
        return self._leaves

    @cached_property
    def _leaves(self) -> tuple[tuple[str, Leaf], ...]:
        found: list[tuple[str, Leaf]] = []
        _collect_leaves(self.tree, "", found)
        return tuple(found)

    def leaf(self, *path: str) -> Leaf | None:
        found = self.find(*path)
        return found if isinstance(found, Leaf) else None

    def find(self, *path: str) -> Tree | None:
        tree: Tree | None = self.tree
        for name in path:
            tree = tree.entries.get(name) if isinstance(tree, Branch) else None
        return tree

    def scalar(self, *path: str) -> Scalar | None:
        found = self.leaf(*path)
        return found.node if found and isinstance(found.node, Scalar) else None

    def place(self, *path: str) -> Span | None:
        """The place of the value at ``path`` (of its key, for a mapping), or of the closest thing above it."""
        tree: Tree = self.tree
        span = self.tree.span
        for name in path:
            below = tree.entries.get(name) if isinstance(tree, Branch) else None
            if not isinstance(tree, Branch) or below is None:
                break
            span = tree.keys[name].span if isinstance(below, Branch) else below.node.span
            tree = below
        return span


def _collect_leaves(tree: Branch, prefix: str, into: list[tuple[str, Leaf]]) -> None:
    for name, below in tree.entries.items():
        if isinstance(below, Leaf):
            into.append((prefix + name, below))
        else:
            _collect_leaves(below, f"{prefix}{name}.", into)
