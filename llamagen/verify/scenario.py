"""What is run: token ids with padding, cut into a prefill and decode steps, and images that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamagen.ir.pipeline import Pipeline
from llamagen.verify.numerics import FloatArray

IntArray = NDArray[np.int64]
Values: TypeAlias = Mapping[str, NDArray[np.generic]]
"""Arrays by the names that graphs give their inputs and outputs."""

NOTHING: Values = {}


class Session(Protocol):
    """One sequence of calls; the key/value cache lives in it, and what was made of the images."""

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        """Logits [B, S, V] for ids and positions [B, S]; mask [B, T] covers the past too.

        ``beside`` are further inputs with one entry a token, [B, S, ...].
        """


class Witness(Protocol):
    """Something that computes a model's logits."""

    @property
    def name(self) -> str: ...

    def start(self, images: Values = NOTHING) -> Session:
        """A session with an empty cache; with ``images``, the inputs of what reads them, by the graphs of images."""


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
    images: Values = field(default_factory=dict)
    """Inputs of the graphs that are run once (``pixel_values`` ...), whole; none is a scenario of text."""
    beside: Values = field(default_factory=dict)
    """Inputs with one entry a token, [B, T, ...]; cut like the ids."""
    last: bool = False
    """Only the logits after the last token of each call, which is all that some models give."""

    def __post_init__(self) -> None:
        if sum(self.splits) != self.input_ids.shape[1] or min(self.splits) < 1:
            raise ValueError(f"calls of {self.splits} do not make {self.input_ids.shape[1]} tokens")
        if self.mask.shape != self.input_ids.shape or not self.mask[:, -1].all():
            raise ValueError("the mask has the shape of the ids; padding is on the left")
        if any(v.shape[:2] != self.input_ids.shape for v in self.beside.values()):
            raise ValueError("what is beside the ids begins with their shape")

    def calls(self) -> Iterator[tuple[IntArray, IntArray, IntArray, Values]]:
        """Ids, mask, positions and what is beside them, of each call."""
        positions = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0) + self.shift
        start = 0
        for length in self.splits:
            stop = start + length
            beside = {name: value[:, start:stop] for name, value in self.beside.items()}
            ids, mask = self.input_ids[:, start:stop], self.mask[:, :stop]
            yield ids, mask, positions[:, start:stop], beside
            start = stop

    def logits(self, witness: Witness) -> FloatArray:
        """Logits of every real token, [tokens, V], row by row: the same order however it is cut.

        With ``last``, of those that end a call.
        """
        session = witness.start(self.images)
        pieces = [session.step(*call) for call in self.calls()]
        if self.last:
            ends = np.cumsum(self.splits) - 1
            return np.stack([p[:, -1] for p in pieces], axis=1)[self.mask[:, ends] > 0]
        return np.concatenate(pieces, axis=1)[self.mask > 0]

    def cut(self, name: str, splits: Sequence[int]) -> Scenario:
        """The same tokens in other calls."""
        return replace(self, name=name, splits=tuple(splits))

    def alone(self, pipeline: Pipeline | None = None) -> tuple[Scenario, ...]:
        """Each row by itself, without its padding; calls that were all padding are left out.

        ``pipeline`` says how images belong to rows: by their placeholders, or else row by row.
        """
        placeholder = next(iter(pipeline.placeholders.values()), None) if pipeline else None
        ends = np.arange(1, len(self.input_ids))
        if placeholder is not None:
            found = (self.input_ids == placeholder.token).sum(axis=1) // placeholder.rows
            ends = np.cumsum(found)[:-1]
        images = {name: np.split(value, ends) for name, value in self.images.items()}
        rows: list[Scenario] = []
        for i, mask in enumerate(self.mask > 0):
            splits = tuple(
                kept
                for call in np.split(mask, np.cumsum(self.splits)[:-1])
                if (kept := int(call.sum()))
            )
            beside = {name: value[i : i + 1, mask] for name, value in self.beside.items()}
            own = {name: value[i] for name, value in images.items() if len(value[i])}
            ids, ones = self.input_ids[i : i + 1, mask], self.mask[i : i + 1, mask]
            name = f"{self.name}, row {i}"
            rows.append(Scenario(name, ids, ones, splits, self.shift, own, beside, self.last))
        return tuple(rows)


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
