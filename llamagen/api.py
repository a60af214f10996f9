"""llamagen from a program: ``load`` a model, read it, write its backends, ask about it and its family.

Importing this module is cheap: a name that one module answers alone is imported from there when it is first asked for,
and what joins several is here. A target is an id, a YAML file, ``REVISION:PATH`` of a spec in git, a config.json or
params.json, or a folder with one. Every function raises ``LlamagenError`` for input that cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.diagnostics import Diagnostic as Diagnostic
from llamagen.diagnostics import LlamagenError as LlamagenError
from llamagen.emit.options import DEFAULTS, TARGETS, Target
from llamagen.emit.options import ExportOptions as ExportOptions
from llamagen.emit.options import QuantizeOptions as QuantizeOptions
from llamagen.emit.written import Progress, Written, silent
from llamagen.spec.families import EVERY_FAMILY, FAMILY

if TYPE_CHECKING:
    from llamagen.analysis.check import CheckReport
    from llamagen.analysis.cost import CostReport
    from llamagen.analysis.diff.compat import CompatReport
    from llamagen.analysis.diff.judge import Diff
    from llamagen.analysis.explain import Explanation
    from llamagen.analysis.parallel import ParallelReport
    from llamagen.analysis.pictures import png as png
    from llamagen.analysis.queries import Answer, Share, Timeline
    from llamagen.analysis.records import Record
    from llamagen.analysis.records import list_models as list_models
    from llamagen.analysis.records import numbers_text as numbers_text
    from llamagen.analysis.records import save_numbers as save_numbers
    from llamagen.analysis.releases import Release
    from llamagen.analysis.show import Section
    from llamagen.analysis.sql import Result
    from llamagen.analysis.targets import Model as Built
    from llamagen.emit.checkpoints import convert as convert
    from llamagen.emit.checkpoints import random_checkpoint as random_checkpoint
    from llamagen.emit.config.drafting import Draft
    from llamagen.emit.config.importing import Imported
    from llamagen.emit.generate import generate as generate
    from llamagen.emit.generate import generate_check as generate_check
    from llamagen.emit.manifest import QualityRecord
    from llamagen.emit.supply import AdapterChoice
    from llamagen.ir.bounded import CacheKind
    from llamagen.ir.graph import Graph
    from llamagen.ops.op import Parameter
    from llamagen.runtime.generation import Runner as Runner
    from llamagen.runtime.generation import run as run
    from llamagen.runtime.text import messages_of as messages_of
    from llamagen.spec.fmt import OriginRow
    from llamagen.spec.fmt import fmt as fmt
    from llamagen.spec.registry import Registry
    from llamagen.spec.resolve import ResolvedSpec
    from llamagen.spec.schema import Spec
    from llamagen.verify.engine import verify_engine as verify_engine
    from llamagen.verify.folder import CaseProgress
    from llamagen.verify.folder import verify_folder as verify_folder
    from llamagen.verify.integrity import check_integrity as check_integrity
    from llamagen.verify.mutants import mutate as mutate
    from llamagen.verify.report import check_report_names as check_report_names
    from llamagen.verify.report import write_verify_report as write_verify_report
else:
    _HOMES = {
        "analysis.pictures": ("png",),
        "analysis.records": ("list_models", "numbers_text", "save_numbers"),
        "emit.checkpoints": ("convert", "random_checkpoint"),
        "emit.generate": ("generate", "generate_check"),
        "runtime.generation": ("Runner", "run"),
        "runtime.text": ("messages_of",),
        "spec.fmt": ("fmt",),
        "verify.engine": ("verify_engine",),
        "verify.folder": ("verify_folder",),
        "verify.integrity": ("check_integrity",),
        "verify.mutants": ("mutate",),
        "verify.report": ("check_report_names", "write_verify_report"),
    }

    def __getattr__(name):
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"llamagen.{home}"), name)
        raise AttributeError(f"llamagen has no attribute {name!r}")


CODE = re.compile(r"[Ll][Gg][0-9]{3}")
MAINLINE = "status == 'released' and generation not in ['code', 'guard'] and not quantised"
"""The main releases: without Code Llama and the guard models, which reuse older architectures later."""


def ids_of(tokenizer: str, text: str) -> Sequence[int]:
    """The ids of ``text`` by a tokenizer.json."""
    from llamagen.runtime.text import Text

    return Text.of(tokenizer, "tokenizer.json").encode(text)


@dataclass(frozen=True, repr=False)
class Model:
    """One resolved spec and what is derived from it, each part computed when first asked for."""

    resolved: ResolvedSpec
    registry: Registry = field(compare=False)

    def __repr__(self) -> str:
        return f"<llamagen.Model {self.id}>"

    def _repr_svg_(self) -> str | None:
        """The blocks of the model, where a notebook shows it; none without wiring."""
        from llamagen.analysis.pictures import tower_svg, towers
        from llamagen.ir.elaborate import build_all

        return tower_svg(towers(build_all(self.resolved))) if self.spec.root is not None else None

    @property
    def id(self) -> str:
        return self.resolved.spec.id

    @property
    def spec(self) -> Spec:
        """The typed spec."""
        return self.resolved.spec

    @cached_property
    def origins(self) -> tuple[OriginRow, ...]:
        """Every leaf with the places that wrote it."""
        from llamagen.spec.fmt import origin_rows

        return origin_rows(self.resolved)

    @cached_property
    def graph(self) -> Graph:
        """The verified graph. Raises LG401 for a record whose wiring is not published."""
        from llamagen.ir.elaborate import build

        return build(self.resolved)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Role path (the checkpoint's name) -> parameter of all graphs; a tied head has none of its own."""
        from llamagen.ir.elaborate import build_all
        from llamagen.ir.graph import all_parameters

        return all_parameters(build_all(self.resolved))

    @property
    def parameter_count(self) -> int:
        return sum(p.count for p in self.parameters.values())

    def resolved_text(self) -> str:
        """The spec as one YAML file without ``extends``."""
        from llamagen.spec.fmt import resolved_text

        return resolved_text(self.resolved)

    def graph_text(self) -> str:
        """The canonical text of the graph: equal for equal graphs."""
        from llamagen.ir.text import render

        return render(self.graph)

    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        from llamagen.analysis.pictures import mermaid

        return mermaid(self.graph)

    def files(self, *targets: Target, cache: CacheKind = "full") -> dict[str, str]:
        """What ``generate`` writes, file name -> text; every target by default."""
        from llamagen.emit.generate import files_of

        return files_of(self.resolved, targets or TARGETS, cache)

    def torch_source(self, cache: CacheKind = "full") -> str:
        """A standalone PyTorch module, source text."""
        return self.files(Target.TORCH, cache=cache)["modeling.py"]

    def onnx_text(self, cache: CacheKind = "full") -> str:
        """The ONNX graph of the portable profile without weights, as text."""
        return self.files(Target.ONNX, cache=cache)["model.onnx.txt"]

    def export(
        self,
        out: str | Path,
        options: ExportOptions = DEFAULTS,
        *,
        checkpoint: str | Path | None = None,
        random_weights: int | None = None,
        overwrite: bool = False,
        ignore_config: bool = False,
        adapter: str | Path | Mapping[str, str | Path] | None = None,
        progress: Progress = silent,
    ) -> Written:
        """Write a folder with the weights of a checkpoint, or random ones of a seed; whole or not at all.

        For ONNX Runtime, or with the format ``transformers`` of the options for that and engines that build on it. A
        checkpoint's own config.json must make the spec's graph, unless ``ignore_config``: then the spec counts, and the
        folder gets its config.json. ``adapter`` is a LoRA's folder, merged into the weights, or a mapping of names to
        such folders, which stay apart: files beside the model that are switched at run time.
        """
        from llamagen.emit.export import ExportJob, export_checkpoint, export_random

        reads = self.registry.files
        job = ExportJob(self.resolved, options, Path(out), overwrite, progress, reads, ids_of)
        lora = _adapters(adapter)
        if (checkpoint is None) == (random_weights is None):
            raise LlamagenError.of("LG901", "give either checkpoint or random_weights")
        if lora and checkpoint is None:
            raise LlamagenError.of("LG901", "an adapter changes the weights of a checkpoint")
        if options.custom_code and options.format != "transformers":
            message = "--custom-code makes a folder for transformers, and --format onnx another"
            raise LlamagenError.of("LG744", message, help="add --format transformers")
        if options.format == "transformers":
            from llamagen.emit.hub import export_hub

            if isinstance(lora, Mapping):
                message = (
                    "adapters are kept apart for ONNX Runtime: transformers loads those of PEFT"
                )
                raise LlamagenError.of("LG657", message, help="leave them out, or merge one")
            stored = None if checkpoint is None else Path(checkpoint)
            return export_hub(job, stored, random_weights, self.registry, ignore_config, lora)
        if checkpoint is not None:
            return export_checkpoint(job, Path(checkpoint), self.registry, ignore_config, lora)
        assert random_weights is not None
        return export_random(job, random_weights)


