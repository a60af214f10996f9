"""Is an exported folder the model it says it is? ONNX Runtime against independent witnesses.

The witnesses get the folder's own weights, read back from its data files: what is compared is the
computation. That the weights are the checkpoint's is the exporter's contract (llamagen/weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.export import SPEC_FILE
from llamagen.emit.onnx.session import open_session
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.ir.build import build
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.spec.registry import Registry
from llamagen.verify.numerics import (
    TOLERANCES,
    Difference,
    Tolerance,
    between_float32,
    difference,
    measured_tolerance,
)
from llamagen.verify.report import Row, VerifyReport, WitnessName
from llamagen.verify.scenario import Scenario, Witness, scenarios
from llamagen.verify.stored import StoredWeights, stored_weights
from llamagen.verify.transformers_witness import TransformersWitness
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness

WITNESSES: tuple[WitnessName, ...] = ("torch", "reference", "transformers")
PROMPT_TOKENS = 12
MAX_REFERENCE_PARAMETERS = 300_000_000
"""Beyond, the float64 reference would run for hours: it reads and widens every weight at every step."""


def verify_folder(
    folder: Path, against: Sequence[str] = ("torch", "reference"), steps: int = 16
) -> VerifyReport:
    """Prefill, ``steps`` decode steps and a left-padded batch, compared with each witness.

    Weights are read lazily, but the torch and transformers witnesses hold the whole model in
    float32. Raises LG770 (not an exported folder), LG771 (an unknown witness), LG772 (the folder's
    spec is not the one the model was made from), LG773 (weights that do not fit), LG774 (a witness
    that cannot run here), LG711 to LG713 (ONNX Runtime refuses the model).
    """
    names = [_known(name) for name in dict.fromkeys(against)]
    stored = stored_weights(folder)
    graph = _graph(folder, stored)
    stored.require(parameters(graph))
    job = _Job(folder, graph, flatten(graph), stored, steps)
    rows = [row for name in names for row in job.rows(name)]
    return VerifyReport(graph.spec_id, tuple(rows))


def _known(name: str) -> WitnessName:
    for witness in WITNESSES:
        if witness == name:
            return witness
    hint = did_you_mean(name, WITNESSES)
    help = f"did you mean `{hint}`?" if hint else f"witnesses are {', '.join(WITNESSES)}"
    raise LlamagenError.of("LG771", f"there is no witness `{name}`", help=help)


def _graph(folder: Path, stored: StoredWeights) -> Graph:
    if not (folder / SPEC_FILE).is_file():
        raise LlamagenError.of("LG770", f"{str(folder)!r} has no {SPEC_FILE}")
    text = (folder / SPEC_FILE).read_text(encoding="utf-8")
    graph = build(Registry().load_text(text, f"{folder / SPEC_FILE}"))
    if graph.digest != stored.metadata.get("llamagen.spec_digest"):
        message = f"{SPEC_FILE} is not the spec that {MODEL_FILE} was made from"
        raise LlamagenError.of("LG772", message, help="export the model again")
    return graph


class _Job:
    def __init__(
        self, folder: Path, graph: Graph, flat: FlatGraph, stored: StoredWeights, steps: int
    ) -> None:
        self.folder = folder
        self.graph = graph
        self.flat = flat
        self.stored = stored
        vocab_size = flat.types[flat.outputs[0]].shape[-1].value
        last = stored.metadata.get("llamagen.logits") == "last"
        cases = scenarios(vocab_size, PROMPT_TOKENS, steps)
        self.cases = tuple(replace(case, last=last) for case in cases)
        self.bounds: dict[str, Tolerance] = {}
        self.onnx = OnnxWitness(open_session(folder / MODEL_FILE))
        self.found = [case.logits(self.onnx) for case in self.cases]
        self.size = sum(p.count for p in parameters(graph).values())
        self.routed = any(node.op == "topk" for node in flat.nodes)

    def rows(self, name: WitnessName) -> Iterator[Row]:
        if name == "reference" and self.size > MAX_REFERENCE_PARAMETERS:
            note = f"{self.size:,} parameters are too many for the float64 reference"
            yield Row(name, "all", None, None, note)
            return
        witness = self.witness(name)
        for case, found in zip(self.cases, self.found, strict=True):
            expected = case.logits(witness)
            tolerance = self.tolerance(name, case)
            yield Row(name, case.name, self.robust(difference(found, expected)), tolerance)

    def witness(self, name: WitnessName) -> Witness:
        match name:
            case "reference":
                return ReferenceWitness(self.flat, self.stored.read)
            case "torch":
                return TorchWitness.of_graph(self.graph, self.stored.read)
            case "transformers":
                return TransformersWitness.of_folder(
                    self.folder, list(parameters(self.graph)), self.stored.read
                )

    def tolerance(self, name: WitnessName, case: Scenario) -> Tolerance:
        """One bound a case for all witnesses; only between two float32 results is it wider."""
        if case.name not in self.bounds:
            self.bounds[case.name] = self.bound(case)
        bound = self.bounds[case.name]
        return bound if name == "reference" else between_float32(self.stored.dtype, bound)

    def bound(self, case: Scenario) -> Tolerance:
        """Measured where the reference is at hand, from the table otherwise."""
        dtype = self.stored.dtype
        if self.size > MAX_REFERENCE_PARAMETERS:
            return TOLERANCES[dtype]
        exact = case.logits(ReferenceWitness(self.flat, self.stored.read))
        rounded = case.logits(ReferenceWitness(self.flat, self.stored.read, rounding=dtype))
        return measured_tolerance(dtype, self.robust(difference(rounded, exact)))

    def robust(self, found: Difference) -> Difference:
        """In a low precision some tokens choose another expert, in every implementation."""
        if self.routed and self.stored.dtype != "float32":
            return found.without_outliers()
        return found
