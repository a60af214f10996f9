"""Is an exported folder the model it says it is? ONNX Runtime against independent witnesses.

The witnesses get the folder's own weights, read back from its data files: what is compared is the
computation. That the weights are the checkpoint's is the exporter's contract (llamagen/weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, assert_never

import numpy as np

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.export import SPEC_FILE
from llamagen.emit.onnx.session import open_session
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.ir.build_graphs import MAIN, all_parameters, build_all
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.ir.pipeline import Pipeline, pipeline_of
from llamagen.ir.reference import Rounding
from llamagen.spec.registry import Registry
from llamagen.verify.image_cases import image_scenarios
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
from llamagen.verify.report import Row, VerifyReport, WitnessName
from llamagen.verify.scenario import Scenario, Witness, scenarios
from llamagen.verify.stored import StoredWeights, stored_weights
from llamagen.verify.transformers_witness import COUNTS_PADDING, TransformersWitness
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness

WITNESSES: tuple[WitnessName, ...] = ("torch", "reference", "transformers")
PROMPT_TOKENS = 12
MAX_REFERENCE_PARAMETERS = 300_000_000
"""Beyond, the float64 reference would run for hours: it reads and widens every weight at every step."""


def verify_folder(
    folder: Path, against: Sequence[str] = ("torch", "reference"), steps: int = 16
) -> VerifyReport:
    """Prefill, ``steps`` decode steps and a left-padded batch, compared with each witness.

    A folder with graphs for images is compared on text with images too, through all of them.
    Weights are read lazily, but the torch and transformers witnesses hold the whole model in
    float32. Raises LG770 (not an exported folder), LG771 (an unknown witness), LG772 (the folder's
    spec is not the one the model was made from), LG773 (weights that do not fit), LG774 (a witness
    that cannot run here), LG711 to LG713 (ONNX Runtime refuses the model).
    """
    names = [_known(name) for name in dict.fromkeys(against)]
    subject = _subject(folder)
    rows = [row for part in _parts(subject, steps) for name in names for row in part.rows(name)]
    rows.sort(key=lambda row: names.index(row.witness))  # of one witness, text comes first
    return VerifyReport(subject.graphs[MAIN].spec_id, tuple(rows))


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


def _parts(subject: _Subject, steps: int) -> Iterator[_Part]:
    """Cases of text, then those with images: each needs some of the graphs, and no more are opened."""
    main = subject.graphs[MAIN]
    flat = flatten(main)
    vocab_size = flat.types[flat.outputs[0]].shape[-1].value
    yield _Part(subject, (MAIN,), scenarios(vocab_size, PROMPT_TOKENS, steps))
    pipeline = subject.pipeline
    if pipeline is None:
        return
    try:
        cases = image_scenarios(pipeline, subject.graphs, vocab_size, steps)
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
        self.cases = tuple(replace(case, last=last) for case in cases)
        self.skipped = skipped
        self.bounds: dict[str, Tolerance] = {}
        self.exact: dict[str, FloatArray] = {}
        onnx = self.onnx() if cases else None
        self.found = [case.logits(onnx) for case in self.cases if onnx is not None]
        ops = {node.op for graph in self.graphs.values() for node in flatten(graph).nodes}
        self.routed = "topk" in ops
        self.stretched = "attention_temperature" in ops

    def rows(self, name: WitnessName) -> Iterator[Row]:
        size = self.subject.size
        note = self.skipped
        if not note and name == "reference" and size > MAX_REFERENCE_PARAMETERS:
            note = f"{size:,} parameters are too many for the float64 reference"
        if note:
            yield Row(name, "all", None, None, note)
            return
        witness = None if name == "reference" else self.witness(name)
        for case, found in zip(self.cases, self.found, strict=True):
            alone = name == "transformers" and self.stretched and not case.mask.all()
            rows = case.alone(self.subject.pipeline) if alone else (case,)
            expected = (
                self.exactly(case)
                if witness is None
                else np.concatenate([row.logits(witness) for row in rows])
            )
            measured = self.robust(difference(found, expected))
            note = COUNTS_PADDING if alone else ""
            yield Row(name, case.name, measured, self.tolerance(name, case), note)

    def onnx(self) -> Witness:
        folder, names = self.subject.folder, self.graphs
        pieces = {n: OnnxWitness(open_session(folder / f"{n}.onnx")) for n in names}
        return GraphsWitness("onnx", pieces, self.subject.pipeline)

    def reference(self, rounding: Rounding = None) -> Witness:
        read = self.subject.stored.read
        pieces = {n: ReferenceWitness.of_graph(g, read, rounding) for n, g in self.graphs.items()}
        return GraphsWitness("reference", pieces, self.subject.pipeline)

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
        if case.name not in self.bounds:
            self.bounds[case.name] = self.bound(case)
        bound = self.bounds[case.name]
        return bound if name == "reference" else between_float32(self.subject.stored.dtype, bound)

    def bound(self, case: Scenario) -> Tolerance:
        """Measured where the reference is at hand, from the table otherwise."""
        dtype = self.subject.stored.dtype
        if self.subject.size > MAX_REFERENCE_PARAMETERS:
            return TOLERANCES[dtype]
        rounded = case.logits(self.reference(dtype))
        return measured_tolerance(dtype, self.robust(difference(rounded, self.exactly(case))))

    def exactly(self, case: Scenario) -> FloatArray:
        """By the reference, computed once: it is a witness, and what the bound is measured with."""
        if case.name not in self.exact:
            self.exact[case.name] = case.logits(self.reference())
        return self.exact[case.name]

    def robust(self, found: Difference) -> Difference:
        """In a low precision some tokens choose another expert, in every implementation."""
        if self.routed and self.subject.stored.dtype != "float32":
            return found.without_outliers()
        return found
