"""Is an exported folder the model it says it is? ONNX Runtime against independent witnesses.

The witnesses get the folder's own weights, read back from its data files: what is compared is the
computation. That the weights are the checkpoint's is the exporter's contract (llamagen/weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.onnx.session import provider_of
from llamagen.emit.written import Progress
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import MAIN
from llamagen.verify.facts import facts_of, far
from llamagen.verify.image_cases import image_scenarios
from llamagen.verify.part import Part
from llamagen.verify.report import LayerRow, Row, VerifyReport, WitnessName
from llamagen.verify.scenario import Scenario, scenarios
from llamagen.verify.subject import Subject, subject_of
from llamagen.weights.stamps import require_unchanged, stamps_of

WITNESSES: tuple[WitnessName, ...] = ("torch", "reference", "transformers")
PROMPT_TOKENS = 12


def silent(done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True)
class _Feed:
    prompt_tokens: int
    steps: int
    seed: int


def verify_folder(
    folder: Path,
    against: Sequence[str] = ("torch", "reference"),
    steps: int = 16,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    seed: int = 0,
    layers: bool = False,
    provider: str = "cpu",
    progress: Progress = silent,
) -> VerifyReport:
    """Compare with each witness what ``scenarios`` feeds: prompts, ``steps`` decode steps, ids of ``seed``.

    A folder with graphs for images is compared on text with images too, through all of them. With
    ``layers`` the residual stream after each layer is compared as well, with the reference or, for
    a model too large for it, with torch. Weights are read lazily, but the torch and transformers
    witnesses hold the whole model in float32. ``progress`` gets (cases done, in all), each once for every backend.
    Raises LG770 (not an exported folder), LG771 (an
    unknown witness), LG772 (the folder's spec is not the one the model was made from), LG773
    (weights that do not fit), LG774 (a witness that cannot run here), LG764 (more tokens than the
    model was exported for), LG711 to LG713 (ONNX Runtime refuses the model), LG622 (a file of the
    folder changed meanwhile).
    """
    names = [_known(name) for name in dict.fromkeys(against)]
    before = stamps_of(folder)
    subject = subject_of(folder, provider_of(provider))
    rows: list[Row] = []
    seen: list[LayerRow] = []
    cases: list[Scenario] = []
    plans = list(_plans(subject, _Feed(prompt_tokens, steps, seed)))
    step = _Steps(progress, (1 + len(names)) * sum(len(plan.cases) for plan in plans))
    for plan in plans:
        part = Part(subject, plan.graphs, plan.cases, plan.skipped, step.one)
        for name in names:
            for row in part.rows(name):
                rows.append(row)
                step.one()
        seen += part.layer_rows(names) if layers else ()
        cases += part.cases
    require_unchanged(before)
    rows.sort(key=lambda row: names.index(row.witness))  # of one witness, text comes first
    main = subject.graphs[MAIN]
    facts = facts_of(subject.graphs, subject.stored, seed, cases)
    return VerifyReport(main.spec_id, tuple(rows), facts, tuple(seen))


def _known(name: str) -> WitnessName:
    for witness in WITNESSES:
        if witness == name:
            return witness
    hint = did_you_mean(name, WITNESSES)
    help = f"did you mean `{hint}`?" if hint else f"witnesses are {', '.join(WITNESSES)}"
    raise LlamagenError.of("LG771", f"there is no witness `{name}`", help=help)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Cases that need some of the graphs, and no more are opened; or why there are none."""

    graphs: tuple[str, ...]
    cases: tuple[Scenario, ...]
    skipped: str = ""


def _plans(subject: Subject, feed: _Feed) -> Iterator[_Plan]:
    """Cases of text, then those with images."""
    main = subject.graphs[MAIN]
    flat = flatten(main)
    vocab_size = flat.types[flat.outputs[0]].shape[-1].value
    jump = far(main, feed.prompt_tokens + feed.steps)
    text = scenarios(vocab_size, feed.prompt_tokens, feed.steps, feed.seed, jump)
    limit = subject.max_context
    if limit is not None and _longest(text) > limit:
        message = f"cases of {_longest(text):,} tokens are more than the model was exported for, {limit:,}"
        help = "--steps and --prompt-tokens make them shorter"
        raise LlamagenError.of("LG764", message, help=help)
    yield _Plan((MAIN,), text)
    pipeline = subject.pipeline
    if pipeline is None:
        return
    try:
        cases = image_scenarios(pipeline, subject.graphs, vocab_size, feed.steps, feed.seed + 1)
    except ValueError as error:
        yield _Plan(tuple(pipeline.graphs), (), f"images: {error}")
        return
    if limit is not None and _longest(cases) > limit:
        why = (
            f"images: cases of {_longest(cases):,} tokens, and the model was exported for {limit:,}"
        )
        yield _Plan(tuple(pipeline.graphs), (), why)
        return
    yield _Plan(tuple(pipeline.graphs), cases)


def _longest(cases: Sequence[Scenario]) -> int:
    """Slots of the longest text."""
    return max(sum(case.splits) for case in cases)


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def one(self) -> None:
        self.done = min(self.done + 1, self.total)  # a row about all cases is no case
        self.progress(self.done, self.total)
