"""Graphs that run together: what a backend does with one graph, made a session over all of them.

A backend knows how to run one graph (``Piece``). Which graphs are run when, and what goes from one to the next, is
the same for every backend and written once, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llamagen.ir.graph import MAIN
from llamagen.ir.pipeline import Pipeline
from llamagen.verify.numerics import FloatArray
from llamagen.verify.scenario import NOTHING, IntArray, N, Session, Values


class OpenPiece(Protocol):
    """One graph in use; it keeps its cache from call to call."""

    def run(self, values: Values) -> Values:
        """Outputs by name. ``values`` may hold more than the graph reads."""


class Piece(Protocol):
    """One graph of one backend."""

    @property
    def name(self) -> str: ...

    def open(self) -> OpenPiece:
        """With an empty cache."""


@dataclass(frozen=True, slots=True)
class GraphsWitness:
    """Graphs of a model by one backend; without those of the pipeline it reads text alone."""

    name: str
    pieces: Mapping[str, Piece]
    pipeline: Pipeline | None = None

    def start(self, images: Values = NOTHING) -> Session:
        """Run what is run once, if there are images; text goes through the graph ``model``."""
        if not images:
            return PieceSession(self.pieces[MAIN].open())
        if self.pipeline is None:
            raise ValueError(f"{self.name} has no graphs for images")
        return PipelineSession(self.pieces, self.pipeline, images)


class PieceSession:
    """One graph from ids to logits."""

    def __init__(self, piece: OpenPiece) -> None:
        self.piece = piece

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        values = token_inputs(input_ids, mask, positions)
        return np.asarray(self.piece.run({**values, **beside})["logits"], dtype=np.float64)


class PipelineSession:
    """Images once, then ids call by call."""

    def __init__(
        self, pieces: Mapping[str, Piece], pipeline: Pipeline, images: Values = NOTHING
    ) -> None:
        self.pipeline = pipeline
        values = dict(images)
        for name in pipeline.once:
            values.update(pieces[name].open().run(values))
        self.handed = {name: v for name, v in values.items() if name not in images}
        self.steps = [pieces[name].open() for name in pipeline.steps]

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        values = {**token_inputs(input_ids, mask, positions), **beside, **self.read(input_ids)}
        for step in self.steps:
            values.update(step.run(values))
        return np.asarray(values["logits"], dtype=np.float64)

    def read(self, input_ids: IntArray) -> dict[str, NDArray[np.generic]]:
        """What the images became, of placeholders as much as this call's ids stand for."""
        found = dict(self.handed)
        for name, placeholder in self.pipeline.placeholders.items():
            count, rest = divmod(int((input_ids == placeholder.token).sum()), placeholder.rows)
            if rest:
                raise ValueError(f"a call ends inside an image: {rest} of {placeholder.rows} rows")
            found[name], self.handed[name] = np.split(self.handed[name], [count])
        return found


def token_inputs(
    input_ids: IntArray, mask: IntArray, positions: IntArray
) -> dict[str, NDArray[np.generic]]:
    """By the names of the IR."""
    return {"input_ids": input_ids, "attention_mask": mask, "positions": positions}


def slots(values: Values) -> int:
    """Of the call that ``values`` are the inputs of, padding included."""
    return int(values["input_ids"].shape[1])


def in_place(packed: NDArray[N], mask: NDArray[np.generic]) -> NDArray[N]:
    """Rows [B, S, D] with real tokens first -> each where the mask [B, T] has it; padding is zero."""
    new = np.asarray(mask, dtype=np.int64)[:, -packed.shape[1] :] > 0
    found = np.zeros_like(packed)
    for row, real in enumerate(new):
        found[row, real] = packed[row, : int(real.sum())]
    return found
