"""The third witness: a flat graph evaluated in numpy float64, independent of both backends.

It is slow and exact to about 1e-15 of each value; use it on small models. Weights are asked for
one tensor at a time, when an op needs them, and are widened a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llamagen.ir.flatten import FlatGraph, FlatNode
from llamagen.ops.op import (
    Array,
    DType,
    Ints,
    Operands,
    Real,
    Role,
    State,
)

WeightSource: TypeAlias = Callable[[str], NDArray[np.generic]] | Mapping[str, NDArray[np.generic]]
"""Role path -> tensor of any real dtype that numpy converts to float64."""

States: TypeAlias = Sequence[Real]
"""What each slot holds, in the order of ``FlatGraph.slots``: keys and values are [B, K, P, H]."""

Rounding: TypeAlias = Literal["float32", "float16", "bfloat16"] | None

Seen: TypeAlias = Callable[[FlatNode, Sequence[Array]], None]
"""Gets every node with its operands, before it is computed."""

Chooser: TypeAlias = Callable[[Real], Ints]
"""Scores [..., E] of a ``topk`` -> the places [..., k] that it takes in place of the largest."""


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """``outputs`` in the graph's order, the states after this step, what it wrote for other graphs by name, and all
    values if asked for."""

    outputs: tuple[Array, ...]
    present: tuple[Real, ...]
    values: Mapping[str, Array] = field(default_factory=dict)
    cross: Mapping[str, Real] = field(default_factory=dict)

    @property
    def logits(self) -> Real:
        """The first output, [B, S, V]."""
        return np.asarray(self.outputs[0], dtype=np.float64)


def evaluate(
    flat: FlatGraph,
    weights: WeightSource,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    past: States | None = None,
    *,
    inputs: Mapping[str, ArrayLike] | None = None,
    keep_values: bool = False,
    rounding: Rounding = None,
) -> ReferenceResult:
    """Run ``flat`` on ``input_ids`` [B, S] after ``past`` (none: nothing before).

    ``attention_mask`` [B, T] is 1 for tokens and 0 for padding; none means no padding.
    ``positions`` [B, S] default to the number of tokens before each one. ``inputs`` are further
    graph inputs and ``cross_key_values`` by name. ``rounding`` rounds the result of every op to the
    model's dtype: not what a backend computes, but a measure of how much that dtype can matter for
    this model. Raises KeyError for a weight or an input that is not given, ValueError for shapes
    that do not fit.
    """
    ids: Ints = np.asarray(input_ids, dtype=np.int64)
    batch, new = ids.shape
    told = None if attention_mask is None else np.shape(attention_mask)[1] - new
    before = _past(flat, past, told)
    sizes = {"B": batch, "S": new, "P": before}
    shape = (batch, before + new)
    mask: Ints = np.ones(shape, np.int64) if attention_mask is None else _ints(attention_mask)
    if mask.shape != shape:
        raise ValueError(f"attention_mask is {mask.shape}, tokens and cache make it {shape}")
    if positions is None:
        positions = np.maximum(np.cumsum(mask > 0, axis=1) - 1, 0)[:, before:]
    named: dict[str, ArrayLike] = {
        "input_ids": ids,
        "attention_mask": mask,
        "positions": positions,
        **(inputs or {}),
    }
    wanted = {name: named[name] for name in (*flat.inputs, *flat.handed_in)}
    _read_sizes(flat, inputs or {}, sizes)
    return _evaluate(flat, weights, wanted, sizes, past, keep_values, _Manner(rounding))


def evaluate_graph(
    flat: FlatGraph,
    weights: WeightSource,
    inputs: Mapping[str, ArrayLike],
    past: States | None = None,
    *,
    keep_values: bool = False,
    rounding: Rounding = None,
    float32_angles: bool = False,
    choose: Chooser | None = None,
    single: bool = False,
    seen: Seen | None = None,
) -> ReferenceResult:
    """Run a graph that need not begin with ids: every input by name, sizes from their shapes.

    ``float32_angles`` computes rotations in float32, which the op table asks of every backend: far
    positions turn by angles that are wrong by up to position * 2^-24. ``choose`` is asked by every
    ``topk``, in the order of the nodes. ``single`` computes in float32: three times as fast, a witness of nothing.

    Raises KeyError for a weight or an input that is not given, ValueError for shapes that do not fit.
    """
    told = [np.shape(inputs[name])[1] for name in ("attention_mask", "positions") if name in inputs]
    sizes = {"P": _past(flat, past, told[0] - told[1] if len(told) == 2 else None)}
    arrays = {name: inputs[name] for name in (*flat.inputs, *flat.handed_in)}
    _read_sizes(flat, arrays, sizes)
    manner = _Manner(rounding, float32_angles, choose, single, seen)
    return _evaluate(flat, weights, arrays, sizes, past, keep_values, manner)


def _read_sizes(flat: FlatGraph, arrays: Mapping[str, ArrayLike], sizes: dict[str, int]) -> None:
    for name in flat.inputs:
        if name not in arrays:
            continue
        shape = np.shape(arrays[name])
        if len(shape) != len(flat.types[name].shape):
            raise ValueError(f"{name} is {shape}, the graph says {flat.types[name]}")
        for dim, size in zip(flat.types[name].shape, shape, strict=True):
            sizes.setdefault(str(dim), size)


def _past(flat: FlatGraph, past: States | None, by_mask: int | None) -> int:
    """Tokens of earlier calls: a slot that keeps all of them can tell, else the attention mask."""
    slots = zip(past or (), flat.slots, strict=bool(past))
    whole: list[int] = [x.shape[2] for x, slot in slots if slot.of_tokens and slot.keep is None]
    if whole:
        return whole[0]
    if past and by_mask is None:
        raise ValueError("no slot keeps every token: give an attention_mask over all of them")
    return by_mask or 0


def _evaluate(
    flat: FlatGraph,
    weights: WeightSource,
    arrays: Mapping[str, ArrayLike],
    sizes: Mapping[str, int],
    past: States | None,
    keep_values: bool,
    manner: _Manner,
) -> ReferenceResult:
    run = _Run(flat, weights, sizes, past, manner)
    handed = flat.handed_in
    for name, value in arrays.items():
        run.put(handed.get(name, name), _as_array(value))
    last_use = {} if keep_values else _last_uses(flat)
    with np.errstate(divide="ignore", invalid="ignore"):  # of padding: numbers of no meaning
        for i, node in enumerate(flat.nodes):
            run.apply(node)
            for name in last_use.get(i, ()):
                run.values.pop(name, None)
    outputs = tuple(run.values[o] for o in flat.outputs)
    values = run.values if keep_values else {}
    return ReferenceResult(outputs, tuple(run.present), values, run.written)


@dataclass(frozen=True, slots=True)
class _Manner:
    rounding: Rounding = None
    float32_angles: bool = False
    choose: Chooser | None = None
    single: bool = False
    seen: Seen | None = None


class _Run:
    def __init__(
        self,
        flat: FlatGraph,
        weights: WeightSource,
        sizes: Mapping[str, int],
        past: States | None,
        manner: _Manner,
    ) -> None:
        self.flat = flat
        self.slots_of = flat.slots_of
        self.weights = weights
        self.sizes = sizes
        self.past = past
        self.manner = manner
        self.values: dict[str, Array] = {}
        self.present: list[Real] = []
        self.written: dict[str, Real] = {}

    def apply(self, node: FlatNode) -> None:
        def stored(name: str) -> NDArray[np.generic]:
            path = node.parameters[name]
            return self.weights[path] if isinstance(self.weights, Mapping) else self.weights(path)

        row = node.row
        if row.state is State.READ:
            return  # its results are inputs
        tensors = [self.values[o] for o in node.operands]
        manner = self.manner
        if manner.seen is not None:
            manner.seen(node, tensors)
        operands = Operands(
            tensors,
            node.attrs,
            self.sizes,
            stored,
            manner.float32_angles,
            manner.single,
            self.found(node),
        )
        results: tuple[Array, ...]
        if row.state is State.WRITTEN:
            results = self.write(operands)
        elif row.role is Role.CHOICE and self.manner.choose is not None:
            scores = operands.real()
            chosen = self.manner.choose(scores)
            results = np.take_along_axis(scores, chosen, axis=-1), chosen
        else:
            assert row.numpy is not None, node.op
            results = row.numpy(operands)
        count = len(node.results)
        self.present += (cast("Real", left) for left in results[count:])
        for name, result in zip(node.results, results[:count], strict=True):
            self.put(name, result)

    def found(self, node: FlatNode) -> list[Real]:
        """What the op finds of its states: zeros, of no token, in the first call."""
        start, slots = len(self.present), self.slots_of.get(node.results[0], ())
        if self.past is not None:
            return list(self.past[start : start + len(slots)])
        dtype = np.float32 if self.manner.single else np.float64
        shapes = [[d.evaluate(self.sizes) for d in slot.found.shape] for slot in slots]
        return [np.zeros(shape, dtype) for shape in shapes]

    def write(self, o: Operands) -> tuple[Real, Real]:
        slot = self.flat.cross_writes[len(self.written) // 2]
        k, v = o.real(0), o.real(1)
        self.written |= {slot.key_name: k, slot.value_name: v}
        return k, v

    def put(self, name: str, value: Array) -> None:
        """Keep a value; its shape must be what the shape rules of the op table predicted."""
        want = tuple(d.evaluate(self.sizes) for d in self.flat.types[name].shape)
        if value.shape != want:
            raise ValueError(f"{name} is {value.shape}, the graph says {self.flat.types[name]}")
        if self.manner.rounding is not None and value.dtype == np.float64:
            wide = self.flat.types[name].dtype is DType.FLOAT32
            value = value.astype(_rounding("float32" if wide else self.manner.rounding))
            value = value.astype(np.float64)
        if self.manner.single and value.dtype == np.float64:
            value = cast("Real", value.astype(np.float32))
        self.values[name] = value


def _rounding(dtype: Literal["float32", "float16", "bfloat16"]) -> np.dtype[np.generic]:
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes

    narrow: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    return narrow


def _ints(values: ArrayLike) -> Ints:
    return np.asarray(values, dtype=np.int64)


def _as_array(values: ArrayLike) -> Array:
    array = np.asarray(values)
    if array.dtype == np.bool_:
        return array.astype(np.bool_, copy=False)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64, copy=False)
    return array.astype(np.float64, copy=False)


def _last_uses(flat: FlatGraph) -> dict[int, list[str]]:
    """Node index -> values that nothing reads after it."""
    last: dict[str, int] = {}
    for i, node in enumerate(flat.nodes):
        last.update(dict.fromkeys((*node.operands, *node.results), i))
    uses: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in flat.outputs:
            uses.setdefault(i, []).append(name)
    return uses
