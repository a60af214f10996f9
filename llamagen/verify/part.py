"""Cases that go through the same graphs of a folder: what ONNX Runtime made of them, against every witness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from llamagen.ir.flatten import flatten
from llamagen.ops.op import Role
from llamagen.verify.choices import LEAST_DECIDED
from llamagen.verify.layers import Layers, onnx_pieces
from llamagen.verify.numerics import FloatArray, difference
from llamagen.verify.pieces import GraphsWitness
from llamagen.verify.report import LayerRow, Row, WitnessName
from llamagen.verify.routing import RoutersDiffer
from llamagen.verify.runs import Runs, directed
from llamagen.verify.scenario import Scenario
from llamagen.verify.subject import Subject
from llamagen.verify.transformers_witness import (
    COUNTS_PADDING,
    COUNTS_PLACES,
    TransformersWitness,
)

DROPS_SEEN = "a bounded cache of chunks is fed without padding between tokens: pad on the left"
"""It keeps places, and chunks count tokens: padding in between pushes out what can still be seen."""

COUNTS_ITSELF = "this model counts the tokens of its mask and takes no positions"
"""Positions that jump cannot be given to it; a real text has none."""

ONE_ROW = "this model goes on with several tokens for one row only, as onnxruntime before 1.32 does"
"""The attention refuses such a call; a folder made with --runtime 1.32 takes it."""

WINDOWS_COUNT_TOKENS = (
    "row by row: windows of the fused attention count tokens, not padding between them"
)

LAYER_CASES = ("prefill", "left padding", "images decode")
"""Those whose layers are looked at: without a cache, with all that can go wrong with it, with images."""

CHOICES = "experts chosen"


class Part:
    """Cases that go through the same graphs; ``ran`` is called after each that ONNX Runtime has done."""

    def __init__(
        self,
        subject: Subject,
        names: Sequence[str],
        cases: Sequence[Scenario],
        skipped: str = "",
        ran: Callable[[], None] = lambda: None,
    ) -> None:
        self.subject = subject
        self.graphs = {name: subject.graphs[name] for name in names}
        stored = subject.stored.metadata
        last = stored.get("llamagen.logits") == "last"
        self.cases = tuple(case.of_last() if last else case for case in cases)
        self.skipped = skipped
        one_row = stored.get("llamagen.chunks") == "one row"
        self.refused = frozenset(c.name for c in self.cases if one_row and c.in_chunks)
        taken = [case for case in self.cases if case.name not in self.refused]
        self.runs = Runs(subject, self.graphs, taken, ran)
        for _ in self.refused:
            ran()
        nodes = [node for graph in self.graphs.values() for node in flatten(graph).nodes]
        chunked = any(node.attrs.get("chunk") is not None for node in nodes)
        self.drops_seen = chunked and stored.get("llamagen.cache") == "bounded"
        self.counts = stored.get("llamagen.positions") == "counted"
        self.stretched = any(node.row.role is Role.TEMPERATURE for node in nodes)

    def rows(self, name: WitnessName) -> Iterator[Row]:
        """Logits of every case; then, in a low precision, the experts that were chosen."""
        note = self.skipped
        if not note and name == "reference" and self.subject.too_large:
            note = f"{self.subject.size:,} parameters are too many for the float64 reference"
        if note:
            yield Row(name, "all", None, None, note)
            return
        known: dict[str, FloatArray] = {}
        for case in self.cases:
            if note := self.unfit(name, case):
                yield Row(name, case.name, None, None, note)
                continue
            try:
                yield self.row(name, case, known)
            except RoutersDiffer as error:
                yield Row(name, case.name, None, None, f"{name} chooses experts otherwise: {error}")
        if self.runs.routed:
            yield self.choices(name, [case for case in self.cases if case.name in known])

    def unfit(self, name: WitnessName, case: Scenario) -> str:
        """Why a case cannot be compared with a witness."""
        if case.name in self.refused:
            return ONE_ROW
        if self.drops_seen and case.has_holes:
            return DROPS_SEEN
        if self.counts and case.shift:
            return COUNTS_ITSELF
        return COUNTS_PLACES if name == "transformers" and self.stretched and case.shift else ""

    def row(self, name: WitnessName, case: Scenario, known: dict[str, FloatArray]) -> Row:
        """One comparison; logits of the witness go to ``known``, except those that another case has."""
        runs = self.runs
        by_token = runs.windows_count_tokens and case.has_holes
        padded = name == "transformers" and self.stretched and not case.mask.all()
        if case.same_as in known and runs.same(case):
            expected = case.moved(known[case.same_as])
        else:
            expected = runs.logits(name, case, alone=by_token or padded)
            known[case.name] = expected
        note = WINDOWS_COUNT_TOKENS if by_token else COUNTS_PADDING if padded else ""
        found = runs.found[case.name]
        note = note or self.departures(case, found, name)
        what = f"{case.name}, float products" if runs.made_exact else case.name
        tolerance = runs.tolerance(name, case)
        return Row(name, what, difference(found, case.ending(expected)), tolerance, note)

    def choices(self, name: WitnessName, cases: Sequence[Scenario]) -> Row:
        """Whether the experts are those that the witness would have chosen."""
        what = f"{CHOICES}, images" if any(case.images for case in self.cases) else CHOICES
        if not cases:
            return Row(name, what, None, None, "no case was compared")
        if name == "transformers" and self.subject.too_large:
            return Row(name, what, None, None, "compared with torch: `--against torch`")
        found, rule = self.runs.choices(name, cases)
        if found.decided < LEAST_DECIDED * found.count:
            return Row(name, what, None, None, f"too few to say anything: {found}")
        return Row(name, what, found.difference, found.tolerance(rule), f"{found}")

    def departures(self, case: Scenario, found: FloatArray, name: WitnessName) -> str:
        """What is corrected in transformers, and how far it is from the folder without, one at a time."""
        if name != "transformers" or not case.images:
            return ""
        witness = self.runs.made(name)
        assert isinstance(witness, TransformersWitness)
        told: list[str] = []
        for one in witness.corrections:
            apart = ""
            if not self.subject.too_large:
                logits, _ = self.runs.through(witness.without(one), case, alone=False)
                apart = f" (without, {difference(found, case.ending(logits)).max_over_std:.1f} std apart)"
            told.append(f"{one.name}{apart}")
        return f"corrected in transformers: {', '.join(told)}" if told else ""

    def layer_rows(self, names: Sequence[WitnessName]) -> Iterator[LayerRow]:
        """ONNX Runtime's layers and torch's, compared with the reference's or, without it, with torch's."""
        large = self.subject.too_large
        cases = [case for case in self.cases if case.name in LAYER_CASES]
        if not cases or (large and "torch" not in names):
            return
        pieces = onnx_pieces(self.subject.folder, tuple(self.graphs), self.subject.options)
        onnx = None if pieces is None else Layers("onnx", pieces, self.subject.pipeline)
        for case in cases:
            torch = self.layers("torch", case) if "torch" in names else None
            basis = torch if large else self.layers("reference", case)
            assert basis is not None
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

    def layers(self, name: Literal["torch", "reference"], case: Scenario) -> Layers:
        """Of a witness, with the experts that ONNX Runtime chose for ``case``."""
        witness = self.runs.reference() if name == "reference" else self.runs.made(name)
        if self.runs.routed:
            witness = directed(witness, self.runs.routing[case.name].routers())
        assert isinstance(witness, GraphsWitness)
        return Layers(name, witness.pieces, self.subject.pipeline)
