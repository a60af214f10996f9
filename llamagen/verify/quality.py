"""What quantising cost: the folder as it runs against the float32 model, on a text.

`verify` proves that the computation is right; this says how far the quantised weights and activations move the
distribution of the next token. Both models read the text side by side, so that no logits are kept: memory is that of
the models, however long the text is.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.checkpoint import fit
from llamagen.emit.manifest import (
    MANIFEST,
    SPEC_FILE,
    Manifest,
    QualityRecord,
    RandomSource,
    graph_path,
    read_manifest,
)
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.emit.supply import TOKENIZER_FILE, CheckpointSupply, RandomSupply, Supply
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import known_ids
from llamagen.ir.graph import Graph
from llamagen.resources import data_text
from llamagen.spec.registry import Registry
from llamagen.units import bytes_text
from llamagen.verify.folder import CaseProgress, silent, spec_text
from llamagen.verify.limits import DAMAGED
from llamagen.verify.scenarios import FloatArray, IntArray, Session, Witness
from llamagen.verify.stored import CodedPlace, Place, stored_weights
from llamagen.verify.witnesses import OnnxWitness, TorchWitness
from llamagen.weights.checkpoint import require_unchanged, stamps_of
from llamagen.weights.names import wanted_by
from llamagen.weights.tensors import whole
from llamagen.writing import write_changed

Encode: TypeAlias = Callable[[str, str], Sequence[int]]
"""The ids of a text by a tokenizer.json: (tokenizer, text) -> ids, with those that it begins every text with."""

WINDOW = 256
"""Tokens of a text that see one another."""
ROWS, POSITIONS = 8, 64
"""Windows that are read side by side where the folder tells the logits of the last token alone, and so reads a token a
call; and tokens of all of them whose logits are compared at a time, which the float32 model reads in one call."""
PROMPTS, PROMPT, STEPS = 8, 16, 32
"""Places of the text, tokens from there on, and greedy ones that follow."""
SEED = 0
OURS = "a text of ours (spec/quality.txt)"
GIVEN = "the text that was given"
RANDOM = f"random ids (seed {SEED}): the folder has no {TOKENIZER_FILE} to read a text with"
MOST_NATS = 100.0
"""A token, that a perplexity is told of; one of no knowledge at all takes the logarithm of the vocabulary, 12."""
MEMORY_SHARE = 0.8
"""Of the machine's memory, that both models may take."""

