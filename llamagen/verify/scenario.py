"""What is run: token ids with padding, cut into a prefill and decode steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llamagen.verify.numerics import FloatArray

IntArray = NDArray[np.int64]


class Session(Protocol):
    """One sequence of calls; the key/value cache lives in it."""

    def step(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> FloatArray:
        """Logits [B, S, V] for ids and positions [B, S]; mask [B, T] covers the past too."""


class Witness(Protocol):
    """Something that computes a model's logits."""

    @property
    def name(self) -> str: ...

    def start(self) -> Session:
        """A session with an empty cache."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Ids [B, T] with a mask [B, T] of ones and left zeros; ``splits`` are the lengths of the calls.

    ``shift`` is added to every position: with rotary positions alone, the logits do not depend on it.
    """

    name: str
    input_ids: IntArray
    mask: IntArray
    splits: tuple[int, ...]
    shift: int = 0
    last: bool = False
    """Only the logits after the last token of each call, which is all that some models give."""

    def __post_init__(self) -> None:
        if sum(self.splits) != self.input_ids.shape[1] or min(self.splits) < 1:
            raise ValueError(f"calls of {self.splits} do not make {self.input_ids.shape[1]} tokens")
        if self.mask.shape != self.input_ids.shape or not self.mask[:, -1].all():
            raise ValueError("the mask has the shape of the ids; padding is on the left")

    def calls(self) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
        """Ids, mask and positions of each call."""
        positions = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0) + self.shift
        start = 0
        for length in self.splits:
            stop = start + length
            yield self.input_ids[:, start:stop], self.mask[:, :stop], positions[:, start:stop]
            start = stop

    def logits(self, witness: Witness) -> FloatArray:
        """Logits of every real token, [tokens, V], row by row: the same order however it is cut.

        With ``last``, of those that end a call.
        """
        session = witness.start()
        pieces = [session.step(*call) for call in self.calls()]
        if self.last:
            ends = np.cumsum(self.splits) - 1
            return np.stack([p[:, -1] for p in pieces], axis=1)[self.mask[:, ends] > 0]
        return np.concatenate(pieces, axis=1)[self.mask > 0]

    def cut(self, name: str, splits: Sequence[int]) -> Scenario:
        """The same tokens in other calls."""
        return replace(self, name=name, splits=tuple(splits))


def scenarios(vocab_size: int, length: int, steps: int, seed: int = 0) -> tuple[Scenario, ...]:
    """Prefill alone, prefill and ``steps`` single tokens, and a left-padded batch of three, decoded.

    Ids are random. ``length`` counts the prompt's tokens.
    """
    generator = np.random.default_rng(seed)
    total = length + steps
    ids = generator.integers(0, vocab_size, (1, total), dtype=np.int64)
    whole = np.ones_like(ids)
    single = (1,) * steps
    batch = generator.integers(0, vocab_size, (3, total), dtype=np.int64)
    padding = np.array([0, length // 2, length - 1])
    mask = (np.arange(total) >= padding[:, None]).astype(np.int64)
    return (
        Scenario("prefill", ids, whole, (total,)),
        Scenario("decode", ids, whole, (length, *single)),
        Scenario("padded batch", batch, mask, (length, *single)),
    )
