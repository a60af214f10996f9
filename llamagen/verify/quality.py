"""What quantising cost: the folder as it runs against the float32 model, on a fixed set of inputs.

`verify` proves that the computation is right; this says how far the quantised weights and activations move the
distribution of the next token.
"""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.checkpoint import fit
from llamagen.emit.manifest import (
    MANIFEST,
    SPEC_FILE,
    Manifest,
    QualityRecord,
    RandomSource,
    read_manifest,
)
from llamagen.emit.onnx.data import MODEL_FILE
from llamagen.emit.onnx.session import open_session
from llamagen.emit.supply import CheckpointSupply, RandomSupply, Supply
from llamagen.ir.elaborate import build
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.units import bytes_text
from llamagen.verify.folder import spec_text
from llamagen.verify.limits import DAMAGED
from llamagen.verify.scenarios import FloatArray, Scenario
from llamagen.verify.stored import CodedPlace, Place, stored_weights
from llamagen.verify.witnesses import OnnxWitness, TorchWitness
from llamagen.weights.checkpoint import require_unchanged, stamps_of
from llamagen.weights.names import wanted_by
from llamagen.weights.tensors import whole
from llamagen.writing import write_changed

SEQUENCES, PROMPT, STEPS, SEED = 8, 16, 32, 0
DESCRIPTION = (
    f"{SEQUENCES} sequences of random ids (seed {SEED}): the next token after {PROMPT} tokens "
    f"and after each of {STEPS} more"
)
MEMORY_SHARE = 0.8
"""Of the machine's memory, that the float32 model may take."""

ELEMENTS = 1 << 18
"""Compared of each tensor: its first rows, of at most so many elements, or one."""
_STEPS = 4
"""Codes are the nearest ones, or the last ones where a block's largest value is clipped: by one of 8 steps, or by a
third more where its scale was searched (FACTORS)."""


def measure_quality(folder: str | Path, checkpoint: str | Path | None = None) -> QualityRecord:
    """Compare ``folder`` with the float32 weights of ``checkpoint``, or of its own seed; the result is in its manifest.

    Raises LG775 for a folder without a manifest, LG773 for one whose weights cannot be read, LG764 for a model whose
    context is shorter than the inputs, LG778 for weights that cannot be had or held or are not the folder's, LG622 for
    a file that changed meanwhile, and as an export does for a checkpoint that does not fit.
    """
    folder = Path(folder)
    before = stamps_of(folder)
    manifest = read_manifest(folder)
    if manifest.max_context is not None and manifest.max_context < PROMPT + STEPS:
        message = (
            f"sequences of {PROMPT + STEPS} tokens are more than the model was exported for, "
            f"{manifest.max_context:,}"
        )
        raise LlamagenError.of("LG764", message, help="export it with a larger --max-context")
    registry = Registry()
    resolved = registry.load_text(spec_text(folder), f"{folder / SPEC_FILE}")
    graph = build(resolved)
    _fits_memory(graph)
    supply: Supply
    if checkpoint is not None:
        fitted = fit(resolved, Path(checkpoint), registry, compare_values=True, resize=False)
        supply = CheckpointSupply.of(fitted.require())
    else:
        supply = RandomSupply(wanted_by(resolved, graph), _seed(manifest))
    _of_this(folder, graph, supply)
    found = _measured(folder, graph, supply)
    supply.require_unchanged()
    require_unchanged(before)
    complete = manifest.model_copy(update={"quality": found})
    write_changed(folder, {MANIFEST: complete.text()})
    return found


def _seed(manifest: Manifest) -> int:
    match manifest.weights.source:
        case RandomSource(seed=seed):
            return seed
        case _:
            raise LlamagenError.of(
                "LG778",
                "the folder's weights are those of a checkpoint, not of a seed",
                help="give the checkpoint: --quality DIR",
            )


def _of_this(folder: Path, graph: Graph, supply: Supply) -> None:
    """The weights are those of ``supply``, as far as rounding to its dtype or its codes lets them."""
    stored, wanted = stored_weights(folder), graph.parameters
    stored.require(wanted)
    for path in wanted:
        if not _same(path, stored.places[path], supply):
            raise LlamagenError.of(
                "LG778",
                f"the folder was not made of these weights: `{path}` has other values",
                help="give the checkpoint that it was exported from; `verify --integrity` finds damage",
            )


def _same(path: str, place: Place | CodedPlace, supply: Supply) -> bool:
    shape = place.shape
    if shape:
        rows = max(1, ELEMENTS // max(1, prod(shape[1:])))
        shape = (min(shape[0], rows), *shape[1:])
    given = supply.part(path, whole(shape))
    match replace(place, shape=shape):
        case Place() as plain:
            return np.array_equal(plain.read(), given.astype(plain.dtype))
        case CodedPlace() as coded:
            away = np.abs(coded.read() - given)
            return bool((away <= _STEPS * coded.steps()).all())


def _fits_memory(graph: Graph) -> None:
    needed = 4 * sum(p.count for p in graph.parameters.values())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * there:
        raise LlamagenError.of(
            "LG778",
            f"the float32 model takes {bytes_text(needed)}, this machine has {bytes_text(there)}",
            help="measure on a larger machine; the result goes into the folder's manifest",
        )


def _measured(folder: Path, graph: Graph, supply: Supply) -> QualityRecord:
    shapes = {path: p.shape for path, p in graph.parameters.items()}

    def read(path: str) -> NDArray[np.generic]:
        return supply.part(path, whole(shapes[path]))

    session = open_session(folder / MODEL_FILE)
    vocabulary = int(session.get_outputs()[0].shape[-1])
    ids = np.random.default_rng(SEED).integers(0, vocabulary, (SEQUENCES, PROMPT + STEPS))
    case = Scenario("quality", ids, np.ones_like(ids), (PROMPT, *(1,) * STEPS), last=True)
    found = case.given(OnnxWitness(session, file=str(folder / MODEL_FILE)))
    del session  # two models need not be in memory at once
    expected = case.ending(case.logits(TorchWitness.of_graph(graph, read)))
    return compared(found, expected)


def compared(found: FloatArray, expected: FloatArray) -> QualityRecord:
    """Of logits [positions, V] and those of the float32 model. Raises LG777 where there is a NaN or an infinity."""
    for whose, logits in (("the folder", found), ("the float32 model", expected)):
        if not np.isfinite(logits).all():
            message = f"logits of {whose} are not finite: nothing was measured"
            raise LlamagenError.of("LG777", message, help=DAMAGED)
    p, q = _log_softmax(expected), _log_softmax(found)
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    same = found.argmax(axis=1) == expected.argmax(axis=1)
    return QualityRecord(
        inputs=DESCRIPTION,
        positions=len(found),
        kl_mean=_rounded(divergence.mean()),
        kl_max=_rounded(divergence.max()),
        top1_agreement=_rounded(same.mean()),
    )


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _rounded(value: np.floating) -> float:
    return float(f"{max(float(value), 0.0):.4g}")
