"""Questions from a program: compare models, count a workload, ask the family, draw a graph, import a configuration.

A target is an id, a YAML file, ``REVISION:PATH`` of a spec in git, a config.json or params.json, or a folder with one.
Every function raises ``LlamagenError``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.diagnostics import LlamagenError

if TYPE_CHECKING:
    from llamagen.analysis.cost import CostReport
    from llamagen.analysis.diff.compat import CompatReport
    from llamagen.analysis.diff.judge import Diff
    from llamagen.analysis.queries import Answer, Share, Timeline
    from llamagen.analysis.records import Modality, Record, Row
    from llamagen.analysis.show import Section
    from llamagen.analysis.sql import Result
    from llamagen.analysis.targets import Model
    from llamagen.emit.config.importing import Imported
    from llamagen.ir.bounded import CacheKind
    from llamagen.ir.graph import Graph
    from llamagen.spec.resolve import ResolvedSpec


CODE = re.compile(r"[Ll][Gg][0-9]{3}")
MAINLINE = "status == 'released' and generation not in ['code', 'guard']"
"""The main releases: without Code Llama and the guard models, which reuse older architectures later."""


def list_models(
    *, generation: str | None = None, status: str | None = None, modality: Modality | None = None
) -> list[Row]:
    """The shipped models by release date, with exact parameter counts."""
    from llamagen.analysis.records import rows
    from llamagen.spec.registry import Registry

    return rows(Registry(), generation, status, modality)


def save_numbers() -> bool:
    """Measure the graphs of every shipped model and save the numbers in spec/numbers.json; whether the file changed."""
    from llamagen.analysis.records import numbers_path
    from llamagen.writing import write_changed

    path = numbers_path()
    written, _ = write_changed(path.parent, {path.name: numbers_text()})
    return bool(written)


def numbers_text() -> str:
    """What spec/numbers.json must hold."""
    from llamagen.analysis.records import numbers_text
    from llamagen.spec.registry import Registry

    registry = Registry()
    return numbers_text(registry.load(spec_id) for spec_id in registry.ids(abstract=False))


def show(target: str | Path) -> list[Section]:
    """One model as a page of sections."""
    from llamagen.analysis.show import sections

    return list(sections(resolved_of(target)))


def explain(subject: str, path: str | None = None) -> str:
    """Words about a diagnostic code, the ``ops``, one op, a profile's rules, or the value at ``path`` of a model."""
    if path is None and CODE.fullmatch(subject):
        from llamagen.diagnostics.codes import code_text

        return code_text(subject)
    from llamagen.analysis import explain as words
    from llamagen.analysis.rewrites import REWRITTEN_PROFILES, rules_text

    if path is not None:
        from llamagen.spec.registry import Registry

        return words.explain_value(Registry(), resolved_of(subject), path)
    if subject == "ops":
        return words.explain_ops()
    for profile in REWRITTEN_PROFILES:
        if profile == subject:
            return rules_text(profile)
    return words.explain_named(subject)


def model_of(target: str | Path) -> Model:
    """What a question is about, with its graphs; none without wiring."""
    from llamagen.analysis.targets import built

    return built(resolved_of(target))


def resolved_of(target: str | Path) -> ResolvedSpec:
    """The spec of a target. Raises LG201 for an unknown id, LG10x for a configuration that cannot be read."""
    from llamagen.analysis.targets import resolved_of
    from llamagen.files import is_folder

    path = Path(target)
    if path.suffix != ".json" and not is_folder(path):
        return resolved_of(str(target))
    return import_config(path).resolved


def diff(
    before: str | Path,
    after: str | Path,
    *,
    context: int = 4096,
    batch: int = 1,
    dtype: str = "bfloat16",
    device: str | None = None,
) -> Diff:
    """Every difference, judged for each surface; numbers for ``batch`` sequences of ``context`` tokens.

    ``dtype`` stores the weights. With a ``device`` of spec/hardware.yaml memory is breaking where ``before`` fits it
    and ``after`` does not. Raises LG201 for an unknown id, LG901 for a workload that cannot be or an unknown device.
    """
    from llamagen.analysis import cost as costs
    from llamagen.analysis.diff.judge import diff as compare

    chosen = (device, costs.device(device)) if device is not None else None
    load = costs.workload(context, batch, dtype)
    return compare(model_of(before), model_of(after), load, chosen)


def diff_picture(before: str | Path, after: str | Path, result: Diff) -> str:
    """SVG of both towers with the changes of ``result`` marked. Raises LG401 without wiring."""
    from llamagen.analysis.pictures import changed_paths, diff_svg, towers
    from llamagen.ir.elaborate import build_all

    first, second = (
        (m.graphs or build_all(m.resolved)) for m in (model_of(before), model_of(after))
    )
    return diff_svg(towers(first), towers(second), changed_paths(result))


def overlay(before: str | Path, after: str | Path) -> str:
    """The smallest spec, YAML text, that extends ``before`` and is ``after``."""
    from llamagen.analysis.diff.overlay import overlay

    return overlay(model_of(before).resolved, model_of(after).resolved)


def compat(
    before: str | Path, after: str | Path, *, runtimes: Sequence[str] = (), dtype: str = "float32"
) -> CompatReport:
    """Whether weights of ``before`` run in ``after``, and what ``runtimes`` (all by default) do with it in ``dtype``.

    Raises LG401 for a record without wiring, LG901 for an unknown runtime or dtype.
    """
    from llamagen.analysis.diff.compat import compat as compare

    return compare(model_of(before), model_of(after), tuple(runtimes), dtype)


