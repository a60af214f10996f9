"""Is an exported folder the model it says it is? ONNX Runtime against independent witnesses.

The witnesses get the folder's own weights, read back from its data files: what is compared is the
computation. That the weights are the checkpoint's is the exporter's contract (llamagen/weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.export import SPEC_FILE
from llamagen.emit.onnx.session import open_session
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.ir.build import build
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.spec.registry import Registry
from llamagen.verify.layers import LayerWitness, OnnxLayers, ReferenceLayers, TorchLayers, layers_of
from llamagen.verify.numerics import (
    TOLERANCES,
    Difference,
    FloatArray,
    Tolerance,
    between_float32,
    difference,
    measured_tolerance,
)
from llamagen.verify.report import Facts, LayerRow, Limit, LimitKind, Row, VerifyReport, WitnessName
from llamagen.verify.scenario import FAR, Scenario, Witness, scenarios
from llamagen.verify.stored import StoredWeights, stored_weights
from llamagen.verify.transformers_witness import TransformersWitness
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness

WITNESSES: tuple[WitnessName, ...] = ("torch", "reference", "transformers")
PROMPT_TOKENS = 12
MAX_REFERENCE_PARAMETERS = 300_000_000
"""Beyond, the float64 reference would run for hours: it reads and widens every weight at every step."""


LAYER_CASES = ("prefill", "left padding")
"""Those whose layers are looked at: one without a cache, one with all that can go wrong with it."""


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

    With ``layers`` the residual stream after each layer is compared as well, with the reference or,
    for a model too large for it, with torch. Weights are read lazily, but the torch and
    transformers witnesses hold the whole model in float32. Raises LG770 (not an exported folder),
    LG771 (an unknown witness), LG772 (the folder's spec is not the one the model was made from),
    LG773 (weights that do not fit), LG774 (a witness that cannot run here), LG711 to LG713 (ONNX
    Runtime refuses the model).
    """
    names = [_known(name) for name in dict.fromkeys(against)]
    stored = stored_weights(folder)
    graph = _graph(folder, stored)
    stored.require(parameters(graph))
    feed = _Feed(prompt_tokens, steps, seed)
    job = _Job(folder, graph, flatten(graph), stored, feed)
    rows = [row for name in names for row in job.rows(name)]
    looked_at = tuple(job.layer_rows(names)) if layers else ()
    return VerifyReport(graph.spec_id, tuple(rows), job.facts(), looked_at)


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


@dataclass(frozen=True, slots=True)
class _Feed:
    prompt_tokens: int
    steps: int
    seed: int


