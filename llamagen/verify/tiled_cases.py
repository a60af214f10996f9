"""Scenarios for models that attend to the tiles of images: each image has an arrangement, and text sees some images.

The names are those of transformers' processor, which the graphs of such a model share: ``pixel_values`` [B, I, tiles,
C, side, side], ``aspect_ratio_ids`` [B, I] (0: no image), ``aspect_ratio_mask`` [B, I, tiles] and beside the ids
``cross_attention_mask`` [B, S, I, tiles].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph
from llamagen.ir.pipeline import Pipeline
from llamagen.ops.op import Role, a_int
from llamagen.verify.scenario import IntArray, Piece, Scenario

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
        rows = [_rows(graphs[name], ARRANGEMENTS) for name in pipeline.once]
        words = [_rows(graphs[name], "input_ids") for name in pipeline.steps]
        self.arrangements = min(n for found in rows for n in found)
        self.token = min(vocab_size, min(n for found in words for n in found) - 1)
        """The first id after the vocabulary: its row is read and its logit does not exist."""
        self.tile = tuple(d.value for d in types[PIXELS].shape[2:])
        self.vocab_size = vocab_size
        self.generator = generator

    def scenario(
        self, name: str, rows: Sequence[Sequence[Piece]], decoded: Sequence[int]
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
                arrangements[b, i] = self.generator.integers(1, self.arrangements)
                used[b, i] = np.arange(tiles) < self.generator.integers(1, tiles + 1)
                seen[b, start:end, i] = used[b, i]
            pixels[b, count:] = 0
        pixels *= used[..., None, None, None]
        images = {PIXELS: pixels, ARRANGEMENTS: arrangements, TILES: used}
        splits = (length - sum(decoded), *decoded)
        beside = {SEEN: seen}
        kept = mask.astype(np.int64)
        return Scenario(name, ids, kept, splits, images=images if most else {}, beside=beside)

    def ids(self, piece: Piece) -> IntArray:
        if piece is None:
            return np.array([self.token])
        found: NDArray[np.int64] = self.generator.integers(0, self.vocab_size, piece)
        found[found == self.token] -= 1
        return found


def spans(places: Sequence[int], length: int) -> list[tuple[int, int]]:
    """From where to where text sees each image: from its token to the next image; neighbours end together, and the
    last is seen to the end (facts 4.7, ``create_vision_mask`` of the authors)."""
    ends = [*places, length][1:]
    for i in reversed(range(len(places) - 1)):
        if ends[i] == places[i] + 1:
            ends[i] = ends[i + 1]
    return list(zip(places, ends, strict=True))


def _rows(graph: Graph, ids: str) -> list[int]:
    """Rows of the tables that are looked up by an input."""
    nodes = flatten(graph).nodes
    return [
        a_int(n.attrs, "rows")
        for n in nodes
        if n.row.role is Role.EMBEDDING and n.operands == (ids,)
    ]
