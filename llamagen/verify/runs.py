"""What every witness makes of the cases of some graphs of a folder, each computed once.

In a low precision witnesses of a model with routers compute with the experts that ONNX Runtime chose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np

from llamagen.emit.onnx.session import require_interface
from llamagen.ir.build_graphs import MAIN, all_parameters, crossing
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph
from llamagen.ir.reference import Rounding
from llamagen.ops.op import Role
from llamagen.verify.choices import Choices, Router, compared, measured_reach, usual_reach
from llamagen.verify.exact_products import open_exact
from llamagen.verify.numerics import (
    TOLERANCES,
    BoundRule,
    Difference,
    FloatArray,
    Tolerance,
    between_float32,
    difference,
    for_few_tokens,
    measured_tolerance,
)
from llamagen.verify.pieces import GraphsWitness
from llamagen.verify.report import WitnessName
from llamagen.verify.routed_onnx import RoutedOnnx, open_routed, routing_of
from llamagen.verify.routing import Routers, Routing, joined, scores_of
from llamagen.verify.scenario import Scenario, Witness
from llamagen.verify.subject import Subject
from llamagen.verify.transformers_witness import TransformersWitness
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness

if TYPE_CHECKING:
    import onnxruntime as ort

Scores = tuple[FloatArray, ...]
"""[tokens, E] of every router."""


class Runs:
    """By the name of a case."""

    def __init__(
        self,
        subject: Subject,
        graphs: Mapping[str, Graph],
        cases: Sequence[Scenario],
        ran: Callable[[], None],
    ) -> None:
        self.subject = subject
        self.graphs = graphs
        self.ran = ran
        self.cases = {case.name: case for case in cases}
        self.windows_count_tokens = subject.stored.metadata.get("llamagen.window") == "tokens"
        nodes = [node for graph in graphs.values() for node in flatten(graph).nodes]
        self.routed = subject.stored.dtype != "float32" and any(
            n.row.role is Role.CHOICE for n in nodes
        )
        self.bounds: dict[str, tuple[Tolerance, Difference | None]] = {}
        self.reach: dict[str, tuple[float, ...]] = {}
        self.witnesses: dict[WitnessName, Witness] = {}
        self.exact: dict[str, FloatArray] = {}
        self.scores: dict[tuple[WitnessName, str], Scores] = {}
        self.routing: dict[str, Routing] = {}
        self.made_exact = False
        """Whether products of a quantised model are computed in float32 here."""
        self.found = dict(self.by_onnx())

    def by_onnx(self) -> Iterator[tuple[str, FloatArray]]:
        """What is given of the logits of every case, and on the way the experts that were chosen."""
        from llamagen.emit.onnx.emit import INPUT_NAMES

        if not self.cases:
            return
        main = flatten(self.subject.graphs[MAIN])
        vocab_size = main.types[main.outputs[0]].shape[-1].value
        files = {name: self.subject.folder / f"{name}.onnx" for name in self.graphs}
        made_for = self.subject.options.made_for
        routed: dict[str, RoutedOnnx] = {}
        opened: dict[str, tuple[ort.InferenceSession, bool]] = {}
        if self.routed:
            taps = {name: open_routed(file, self.subject.options) for name, file in files.items()}
            routed = {name: piece for name, (piece, _) in taps.items()}
            self.made_exact = any(changed for _, changed in taps.values())
            onnx = GraphsWitness("onnx", routed, self.subject.pipeline)
        else:
            opened = {name: open_exact(file, self.subject.options) for name, file in files.items()}
            self.made_exact = any(changed for _, changed in opened.values())
            pieces = {
                name: OnnxWitness(session, file=str(files[name]), made_for=made_for)
                for name, (session, _) in opened.items()
            }
            onnx = GraphsWitness("onnx", pieces, self.subject.pipeline)
        sessions = {n: routed[n].witness.session if routed else opened[n][0] for n in files}
        for name, session in sessions.items():
            graph = self.graphs[name]
            reads = {*(INPUT_NAMES.get(v.id, v.id) for v in graph.inputs), *crossing(graph, "read")}
            writes = (*graph.output_names, *crossing(graph, "write"))
            require_interface(session, files[name], reads, writes, vocab_size)
        for case in self.cases.values():
            yield case.name, case.given(onnx)
            if routed:
                self.routing[case.name] = routing_of(routed)
            self.ran()

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

    def same(self, case: Scenario) -> bool:
        """Whether ``case`` has the logits of another one: its tokens, and the same experts for each of them."""
        if case.same_as is None:
            return False
        if not self.routed:
            return True
        base = self.routing[case.same_as].of_tokens(self.cases[case.same_as])
        own = self.routing[case.name].of_tokens(case)
        moved = (case.moved(chosen) for chosen in base)
        return all(np.array_equal(a, b) for a, b in zip(own, moved, strict=True))

    def logits(self, name: WitnessName, case: Scenario, *, alone: bool) -> FloatArray:
        """By a witness, of all tokens; ``alone`` feeds it row by row."""
        if name == "reference":
            return self.exactly(case)
        logits, self.scores[name, case.name] = self.through(self.made(name), case, alone=alone)
        return logits

    def exactly(self, case: Scenario) -> FloatArray:
        """By the reference, computed once: it is a witness, and what the bound is measured with."""
        if case.name not in self.exact:
            by_token = self.windows_count_tokens and case.has_holes
            logits, scores = self.through(self.reference(), case, alone=by_token)
            self.exact[case.name], self.scores["reference", case.name] = logits, scores
        return self.exact[case.name]

    def through(
        self, witness: Witness, case: Scenario, *, alone: bool
    ) -> tuple[FloatArray, Scores]:
        """Logits, and the scores of the routers where they were told what to choose."""
        rows = case.alone(self.subject.pipeline) if alone else (case,)
        if not self.routed:
            return np.concatenate([row.logits(witness) for row in rows]), ()
        routing = self.routing[case.name]
        logits: list[FloatArray] = []
        scores: list[Scores] = []
        for row, own in zip(rows, routing.rows(case) if alone else (routing,), strict=True):
            routers = own.routers()
            logits.append(row.logits(directed(witness, routers)))
            scores.append(scores_of(routers, row))
        return np.concatenate(logits), joined(scores)

    def tolerance(self, name: WitnessName, case: Scenario) -> Tolerance:
        """One bound a case for all witnesses; only between two float32 results is it wider."""
        tokens = case.same_as or case.name
        if tokens not in self.bounds:
            self.bounds[tokens] = self.bound(self.cases[tokens])
        bound, rounding = self.bounds[tokens]
        dtype = self.subject.stored.dtype
        if case.last and dtype != "float32" and rounding is not None:
            bound = for_few_tokens(bound, rounding, int(case.mask[:, case.ends].sum()))
        return bound if name == "reference" else between_float32(dtype, bound)

    def bound(self, case: Scenario) -> tuple[Tolerance, Difference | None]:
        """For all its tokens: measured, and with what, where the reference is at hand, from the table otherwise."""
        dtype = self.subject.stored.dtype
        if self.subject.too_large:
            return TOLERANCES[dtype], None
        reference = self.reference(dtype, float32_angles=case.shift > 0)
        rounded, scores = self.through(reference, case, alone=False)
        exact = self.exactly(case)
        self.reach[case.name] = measured_reach(self.scores["reference", case.name], scores)
        rounding = difference(rounded, exact)
        return measured_tolerance(dtype, rounding), rounding

    def choices(self, name: WitnessName, cases: Sequence[Scenario]) -> tuple[Choices, BoundRule]:
        """How the experts of ``cases`` were chosen, seen by torch or by the reference.

        transformers may choose by another function of the scores; for it, too, the reference is asked.
        """
        by: WitnessName = "torch" if name == "torch" else "reference"
        routers: list[Router] = []
        for case in cases:
            if by == "reference":
                self.exactly(case)
            scores = self.scores[by, case.name]
            reach = self.reach.get(case.same_as or case.name)
            routers += map(
                Router,
                self.routing[case.name].of_tokens(case),
                scores,
                reach or usual_reach(scores, self.subject.stored.dtype),
            )
        return compared(routers), "fixed" if self.subject.too_large else "measured"


def directed(witness: Witness, routers: Mapping[str, Routers]) -> Witness:
    """``witness`` made to take the experts that it is told."""
    match witness:
        case GraphsWitness(pieces=pieces):
            told = {name: _told(piece, routers.get(name)) for name, piece in pieces.items()}
            return replace(witness, pieces=told)
        case TransformersWitness():
            return witness.directed(routers)
        case other:
            raise TypeError(f"{other.name} chooses its experts itself")


def _told(piece: object, routers: Routers | None) -> ReferenceWitness | TorchWitness:
    assert isinstance(piece, ReferenceWitness | TorchWitness)
    return replace(piece, routers=routers)
