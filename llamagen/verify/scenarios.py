"""What is asked: token ids with padding, cut into a prefill and decode steps, and images that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamagen.images.prepare import spans
from llamagen.ir.flatten import rows_of
from llamagen.ir.graph import Graph
from llamagen.ir.pipeline import Pipeline
from llamagen.ops.dims import Dim
from llamagen.ops.op import DType, TensorType

N = TypeVar("N", bound=np.generic)
FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Values: TypeAlias = Mapping[str, NDArray[np.generic]]
"""Arrays by the names that graphs give their inputs and outputs."""

NOTHING: Values = {}

Item: TypeAlias = int | None
"""Of a row of text: so many words, or None for one item (an image, a tile) of what is read beside them."""

FAR = 1000
"""Positions between the halves of a text, where the model's rope names no original context."""


class Session(Protocol):
    """One sequence of calls; the key/value cache lives in it, and what was made of the images."""

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        """Logits [B, S, V], or all that the model gives side by side, for ids and positions [B, S]; mask [B, T] covers
        the past too.

        ``beside`` are further inputs with one entry a token, [B, S, ...].
        """


class Witness(Protocol):
    """Something that computes a model's logits."""

    @property
    def name(self) -> str: ...

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        """With ``images``, the inputs of what reads them, by the graphs of images.

        ``past`` are keys and values [B, K, P, H] by their names outside, of tokens that came before; few witnesses
        take them.
        """


