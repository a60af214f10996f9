"""The main job: a spec and a checkpoint (or a seed) become a folder that ONNX Runtime runs, whole or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.emit.weight_types import STORED
from llamagen.ir.build_graphs import MAIN, build_all
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.resolved_text import resolved_text

if TYPE_CHECKING:
    from llamagen.emit.onnx.emit import Initializer, OnnxModel

MANIFEST = "llamagen.json"
SPEC_FILE = "spec.yaml"
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)
"""Small files of a Hub checkpoint that a runtime reads; copied when they are there."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

Copy: TypeAlias = "Callable[[Initializer, _Counted], None]"


@dataclass(frozen=True, slots=True)
class Written:
    """What a command wrote: files with their bytes, and how long it took."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    seconds: float


class _Counted:
    """A file that reports how many bytes of all were written."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0
        self.file: BinaryIO | None = None

    def write(self, data: memoryview, /) -> int:
        assert self.file is not None
        count = self.file.write(data)
        self.done += count
        self.progress(self.done, self.total)
        return count


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
    from llamagen.weights.checkpoint import Checkpoint
    from llamagen.weights.fit import bind, explained
    from llamagen.weights.stream import copy_tensor

    started = time.monotonic()
    emitted = _emitted(resolved, graph, profile, dtype)
    stored = Checkpoint.open(checkpoint)
    found = bind(resolved, graph, stored)
    if any(one.severity == "error" for one in found.diagnostics):
        raise LlamagenError(explained(found, resolved, graph, stored, registry))
    bindings = {binding.name: binding for binding in found.bindings}
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    target = STORED[emitted[MAIN].dtype]

    def copy(entry: Initializer, sink: _Counted) -> None:
        for source in entry.sources:
            copy_tensor(bindings[source.path], sink, target)

    companions = [folder / name for name in COMPANIONS if (folder / name).is_file()]
    return _write(resolved, emitted, copy, out, companions, overwrite, progress, started)


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
    import numpy as np

    from llamagen.weights.convert import NUMPY_TYPES
    from llamagen.weights.fit import wanted_by
    from llamagen.weights.random import RandomTensor, random_blocks

    started = time.monotonic()
    emitted = _emitted(resolved, graph, profile, dtype)
    wanted = wanted_by(resolved, graph)
    kind = NUMPY_TYPES[STORED[emitted[MAIN].dtype]]

    def copy(entry: Initializer, sink: _Counted) -> None:
        for source in entry.sources:
            tensor = RandomTensor(source.path, source.shape, wanted[source.path].kind)
            for block in random_blocks(seed, tensor):
                sink.write(block.astype(kind, copy=False).view(np.uint8).data)

    return _write(resolved, emitted, copy, out, (), overwrite, progress, started)


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
    copy: Copy,
    out: Path,
    companions: Sequence[Path],
    overwrite: bool,
    progress: Progress,
    started: float,
) -> Written:
    from llamagen.emit.config import config_files
    from llamagen.emit.onnx.data import byte_count
    from llamagen.emit.onnx.write import together_initializers, write_models
    from llamagen.weights.publish import staged_folder

    sink = _Counted(progress, sum(map(byte_count, together_initializers(emitted.values()))))

    def into(entry: Initializer, file: BinaryIO) -> None:
        sink.file = file
        copy(entry, sink)

    with staged_folder(out, overwrite=overwrite, manifest=MANIFEST) as staging:
        write_models(emitted, staging, into)
        (staging / SPEC_FILE).write_text(resolved_text(resolved), encoding="utf-8", newline="\n")
        for name, text in config_files(resolved).items():
            (staging / name).write_text(text, encoding="utf-8", newline="\n")
        for file in companions:  # a checkpoint's own config wins
            shutil.copyfile(file, staging / file.name)
    return Written(out, sizes_of(out), time.monotonic() - started)


def sizes_of(folder: Path) -> tuple[tuple[str, int], ...]:
    """Files of a folder and their bytes, by name."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return tuple(sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in files))
