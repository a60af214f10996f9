"""Scenarios with images for the graphs of a folder: random tiles, and random words around what stands for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llamagen.ir.graph import Graph
from llamagen.ir.pipeline import Pipeline
from llamagen.ops.op import DType, TensorType
from llamagen.verify.scenario import IntArray, Piece, Scenario, Values
from llamagen.verify.tiled_cases import TiledMaker, is_tiled

ONE: Sequence[Piece] = (4, None, 3)
SEVERAL: Sequence[Piece] = (2, None, None, 2, None, 3)
"""An image of two tiles, then another."""
BATCH: Sequence[Sequence[Piece]] = ((5,), ONE, SEVERAL)
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
    make: Callable[[str, Sequence[Sequence[Piece]], Sequence[int]], Scenario],
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
        self, name: str, rows: Sequence[Sequence[Piece]], decoded: Sequence[int]
    ) -> Scenario:
        drawn = [np.concatenate([self.ids(p) for p in (*row, sum(decoded))]) for row in rows]
        length = max(map(len, drawn))
        ids = np.stack([np.pad(row, (length - len(row), 0)) for row in drawn])
        mask = np.stack([np.arange(length) >= length - len(row) for row in drawn])
        tiles = sum(piece is None for row in rows for piece in row)
        splits = (length - sum(decoded), *decoded)
        return Scenario(name, ids, mask.astype(np.int64), splits, images=self.tiles(tiles))

    def ids(self, piece: Piece) -> IntArray:
        """Words never are the placeholder: one id less is drawn, and those from it on move up."""
        if piece is None:
            return np.full(self.placeholder.rows, self.placeholder.token)
        drawn = self.generator.integers(0, self.vocab_size - 1, piece, dtype=np.int64)
        return drawn + (drawn >= self.placeholder.token)

    def tiles(self, count: int) -> Values:
        """Values that float32 holds exactly, so that every witness sees the same."""
        return {
            name: self.generator.standard_normal(
                (count, *(d.value for d in dims)), dtype=np.float32
            )
            for name, dims in self.images.items()
        }
