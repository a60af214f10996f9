"""The main job: a spec and a checkpoint (or a seed) become a folder that ONNX Runtime runs, whole or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

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
from llamagen.emit.weight_types import STORED
from llamagen.ir.build_graphs import MAIN, build_all
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.resolved_text import resolved_text

if TYPE_CHECKING:
    from llamagen.emit.onnx.data import Placement
    from llamagen.emit.onnx.emit import OnnxModel
    from llamagen.emit.supply import Supply
    from llamagen.weights.pieces import Piece

SPEC_FILE = "spec.yaml"

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a command wrote: files with their bytes, and how long it took."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    seconds: float


@dataclass
class _Counter:
    """Adds up what is done."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


def export_checkpoint(
    resolved: ResolvedSpec,
    graph: Graph,
    checkpoint: Path,
    out: Path,
    *,
    registry: Registry,
    profile: str,
    dtype: str,
    overwrite: bool,
    progress: Progress,
) -> Written:
    """Stream a checkpoint into an ONNX folder.

    Raises LG60x and LG61x for a checkpoint that does not fit (all findings before anything is written; LG618 alone if
    it is that of another model of ``registry``), LG620 to LG622 for its values, LG63x for the output, LG701 and LG702
    for profile and dtype.
    """
    from llamagen.emit.supply import CheckpointSupply

    started = time.monotonic()
    emitted = _emitted(resolved, graph, profile, dtype)
    with ExitStack() as stack:
        supply = CheckpointSupply.opened(resolved, graph, checkpoint, registry, stack)
        _write(resolved, emitted, supply, out, overwrite, progress)
    return Written(out, sizes_of(out), time.monotonic() - started)


def export_random(
    resolved: ResolvedSpec,
    graph: Graph,
    seed: int,
    out: Path,
    *,
    profile: str,
    dtype: str,
    overwrite: bool,
    progress: Progress,
) -> Written:
    """The same folder with the unit-scale random weights of ``seed``; equal seeds give equal bytes."""
    from llamagen.emit.supply import RandomSupply
    from llamagen.weights.fit import wanted_by

    started = time.monotonic()
    emitted = _emitted(resolved, graph, profile, dtype)
    supply = RandomSupply(wanted_by(resolved, graph), seed)
    _write(resolved, emitted, supply, out, overwrite, progress)
    return Written(out, sizes_of(out), time.monotonic() - started)


def _emitted(
    resolved: ResolvedSpec, graph: Graph, profile: str, dtype: str
) -> dict[str, OnnxModel]:
    """The text model, and a model of each further graph of the spec, by name."""
    from llamagen.emit.onnx.emit import emit_onnx
    from llamagen.emit.onnx.profile import dtype_named, profile_named

    graphs = build_all(resolved) if resolved.spec.graphs else {MAIN: graph}
    chosen, run = profile_named(profile), dtype_named(dtype)
    return {name: emit_onnx(one, chosen, run) for name, one in graphs.items()}


def _write(
    resolved: ResolvedSpec,
    emitted: Mapping[str, OnnxModel],
    supply: Supply,
    out: Path,
    overwrite: bool,
    progress: Progress,
) -> None:
    from llamagen.emit.config import config_files
    from llamagen.emit.onnx.data import byte_count
    from llamagen.emit.onnx.write import together_initializers, write_models
    from llamagen.weights.publish import staged_folder

    target = STORED[emitted[MAIN].dtype]
    total = sum(map(byte_count, together_initializers(emitted.values())))
    counter = _Counter(progress, total)

    def weights(spot: Placement) -> Iterator[Piece]:
        offset = spot.offset
        for source in spot.initializer.sources:
            for piece in supply.pieces(source.path, target, offset):
                yield piece
                offset += piece.length

    with staged_folder(out, overwrite=overwrite, manifest=MANIFEST) as staging:
        known = write_models(emitted, staging, weights, report=counter.add)
        (staging / SPEC_FILE).write_text(resolved_text(resolved), encoding="utf-8", newline="\n")
        for name, text in config_files(resolved).items():
            (staging / name).write_text(text, encoding="utf-8", newline="\n")
        for file in supply.companions:  # a checkpoint's own config wins
            shutil.copyfile(file, staging / file.name)
        manifest = _manifest(resolved, emitted, supply, all_files(staging, known))
        (staging / MANIFEST).write_text(manifest.text(), encoding="utf-8", newline="\n")


def _manifest(
    resolved: ResolvedSpec,
    emitted: Mapping[str, OnnxModel],
    supply: Supply,
    files: dict[str, FileRecord],
) -> Manifest:
    from llamagen.emit.onnx.emit import llamagen_version

    main = emitted[MAIN]
    return Manifest(
        llamagen=llamagen_version(),
        spec=SpecRecord(id=resolved.spec.id, digest=resolved.digest),
        profile=main.profile.name,
        dtype=main.dtype,
        io_dtype=main.profile.io_dtypes[main.dtype],
        weights=WeightsRecord(mode="copy", source=supply.source),
        graphs={
            name: GraphRecord(
                file=f"{name}.onnx",
                digest=one.model.metadata_props["llamagen.spec_digest"],
                opset={domain or "ai.onnx": v for domain, v in sorted(one.opsets.items())},
            )
            for name, one in emitted.items()
        },
        images=images_record(resolved),
        files=files,
    )


def sizes_of(folder: Path) -> tuple[tuple[str, int], ...]:
    """Files of a folder and their bytes, by name."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return tuple(sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in files))
