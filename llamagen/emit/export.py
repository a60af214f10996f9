"""The main job: a spec and a checkpoint (or a seed) become a folder that ONNX Runtime runs, whole or not at all."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.export_job import ExportJob
from llamagen.emit.written import Written, sizes_of
from llamagen.spec.registry import Registry


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
    supply = CheckpointSupply.opened(
        job.resolved,
        job.graph,
        checkpoint,
        registry,
        compare_values=compare,
        ignore_config=job.options.ignore_config,
    )
    notes = about_size + supply.notes
    job = replace(job, reads=(*job.reads, checkpoint, *supply.stamps))
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
    """The same folder with the unit-scale random weights of ``seed``; equal seeds give equal bytes.

    Raises LG901 for a negative one.
    """
    from llamagen.emit.onnx.emit import AS_EXPORTED
    from llamagen.emit.supply import RandomSupply
    from llamagen.weights.names import wanted_by
    from llamagen.weights.random import require_seed

    started = time.monotonic()
    require_seed(seed)
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
