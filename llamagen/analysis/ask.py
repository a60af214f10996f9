"""Targets of questions: an id, a YAML file, or a file at a revision of git (``rev:path``), as typed models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamagen.analysis.revision import is_revision, spec_at
from llamagen.ir.build_graphs import MAIN, build_all
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolved import ResolvedSpec


@dataclass(frozen=True, slots=True)
class Model:
    """A spec and its graphs. ``graph``, the text model, is none for a record without published wiring."""

    resolved: ResolvedSpec
    graph: Graph | None
    beside: Mapping[str, Graph] = field(default_factory=dict)
    """Further graphs by name: encoders, and what joins them to the text."""

    @property
    def id(self) -> str:
        return self.resolved.spec.id

    @property
    def graphs(self) -> dict[str, Graph]:
        """All graphs by name, ``model`` (the text model) first; empty without wiring."""
        return {MAIN: self.graph, **self.beside} if self.graph is not None else {}


def model_of(target: str) -> Model:
    """The model of an id, of a YAML file, or of ``rev:path``. Raises LlamagenError; LG401 never (graph is none)."""
    return built(resolved_of(target))


def resolved_of(target: str | Path, registry: Registry | None = None) -> ResolvedSpec:
    """The spec of an id, of a YAML file, or (where ``target`` is text) of ``rev:path``. Raises LlamagenError."""
    known = registry or Registry()
    if isinstance(target, str) and is_revision(target):
        return spec_at(target, known)
    return known.load(target)


def built(resolved: ResolvedSpec) -> Model:
    """A spec with its graphs, if its wiring is published."""
    if resolved.spec.root is None:
        return Model(resolved, None)
    graphs = build_all(resolved)
    return Model(resolved, graphs.pop(MAIN), graphs)
