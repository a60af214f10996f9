"""The experts that ONNX Runtime chose, given to every witness.

In two bytes a token whose router is close to a tie goes to another expert in every implementation, and moves the
tokens after it. That is no defect, and across it nothing can be compared tightly. So a witness computes with the
experts that ONNX Runtime chose, which makes its logits comparable for all tokens, and tells the scores that its own
routers had: a choice that differs by more than rounding can move is a defect (verify/choices.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from llamagen.verify.numerics import FloatArray
from llamagen.verify.scenario import IntArray, Scenario


class RoutersDiffer(Exception):
    """A witness asks another number of times for the largest scores than the spec's graph does."""


@dataclass(frozen=True)
class Routers:
    """Those of one graph in one run: ``chosen`` are the experts [B, T, k] that each has to take, in order."""

    chosen: tuple[IntArray, ...]
    scores: list[list[FloatArray]] = field(default_factory=list)
    """What each router chose from, [B, S, E] a call."""

    def __post_init__(self) -> None:
        self.scores.extend([] for _ in range(len(self.chosen) - len(self.scores)))

    def open(self) -> Script:
        return Script(self)


class Script:
    """The choices of ``routers``, call by call."""

    def __init__(self, routers: Routers) -> None:
        self.routers = routers
        self.slots = slice(0, 0)
        self.asked = 0

    @contextmanager
    def call(self, slots: int) -> Iterator[None]:
        """The next call, of so many slots; raises RoutersDiffer when not every router asked in it."""
        self.slots, self.asked = slice(self.slots.stop, self.slots.stop + slots), 0
        yield
        if self.asked != len(self.routers.chosen):
            raise RoutersDiffer(f"{self.asked} choices, the spec has {len(self.routers.chosen)}")

    def choose(self, scores: FloatArray) -> IntArray:
        """Scores [..., E] of the next router, of all slots in order -> its experts [..., k]."""
        router = self.asked
        if router >= len(self.routers.chosen):
            raise RoutersDiffer(f"more choices than the {len(self.routers.chosen)} of the spec")
        self.asked += 1
        chosen = self.routers.chosen[router][:, self.slots]
        self.routers.scores[router].append(scores.reshape(*chosen.shape[:2], -1))
        return chosen.reshape(*scores.shape[:-1], -1)


@dataclass(frozen=True)
class Routing:
    """By graph, the experts [B, T, k] of each router for the slots of a scenario. What padding got is of no matter."""

    chosen: Mapping[str, tuple[IntArray, ...]]

    def routers(self) -> dict[str, Routers]:
        """For one run through all graphs."""
        return {graph: Routers(chosen) for graph, chosen in self.chosen.items()}

    def rows(self, case: Scenario) -> tuple[Routing, ...]:
        """As ``case.alone`` has its tokens."""
        return tuple(
            Routing({g: tuple(c[i : i + 1, real] for c in of) for g, of in self.chosen.items()})
            for i, real in enumerate(case.mask > 0)
        )

    def of_tokens(self, case: Scenario) -> tuple[IntArray, ...]:
        """[tokens, k] of every router, in the order of logits; experts of a token in ascending order."""
        found = [chosen[case.mask > 0] for of in self.chosen.values() for chosen in of]
        return tuple(np.sort(chosen, axis=-1) for chosen in found)


def scores_of(routers: Mapping[str, Routers], case: Scenario) -> tuple[FloatArray, ...]:
    """[tokens, E] of every router after a run."""
    return tuple(case.of_tokens(calls) for of in routers.values() for calls in of.scores)


def together(routers: Mapping[str, Routers]) -> Routers:
    """For a witness that is one module where the folder has several graphs."""
    chosen = tuple(one for of in routers.values() for one in of.chosen)
    return Routers(chosen, [one for of in routers.values() for one in of.scores])


def joined(parts: Sequence[tuple[FloatArray, ...]]) -> tuple[FloatArray, ...]:
    """Scores of rows that were run one by one."""
    return tuple(np.concatenate(of) for of in zip(*parts, strict=True))
