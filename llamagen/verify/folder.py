"""Is an exported folder the model it says it is? ONNX Runtime against independent witnesses.

The witnesses get the folder's own weights, read back from its data files: what is compared is the
computation. That the weights are the checkpoint's is the exporter's contract (llamagen/weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import numpy as np

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.export import SPEC_FILE
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.ir.build_graphs import MAIN, all_parameters, build_all
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.ir.pipeline import Pipeline, pipeline_of
from llamagen.ir.reference import Rounding
from llamagen.spec.registry import Registry
from llamagen.verify.exact_products import open_exact
from llamagen.verify.facts import facts_of, far
from llamagen.verify.image_cases import image_scenarios
from llamagen.verify.layers import Layers, onnx_pieces
from llamagen.verify.numerics import (
    TOLERANCES,
    Difference,
    FloatArray,
    Tolerance,
    between_float32,
    difference,
    measured_tolerance,
)
from llamagen.verify.pieces import GraphsWitness
from llamagen.verify.report import LayerRow, Row, VerifyReport, WitnessName
from llamagen.verify.scenario import Scenario, Witness, scenarios
from llamagen.verify.stored import StoredWeights, stored_weights
from llamagen.verify.transformers_witness import (
    COUNTS_PADDING,
    COUNTS_PLACES,
    TransformersWitness,
)
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness

WITNESSES: tuple[WitnessName, ...] = ("torch", "reference", "transformers")
PROMPT_TOKENS = 12
MAX_REFERENCE_PARAMETERS = 300_000_000
"""Beyond, the float64 reference would run for hours: it reads and widens every weight at every step."""


DROPS_SEEN = "a bounded cache of chunks is fed without padding between tokens: pad on the left"
"""It keeps places, and chunks count tokens: padding in between pushes out what can still be seen."""

COUNTS_ITSELF = "this model counts the tokens of its mask and takes no positions"
"""Positions that jump cannot be given to it; a real text has none."""

WINDOWS_COUNT_TOKENS = (
    "row by row: windows of the fused attention count tokens, not padding between them"
)

LAYER_CASES = ("prefill", "left padding", "images decode")
"""Those whose layers are looked at: without a cache, with all that can go wrong with it, with images."""


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
) -> VerifyReport:
    """Compare with each witness what ``scenarios`` feeds: prompts, ``steps`` decode steps, ids of ``seed``.

    A folder with graphs for images is compared on text with images too, through all of them. With
    ``layers`` the residual stream after each layer is compared as well, with the reference or, for
    a model too large for it, with torch. Weights are read lazily, but the torch and transformers
    witnesses hold the whole model in float32. Raises LG770 (not an exported folder), LG771 (an
    unknown witness), LG772 (the folder's spec is not the one the model was made from), LG773
    (weights that do not fit), LG774 (a witness that cannot run here), LG711 to LG713 (ONNX Runtime
    refuses the model).
    """
    names = [_known(name) for name in dict.fromkeys(against)]
    subject = _subject(folder)
    rows: list[Row] = []
    seen: list[LayerRow] = []
    cases: list[Scenario] = []
    for part in _parts(subject, _Feed(prompt_tokens, steps, seed)):
        rows += [row for name in names for row in part.rows(name)]
        seen += part.layer_rows(names) if layers else ()
        cases += part.cases
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


@dataclass(frozen=True)
class _Subject:
    """The folder, the graphs its spec says, and its weights."""

    folder: Path
    graphs: Mapping[str, Graph]
    pipeline: Pipeline | None
    stored: StoredWeights

    @property
    def size(self) -> int:
        return sum(p.count for p in all_parameters(self.graphs).values())


def _subject(folder: Path) -> _Subject:
    stored = stored_weights(folder)
    if not (folder / SPEC_FILE).is_file():
        raise LlamagenError.of("LG770", f"{str(folder)!r} has no {SPEC_FILE}")
    text = (folder / SPEC_FILE).read_text(encoding="utf-8")
    graphs = build_all(Registry().load_text(text, f"{folder / SPEC_FILE}"))
    for name, graph in graphs.items():
        file = f"{name}.onnx"
        found = stored if file == MODEL_FILE else stored_weights(folder, file)
        if graph.digest != found.metadata.get("llamagen.spec_digest"):
            message = f"{SPEC_FILE} is not the spec that {file} was made from"
            raise LlamagenError.of("LG772", message, help="export the model again")
        found.require(parameters(graph), file)
        stored = stored.joined(found)
    return _Subject(folder, graphs, pipeline_of(graphs), stored)


def _parts(subject: _Subject, feed: _Feed) -> Iterator[_Part]:
    """Cases of text, then those with images: each needs some of the graphs, and no more are opened."""
    main = subject.graphs[MAIN]
    flat = flatten(main)
    vocab_size = flat.types[flat.outputs[0]].shape[-1].value
    jump = far(main, feed.prompt_tokens + feed.steps)
    text = scenarios(vocab_size, feed.prompt_tokens, feed.steps, feed.seed, jump)
    yield _Part(subject, (MAIN,), text)
    pipeline = subject.pipeline
    if pipeline is None:
        return
    try:
        cases = image_scenarios(pipeline, subject.graphs, vocab_size, feed.steps, feed.seed + 1)
    except ValueError as error:
        yield _Part(subject, pipeline.graphs, (), f"images: {error}")
    else:
        yield _Part(subject, pipeline.graphs, cases)


class _Part:
    """Cases that go through the same graphs."""

    def __init__(
        self,
        subject: _Subject,
        names: Sequence[str],
        cases: Sequence[Scenario],
        skipped: str = "",
    ) -> None:
        self.subject = subject
        self.graphs = {name: subject.graphs[name] for name in names}
        last = subject.stored.metadata.get("llamagen.logits") == "last"
        self.cases = tuple(case.of_last() if last else case for case in cases)
        self.skipped = skipped
        self.bounds: dict[str, Tolerance] = {}
        self.witnesses: dict[WitnessName, Witness] = {}
        self.exact: dict[str, FloatArray] = {}
        self.made_exact = False
        """Whether products of a quantised model are computed in float32 here."""
        onnx = self.onnx() if cases else None
        self.found = [case.logits(onnx) for case in self.cases if onnx is not None]
        nodes = [node for graph in self.graphs.values() for node in flatten(graph).nodes]
        self.routed = any(node.op == "topk" for node in nodes)
        chunked = any(node.attrs.get("chunk") is not None for node in nodes)
        bounded = subject.stored.metadata.get("llamagen.cache") == "bounded"
        self.drops_seen = chunked and bounded
        self.windows_count_tokens = subject.stored.metadata.get("llamagen.window") == "tokens"
        self.counts = subject.stored.metadata.get("llamagen.positions") == "counted"
        self.stretched = any(node.op == "attention_temperature" for node in nodes)

    def rows(self, name: WitnessName) -> Iterator[Row]:
        size = self.subject.size
        note = self.skipped
        if not note and name == "reference" and size > MAX_REFERENCE_PARAMETERS:
            note = f"{size:,} parameters are too many for the float64 reference"
        if note:
            yield Row(name, "all", None, None, note)
            return
        known: dict[str, FloatArray] = {}
        for case, found in zip(self.cases, self.found, strict=True):
            if self.drops_seen and case.has_holes:
                yield Row(name, case.name, None, None, DROPS_SEEN)
                continue
            if self.counts and case.shift:
                yield Row(name, case.name, None, None, COUNTS_ITSELF)
                continue
            by_place = name == "transformers" and self.stretched
            if by_place and case.shift:
                yield Row(name, case.name, None, None, COUNTS_PLACES)
                continue
            by_token = self.windows_count_tokens and case.has_holes
            alone = (by_place and not case.mask.all()) or by_token
            if case.same_as is not None:
                expected = case.moved(known[case.same_as])
            elif name == "reference":
                expected = known[case.name] = self.exactly(case)
            else:
                rows = case.alone(self.subject.pipeline) if alone else (case,)
                made = self.made(name)
                expected = np.concatenate([row.logits(made) for row in rows])
                known[case.name] = expected
            measured = self.robust(difference(found, expected))
            note = WINDOWS_COUNT_TOKENS if by_token else COUNTS_PADDING if alone else ""
            note = note or self.departures(case, found, name)
            what = f"{case.name}, float products" if self.made_exact else case.name
            yield Row(name, what, measured, self.tolerance(name, case), note)

    def onnx(self) -> Witness:
        folder, names = self.subject.folder, self.graphs
        opened = {n: open_exact(folder / f"{n}.onnx") for n in names}
        self.made_exact = any(changed for _, changed in opened.values())
        pieces = {n: OnnxWitness(session) for n, (session, _) in opened.items()}
        return GraphsWitness("onnx", pieces, self.subject.pipeline)

    def reference(self, rounding: Rounding = None, float32_angles: bool = False) -> GraphsWitness:
        read = self.subject.stored.read
        pieces = {
            name: ReferenceWitness.of_graph(graph, read, rounding, float32_angles)
            for name, graph in self.graphs.items()
        }
        return GraphsWitness("reference", pieces, self.subject.pipeline)

    def made(self, name: Literal["torch", "transformers"]) -> Witness:
        """Built once: it holds all weights."""
        if name not in self.witnesses:
            self.witnesses[name] = self.witness(name)
        return self.witnesses[name]

    def departures(self, case: Scenario, found: FloatArray, name: WitnessName) -> str:
        """What is corrected in transformers, and how far it is from the folder without, one at a time."""
        if name != "transformers" or not case.images:
            return ""
        witness = self.made(name)
        assert isinstance(witness, TransformersWitness)
        told: list[str] = []
        for one in witness.corrections:
            apart = ""
            if self.subject.size <= MAX_REFERENCE_PARAMETERS:
                plain = difference(found, case.logits(witness.without(one)))
                apart = f" (without, {plain.max_over_std:.1f} std apart)"
            told.append(f"{one.name}{apart}")
        return f"corrected in transformers: {', '.join(told)}" if told else ""

    def layer_rows(self, names: Sequence[WitnessName]) -> Iterator[LayerRow]:
        """ONNX Runtime's layers and torch's, compared with the reference's or, without it, with torch's."""
        large = self.subject.size > MAX_REFERENCE_PARAMETERS
        cases = [case for case in self.cases if case.name in LAYER_CASES]
        if not cases or (large and "torch" not in names):
            return
        pipeline = self.subject.pipeline
        torch = None
        if "torch" in names:
            witness = self.made("torch")
            assert isinstance(witness, GraphsWitness)
            torch = Layers("torch", witness.pieces, pipeline)
        pieces = onnx_pieces(self.subject.folder, tuple(self.graphs))
        onnx = None if pieces is None else Layers("onnx", pieces, pipeline)
        basis = torch if large else Layers("reference", self.reference().pieces, pipeline)
        assert basis is not None
        for case in cases:
            wanted = basis.of(case)
            found = {} if onnx is None else onnx.of(case)
            other = {} if torch is None or large else torch.of(case)
            for layer, exact in wanted.items():
                yield LayerRow(
                    case.name,
                    layer.graph,
                    layer.path,
                    "torch" if large else "reference",
                    difference(found[layer], exact) if layer in found else None,
                    difference(other[layer], exact) if layer in other else None,
                )

    def witness(self, name: Literal["torch", "transformers"]) -> Witness:
        subject = self.subject
        match name:
            case "torch":
                read = subject.stored.read
                pieces = {n: TorchWitness.of_graph(g, read) for n, g in self.graphs.items()}
                return GraphsWitness(name, pieces, subject.pipeline)
            case "transformers":
                paths = list(all_parameters(subject.graphs))
                images = subject.pipeline is not None
                return TransformersWitness.of_folder(
                    subject.folder, paths, subject.stored.read, images=images
                )
            case _:
                assert_never(name)

    def tolerance(self, name: WitnessName, case: Scenario) -> Tolerance:
        """One bound a case for all witnesses; only between two float32 results is it wider."""
        tokens = case.same_as or case.name
        if tokens not in self.bounds:
            self.bounds[tokens] = self.bound(case)
        bound = self.bounds[tokens]
        return bound if name == "reference" else between_float32(self.subject.stored.dtype, bound)

    def bound(self, case: Scenario) -> Tolerance:
        """Measured where the reference is at hand, from the table otherwise."""
        dtype = self.subject.stored.dtype
        if self.subject.size > MAX_REFERENCE_PARAMETERS:
            return TOLERANCES[dtype]
        rounded = case.logits(self.reference(dtype, float32_angles=case.shift > 0))
        return measured_tolerance(dtype, self.robust(difference(rounded, self.exactly(case))))

    def exactly(self, case: Scenario) -> FloatArray:
        """By the reference, computed once: it is a witness, and what the bound is measured with."""
        if case.name not in self.exact:
            by_token = self.windows_count_tokens and case.has_holes
            rows = case.alone(self.subject.pipeline) if by_token else (case,)
            reference = self.reference()
            self.exact[case.name] = np.concatenate([row.logits(reference) for row in rows])
        return self.exact[case.name]

    def robust(self, found: Difference) -> Difference:
        """In a low precision some tokens choose another expert, in every implementation."""
        if self.routed and self.subject.stored.dtype != "float32":
            return found.without_outliers()
        return found