def cost(
    target: str,
    *,
    context: int = 4096,
    batch: int = 1,
    dtype: str = "bfloat16",
    device: str | None = None,
    tp: int = 1,
    images: int = 1,
    cache: CacheKind = "full",
) -> CostReport:
    """Exact parameters, bytes and FLOPs of ``batch`` sequences of ``context`` tokens over ``tp`` devices.

    A model that takes images is counted whole, and what ``images`` of them (or tiles) add for each sequence apart.

    With a ``device`` of spec/hardware.yaml also lower bounds in seconds, and what fits. Raises LG401 for a record
    without wiring, LG705 for a ``bounded`` cache that cannot be, LG901 for an unknown device or dtype, or a ``tp``
    that does not divide the model.
    """
    from llamagen.analysis import cost as costs
    from llamagen.ir.bounded import with_caches

    load = costs.workload(context, batch, dtype, tp, images)
    chosen = (device, costs.device(device)) if device is not None else None
    return costs.cost_of(with_caches(_wired(target), cache), load, chosen)


def plot(targets: Sequence[str] = (), *, longest: int = 131072) -> str:
    """SVG of the KV cache, bytes over tokens up to ``longest``; every model with a graph by default."""
    from llamagen.analysis.numbers import cache_of
    from llamagen.analysis.pictures import CONTEXTS, cache_plot
    from llamagen.ir.graph import MAIN

    if targets:
        caches = [(name, cache_of(_wired(name)[MAIN])) for name in targets]
    else:
        caches = [(r.id, r.architecture.cache) for r in _family() if r.architecture is not None]
    contexts = [n for n in CONTEXTS if n < longest]
    return cache_plot(caches, contexts=(*contexts, longest))


def query(
    where: str = "true",
    *,
    select: Sequence[str] = ("id", "released", "params"),
    sort: str | None = None,
    first: int | None = None,
) -> Answer:
    """Models for which ``where`` is true, by release date or ``sort``; a column for each expression of ``select``.

    Raises LG905 for an expression that cannot be evaluated.
    """
    from llamagen.analysis.queries import query as ask

    return ask(_family(), where, select=select, sort=sort, first=first)


def share(path: str, where: str = "true") -> tuple[Share, ...]:
    """How many of the models have each value of ``path``, the most frequent first. Raises LG905."""
    from llamagen.analysis.queries import share as shares

    return shares(_family(), path, where)


def timeline(path: str, where: str = MAINLINE) -> Timeline:
    """When the value of ``path`` changed over the releases. Raises LG905."""
    from llamagen.analysis.queries import timeline as follow

    return follow(_family(), path, where)


def history(where: str = MAINLINE) -> tuple[Timeline, ...]:
    """A timeline of every hyperparameter that some model sets. Raises LG905."""
    from llamagen.analysis.queries import history as follow

    return follow(_family(), where)


def sql(statement: str) -> Result:
    """Rows of one SELECT over models, layers, parameters, changes and sources. Raises LG905."""
    from llamagen.analysis.sql import sql as run

    return run(_family(), statement)


def import_config(source: str | Path, spec_id: str | None = None) -> Imported:
    """The spec of a config.json, params.json or checkpoint folder, and the known model nearest to it.

    Raises LG102, LG103, LG106 to LG109 for the file, LG6xx for a checkpoint that does not fit it.
    """
    from llamagen.emit.config.checkpoint import import_path

    return import_path(Path(source), spec_id)


def graph_text(target: str, graph: str | None = None) -> str:
    """Canonical text of every graph, or of the one named ``graph``. Raises LG401 without wiring, LG901."""
    from llamagen.ir.text import render

    return "\n".join(render(one) for one in _chosen(target, graph).values())


def graph_mermaid(target: str, graph: str | None = None) -> str:
    """A Mermaid flowchart of the text model, or of the graph named ``graph``. Raises LG401 without wiring, LG901."""
    from llamagen.analysis.pictures import mermaid

    return mermaid(next(iter(_chosen(target, graph).values())))


def graph_tower(target: str, graph: str | None = None) -> str:
    """The model as nested boxes, text, graph by graph. Raises LG401 without wiring, LG901."""
    from llamagen.analysis.pictures import tower_text, towers

    return "\n".join(tower_text(box) for box in towers(_chosen(target, graph)))


def graph_svg(target: str, graph: str | None = None) -> str:
    """The model as nested boxes, SVG, graphs side by side. Raises LG401 without wiring, LG901."""
    from llamagen.analysis.pictures import tower_svg, towers

    return tower_svg(towers(_chosen(target, graph)))


def graph_explorer(target: str, graph: str | None = None) -> str:
    """JSON for Model Explorer, FLOPs for one sequence of one token and one image. Raises LG401 and LG901."""
    from llamagen.analysis.pictures import explorer_json

    return explorer_json(_chosen(target, graph), {"B": 1, "S": 1, "P": 0, "I": 1})


def _family() -> list[Record]:
    """The shipped models."""
    from llamagen.analysis.records import records_of
    from llamagen.spec.registry import Registry

    return records_of(Registry())


def _wired(target: str) -> dict[str, Graph]:
    """All graphs of a target. Raises LG401 for a record without wiring."""
    from llamagen.ir.elaborate import build_all

    model = model_of(target)
    return model.graphs or build_all(model.resolved)


def _chosen(target: str, name: str | None) -> dict[str, Graph]:
    """The graphs of a target, or the one of that name."""
    graphs = _wired(target)
    if name is None:
        return graphs
    if name not in graphs:
        help = f"it has {', '.join(f'`{one}`' for one in graphs)}"
        raise LlamagenError.of("LG901", f"`{target}` has no graph `{name}`", help=help)
    return {name: graphs[name]}
