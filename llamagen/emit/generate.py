"""``generate``: files of many models below one root; models with an identical graph share one folder."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.emit.files import Subject, files_of, identity_of
from llamagen.emit.targets import TARGETS, Target
from llamagen.ir.bounded import CacheKind
from llamagen.ir.build import build
from llamagen.ir.build_graphs import build_all
from llamagen.spec.registry import Registry
from llamagen.spec.resolved import ResolvedSpec
from llamagen.writing import current, write_changed

INDEX = "index.txt"
REPORTS = "reports"
"""Verifications of reduced models: measured, so not made here (tests/reports.py)."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One model: its folder and files, or the model whose folder it shares."""

    id: str
    folder: Path
    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    shares: str | None = None


@dataclass(frozen=True, slots=True)
class _Planned:
    subject: Subject
    shares: str | None


def generate(
    registry: Registry,
    ids: Sequence[str],
    targets: Sequence[Target],
    root: Path,
    cache: CacheKind = "full",
) -> Iterator[Generated]:
    """Write files that differ; without ``ids`` every model that has an architecture, and an index of shared folders."""
    planned = _plan(registry, ids, cache)
    for one in planned:
        spec_id = one.subject.resolved.spec.id
        if one.shares is not None:
            yield Generated(spec_id, root / one.shares, shares=one.shares)
            continue
        files = {f"{spec_id}/{n}": text for n, text in files_of(one.subject, targets).items()}
        written, unchanged = (
            tuple(name.removeprefix(f"{spec_id}/") for name in names)
            for names in write_changed(root, files, registry.files)
        )
        yield Generated(spec_id, root / spec_id, written, unchanged)
    if not ids:
        write_changed(root, {INDEX: _index(planned)}, registry.files)


def stale(
    registry: Registry,
    ids: Sequence[str],
    targets: Sequence[Target],
    root: Path,
    cache: CacheKind = "full",
) -> Iterator[str]:
    """A unified diff for each file that is not what it should be; for all models also files that nothing makes."""
    planned = _plan(registry, ids, cache)
    wanted: dict[str, str] = {}
    for one in planned:
        if one.shares is None:
            made = files_of(one.subject, targets)
            wanted.update({f"{one.subject.resolved.spec.id}/{n}": t for n, t in made.items()})
    if not ids:
        wanted[INDEX] = _index(planned)
    for name, text in wanted.items():
        found = current(root / name)
        if found != text:
            yield _diff(name, found or "", text)
    if not ids and set(targets) == set(TARGETS):
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            name = path.relative_to(root).as_posix()
            if name not in wanted and not name.startswith(f"{REPORTS}/"):
                yield _diff(name, current(path) or "", "")


def _plan(registry: Registry, ids: Sequence[str], cache: CacheKind) -> list[_Planned]:
    """Models in the order given, or by id; the first of those with the same graph owns the folder."""
    planned: list[_Planned] = []
    owners: dict[str, str] = {}
    for target in ids or registry.ids(abstract=False):
        resolved = registry.load(target)
        if not ids and (resolved.spec.abstract or resolved.spec.root is None):
            continue
        subject = Subject(resolved, build(resolved), cache)
        owner = owners.setdefault(_identity(resolved), resolved.spec.id)
        planned.append(_Planned(subject, owner if owner != resolved.spec.id else None))
    return planned


def _identity(resolved: ResolvedSpec) -> str:
    return "\n".join(identity_of(graph) for graph in build_all(resolved).values())


def _index(planned: Sequence[_Planned]) -> str:
    lines = []
    for one in planned:
        spec_id = one.subject.resolved.spec.id
        lines.append(f"{spec_id} -> {one.shares or spec_id}\n")
    return "".join(lines)


def _diff(name: str, found: str, wanted: str) -> str:
    lines = difflib.unified_diff(
        found.splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        f"{name} (on disk)",
        f"{name} (generated)",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ no newline at the end\n" for line in lines
    )
