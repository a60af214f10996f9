"""Whether the experts that ONNX Runtime chose are those that a witness would, as far as rounding lets one tell.

A choice may be another one only when the scores are nearer to a tie than rounding can bring them. How far that is
comes from the reference, evaluated with the same experts once exactly and once with every result rounded: a router's
``movement`` is the most that this moved any of its scores. A backend moves scores by at most 1.6 times that, as it
does logits (``measured_tolerance``), and a tie is between two of them: the reach is 2 * 1.6 * movement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llamagen.diagnostics import LlamagenError
from llamagen.verify.numerics import (
    DAMAGED,
    LOW_PRECISION_FACTOR,
    TOLERANCES,
    BoundRule,
    Difference,
    FloatArray,
    RunDType,
    Tolerance,
)
from llamagen.verify.scenario import IntArray

_FAR_OUT = 5
"""Standard deviations within which thousands of rounded scores stay, for a model too large to measure."""

LEAST_DECIDED = 0.1
"""Of all choices; were fewer out of rounding's reach, their agreement would say little."""


@dataclass(frozen=True, slots=True)
class Router:
    """One router in one case: what was chosen [tokens, k], from which scores [tokens, E], and rounding's reach."""

    chosen: IntArray
    scores: FloatArray
    reach: float


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
    """Raises ValueError when there is no router."""
    found = [_of_one(router) for router in routers]
    count = sum(one.count for one in found)
    worst = max(found, key=lambda one: one.farthest / one.reach if one.reach else one.farthest)
    squares = sum(one.rms**2 * one.count for one in found)
    return Choices(
        count,
        sum(one.other for one in found),
        sum(one.decided for one in found),
        worst.farthest,
        float(np.sqrt(squares / count)),
        worst.reach,
    )


def _of_one(router: Router) -> Choices:
    scores, chosen = router.scores, router.chosen
    k, spread = chosen.shape[-1], _spread(scores)
    taken = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(taken, chosen, True, axis=-1)
    least_taken = np.where(taken, scores, np.inf).min(axis=-1)
    most_left = np.where(taken, -np.inf, scores).max(axis=-1)
    apart = np.maximum(most_left - least_taken, 0.0)
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
