"""Lowerings of the masks of images: over the tiles of one, and from text to the tiles of several."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.site import Lowering, Site, Values
from llamagen.ir.dims import Dim
from llamagen.ir.optypes import a_int

BOOL = ir.DataType.BOOL


def _tile_mask(b: Builder, site: Site, x: Values) -> Values:
    """bool[n, 1, L, L], L the places of all tiles."""
    tokens, padded = a_int(site.attrs, "tokens"), a_int(site.attrs, "padded")
    tiles, images = site.dims()[-1].value, site.results[0].shape[0]
    one = Dim.of(1)
    marks = b.reshape(x[0], site.dims(), (images, site.dims()[-1], one))
    empty = b.op("Equal", marks, b.whole(0), dtype=BOOL)
    after = b.constant(f"{b.scope}/after_tokens", np.arange(padded) >= tokens)
    padding = b.op("Or", empty, after)
    flat = b.op("Reshape", padding, b.ints([-1, tiles * padded]))
    queries, keys = (b.op("Unsqueeze", flat, b.ints(axes)) for axes in ([1, 3], [1, 2]))
    return (b.op("Not", b.op("And", queries, keys)),)


def _cross_mask(b: Builder, site: Site, x: Values) -> Values:
    """bool[B, 1, S, keys], and [B, S, 1] in the model's dtype."""
    tokens = a_int(site.attrs, "tokens")
    tiles = b.op("Reshape", b.to(x[0], BOOL), b.ints([0, 0, -1]))
    seen = b.op("ReduceMax", tiles, b.ints([2]), keepdims=1)
    each = b.op("Expand", b.op("Unsqueeze", tiles, b.ints([1, 4])), b.ints([1, 1, 1, 1, tokens]))
    return (b.op("Reshape", each, b.ints([0, 0, 0, -1])), b.to(seen, b.model))


IMAGE_LOWERINGS: Mapping[str, Lowering] = {"tile_mask": _tile_mask, "cross_mask": _cross_mask}