def load(target: str | Path, roots: Sequence[Path] = ()) -> Model:
    """The model of an id (``llama/3.2/1b``), of a YAML file or of ``REVISION:PATH`` in git.

    ``roots`` are searched before the shipped specs.
    """
    from llamagen.analysis.targets import resolved_of
    from llamagen.spec.registry import Registry

    registry = Registry(roots)
    return Model(resolved_of(target, registry), registry)


def located(checkpoint: str) -> Path:
    """Where a checkpoint is: a path, a repository's folder in the Hub's cache, ``hf:ORG/NAME[@REVISION]``, an address.

    Of the Hub it is fetched where the cache has it not. For an address (https://, s3://, hf://) a folder of this
    process stands, whose weights are read there by ranges; see ``llamagen.weights.hub``.
    """
    from llamagen.emit.supply import COMPANIONS
    from llamagen.weights.hub import located

    return located(checkpoint, COMPANIONS)


def imported(
    checkpoint: str | Path, adapter: str | Path | Mapping[str, str | Path] | None = None
) -> Model:
    """The model that a checkpoint says it is: a Hub or Meta folder, or a GGUF file; see ``import_config``.

    Its folder may be that of an ``adapter`` too.
    """
    from llamagen.emit.config.checkpoint import import_path
    from llamagen.emit.supply import beside_weights
    from llamagen.spec.registry import Registry

    lora = beside_weights(Path(checkpoint), _adapters(adapter))
    return Model(import_path(Path(checkpoint), adapter=lora).resolved, Registry())


