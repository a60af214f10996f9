"""The main job: a spec and a checkpoint (or a seed) become a folder that ONNX Runtime runs, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.images_record import images_record
from llamagen.emit.manifest import (
    MANIFEST,
    FileRecord,
    GraphRecord,
    Manifest,
    SpecRecord,
    WeightsRecord,
    all_files,
)
from llamagen.emit.no_effect import without_effect
from llamagen.emit.options import ExportOptions
from llamagen.emit.weight_types import STORED
from llamagen.ir.bounded import with_caches
from llamagen.ir.build_graphs import MAIN, build_all
from llamagen.ir.graph import Graph, parameters
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.resolved_text import resolved_text

if TYPE_CHECKING:
    from llamagen.emit.onnx.choices import WeightPlaces
    from llamagen.emit.onnx.data import Placement
    from llamagen.emit.onnx.model import OnnxModel
    from llamagen.emit.onnx.profile import OnnxDType
    from llamagen.emit.supply import Supply
    from llamagen.weights.pieces import Piece

SPEC_FILE = "spec.yaml"

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a command wrote: files with their bytes, how long it took, and what is worth saying about it."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    seconds: float
    notes: tuple[Diagnostic, ...] = ()


@dataclass
class Counter:
    """Adds up what is done."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


@dataclass(frozen=True)
class ExportJob:
    """One export: what both ways of giving weights share."""

    resolved: ResolvedSpec
    graph: Graph
    options: ExportOptions
    out: Path
    overwrite: bool
    progress: Progress

    @property
    def dtype(self) -> OnnxDType:
        """Raises LG702."""
        from llamagen.emit.onnx.profile import dtype_named

        return dtype_named(self.options.dtype)

    @cached_property
    def graphs(self) -> Mapping[str, Graph]:
        """The text model's graph and the further ones of the spec, by name. Raises LG705."""
        graphs = build_all(self.resolved) if self.resolved.spec.graphs else {MAIN: self.graph}
        return with_caches(graphs, self.options.cache)

    def counter(self, total: int) -> Counter:
        """Reports progress towards ``total`` bytes."""
        return Counter(self.progress, total)

    def emitted(self, stored: Mapping[str, OnnxDType]) -> dict[str, OnnxModel]:
        """The text model, and a model of each further graph of the spec, by name. Raises LG701 to LG706."""
        from llamagen.emit.onnx.choices import choices_of
        from llamagen.emit.onnx.emit import emit_onnx
        from llamagen.emit.onnx.profile import profile_named
        from llamagen.emit.onnx.quantization import fits_provider, quantization_of

        chosen, options = profile_named(self.options.profile), self.options
        found = choices_of(self.graph, chosen, options.logits, options.max_context)
        weights: WeightPlaces = "copied" if options.mode == "copy" else "referenced"
        choices = replace(found, weights=weights)
        text = replace(
            choices, quantization=fits_provider(quantization_of(options.quantize), chosen)
        )
        main = set(parameters(self.graphs[MAIN]))
        return {
            # a graph that shares weights with the text model has the same codes; one for pixels stays as it is
            name: emit_onnx(
                one,
                chosen,
                self.dtype,
                stored,
                choices if main.isdisjoint(parameters(one)) else text,
            )
            for name, one in self.graphs.items()
        }

    def about(self, emitted: Mapping[str, OnnxModel], source: str) -> tuple[Diagnostic, ...]:
        """Options that changed nothing, or where the quality of a quantised model can be had."""
        said = without_effect(self.options, emitted)
        if not any(i.part for model in emitted.values() for i in model.initializers):
            return said
        help = f"`llamagen verify {self.out} --quality {source}` measures it"
        quality = Diagnostic("LG644", "note", "what quantising cost was not measured", help=help)
        return (*said, quality)

    def copy(self, emitted: Mapping[str, OnnxModel], supply: Supply) -> None:
        """Stream the weights into data files."""
        from llamagen.emit.onnx.data import byte_count
        from llamagen.emit.onnx.encode import encoded_pieces
        from llamagen.emit.onnx.write import together_initializers, write_models

        target = STORED[self.dtype]
        counter = self.counter(sum(map(byte_count, together_initializers(emitted.values()))))

        def weights(spots: Sequence[Placement]) -> Iterator[Piece]:
            if spots[0].initializer.part is not None:
                yield from encoded_pieces(spots, supply.part)
                return
            offset = spots[0].offset
            for source in spots[0].initializer.sources:
                for piece in supply.pieces(source.path, target, offset):
                    yield piece
                    offset += piece.length

        record = WeightsRecord(mode="copy", scanned=True, source=supply.source)
        with self.published(emitted, supply, record) as (staging, known):
            known |= write_models(emitted, staging, weights, report=counter.add)
            supply.require_unchanged()

    @contextmanager
    def published(
        self, emitted: Mapping[str, OnnxModel], supply: Supply, weights: WeightsRecord
    ) -> Iterator[tuple[Path, dict[str, FileRecord]]]:
        """The staging folder and the records of its files, which the body fills; then all other files are added."""
        from llamagen.emit.clients import write_client_files
        from llamagen.emit.config import config_files
        from llamagen.emit.supply import place_companion
        from llamagen.weights.publish import staged_folder

        with staged_folder(self.out, overwrite=self.overwrite, manifest=MANIFEST) as staging:
            known: dict[str, FileRecord] = {}
            yield staging, known
            _write_text(staging / SPEC_FILE, resolved_text(self.resolved))
            for name, text in config_files(self.resolved).items():
                _write_text(staging / name, text)
            for file in supply.companions:  # a checkpoint's own config wins
                place_companion(file, staging)
            write_client_files(staging, self.resolved, self.graphs, emitted[MAIN])
            files = all_files(staging, known)
            _write_text(staging / MANIFEST, self.manifest(emitted, weights, files).text())

    def manifest(
        self,
        emitted: Mapping[str, OnnxModel],
        weights: WeightsRecord,
        files: dict[str, FileRecord],
    ) -> Manifest:
        from llamagen.emit.onnx.quantization import quantization_of
        from llamagen.emit.version import llamagen_version

        main = emitted[MAIN]
        return Manifest(
            llamagen=llamagen_version(),
            spec=SpecRecord(id=self.resolved.spec.id, digest=self.resolved.digest),
            profile=main.profile.name,
            dtype=main.dtype,
            io_dtype=main.profile.io_dtypes[main.dtype],
            logits=main.logits,
            max_context=main.max_context,
            cache=self.options.cache,
            weights=weights,
            quantization=quantization_of(self.options.quantize).record(self.options.quantize),
            session=dict(main.session_settings),
            graphs={
                name: GraphRecord(
                    file=f"{name}.onnx",
                    digest=one.model.metadata_props["llamagen.spec_digest"],
                    opset={domain or "ai.onnx": v for domain, v in sorted(one.opsets.items())},
                )
                for name, one in emitted.items()
            },
            images=images_record(self.resolved),
            files=files,
        )


