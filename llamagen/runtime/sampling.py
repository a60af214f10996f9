"""From logits to the next token: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import LlamagenError


@dataclass(frozen=True, slots=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token. ``top_k`` 0 and ``top_p`` 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = (
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        )
        for name, value, valid, range_text in ranges:
            if not valid:
                raise LlamagenError.of("LG901", f"{name} is {value}, it must be {range_text}")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens on every machine."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = np.random.Generator(np.random.PCG64(sampling.seed))

    def next(self, logits: npt.NDArray[np.floating]) -> int:
        """The next token for logits [V]. Of equal logits the lowest id wins."""
        s = self.sampling
        if s.temperature == 0.0:
            return int(np.argmax(logits))
        scores = logits.astype(np.float64) / s.temperature
        order = np.argsort(-scores, kind="stable")
        if s.top_k:
            order = order[: s.top_k]
        weights = np.exp(scores[order] - scores[order[0]])
        mass = np.cumsum(weights / weights.sum())
        # the token that crosses the mass is kept, so at least one is
        kept = int(np.searchsorted(mass, s.top_p)) + 1 if s.top_p < 1.0 else len(order)
        order, weights = order[:kept], weights[:kept]
        edges = np.cumsum(weights / weights.sum())
        drawn = int(np.searchsorted(edges, self.random.random(), side="right"))
        return int(order[min(drawn, len(order) - 1)])
