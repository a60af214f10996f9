"""The experts that ONNX Runtime chose: given to every witness, and judged.

In two bytes a token whose router is close to a tie goes to another expert in every implementation, and moves the
tokens after it. That is no defect, and across it nothing can be compared tightly. So a witness computes with the
experts that ONNX Runtime chose, which makes its logits comparable for all tokens, and tells the scores that its own
routers had.

A choice may be another one only when the scores are nearer to a tie than rounding can bring them; else it is a defect.
How far that is comes from the reference, evaluated with the same experts once exactly and once with every result
rounded: a router's ``movement`` is the most that this moved any of its scores. A backend moves scores by at most 1.6
times that, as it does logits (``measured_tolerance``), and a tie is between two of them: the reach is 2 * 1.6 *
movement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamagen.diagnostics import LlamagenError
from llamagen.verify.limits import (
    DAMAGED,
    LOW_PRECISION_FACTOR,
    TOLERANCES,
    BoundRule,
    Difference,
    RunDType,
    Tolerance,
)
from llamagen.verify.scenarios import FloatArray, IntArray, Scenario, Values

BoolArray: TypeAlias = NDArray[np.bool_]


class RoutersDiffer(Exception):
    """A witness asks another number of times for the largest scores than the spec's graph does."""


@dataclass(frozen=True)
class Routers:
    """Those of one graph in one run: ``chosen`` are the experts [B, T, k] that each has to take, in order."""

    chosen: tuple[IntArray, ...]
    scores: list[list[FloatArray]] = field(default_factory=list)
    """What each router chose from, [B, S, G, E] a call; G is 1, or as many groups as it chooses in."""

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
    def call(self, values: Values) -> Iterator[None]:
        """The next call, with these inputs; raises RoutersDiffer when not every router asked in it."""
        slots = values["input_ids"].shape[1]
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
        self.routers.scores[router].append(scores.reshape(*chosen.shape[:2], -1, scores.shape[-1]))
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
        """[tokens, G k] of every router, in the order of logits."""
        return tuple(chosen[case.mask > 0] for of in self.chosen.values() for chosen in of)


def scores_of(routers: Mapping[str, Routers], case: Scenario) -> tuple[FloatArray, ...]:
    """[tokens, G, E] of every router after a run."""
    return tuple(case.of_tokens(calls) for of in routers.values() for calls in of.scores)


def together(routers: Mapping[str, Routers]) -> Routers:
    """For a witness that is one module where the folder has several graphs."""
    chosen = tuple(one for of in routers.values() for one in of.chosen)
    return Routers(chosen, [one for of in routers.values() for one in of.scores])


# Judged

_FAR_OUT = 5
"""Standard deviations within which thousands of rounded scores stay, for a model too large to measure."""

LEAST_DECIDED = 0.1
"""Of all choices; were fewer out of rounding's reach, their agreement would say little."""


@dataclass(frozen=True, slots=True)
class Router:
    """One router in one case: what was chosen [tokens, G k], from which scores [tokens, G, E], and rounding's reach."""

    chosen: IntArray
    scores: FloatArray
    reach: float
    counts: bool = True
    """Whether it chooses experts: a router of groups has others that choose groups, or the best of each."""


def measured_reach(exact: Sequence[FloatArray], rounded: Sequence[FloatArray]) -> tuple[float, ...]:
    """Of every router; scores that masks made infinite move nowhere."""
    reaches: list[float] = []
    for before, after in zip(exact, rounded, strict=True):
        real = np.isfinite(before)
        movement = np.abs(after[real] - before[real]).max()
        reaches.append(2 * LOW_PRECISION_FACTOR * float(movement))
    return tuple(reaches)


def usual_reach(scores: Sequence[FloatArray], dtype: RunDType) -> tuple[float, ...]:
    """Where nothing can be measured: scores round as logits do."""
    movement = _FAR_OUT * TOLERANCES[dtype].rms_over_std
    return tuple(2 * movement * _spread(s) for s in scores)


