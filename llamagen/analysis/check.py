"""Every finding about a set of specs: resolved, built and checked, all at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.analysis.lint import lint
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.files import is_folder
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN, Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec

_UNSOURCED = "LG510"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found; ``specs`` counts the files that were looked at."""

    specs: int
    findings: tuple[Diagnostic, ...]

    @property
    def clean(self) -> bool:
        """Notes are not findings."""
        return all(found.severity == "note" for found in self.findings)


def check_specs(
    registry: Registry, targets: Sequence[str] = (), *, notes: bool = False
) -> CheckReport:
    """Check ids, files and folders; without targets every spec of the registry.

    Notes (hints that are no findings) are left out unless asked for. Raises LlamagenError LG201 for a target that
    does not exist; faults of specs are in the report.
    """
    paths = _paths(registry, targets)
    found: dict[Diagnostic, None] = {}
    graphs: dict[str, Graph | None] = {}
    for path in paths:
        try:
            resolved = registry.load(path)
            found.update(dict.fromkeys(resolved.warnings))
            # rules about the wiring see the same places in every variant of an architecture
            first = resolved.digest not in graphs
            if first:
                graphs[resolved.digest] = _graph(resolved)
            graph = graphs[resolved.digest]
            found.update(dict.fromkeys(_lint(resolved, graph, wiring=first)))
        except LlamagenError as error:
            found.update(dict.fromkeys(error.diagnostics))
    kept = (one for one in found if notes or one.severity != "note")
    return CheckReport(len(paths), tuple(kept))


def _graph(resolved: ResolvedSpec) -> Graph | None:
    """The text model, when every graph could be built; None for what cannot be built by itself."""
    if resolved.spec.abstract or resolved.spec.root is None:
        return None
    return build_all(resolved)[MAIN]


def _lint(resolved: ResolvedSpec, graph: Graph | None, *, wiring: bool) -> Iterator[Diagnostic]:
    # a file that states no source at all does not keep sources; the shipped ones all do
    keep = {
        origin.span.file
        for path, leaf in resolved.leaves()
        if path.startswith("provenance.")
        for origin in leaf.origins
    }
    for found in lint(resolved, graph, wiring=wiring):
        if found.code != _UNSOURCED or (found.span is not None and found.span.file in keep):
            yield found


def _paths(registry: Registry, targets: Sequence[str]) -> tuple[Path, ...]:
    names: Iterable[str] = targets or registry.ids(sketches=True)
    missing: list[Diagnostic] = []
    paths: dict[Path, None] = {}
    for name in names:
        try:
            paths.update(dict.fromkeys(_expand(registry, name)))
        except LlamagenError as error:
            missing.extend(error.diagnostics)
    if missing:
        raise LlamagenError(missing)
    return tuple(paths)


def _expand(registry: Registry, target: str) -> Iterator[Path]:
    folder = Path(target)
    if target.endswith(_SUFFIXES) or not is_folder(folder):
        yield registry.locate(target)
        return
    # not rglob, which fails where another writer removes a folder meanwhile; a pipe is a finding
    every = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    below = sorted(p for p in every if p.suffix in _SUFFIXES)
    if not below:
        help = "a checkpoint folder is checked with `--as ID`"
        raise LlamagenError.of("LG201", f"the folder `{target}` has no specs (*.yaml)", help=help)
    yield from below