def export_checkpoint(job: ExportJob, checkpoint: Path, registry: Registry) -> Written:
    """A checkpoint as an ONNX folder: its weights streamed into data files, or its own files linked into the folder.

    Raises LG60x and LG61x for a checkpoint that does not fit (all findings before anything is written; LG618 alone if
    it is that of another model of ``registry``; LG607 for a config.json of another graph), LG620 to LG622 for its
    values, LG63x for the output, LG640 to LG642 for weights that cannot be referenced, LG701 to LG709 for options.
    """
    from llamagen.emit.onnx.emit import AS_EXPORTED
    from llamagen.emit.reference import reference
    from llamagen.emit.supply import CheckpointSupply

    started = time.monotonic()
    job, about_size = _sized(job, checkpoint, registry)
    copies = job.options.mode == "copy"
    # Comparing stored copies of a tied table reads both: that is for exports that read the weights anyway.
    compare = copies or job.options.scan
    with ExitStack() as stack:
        supply = CheckpointSupply.opened(
            job.resolved,
            job.graph,
            checkpoint,
            registry,
            stack,
            compare_values=compare,
            ignore_config=job.options.ignore_config,
        )
        notes = about_size + supply.notes
        if copies:
            emitted = job.emitted(AS_EXPORTED)
            job.copy(emitted, supply)
            notes += job.about(emitted, str(checkpoint))
        else:
            notes += reference(job, supply)
    return Written(job.out, sizes_of(job.out), time.monotonic() - started, notes)


def _sized(
    job: ExportJob, checkpoint: Path, registry: Registry
) -> tuple[ExportJob, tuple[Diagnostic, ...]]:
    """The job in the sizes of a checkpoint that is the model of its spec but for them, which a note says."""
    from llamagen.emit.config.resized import resized

    if job.options.ignore_config:
        return job, ()
    found = resized(job.resolved, job.graph, checkpoint, registry)
    if found is None:
        return job, ()
    if found.clashes:
        raise LlamagenError(found.clashes)
    return replace(job, resolved=found.resolved, graph=found.graph), (found.note,)


def export_random(job: ExportJob, seed: int) -> Written:
    """The same folder with the unit-scale random weights of ``seed``; equal seeds give equal bytes."""
    from llamagen.emit.onnx.emit import AS_EXPORTED
    from llamagen.emit.supply import RandomSupply
    from llamagen.weights.fit import wanted_by

    started = time.monotonic()
    if job.options.mode == "reference":
        raise LlamagenError.of(
            "LG703",
            "random weights are in no file that could be referenced",
            help="leave out --weights, or write a file first with `llamagen random-checkpoint`",
        )
    wanted = wanted_by(job.resolved, job.graph)
    emitted = job.emitted(AS_EXPORTED)
    job.copy(emitted, RandomSupply(wanted, seed))
    notes = job.about(emitted, "random")
    return Written(job.out, sizes_of(job.out), time.monotonic() - started, notes)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def sizes_of(folder: Path) -> tuple[tuple[str, int], ...]:
    """Files of a folder and their bytes, by name."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return tuple(sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in files))
