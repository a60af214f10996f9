"""The contract of a decoder that text-generation clients share, read off a graph.

They feed token ids, a mask and positions, keep one cache of keys and one of values for every layer, all of one shape
[B, num_kv_heads, past, head_dim], and read logits. A graph that wants more, or keeps other caches, is not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llamagen.ir.flatten import FlatGraph, flatten, known_ids
from llamagen.ir.graph import Graph
from llamagen.ops.dims import S
from llamagen.ops.op import Role, TensorType

_FED: Mapping[str, str] = {
    "input_ids": "input_ids",
    "positions": "position_ids",
    "attention_mask": "attention_mask",
}
"""Graph input -> the name that clients feed."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A graph within the contract. ``inputs`` are the names that the ONNX model has beside its caches."""

    inputs: tuple[str, ...]
    layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a graph is outside the contract: clauses that follow "it"."""

    reasons: tuple[str, ...]
    plain: bool
    """It takes nothing but what every decoder takes, so that a session runs it; a loop where it returns logits."""
    inputs: tuple[str, ...]
    vocab_size: int
    """Ids of a text."""


Contract: TypeAlias = Decoder | Unfit


def contract_of(graph: Graph) -> Contract:
    """What clients must know about ``graph``, or every reason why they cannot run it."""
    flat = flatten(graph)
    foreign = [name for name in flat.inputs if name not in _FED]
    reasons: list[str] = []
    if "input_ids" not in flat.inputs:
        reasons.append("does not take token ids")
    if foreign:
        beside = ", ".join(f"`{name}`" for name in foreign)
        reasons.append(f"takes {beside} beside token ids")
    plain = not reasons
    if "logits" not in graph.output_names:
        reasons.append("does not return `logits`")
    elif graph.output_names != ("logits",):
        others = ", ".join(f"`{name}`" for name in graph.output_names if name != "logits")
        reasons.append(f"returns {others} beside `logits`")
    caches = [slot for slot in flat.slots if slot.of_tokens]
    if not caches:
        reasons.append("keeps no keys and values between steps")
    if len(caches) < len(flat.slots):
        count = len(flat.slots) - len(caches)
        reasons.append(f"keeps {count} other states than keys and values between steps")
    shapes = {(_fixed(slot.found, axis=1), _fixed(slot.found, axis=3)) for slot in caches}
    if len(shapes) > 1:
        several = " and ".join(f"[{heads}, {size}]" for heads, size in sorted(shapes))
        reasons.append(f"keeps caches of [heads, head size] {several}; clients know one shape")
    if any(slot.left.shape[2] != slot.found.shape[2] + S for slot in caches):
        reasons.append("does not keep one entry for every new token")
    bounds = [slot.keep for slot in flat.slots if slot.keep is not None]
    if bounds:
        reasons.append(f"keeps {bounds_text(flat)}; clients want pasts of one length")
    inputs = tuple(_FED.get(name, name) for name in flat.inputs)
    named = dict(zip(graph.output_names, flat.outputs, strict=True))
    if "logits" not in named:
        return Unfit(tuple(reasons), plain, inputs, known_ids(graph))
    vocab_size = _fixed(flat.types[named["logits"]], axis=-1)
    if reasons:
        return Unfit(tuple(reasons), plain, inputs, vocab_size)
    ((kv_heads, head_dim),) = shapes
    return Decoder(inputs, len(caches) // 2, _heads(flat), kv_heads, head_dim, vocab_size)


def bounds_text(flat: FlatGraph) -> str:
    """``at most 8,191 tokens in 36 of 48 caches``"""
    keeps = [slot.keep for slot in flat.slots if slot.of_tokens][::2]
    bounded = [keep for keep in keeps if keep is not None]
    most = " or ".join(f"{keep:,}" for keep in sorted(set(bounded)))
    return f"at most {most} tokens in {len(bounded)} of {len(keeps)} caches"


def _heads(flat: FlatGraph) -> int:
    """Query heads of the first attention, [B, N, S, H]."""
    first = next(node for node in flat.nodes if node.row.role is Role.ATTENTION)
    return _fixed(flat.types[first.operands[0]], axis=1)


def _fixed(of: TensorType, axis: int) -> int:
    """Head counts and widths are numbers in every verified graph."""
    return of.shape[axis].value