def _adapters(given: str | Path | Mapping[str, str | Path] | None) -> AdapterChoice:
    if isinstance(given, Mapping):
        return {name: Path(place) for name, place in given.items()}
    return None if given is None else Path(given)


def measure_quality(
    folder: str | Path,
    checkpoint: str | Path | None = None,
    *,
    text: str | Path | None = None,
    progress: CaseProgress | None = None,
) -> QualityRecord:
    """What quantising cost: an exported folder beside the float32 weights of ``checkpoint``, or of its own seed.

    Both read the file ``text``, or a text of ours; see ``llamagen.verify.quality``.
    """
    from llamagen.verify.folder import silent
    from llamagen.verify.quality import measure_quality

    return measure_quality(Path(folder), checkpoint, text, ids_of, progress or silent)


def check(
    targets: Sequence[str | Path] = (), roots: Sequence[Path] = (), *, notes: bool = False
) -> CheckReport:
    """Every finding about ids, YAML files and folders, and of those that are named what PyTorch cannot express.

    Without targets about all shipped specs, and those of ``roots``. Notes (hints that are no findings) are left out
    unless asked for. Raises LlamagenError LG201 for a target that does not exist.
    """
    from llamagen.analysis.check import check
    from llamagen.emit.torch.module import source_of
    from llamagen.ir.graph import MAIN
    from llamagen.ir.joined import joined

    def written(graphs: Mapping[str, Graph]) -> str:
        return source_of(joined(graphs) or graphs[MAIN])

    return check(targets, roots, notes=notes, backend=written if targets else None)


def check_checkpoint(folder: str | Path, target: str | Path) -> CheckReport:
    """Compare a checkpoint's headers with a spec; no weights are read."""
    from llamagen.emit.config.checkpoint import check_checkpoint

    model = load(target)
    return check_checkpoint(model.resolved, Path(folder), model.registry)


def show(target: str | Path) -> list[Section]:
    """One model as a page of sections."""
    from llamagen.analysis.show import sections

    return list(sections(resolved_of(target)))


def explain(subject: str, path: str | None = None) -> str:
    """Words about a code, the ``language``, its ``ops``, an op, a profile, an engine, or a value of a model."""
    if path is None and CODE.fullmatch(subject):
        from llamagen.diagnostics.codes import code_text

        return code_text(subject)
    from llamagen.analysis import explain as words
    from llamagen.analysis.engines import ENGINES, engine_text
    from llamagen.analysis.rewrites import REWRITTEN_PROFILES, rules_text

    if path is not None:
        return words.explanation_text(explanation(subject, path))
    if subject == "ops":
        return words.explain_ops()
    if subject == "language":
        from llamagen.analysis.language import language

        return language()
    if subject in ENGINES:
        return engine_text(subject)
    for profile in REWRITTEN_PROFILES:
        if profile == subject:
            return rules_text(profile)
    return words.explain_named(subject)


def explanation(target: str | Path, path: str) -> Explanation:
    """What is known of a value of a model: who wrote it, its source, who disagrees, who else has it. Raises LG901."""
    from llamagen.analysis.explain import explained
    from llamagen.spec.registry import Registry

    return explained(Registry(), resolved_of(target), path)


