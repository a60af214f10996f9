"""``generate``: files of many models below one root; of all models, those of one for each wiring."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.analysis.parallel import plan_text
from llamagen.analysis.records import records_of
from llamagen.analysis.rewrites import profiles_text
from llamagen.analysis.show import card_text
from llamagen.emit.config.table import config_files, initializer_range
from llamagen.emit.options import TARGETS, Target
from llamagen.ir.bounded import CacheKind, with_caches
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import MAIN, Graph
from llamagen.ir.joined import joined
from llamagen.ir.shard import plan
from llamagen.ir.text import render
from llamagen.ir.verify import verify
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.writing import current, write_changed

INDEX = "index.txt"
REPORTS = "reports"
"""Verifications of reduced models: measured, so not made here (tests/reports.py)."""


def files_of(
    resolved: ResolvedSpec, targets: Sequence[Target], cache: CacheKind = "full"
) -> dict[str, str]:
    """File name -> text, in the order of ``Target``. Deterministic; reads no weights.

    Raises LG705 if caches are to be bounded and cannot be, LG743 for what cannot be code for transformers.
    """
    verify(build(resolved), thorough=True)
    texts: dict[str, str] = {}
    for target in Target:
        if target in targets:
            texts |= _texts(resolved, target, cache)
    return texts


def _texts(resolved: ResolvedSpec, target: Target, cache: CacheKind) -> dict[str, str]:
    if target is Target.CONFIG:
        return config_files(resolved)
    if target is Target.TRANSFORMERS:
        from llamagen.emit.hub import code_files

        return code_files(resolved)
    graphs = with_caches(build_all(resolved), cache)
    match target:
        case Target.TEXT:
            names = {name: "graph" if name == MAIN else name for name in graphs}
            return {
                "resolved.txt": resolved_text(resolved),
                **{f"{names[name]}.txt": render(graph) for name, graph in graphs.items()},
                "parallel.txt": plan_text(plan(graphs[MAIN])),
                "profiles.txt": profiles_text(graphs),
                "card.md": card_text(resolved),
            }
        case Target.TORCH:
            from llamagen.emit.torch.module import emit_torch

            model = joined(graphs) or graphs[MAIN]
            return {"modeling.py": emit_torch(model, initializer_range(resolved.spec))}
        case Target.PARALLEL:
            from llamagen.emit.torch.module import emit_torch
            from llamagen.emit.torch.parallel import emit_parallel

            model = joined(graphs) or graphs[MAIN]
            modeling = emit_torch(model, initializer_range(resolved.spec))
            return {"parallel.py": emit_parallel(model, graphs[MAIN], modeling)}
        case Target.ONNX:
            from llamagen.emit.onnx import text
            from llamagen.emit.onnx.emit import emit_onnx

            return {f"{n}.onnx.txt": text.render(emit_onnx(graph)) for n, graph in graphs.items()}


def identity_of(graph: Graph) -> str:
    """The canonical text without the model's name: equal for models that compute the same."""
    lines = render(graph).split("\n")
    return "\n".join(line for line in lines if not line.startswith(("graph ", "digest ")))


def wiring_of(graph: Graph) -> str:
    """The canonical text without name and numbers, but whether every query has a key of its own: sizes, eps, factors
    and numbers of layers are values in generated files that are otherwise the same."""
    text = identity_of(graph)
    heads = [len(set(re.findall(r'"heads": (\d+)', block))) for block in text.split("\nblock ")]
    text = re.sub(r"(?<![A-Za-z_\d])\d+(\.\d+)?(e[-+]?\d+)?", "#", text)
    return f"{heads}\n" + re.sub(r"#(, #)+", "#", text)


@dataclass(frozen=True, slots=True)
class Generated:
    """One model: its folder and files, or the model whose folder it shares."""

    id: str
    folder: Path
    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    shares: str | None = None


def generate(
    ids: Sequence[str] = (),
    targets: Sequence[Target] = (),
    to: Path = Path("generated"),
    *,
    cache: CacheKind = "full",
) -> Iterator[Generated]:
    """Write what differs from the files below ``to``, model by model.

    Without ``ids`` every model of the family that has an architecture, and an index of shared folders; every target
    without any.
    """
    registry = Registry()
    owners = _owners(registry, ids)
    for spec_id, (resolved, owner) in owners.items():
        if owner != spec_id:
            yield Generated(spec_id, to / owner, shares=owner)
            continue
        texts = files_of(resolved, targets or TARGETS, cache)
        files = {f"{spec_id}/{name}": text for name, text in texts.items()}
        written, unchanged = (
            tuple(name.removeprefix(f"{spec_id}/") for name in names)
            for names in write_changed(to, files, registry.files)
        )
        yield Generated(spec_id, to / spec_id, written, unchanged)
    if not ids:
        write_changed(to, {INDEX: _index(owners)}, registry.files)


def generate_check(
    ids: Sequence[str] = (),
    targets: Sequence[Target] = (),
    to: Path = Path("generated"),
    *,
    cache: CacheKind = "full",
) -> list[str]:
    """A unified diff for each file below ``to`` that ``generate`` would write, or that nothing generates."""
    owners = _owners(Registry(), ids)
    stale: list[str] = []
    wanted: dict[str, str] = {}
    for spec_id, (resolved, owner) in owners.items():
        if owner == spec_id:
            texts = files_of(resolved, targets or TARGETS, cache)
            wanted |= {f"{spec_id}/{name}": text for name, text in texts.items()}
    if not ids:
        wanted[INDEX] = _index(owners)
    for name, text in wanted.items():
        on_disk = current(to / name)
        if on_disk != text:
            stale.append(_diff(name, on_disk or "", text))
    if not ids and set(targets or TARGETS) == set(TARGETS):
        for path in sorted(p for p in to.rglob("*") if p.is_file()):
            name = path.relative_to(to).as_posix()
            if name not in wanted and not name.startswith(f"{REPORTS}/"):
                stale.append(_diff(name, current(path) or "", ""))
    return stale


def _owners(registry: Registry, ids: Sequence[str]) -> dict[str, tuple[ResolvedSpec, str]]:
    """Id of each model, as given or sorted -> its spec, and the model that has its files: itself if it was named, else
    the first released of its wiring."""
    if ids:
        named = {resolved.spec.id: resolved for resolved in map(registry.load, ids)}
        return {spec_id: (resolved, spec_id) for spec_id, resolved in named.items()}
    models: dict[str, ResolvedSpec] = {}
    first: dict[str, tuple[str, int, str]] = {}
    wiring: dict[str, str] = {}
    for record in sorted(records_of(registry), key=lambda one: one.id):
        spec_id, resolved = record.id, record.resolved
        if resolved.spec.root is not None:
            models[spec_id] = resolved
            wiring[spec_id] = "".join(map(wiring_of, build_all(resolved).values()))
            release = resolved.spec.release
            date = release.date if release else None
            age = str(date or "later"), len(spec_id), spec_id
            first[wiring[spec_id]] = min(age, first.get(wiring[spec_id], age))
    return {i: (resolved, first[wiring[i]][-1]) for i, resolved in models.items()}


def _index(owners: Mapping[str, tuple[ResolvedSpec, str]]) -> str:
    return "".join(f"{spec_id} -> {owner}\n" for spec_id, (_, owner) in owners.items())


def _diff(name: str, on_disk: str, wanted: str) -> str:
    lines = difflib.unified_diff(
        on_disk.splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        f"{name} (on disk)",
        f"{name} (generated)",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ no newline at the end\n" for line in lines
    )