@dataclass(frozen=True, slots=True)
class Scenario:
    """Ids [B, T] with a mask [B, T] of ones, and zeros for padding; ``splits`` are the lengths of the calls.

    A position is the number of real tokens before it. ``shift`` is added to the positions of slots
    from ``shift_from`` on: with rotary positions alone, a shift of all changes nothing.
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
    shift_from: int = 0
    same_as: str | None = None
    """The scenario that has these tokens in other calls or in another order, and so the same logits."""
    order: tuple[int, ...] | None = None
    """Row i is row ``order[i]`` of ``same_as``."""
    last: bool = False
    """The model gives only the logits after the last token of each call."""
    before: int = 0
    """Tokens before these, of which there is only what the model keeps of them, drawn at random."""
    states: Mapping[str, tuple[Dim, ...]] = field(default_factory=dict)
    """Shapes of what it keeps, by the names outside: keys and values of every token, other states."""

    def __post_init__(self) -> None:
        if sum(self.splits) != self.input_ids.shape[1] or min(self.splits) < 1:
            raise ValueError(f"calls of {self.splits} do not make {self.input_ids.shape[1]} tokens")
        if self.mask.shape != self.input_ids.shape or not self.mask[:, -1].all():
            raise ValueError("the mask has the shape of the ids, and every row ends with a token")
        if any(v.shape[:2] != self.input_ids.shape for v in self.beside.values()):
            raise ValueError("what is beside the ids begins with their shape")

    @property
    def tokens(self) -> int:
        """Real ones, of all rows."""
        return int(self.mask.sum())

    @property
    def has_holes(self) -> bool:
        """Padding behind a token."""
        return bool((np.diff(self.mask, axis=1) < 0).any())

    @property
    def in_chunks(self) -> bool:
        """Several rows of several tokens each, behind a cache."""
        behind = self.splits if self.before else self.splits[1:]
        return len(self.mask) > 1 and any(length > 1 for length in behind)

    @property
    def plain(self) -> bool:
        """Whether the position of every token is its slot."""
        return not self.shift and bool(self.mask.all())

    def calls(self) -> Iterator[tuple[IntArray, IntArray, IntArray, Values]]:
        """Ids, mask, positions and what is beside them, of each call."""
        positions = self.before + np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)
        positions[:, self.shift_from :] += self.shift
        seen = np.concatenate([np.ones((len(self.mask), self.before), np.int64), self.mask], axis=1)
        start = 0
        for length in self.splits:
            stop = start + length
            beside = {name: value[:, start:stop] for name, value in self.beside.items()}
            ids, mask = self.input_ids[:, start:stop], seen[:, : self.before + stop]
            yield ids, mask, positions[:, start:stop], beside
            start = stop

    def logits(self, witness: Witness) -> FloatArray:
        """Logits of every real token, [tokens, V], row by row: the same order however it is cut."""
        session = self.start(witness)
        return self.of_tokens([session.step(*call) for call in self.calls()])

    def start(self, witness: Witness) -> Session:
        return witness.start(self.images, self.past() if self.before else NOTHING)

    def past(self) -> Values:
        """What is kept of the tokens before, in values which every dtype holds exactly."""
        generator = np.random.default_rng(self.before)
        sizes = {"B": len(self.mask), "P": self.before}
        shapes = {n: [d.evaluate(sizes) for d in shape] for n, shape in self.states.items()}
        return {
            name: np.round(8 * generator.standard_normal(shape, np.float32)) / 8
            for name, shape in shapes.items()
        }

    def given(self, model: Witness) -> FloatArray:
        """What ``model`` gives of its logits: [tokens, V], or those of ``ending``."""
        if not self.last:
            return self.logits(model)
        session = self.start(model)
        rows = [session.step(*call)[:, -1] for call in self.calls()]
        return np.stack(rows, axis=1)[self.mask[:, self.ends] > 0]

    @property
    def ends(self) -> IntArray:
        """The last slot of each call."""
        return np.cumsum(self.splits) - 1

    def ending(self, of_tokens: NDArray[N]) -> NDArray[N]:
        """Of [tokens, V] the rows that end a call where only those are given; padding at an end leaves its row out."""
        if not self.last:
            return of_tokens
        ends = np.isin(np.arange(self.mask.shape[1]), self.ends)
        return of_tokens[np.broadcast_to(ends, self.mask.shape)[self.mask > 0]]

    def of_texts(self, of_tokens: NDArray[N]) -> NDArray[N]:
        """Of [tokens, N] one row for each text in each call: what is the same for all its tokens there."""
        calls = np.repeat(np.arange(len(self.splits)), self.splits)
        row, slot = np.nonzero(self.mask)
        _, first = np.unique(row * len(self.splits) + calls[slot], return_index=True)
        return of_tokens[first]

    def of_tokens(self, pieces: Sequence[FloatArray]) -> FloatArray:
        """Results [B, S, N] of all calls -> [tokens, N], padding left out."""
        return np.concatenate(pieces, axis=1)[self.mask > 0]

    def moved(self, of_tokens: NDArray[N]) -> NDArray[N]:
        """Logits [tokens, V] of the scenario this is the ``same_as``, or what else it has for tokens, in the order of
        this one's rows."""
        if self.order is None:
            return of_tokens
        back = np.argsort(self.order)
        counts = self.mask.sum(axis=1)[back]
        rows = np.split(of_tokens, np.cumsum(counts)[:-1])
        return np.concatenate([rows[i] for i in self.order])

    def whole(self) -> Scenario:
        """The same tokens in one call: what an implementation that is right gives for any calls."""
        return replace(self, splits=(self.input_ids.shape[1],), last=False)

    @property
    def read(self) -> object:
        """The same for cases that give a model the same tokens, at the same places, in the same calls."""
        if self.images:
            return self.name
        ids, mask = self.input_ids.tobytes(), self.mask.tobytes()
        return ids, mask, self.splits, self.shift, self.shift_from, self.before

    @staticmethod
    def together(cases: Sequence[Scenario]) -> Scenario:
        """The rows of all, of text and in the calls of the first, as one batch."""
        ids = np.concatenate([case.input_ids for case in cases])
        return replace(cases[0], input_ids=ids, mask=np.concatenate([case.mask for case in cases]))

    def cut(self, name: str, splits: Sequence[int]) -> Scenario:
        """The same tokens in other calls."""
        return replace(self, name=name, splits=tuple(splits), same_as=self.name)

    def of_last(self) -> Scenario:
        """For a model that gives only the logits that end a call."""
        return replace(self, last=True)

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
            rows.append(Scenario(name, ids, ones, splits, self.shift, images=own, beside=beside))
        return tuple(rows)