def schema_text(command: str | None = None) -> str:
    """The JSON schema of spec files, or of what a command prints with ``--format json``. Raises LG901."""
    if command is None:
        from llamagen.spec.json_schema import schema_text as of_specs

        return of_specs()
    from llamagen.analysis.documents import DOCUMENTS, document_schema
    from llamagen.analysis.tables import chosen

    chosen(DOCUMENTS, command, "a command with a schema")
    return document_schema(command)


def write_schema(path: Path, command: str | None = None) -> bool:
    """Write a schema unless the file has it already; whether it was written. Raises LG634 over another file."""
    from llamagen.writing import require_kin, write_changed

    of = "spec" if command is None else command
    what = "a schema of specs" if command is None else f"a schema of `{command}`"
    require_kin(path, lambda text: f'"title": "llamagen {of}"' in text, what)
    written, _ = write_changed(path.parent, {path.name: schema_text(command)})
    return bool(written)


def model_of(target: str | Path) -> Built:
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
    pp: int = 1,
    ep: int = 1,
    images: int = 1,
    cache: CacheKind = "full",
    cache_dtype: str | None = None,
) -> CostReport:
    """Exact parameters, bytes and FLOPs of ``batch`` sequences of ``context`` tokens over ``tp * pp * ep`` devices.

    Keys and values are kept in ``cache_dtype``, by default in 16 bit, or float32 with weights in that.

    A model that takes images is counted whole, and what ``images`` of them (or tiles) add for each sequence apart.

    With a ``device`` of spec/hardware.yaml, or a YAML file with the fields of one, also lower bounds in seconds, and
    what fits. Raises LG401 for a record without wiring, LG705 for a ``bounded`` cache that cannot be, LG901 for an
    unknown device or dtype, LG906 or LG907 for devices that cannot share the model.
    """
    from llamagen.analysis import cost as costs
    from llamagen.analysis.parallel import Layout
    from llamagen.ir.bounded import with_caches

    load = costs.workload(context, batch, dtype, Layout(tp, pp, ep), images, cache_dtype)
    chosen = (device, costs.device(device)) if device is not None else None
    model = model_of(target)
    graphs = with_caches(_graphs_of(model), cache)
    return costs.cost_of(graphs, load, chosen, model.resolved.spec.context)


def parallel(
    target: str,
    *,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    gpus: int | None = None,
    context: int = 4096,
    batch: int = 1,
    dtype: str = "bfloat16",
    cache: CacheKind = "full",
) -> ParallelReport:
    """How a model is cut over ``tp * pp * ep`` GPUs: its shard plan, the bytes that each holds, the traffic of a token.

    Raises LG401 for a record without wiring, LG705 for a ``bounded`` cache that cannot be, LG901 for an unknown dtype,
    LG906 for a degree that does not divide the model, LG907 for more stages than layers, LG908 for ``gpus`` that are
    not a multiple.
    """
    from llamagen.analysis.cost import workload
    from llamagen.analysis.parallel import Layout, parallel_of
    from llamagen.ir.bounded import with_caches

    load = workload(context, batch, dtype, Layout(tp, pp, ep))
    return parallel_of(
        with_caches(_wired(target), cache),
        load.layout,
        context=load.context,
        batch=load.batch,
        weights=load.weights,
        gpus=gpus,
    )


def plot(targets: Sequence[str] = (), *, longest: int = 131072, family: str = FAMILY) -> str:
    """SVG of the KV cache, bytes over tokens up to ``longest``; every model of ``family`` with a graph by default."""
    from llamagen.analysis.numbers import cache_of
    from llamagen.analysis.pictures import CONTEXTS, cache_plot
    from llamagen.ir.graph import MAIN

    if targets:
        caches = [(name, cache_of(_wired(name)[MAIN])) for name in targets]
    else:
        caches = [
            (r.id, r.architecture.cache) for r in _family(family) if r.architecture is not None
        ]
    contexts = [n for n in CONTEXTS if n < longest]
    return cache_plot(caches, contexts=(*contexts, longest))


def query(
    where: str = "true",
    *,
    select: Sequence[str] = ("id", "released", "params"),
    sort: str | None = None,
    first: int | None = None,
    family: str = FAMILY,
) -> Answer:
    """Models for which ``where`` is true, by release date or ``sort``; a column for each expression of ``select``.

    ``family`` is that of an id (``qwen`` of ``qwen/3/8b``), or ``all``. Raises LG905 for an expression that cannot be
    evaluated, LG901 for an unknown family.
    """
    from llamagen.analysis.queries import query as ask

    return ask(_family(family), where, select=select, sort=sort, first=first)


