"""Weights without copies: a graph whose external data is the checkpoint's own safetensors, linked into the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.manifest import FileRecord, WeightsRecord
from llamagen.emit.no_effect import without_effect
from llamagen.emit.quantize_options import NOT_QUANTIZED
from llamagen.emit.weight_types import STORED
from llamagen.weights.link import as_stored, link, scan
from llamagen.weights.safetensors import TargetDType, TensorEntry, header_digest
from llamagen.weights.values import overflow_magnitude

if TYPE_CHECKING:
    from llamagen.emit.export_job import ExportJob
    from llamagen.emit.onnx.initializer import Placement
    from llamagen.emit.onnx.model import OnnxModel
    from llamagen.emit.onnx.profile import OnnxDType
    from llamagen.emit.supply import CheckpointSupply

_ONNX: Mapping[str, OnnxDType] = MappingProxyType({stored: name for name, stored in STORED.items()})


def reference(job: ExportJob, supply: CheckpointSupply) -> tuple[Diagnostic, ...]:
    """Link the checkpoint's files and write graphs that read them in place; what is worth saying about it.

    Nothing but headers is read, unless the options ask for a scan. Raises LG640 to LG642 for what cannot be
    referenced, LG620 and LG621 for what a scan finds.
    """
    from llamagen.emit.onnx.write import write_graphs

    if job.options.quantize != NOT_QUANTIZED:
        raise LlamagenError.of(
            "LG707",
            "quantised weights are computed, so they cannot be references into the checkpoint",
            help="quantise with --weights copy",
        )
    entries = as_stored(supply.bindings.values())
    target, scanned = STORED[job.dtype], job.options.scan
    emitted = job.emitted(_readable(entries, target, scanned))
    record = WeightsRecord(mode="reference", scanned=scanned, source=supply.source)
    with job.published(emitted, supply, record) as (staging, known):
        linked = link(list(entries.values()), staging)
        known |= {name: _recorded(path) for name, path in linked.items()}
        if scanned:
            known |= _scanned(job, supply, linked, target)
        known |= write_graphs(emitted, _placements(emitted, entries), staging)
        supply.require_unchanged()
    said = without_effect(job.options, emitted)
    return said if scanned else (_NOT_SCANNED, *said)


_NOT_SCANNED = Diagnostic(
    "LG643",
    "note",
    "the weights are those of the checkpoint's own files and were not read: NaN and infinity were not looked for",
    help="`--scan` reads every byte, looks, and hashes the files",
)


def _readable(
    entries: Mapping[str, TensorEntry], target: TargetDType, scanned: bool
) -> dict[str, OnnxDType]:
    """The dtypes of stored tensors. Raises LG642 for those a graph cannot cast, or may lose values of unseen."""
    found: dict[str, OnnxDType] = {}
    strange: list[str] = []
    narrowed: list[str] = []
    for path, entry in entries.items():
        name = _ONNX.get(entry.dtype)
        if name is None:
            strange.append(path)
            continue
        found[path] = name
        if not scanned and overflow_magnitude(STORED[name], target) is not None:
            narrowed.append(path)
    problems: list[Diagnostic] = []
    if strange:
        what = f"{_counted(strange)} stored as {entries[strange[0]].dtype}"
        message = f"{what}, which a graph cannot read in place"
        help = "copy the weights with --weights copy"
        problems.append(Diagnostic("LG642", "error", message, help=help))
    if narrowed:
        what = f"{_counted(narrowed)} stored as {entries[narrowed[0]].dtype}"
        message = f"{what}: values beyond {target} would become infinite without a word"
        help = "add --scan, which looks at every value, or --weights copy"
        problems.append(Diagnostic("LG642", "error", message, help=help))
    if problems:
        raise LlamagenError(problems)
    return found


def _counted(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more are" if len(paths) > 1 else " is"
    return f"`{paths[0]}`{more}"


def _placements(
    emitted: Mapping[str, OnnxModel], entries: Mapping[str, TensorEntry]
) -> tuple[Placement, ...]:
    from llamagen.emit.onnx.initializer import Placement
    from llamagen.emit.onnx.write import together_initializers

    places: list[Placement] = []
    for initializer in together_initializers(emitted.values()):
        entry = entries[initializer.name]
        places.append(Placement(initializer, entry.file.name, entry.offset, entry.nbytes))
    return tuple(places)


def _recorded(path: Path) -> FileRecord:
    return FileRecord(size=path.stat().st_size, sha256=None, header_sha256=header_digest(path))


def _scanned(
    job: ExportJob, supply: CheckpointSupply, linked: Mapping[str, Path], target: TargetDType
) -> dict[str, FileRecord]:
    """Records with the hash of the whole content."""
    counter = job.counter(sum(path.stat().st_size for path in linked.values()))
    found: dict[str, FileRecord] = {}
    for name, path in linked.items():
        digest = scan(path, supply.bindings.values(), target, counter.add)
        found[name] = _recorded(path).model_copy(update={"sha256": digest})
    return found