@dataclass(frozen=True, slots=True)
class Choices:
    """Of all routers and tokens. Distances are in standard deviations of a router's scores."""

    count: int
    other: int
    """How many are not the witness's own."""
    decided: int
    """How many the witness decides by more than rounding reaches."""
    farthest: float
    """From a tie, of those that are other."""
    rms: float
    reach: float
    """At the router of ``farthest``, which is the one where it takes most of the reach."""

    @property
    def difference(self) -> Difference:
        return Difference(self.farthest, self.rms, 1.0, self.count, 0.0)

    def tolerance(self, rule: BoundRule) -> Tolerance:
        return Tolerance(self.reach, self.reach, rule)

    def __str__(self) -> str:
        return (
            f"{self.count:,} choices: {self.decided:,} beyond rounding's reach, "
            f"{self.other:,} other than the witness's"
        )


def compared(routers: Iterable[Router]) -> Choices:
    """Raises ValueError when there is no router.

    Where a router of groups chose otherwise than the witness would, which is judged by itself, the experts of that
    token are those of other groups: the witness's scores tell nothing of them.
    """
    judged: list[tuple[bool, Choices]] = []
    elsewhere: BoolArray | None = None
    for router in routers:
        apart = _apart(router)
        if router.counts and elsewhere is not None:
            apart[elsewhere] = 0.0
        if router.counts:
            elsewhere = None
        else:
            before = np.zeros(len(apart), dtype=bool) if elsewhere is None else elsewhere
            elsewhere = before | _otherwise(router)
        judged.append((router.counts, _of_one(router, apart.reshape(-1))))
    every = [one for _, one in judged]
    experts = [one for counts, one in judged if counts]
    count = sum(one.count for one in every)
    worst = max(every, key=lambda one: one.farthest / one.reach if one.reach else one.farthest)
    squares = sum(one.rms**2 * one.count for one in every)
    return Choices(
        sum(one.count for one in experts),
        sum(one.other for one in experts),
        sum(one.decided for one in experts),
        worst.farthest,
        float(np.sqrt(squares / count)),
        worst.reach,
    )


def _apart(router: Router) -> FloatArray:
    """By how much what was left scored more than what was taken, [tokens, G]."""
    scores = router.scores
    taken = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(taken, router.chosen.reshape(*scores.shape[:-1], -1), True, axis=-1)
    least_taken = np.where(taken, scores, np.inf).min(axis=-1)
    most_left = np.where(taken, -np.inf, scores).max(axis=-1)
    return np.asarray(np.maximum(most_left - least_taken, 0.0))


def _otherwise(router: Router) -> BoolArray:
    """Tokens for which the witness would have taken others, or the same in another order, [tokens]."""
    scores = router.scores
    chosen = router.chosen.reshape(*scores.shape[:-1], -1)
    own = np.argsort(-scores, axis=-1, kind="stable")[..., : chosen.shape[-1]]
    return np.asarray((own != chosen).any(axis=(1, 2)))


def _of_one(router: Router, apart: FloatArray) -> Choices:
    scores = router.scores.reshape(-1, router.scores.shape[-1])
    k, spread = router.chosen.size // len(scores), _spread(scores)
    ordered = -np.sort(-scores, axis=-1)
    margin = (
        ordered[:, k - 1] - ordered[:, k] if k < scores.shape[-1] else np.full(len(scores), np.inf)
    )
    return Choices(
        count=len(scores),
        other=int((apart > 0).sum()),
        decided=int((margin > router.reach).sum()),
        farthest=float(apart.max()) / spread,
        rms=float(np.sqrt(np.square(apart).mean())) / spread,
        reach=router.reach / spread,
    )


def _spread(scores: FloatArray) -> float:
    """Raises LG777 for scores that are all the same or not numbers."""
    spread = float(scores[np.isfinite(scores)].std())
    if not spread > 0:
        message = "scores of a router are constant or not finite: no distance can be measured"
        raise LlamagenError.of("LG777", message, help=DAMAGED)
    return spread