def scenarios(
    vocab_size: int, length: int, steps: int, seed: int = 0, jump: int = FAR
) -> tuple[Scenario, ...]:
    """Ways of feeding a text model. Ids are random, ``length`` counts the prompt's tokens.

    The whole text in one call; a prompt and ``steps`` single tokens; a batch of three padded on the
    left, decoded; the same on the right, where the padding stays between prompt and new tokens;
    the first text cut anywhere; the rows of the batch in another order; a text whose second
    half is ``jump`` positions further on, where the bands of a scaled rope differ; a batch whose
    rows sit out some steps; and that batch cut anywhere.
    """
    generator = np.random.default_rng(seed)
    total = length + steps
    ids = generator.integers(0, vocab_size, (1, total), dtype=np.int64)
    whole = np.ones_like(ids)
    single = (1,) * steps
    batch = generator.integers(0, vocab_size, (3, total), dtype=np.int64)
    padding = np.array([0, length // 2, length - 1])
    slots = np.arange(total)
    left = (slots >= padding[:, None]).astype(np.int64)
    right = ((slots < length - padding[:, None]) | (slots >= length)).astype(np.int64)
    order = (2, 0, 1)
    prefill = Scenario("prefill", ids, whole, (total,))
    padded = Scenario("left padding", batch, left, (length, *single))
    waits = (slots >= length) & (slots < total - 1) & ((slots + np.arange(3)[:, None]) % 3 == 0)
    waiting = Scenario("rows that wait", batch, left * ~waits, (length, *single))
    rows = list(order)
    return (
        prefill,
        Scenario("decode", ids, whole, (length, *single)),
        padded,
        Scenario("right padding", batch, right, (length, *single)),
        prefill.cut("cut anywhere", _pieces(generator, total)),
        Scenario(
            "rows exchanged", batch[rows], left[rows], (total,), same_as=padded.name, order=order
        ),
        Scenario(
            "far apart", ids, whole, (length, total - length), shift=jump, shift_from=total // 2
        ),
        waiting,
        waiting.cut("rows cut anywhere", _pieces(generator, total)),
    )


def _pieces(generator: np.random.Generator, total: int) -> tuple[int, ...]:
    """Up to five pieces of random lengths that make ``total``."""
    cuts = generator.choice(np.arange(1, total), size=min(4, total - 1), replace=False)
    return tuple(int(n) for n in np.diff([0, *np.sort(cuts), total]))


# Text with images: random tiles, and random words around what stands for them

ONE: Sequence[Item] = (4, None, 3)
SEVERAL: Sequence[Item] = (2, None, None, 2, None, 3)
"""An image of two tiles, then another."""
BATCH: Sequence[Sequence[Item]] = ((5,), ONE, SEVERAL)
"""Rows with no image, one and two; the shorter ones are padded."""


def image_scenarios(
    pipeline: Pipeline, graphs: Mapping[str, Graph], vocab_size: int, steps: int, seed: int = 1
) -> tuple[Scenario, ...]:
    """One image in a prefill; two, and ``steps`` single tokens; a padded batch of rows with none, one and two.

    Raises ValueError with the reason for a pipeline that reads neither tiles alone nor those that text attends to.
    """
    generator, single = np.random.default_rng(seed), (1,) * steps
    if is_tiled(pipeline):
        tiled = TiledMaker(pipeline, graphs, vocab_size, generator)
        return _cases(tiled.scenario, single)
    types = {v.id: v.type for name in pipeline.graphs for v in graphs[name].inputs}
    unknown = [n for n in pipeline.images if not _is_tiles(types[n])] + list(pipeline.beside)
    if unknown or len(pipeline.placeholders) != 1:
        names = ", ".join(f"`{n}`" for n in unknown) or "several hand-overs that tokens stand for"
        raise ValueError(f"no case is known for graphs with {names}")
    return _cases(_Maker(pipeline, types, vocab_size, generator).scenario, single)


def _cases(
    make: Callable[[str, Sequence[Sequence[Item]], Sequence[int]], Scenario],
    single: Sequence[int],
) -> tuple[Scenario, ...]:
    return (
        make("image prefill", (ONE,), ()),
        make("images decode", (SEVERAL,), single),
        make("images padded batch", BATCH, single),
    )


def _is_tiles(of: TensorType) -> bool:
    return of.dtype is DType.MODEL and [str(d) for d in of.shape[:1]] == ["I"]


class _Maker:
    def __init__(
        self,
        pipeline: Pipeline,
        types: Mapping[str, TensorType],
        vocab_size: int,
        generator: np.random.Generator,
    ) -> None:
        self.images = {name: types[name].shape[1:] for name in pipeline.images}
        (self.placeholder,) = pipeline.placeholders.values()
        self.vocab_size = vocab_size
        self.generator = generator

    def scenario(
        self, name: str, rows: Sequence[Sequence[Item]], decoded: Sequence[int]
    ) -> Scenario:
        drawn = [np.concatenate([self.ids(p) for p in (*row, sum(decoded))]) for row in rows]
        length = max(map(len, drawn))
        ids = np.stack([np.pad(row, (length - len(row), 0)) for row in drawn])
        mask = np.stack([np.arange(length) >= length - len(row) for row in drawn])
        tiles = sum(item is None for row in rows for item in row)
        splits = (length - sum(decoded), *decoded)
        return Scenario(name, ids, mask.astype(np.int64), splits, images=self.tiles(tiles))

    def ids(self, item: Item) -> IntArray:
        """Words never are the placeholder: one id less is drawn, and those from it on move up."""
        if item is None:
            return np.full(self.placeholder.rows, self.placeholder.token)
        drawn = self.generator.integers(0, self.vocab_size - 1, item, dtype=np.int64)
        return drawn + (drawn >= self.placeholder.token)

    def tiles(self, count: int) -> Values:
        """Values that float32 holds exactly, so that every witness sees the same."""
        return {
            name: self.generator.standard_normal(
                (count, *(d.value for d in dims)), dtype=np.float32
            )
            for name, dims in self.images.items()
        }


# Models that attend to the tiles of images: each image has an arrangement, and text sees some images

PIXELS, ARRANGEMENTS, TILES, SEEN = (
    "pixel_values",
    "aspect_ratio_ids",
    "aspect_ratio_mask",
    "cross_attention_mask",
)


def is_tiled(pipeline: Pipeline) -> bool:
    """Whether the graphs read tiles that text attends to."""
    inputs = {*pipeline.images, *pipeline.beside}
    return inputs == {PIXELS, ARRANGEMENTS, TILES, SEEN} and not pipeline.placeholders


class TiledMaker:
    """Random tiles and arrangements, and words around the token of an image."""

    def __init__(
        self,
        pipeline: Pipeline,
        graphs: Mapping[str, Graph],
        vocab_size: int,
        generator: np.random.Generator,
    ) -> None:
        types = {v.id: v.type for name in pipeline.graphs for v in graphs[name].inputs}
        rows = [rows_of(graphs[name], ARRANGEMENTS) for name in pipeline.once]
        words = [rows_of(graphs[name], "input_ids") for name in pipeline.steps]
        self.arrangements = min(n for found in rows for n in found)
        self.token = min(vocab_size, min(n for found in words for n in found) - 1)
        """The first id after the vocabulary: its row is read and its logit does not exist."""
        self.tile = tuple(d.value for d in types[PIXELS].shape[2:])
        self.vocab_size = vocab_size
        self.generator = generator
        self.drawn = 0

    def scenario(
        self, name: str, rows: Sequence[Sequence[Item]], decoded: Sequence[int]
    ) -> Scenario:
        drawn = [np.concatenate([self.ids(p) for p in (*row, sum(decoded))]) for row in rows]
        length, most = max(map(len, drawn)), max(row.count(None) for row in map(list, rows))
        ids = np.stack([np.pad(row, (length - len(row), 0)) for row in drawn])
        mask = np.stack([np.arange(length) >= length - len(row) for row in drawn])
        tiles = self.tile[0]
        shape = (len(rows), most, tiles)
        used = np.zeros(shape, np.int64)
        used[..., 0] = 1  # as the processor marks images that are not there
        arrangements = np.zeros(shape[:2], np.int64)
        seen = np.zeros((len(rows), length, most, tiles), np.int64)
        pixels = self.generator.standard_normal((*shape, *self.tile[1:]), dtype=np.float32)
        for b, row in enumerate(rows):
            count = list(row).count(None)
            places = np.flatnonzero((ids[b] == self.token) & mask[b])[:count]
            for i, (start, end) in enumerate(spans(places.tolist(), length)):
                # in turn, so that the cases together have every arrangement and every count of tiles
                arrangements[b, i] = 1 + self.drawn % (self.arrangements - 1)
                used[b, i] = np.arange(tiles) <= self.drawn % tiles
                self.drawn += 1
                seen[b, start:end, i] = used[b, i]
            pixels[b, count:] = 0
        pixels *= used[..., None, None, None]
        images = {PIXELS: pixels, ARRANGEMENTS: arrangements, TILES: used}
        splits = (length - sum(decoded), *decoded)
        beside = {SEEN: seen}
        kept = mask.astype(np.int64)
        return Scenario(name, ids, kept, splits, images=images if most else {}, beside=beside)

    def ids(self, item: Item) -> IntArray:
        if item is None:
            return np.array([self.token])
        found: NDArray[np.int64] = self.generator.integers(0, self.vocab_size, item)
        found[found == self.token] -= 1
        return found
