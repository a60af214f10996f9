"""One export: its graphs, its ONNX models, and the folder around them, published whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.diagnostics import Diagnostic
from llamagen.emit.images_record import images_record
from llamagen.emit.manifest import (
    EXPORT,
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
from llamagen.emit.written import Counter, Progress, write_text
from llamagen.ir.bounded import with_caches
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN, Graph, parameters
from llamagen.spec.fmt import resolved_text
from llamagen.spec.resolve import ResolvedSpec

if TYPE_CHECKING:
    from llamagen.emit.onnx.choices import WeightPlaces
    from llamagen.emit.onnx.initializer import Placement
    from llamagen.emit.onnx.model import OnnxModel
    from llamagen.emit.onnx.profile import OnnxDType
    from llamagen.emit.supply import Supply
    from llamagen.weights.pieces import Piece

SPEC_FILE = "spec.yaml"


@dataclass(frozen=True)
class ExportJob:
    """One export: what both ways of giving weights share."""

    resolved: ResolvedSpec
    graph: Graph
    options: ExportOptions
    out: Path
    overwrite: bool
    progress: Progress
    reads: tuple[Path, ...]
    """Files of the spec and the checkpoint: what holds one of them is not overwritten."""

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
        """The text model, and a model of each further graph of the spec, by name. Raises LG701 to LG706, LG717."""
        from llamagen.emit.onnx.choices import choices_of
        from llamagen.emit.onnx.emit import emit_onnx
        from llamagen.emit.onnx.profile import profile_named
        from llamagen.emit.onnx.quantization import fits_provider, quantization_of

        chosen, options = profile_named(self.options.profile), self.options
        found = choices_of(self.graph, chosen, options.logits, options.max_context)
        weights: WeightPlaces = "copied" if options.mode == "copy" else "referenced"
        choices = replace(found, weights=weights, runtime=options.runtime)
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
        from llamagen.emit.config.table import config_files
        from llamagen.emit.supply import place_companion
        from llamagen.writing import staged_folder

        reads = (*self.reads, *supply.companions)
        with staged_folder(self.out, EXPORT, self.overwrite, reads) as staging:
            known: dict[str, FileRecord] = {}
            yield staging, known
            write_text(staging / SPEC_FILE, resolved_text(self.resolved))
            for name, text in config_files(self.resolved).items():
                write_text(staging / name, text)
            for file in supply.companions:  # a checkpoint's own config wins
                place_companion(file, staging)
            write_client_files(staging, self.resolved, self.graphs, emitted[MAIN])
            files = all_files(staging, known)
            write_text(staging / MANIFEST, self.manifest(emitted, weights, files).text())

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
            runtime=main.runtime,
            batched_chunks=main.batched_chunks,
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