ELEMENTS = 1 << 18
"""Compared of each tensor: its first rows, of at most so many elements, or one."""
_CLIPPED = 1.0
"""Steps between codes that a weight may be from what it is stored as, where codes are the nearest or a block's largest
weight is clipped. Where scales were searched, any weights may be that are beyond the codes of their block."""
_SCALE = 2**-9
"""How far a scale is rounded, relatively: it is kept in bfloat16, and a code is up to 2^bits of it."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """``rows`` [N, W] of ids, and ``prompts`` [PROMPTS, PROMPT] that both models go on with; ``text`` is its digest."""

    said: str
    rows: IntArray
    prompts: IntArray
    text: str | None = None


def measure_quality(
    folder: Path,
    checkpoint: str | Path | None,
    text: str | Path | None,
    encode: Encode,
    progress: CaseProgress = silent,
) -> QualityRecord:
    """Compare ``folder`` with the float32 weights of ``checkpoint``, or of its own seed; the result is in its manifest.

    Both read the file ``text``, or a text of ours; random ids where the folder has no tokenizer.

    Raises LG775 for a folder without a manifest, LG773 for one whose weights cannot be read, LG764 for a model whose
    context is shorter than the inputs, LG761 for a text without a tokenizer, LG778 for a text that is not there, not
    UTF-8 or too short, for a model without logits, for weights that cannot be had or held or are not the folder's,
    LG622 for a file that changed meanwhile, and as an export does for a checkpoint that does not fit.
    """
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
    if "logits" not in graph.output_names:
        gives = ", ".join(f"`{name}`" for name in graph.output_names)
        message = f"the model gives {gives} and no logits, whose distributions are compared"
        raise LlamagenError.of(
            "LG778", message, help="`llamagen verify DIR` compares what it gives"
        )
    inputs = _inputs(folder, manifest, known_ids(graph), text, encode)
    _fits_memory(graph, manifest)
    supply: Supply
    if checkpoint is not None:
        fitted = fit(resolved, Path(checkpoint), registry, compare_values=True, resize=False)
        supply = CheckpointSupply.of(fitted.require())
    else:
        supply = RandomSupply(wanted_by(resolved, graph), _seed(manifest))
    coded = manifest.quantization
    searched = coded is not None and coded.method == "search"
    _of_this(folder, graph, supply, searched)
    found = _measured(folder, manifest, graph, supply, inputs, progress)
    supply.require_unchanged()
    require_unchanged(before)
    complete = manifest.model_copy(update={"quality": found})
    write_changed(folder, {MANIFEST: complete.text()})
    return found


def _inputs(
    folder: Path, manifest: Manifest, vocabulary: int, text: str | Path | None, encode: Encode
) -> Inputs:
    window = min(WINDOW, manifest.max_context or WINDOW)
    if not files.exists(folder / TOKENIZER_FILE):
        if text is not None:
            message = f"{str(folder)!r} has no {TOKENIZER_FILE}, so it cannot read a text"
            help = "copy the model's tokenizer.json there, or leave out --text"
            raise LlamagenError.of("LG761", message, help=help)
        drawn = np.random.default_rng(SEED).integers(0, vocabulary, PROMPTS * (PROMPT + STEPS))
        return Inputs(RANDOM, drawn.reshape(PROMPTS, -1), _prompts(drawn, ()))
    tokenizer = files.read_text(folder / TOKENIZER_FILE, files.TOKENIZER, within=folder)
    words = (
        data_text("spec", "quality.txt")
        if text is None
        else files.read_text(Path(text), files.QUALITY_TEXT)
    )
    ids, nothing = encode(tokenizer, words), encode(tokenizer, "")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, nothing, strict=False))
    lead = [token for token, _ in same]
    """What it begins every text with, and so every window of it."""
    body, size = np.asarray(ids[len(lead) :], np.int64), window - len(lead)
    reason = ""
    if len(body) < size:
        reason = f"the text has {len(body):,} tokens, and {size} are the least"
    elif max(ids) >= vocabulary:
        reason = f"the tokenizer has an id {max(ids):,} that the model has not"
    if reason:
        raise LlamagenError.of(
            "LG778", reason, help="give a longer --text FILE, or the model's own tokenizer.json"
        )
    rows = body[: len(body) // size * size].reshape(-1, size)
    begins = np.broadcast_to(np.asarray(lead, np.int64), (len(rows), len(lead)))
    said = OURS if text is None else GIVEN
    digest = hashlib.sha256(words.encode("utf-8")).hexdigest()
    return Inputs(said, np.concatenate([begins, rows], axis=1), _prompts(body, lead), digest)


def _prompts(body: IntArray, lead: Sequence[int]) -> IntArray:
    size = PROMPT - len(lead)
    places = np.linspace(0, len(body) - size, PROMPTS).astype(int)
    return np.stack([[*lead, *body[place : place + size]] for place in places])


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


def _of_this(folder: Path, graph: Graph, supply: Supply, searched: bool) -> None:
    """The weights are those of ``supply``, as far as rounding to its dtype or its codes lets them."""
    stored, wanted = stored_weights(folder), graph.parameters
    stored.require(wanted, graph_path(folder).name)
    for path in wanted:
        if not _same(path, stored.places[path], supply, searched):
            raise LlamagenError.of(
                "LG778",
                f"the folder was not made of these weights: `{path}` has other values",
                help="give the checkpoint that it was exported from; `verify --integrity` finds damage",
            )


def _same(path: str, place: Place | CodedPlace, supply: Supply, searched: bool) -> bool:
    shape = place.shape
    if shape:
        rows = max(1, ELEMENTS // max(1, prod(shape[1:])))
        shape = (min(shape[0], rows), *shape[1:])
    given = supply.part(path, whole(shape))
    match replace(place, shape=shape):
        case Place() as plain:
            return np.array_equal(plain.read(), given.astype(plain.dtype))
        case CodedPlace() as coded:
            values, kind, bits = coded.read(), coded.record.kind, coded.record.bits
            near = np.abs(values - given) <= (_CLIPPED + 2**bits * _SCALE) * coded.steps()
            if searched and (kind, bits) == ("blocks", 4):  # no others are
                near |= coded.at_ends() & (values * given > 0) & (np.abs(given) > np.abs(values))
            return bool(near.all())


def _fits_memory(graph: Graph, manifest: Manifest) -> None:
    exact = 4 * sum(p.count for p in graph.parameters.values())
    own = sum(file.size for file in manifest.files.values())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if exact + own > MEMORY_SHARE * there:
        raise LlamagenError.of(
            "LG778",
            f"the float32 model takes {bytes_text(exact)} and the folder {bytes_text(own)}, "
            f"this machine has {bytes_text(there)}",
            help="measure on a larger machine; the result goes into the folder's manifest",
        )


def _measured(
    folder: Path,
    manifest: Manifest,
    graph: Graph,
    supply: Supply,
    inputs: Inputs,
    progress: CaseProgress,
) -> QualityRecord:
    shapes = {path: p.shape for path, p in graph.parameters.items()}

    def read(path: str) -> NDArray[np.generic]:
        return supply.part(path, whole(shapes[path]))

    options = OpenOptions(settings=manifest.session, made_for=manifest.made_for)
    file = graph_path(folder)
    own = OnnxWitness(open_session(file, options), file=str(file), made_for=manifest.made_for)
    exact = TorchWitness.of_graph(graph, read)
    every = manifest.logits == "all"
    size = 1 if every else ROWS
    last = inputs.rows.shape[1] - 1
    done, in_all = 0, last * len(inputs.rows) + 2 * PROMPTS * STEPS
    distances = Distances()
    for rows in np.split(inputs.rows, range(size, len(inputs.rows), size)):

        def read_on(session: Session, start: int, stop: int, rows: IntArray = rows) -> FloatArray:
            mask = np.ones((len(rows), stop), np.int64)
            return session.step(rows[:, start:stop], mask, _places(rows, start, stop))

        folder_session, exact_session = own.start(), exact.start()
        span = POSITIONS // size
        for start in range(0, last, span):
            stop = min(start + span, last)
            calls = [(start, stop)] if every else [(i, i + 1) for i in range(start, stop)]
            found = np.concatenate([read_on(folder_session, *call) for call in calls], axis=1)
            expected = read_on(exact_session, start, stop)
            distances.add(found, expected, rows[:, start + 1 : stop + 1])
            done += len(rows) * (stop - start)
            progress(done, in_all, f"{distances}")
    texts = []
    for witness in (own, exact):
        texts.append(_greedy(witness, inputs.prompts, known_ids(graph)))
        done += PROMPTS * STEPS
        progress(done, in_all, "greedy texts")
    same = np.cumprod(texts[0] == texts[1], axis=1)
    perplexities = distances.perplexities() if inputs.text is not None else (None, None)
    return QualityRecord(
        inputs=inputs.said,
        text=inputs.text,
        positions=distances.positions,
        kl_mean=_rounded(distances.divergence / distances.positions),
        kl_max=_rounded(distances.largest),
        top1_agreement=_rounded(distances.same / distances.positions),
        perplexity=perplexities[0],
        float32_perplexity=perplexities[1],
        prompts=PROMPTS,
        greedy_tokens=STEPS,
        greedy_same=int(same[:, -1].sum()),
        greedy_until=_rounded(same.sum(axis=1).mean()),
    )


def _greedy(witness: Witness, prompts: IntArray, vocabulary: int) -> IntArray:
    """The likeliest tokens behind each prompt, [PROMPTS, STEPS]; none ends a text."""
    session, ids, end = witness.start(), prompts, prompts.shape[1]
    written: list[IntArray] = []
    for start in (0, *range(end, end + STEPS - 1)):
        stop = start + ids.shape[1]
        mask = np.ones((len(prompts), stop), np.int64)
        logits = session.step(ids, mask, _places(prompts, start, stop))
        ids = logits[:, -1:, :vocabulary].argmax(axis=-1)
        written.append(ids)
    return np.concatenate(written, axis=1)


def _places(rows: IntArray, start: int, stop: int) -> IntArray:
    return np.tile(np.arange(start, stop), (len(rows), 1))


@dataclass
class Distances:
    """Sums over positions; ``losses`` are those of the folder and of the float32 model, in nats."""

    positions: int = 0
    divergence: float = 0.0
    largest: float = 0.0
    same: int = 0
    losses: tuple[float, float] = (0.0, 0.0)

    def add(self, found: FloatArray, expected: FloatArray, following: IntArray) -> None:
        """Logits [B, S, V] of both after each token, and the tokens [B, S] that come next.

        Raises LG777 where there is a NaN or an infinity.
        """
        for whose, logits in (("the folder", found), ("the float32 model", expected)):
            if not np.isfinite(logits).all():
                message = f"logits of {whose} are not finite: nothing was measured"
                raise LlamagenError.of("LG777", message, help=DAMAGED)
        q, p = _log_softmax(found), _log_softmax(expected)
        divergence = (np.exp(p) * (p - q)).sum(axis=-1)
        next_of = [np.take_along_axis(of, following[..., None], axis=-1) for of in (q, p)]
        self.positions += divergence.size
        self.divergence += float(divergence.sum())
        self.largest = max(self.largest, float(divergence.max()))
        self.same += int((found.argmax(axis=-1) == expected.argmax(axis=-1)).sum())
        own, exact = (loss - float(of.sum()) for loss, of in zip(self.losses, next_of, strict=True))
        self.losses = own, exact

    def perplexities(self) -> tuple[float, float]:
        """Raises LG777 where a text is next to impossible for one of them."""
        own, exact = (loss / self.positions for loss in self.losses)
        if max(own, exact) > MOST_NATS:
            message = (
                f"a token of the text takes {max(own, exact):,.0f} nats: the model knows no text"
            )
            raise LlamagenError.of("LG777", message, help=DAMAGED)
        return _rounded(math.exp(own)), _rounded(math.exp(exact))

    def __str__(self) -> str:
        own, exact = (math.exp(min(loss / self.positions, MOST_NATS)) for loss in self.losses)
        return f"perplexity {own:.4g} for {exact:.4g}"


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _rounded(value: float | np.floating) -> float:
    return float(f"{max(float(value), 0.0):.4g}")