def share(path: str, where: str = "true", *, family: str = FAMILY) -> tuple[Share, ...]:
    """How many of the models have each value of ``path``, the most frequent first. Raises LG901, LG905."""
    from llamagen.analysis.queries import share as shares

    return shares(_family(family), path, where)


def timeline(path: str, where: str = MAINLINE, *, family: str = FAMILY) -> Timeline:
    """When the value of ``path`` changed over the releases of a family, or of ``all``. Raises LG901, LG905."""
    from llamagen.analysis.queries import timeline as follow

    return follow(_family(family), path, where)


def history(where: str = MAINLINE, *, family: str = FAMILY) -> tuple[Timeline, ...]:
    """A timeline of every hyperparameter that some model sets. Raises LG901, LG905."""
    from llamagen.analysis.queries import history as follow

    return follow(_family(family), where)


def releases(*, family: str = FAMILY) -> tuple[Release, ...]:
    """The releases of the main line by date: sizes, what was new, and wide-spread claims with what is right.

    Raises LG901 for an unknown family.
    """
    from llamagen.analysis.queries import holds
    from llamagen.analysis.releases import releases as every

    return every([record for record in _family(family) if holds(record, MAINLINE)])


def site(
    out: str | Path,
    *,
    only: Sequence[str] = (),
    family: str = FAMILY,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the atlas: static files that show a family in a browser, from disk; or the models ``only``, of any.

    Raises LG201 for an unknown id, LG901 for an unknown family, LG630 and others where ``out`` cannot be written or is
    not ours to replace.
    """
    from llamagen.analysis.queries import holds
    from llamagen.analysis.site import write_site
    from llamagen.recorded_folder import recorded_folder

    for one in only:
        resolved_of(one)  # LG201 with the nearest id
    named = [record for record in _family(EVERY_FAMILY) if record.id in only]
    shown = named or _family(family)
    mainline = [record for record in shown if holds(record, MAINLINE)]
    with recorded_folder(Path(out), "llamagen site 1", overwrite) as staging:
        write_site(staging, shown, mainline, progress)


def sql(statement: str, *, family: str = FAMILY) -> Result:
    """Rows of one SELECT over the tables that `llamagen sql` lists, of a family or of ``all``. Raises LG901, LG905."""
    from llamagen.analysis.sql import sql as run

    return run(_family(family), statement)


def import_config(source: str | Path, spec_id: str | None = None) -> Imported:
    """The spec of a config.json, params.json or checkpoint folder, and the known model nearest to it.

    Raises LG102, LG103, LG106 to LG109 for the file, LG6xx for a checkpoint that does not fit it.
    """
    from llamagen.emit.config.checkpoint import import_path

    return import_path(Path(source), spec_id)


def new(like: str, spec_id: str | None = None) -> Draft:
    """A spec of one's own, begun: of ``like`` an id, a config.json or params.json, or a checkpoint folder.

    Of an id or what a known model describes it is what differs, else the nearest wiring with what is left to write.
    Raises LG201 for an unknown id, and as ``import_config`` does; LG109 only for a params.json.
    """
    from llamagen.emit.config.drafting import draft, heir
    from llamagen.spec.registry import Registry

    path = Path(like)
    registry = Registry()
    if registry.path_of(like) is not None or not path.exists():
        return heir(like, spec_id or f"my/{like.rpartition('/')[2]}", registry)
    try:
        known = import_config(path, spec_id)
        return Draft(known.text, known.nearest.id, ())
    except LlamagenError as error:
        if any(one.code != "LG109" for one in error.diagnostics):
            raise
        return draft(path, spec_id, registry)


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


def _family(name: str) -> list[Record]:
    """The shipped models of a family. Raises LG901 for an unknown one."""
    from llamagen.analysis.records import records_of
    from llamagen.spec.registry import Registry

    return records_of(Registry(), family=name)


def _wired(target: str) -> dict[str, Graph]:
    """All graphs of a target. Raises LG401 for a record without wiring."""
    return _graphs_of(model_of(target))


def _graphs_of(model: Built) -> dict[str, Graph]:
    from llamagen.ir.elaborate import build_all

    return dict(model.graphs) or build_all(model.resolved)


def _chosen(target: str, name: str | None) -> dict[str, Graph]:
    """The graphs of a target, or the one of that name."""
    graphs = _wired(target)
    if name is None:
        return graphs
    if name not in graphs:
        help = f"it has {', '.join(f'`{one}`' for one in graphs)}"
        raise LlamagenError.of("LG901", f"`{target}` has no graph `{name}`", help=help)
    return {name: graphs[name]}
