"""What a model computes on a text: how much each column of a weight counts, and how large keys and values become.

The graph is evaluated op by op in float32, and weights are read some rows at a time: memory is activations, whatever
the size of the model. A weight that the text model does not have, and stacked experts, have no numbers here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagen.emit.onnx.initializers import heads_of
from llamagen.ir.flatten import FlatGraph, FlatNode, flatten
from llamagen.ir.graph import Graph
from llamagen.ir.pipeline import TOKEN_INPUTS
from llamagen.ir.reference import evaluate_graph
from llamagen.ops.op import Array, Role, State
from llamagen.resources import data_text
from llamagen.weights.tensors import Region, Shape, whole

Floats = npt.NDArray[np.float32]
Part = Callable[[str, Region], Floats]

WINDOW = 256
"""Tokens that see one another; scores of a head are then small."""
LEAST, MOST = WINDOW, 8 * WINDOW
"""Tokens of a text that are enough, and that are looked at."""


def built_in_text() -> str:
    return data_text("spec", "calibration.txt")


def drawn_ids(seed: int, vocabulary: int) -> list[int]:
    """What stands for a text of random weights of ``seed``, to which all ids are alike."""
    drawn: list[int] = np.random.default_rng(seed).integers(0, vocabulary, MOST).tolist()
    return drawn


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class Activations:
    """``squares``: role path of a weight [N, K] -> mean square of each of the K inputs. ``ranges``: name of a past ->
    the largest magnitude of each feature of each head, [K, H], wherever in a text the tokens stand."""

    squares: Mapping[str, Floats]
    ranges: Mapping[str, Floats]


def calibrated(graph: Graph, part: Part, ids: Sequence[int]) -> Activations | str:
    """What ``graph`` computes over ``ids``; or why that is not known."""
    flat = flatten(graph)
    shapes = {path: p.shape for path, p in graph.parameters.items()}
    tables = {n.parameters["weight"] for n in flat.nodes if n.row.role is Role.EMBEDDING}
    if not {*flat.inputs, *flat.handed_in} <= {*TOKEN_INPUTS}:
        return "the model reads more than ids of tokens"
    if len(ids) < LEAST:
        return f"the text has {len(ids):,} tokens, and {LEAST} are the least"
    if max(ids) >= min(shapes[table][0] for table in tables):
        return f"the tokenizer has an id {max(ids):,} that the model has not"
    heads = heads_of(flat)
    products = [i for i, n in enumerate(flat.nodes) if n.row.role is Role.LINEAR]
    # nothing is asked of the head, the largest product of all
    last = max((i for i in products if flat.nodes[i].parameters["weight"] not in heads), default=-1)
    squares: dict[str, Floats] = {}
    ranges: dict[str, Floats] = {}
    slots, turned = flat.slots_of, turned_keys(flat)

    def seen(node: FlatNode, operands: Sequence[Array]) -> None:
        if node.row.state is State.SLOT:
            names, key = slots[node.results[0]], operands[0]
            if (pairs := turned.get(names[0].past)) is not None:
                key = any_angle(key, pairs)
            for slot, values in zip(names, (key, operands[1]), strict=True):
                ranges[slot.past] = np.abs(values).max(axis=(0, 2)).astype(np.float32)
        if node.row.role is Role.LINEAR:
            x, path = operands[0], node.parameters["weight"]
            mean = np.square(x.reshape(-1, x.shape[-1])).mean(axis=0, dtype=np.float32)
            squares[path] = squares.get(path, np.float32(0)) + mean

    rows = np.asarray(ids[: min(len(ids), MOST) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    places = np.broadcast_to(np.arange(WINDOW), rows.shape)
    with np.errstate(all="ignore"):
        evaluate_graph(
            replace(flat, nodes=flat.nodes[: last + 1], outputs=()),
            lambda path: _Stored(part, path, shapes[path]),  # type: ignore[arg-type, return-value]
            dict(zip(TOKEN_INPUTS, (rows, np.ones_like(rows), places), strict=True)),
            single=True,
            seen=seen,
        )
    if not all(np.isfinite(one).all() for one in (*squares.values(), *ranges.values())):
        return "what the model computes on the text is not finite in float32"
    return Activations(squares, ranges)


Pairs = tuple[slice, slice]
"""Features of a head that a rotation turns together: the first ones, and the second ones."""


def turned_keys(flat: FlatGraph) -> dict[str, Pairs]:
    """Of the pasts whose keys a rotation turned."""
    rotations = {n.results[0]: n for n in flat.nodes if n.row.role is Role.ROTATION}
    slots = flat.slots_of
    found: dict[str, Pairs] = {}
    for node in flat.nodes:
        rotation = rotations.get(node.operands[0]) if node.row.state is State.SLOT else None
        if rotation is not None:
            width = 2 * flat.types[rotation.operands[1]].shape[-1].value
            halves = slice(width // 2), slice(width // 2, width)
            both = slice(0, width, 2), slice(1, width, 2)
            key = slots[node.results[0]][0]
            found[key.past] = halves if rotation.attrs["layout"] == "half" else both
    return found


def any_angle(keys: Array, pairs: Pairs) -> Array:
    """Magnitudes that keys [B, K, S, H] can have at any position: a rotation keeps the length of each pair alone.

    Slow pairs turn by little in a short text, and are elsewhere in a long one.
    """
    first, second = pairs
    lengths: Array = np.abs(keys)
    lengths[..., first] = lengths[..., second] = np.hypot(keys[..., first], keys[..., second])
    return lengths


@dataclass(frozen=True, slots=True)
class _Stored:
    """A parameter of which the interpreter reads rows: some in order, one of them, or those of ids."""

    part: Part
    path: str
    shape: Shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> Floats:
        rest = whole(self.shape[1:])
        if wanted is Ellipsis:
            return self.part(self.path, whole(self.shape))
        if isinstance(wanted, slice):
            start, stop, _ = wanted.indices(len(self))
            return self.part(self.path, ((start, stop), *rest))
        some, places = np.unique(wanted, return_inverse=True)
        rows = [self.part(self.path, ((int(i), int(i) + 1), *rest)) for i in some]
        return np.concatenate(rows)[places.reshape(np.shape(wanted))]