class _Job:
    def __init__(
        self,
        folder: Path,
        graph: Graph,
        flat: FlatGraph,
        stored: StoredWeights,
        feed: _Feed,
    ) -> None:
        self.folder = folder
        self.graph = graph
        self.flat = flat
        self.stored = stored
        vocab_size = flat.types[flat.outputs[0]].shape[-1].value
        self.seed = feed.seed
        self.cases = scenarios(vocab_size, feed.prompt_tokens, feed.steps, feed.seed, _far(flat))
        self.bounds: dict[str, Tolerance] = {}
        self.witnesses: dict[WitnessName, Witness] = {}
        self.onnx = OnnxWitness(open_session(folder / MODEL_FILE))
        self.found = [case.logits(self.onnx) for case in self.cases]
        self.size = sum(p.count for p in parameters(graph).values())
        self.routed = any(node.op == "topk" for node in flat.nodes)

    def rows(self, name: WitnessName) -> Iterator[Row]:
        if name == "reference" and self.size > MAX_REFERENCE_PARAMETERS:
            note = f"{self.size:,} parameters are too many for the float64 reference"
            yield Row(name, "all", None, None, note)
            return
        witness = self.made(name)
        known: dict[str, FloatArray] = {}
        for case, found in zip(self.cases, self.found, strict=True):
            if name == "transformers" and (why := self.not_for_transformers(case)):
                yield Row(name, case.name, None, None, why)
                continue
            if case.same_as is None:
                known[case.name] = case.logits(witness)
                expected = known[case.name]
            else:
                expected = case.moved(known[case.same_as])
            tolerance = self.tolerance(name, case)
            yield Row(name, case.name, self.robust(difference(found, expected)), tolerance)

    def not_for_transformers(self, case: Scenario) -> str:
        """Why a case cannot be compared with it; empty where it can."""
        chunked = any(node.attrs.get("chunk") is not None for node in self.flat.nodes)
        if chunked and case.name == "right padding":
            return "transformers counts padding on the right as tokens of a chunk"
        return ""

    def made(self, name: WitnessName) -> Witness:
        if name not in self.witnesses:
            self.witnesses[name] = self.witness(name)
        return self.witnesses[name]

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
        tokens = case.same_as or case.name
        if tokens not in self.bounds:
            self.bounds[tokens] = self.bound(case)
        bound = self.bounds[tokens]
        return bound if name == "reference" else between_float32(self.stored.dtype, bound)

    def bound(self, case: Scenario) -> Tolerance:
        """Measured where the reference is at hand, from the table otherwise."""
        dtype = self.stored.dtype
        if self.size > MAX_REFERENCE_PARAMETERS:
            return TOLERANCES[dtype]
        exact = case.logits(ReferenceWitness(self.flat, self.stored.read))
        inexact = ReferenceWitness(
            self.flat, self.stored.read, rounding=dtype, float32_angles=case.shift > 0
        )
        rounded = case.logits(inexact)
        return measured_tolerance(dtype, self.robust(difference(rounded, exact)))

    def layer_rows(self, names: Sequence[WitnessName]) -> Iterator[LayerRow]:
        """ONNX Runtime's layers and torch's, compared with the reference's or, without it, with torch's."""
        large = self.size > MAX_REFERENCE_PARAMETERS
        paths = [layer.path for layer in self.flat.layers]
        onnx, torch = OnnxLayers.of_file(self.folder / MODEL_FILE), None
        if "torch" in names:
            witness = self.made("torch")
            assert isinstance(witness, TorchWitness)
            torch = TorchLayers(witness.model, paths)
        basis: LayerWitness | None = torch
        if not large:
            basis = ReferenceLayers(self.flat, self.stored.read)
        if basis is None:
            return
        for case in self.cases:
            if case.name not in LAYER_CASES:
                continue
            wanted = layers_of(case, basis)
            found = {} if onnx is None else layers_of(case, onnx)
            other = {} if torch is None or large else layers_of(case, torch)
            for path in paths:
                yield LayerRow(
                    case.name,
                    path,
                    "torch" if large else "reference",
                    difference(found[path], wanted[path]) if path in found else None,
                    difference(other[path], wanted[path]) if path in other else None,
                )

    def facts(self) -> Facts:
        return Facts(
            digest=self.graph.digest,
            parameters=self.size,
            dtype=self.stored.dtype,
            profile=self.stored.metadata.get("llamagen.profile", ""),
            tied=tuple(sorted(_tied(self.flat))),
            seed=self.seed,
            cases=self.cases,
            limits=_limits(self.flat, self.cases),
        )

    def robust(self, found: Difference) -> Difference:
        """In a low precision some tokens choose another expert, in every implementation."""
        if self.routed and self.stored.dtype != "float32":
            return found.without_outliers()
        return found


def _far(flat: FlatGraph) -> int:
    """Positions far enough apart for the bands of a scaled rope to differ."""
    originals = [
        value
        for node in flat.nodes
        if node.op == "rope_table" and node.attrs["scaling"] != "default"
        if isinstance(value := node.attrs["original_max_positions"], int)
    ]
    return max(originals, default=FAR)


def _limits(flat: FlatGraph, cases: Sequence[Scenario]) -> tuple[Limit, ...]:
    slots = max(case.input_ids.shape[1] for case in cases)
    positions = 1 + max(int(call[2].max()) for case in cases for call in case.calls())
    found: dict[tuple[LimitKind, int], int] = {}
    for node in flat.nodes:
        for name, kind, reached in _LIMITS:
            size = node.attrs.get(name)
            scaled = node.attrs.get("scaling", "default") != "default"
            if isinstance(size, int) and (node.op == "causal_mask" or scaled):
                found[kind, size] = positions if reached == "positions" else slots
    return tuple(Limit(kind, size, reached) for (kind, size), reached in sorted(found.items()))


_LIMITS: tuple[tuple[str, LimitKind, str], ...] = (
    ("window", "sliding window", "slots"),
    ("chunk", "chunk", "slots"),
    ("original_max_positions", "original context of rope", "positions"),
)
"""Attribute of an op, what it limits, and what is counted against it."""


def _tied(flat: FlatGraph) -> Iterator[str]:
    for node in flat.nodes:
        for path in node.parameters.values():
            if not path.startswith(f"{node.path}.") and path != node.path:
                yield node.path
