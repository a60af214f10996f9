"""Exact conversions of weights between two architectures, as row selections: no arithmetic, no tensor library.

A plan says, for one tensor of B, which rows of which tensors of A it consists of, in order. Whoever holds tensors
executes it by taking and joining rows (dimension 0); ``ZERO_ROWS`` stands for rows of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

ZERO_ROWS: Final = ""
"""Source of rows that A does not have."""


class Transform(StrEnum):
    """Names that diff rules and commands use."""

    PERMUTE_QK = "permute_qk"
    """Rotary layout: pairs (2i, 2i+1) and (i, i + d/2) of each head change places."""
    UNTIE_HEAD = "untie_head"
    """The embedding's weight is copied to the head."""
    REPEAT_KV_HEADS = "repeat_kv_heads"
    """Every key/value head is repeated for the query heads that shared it."""
    PAD_VOCAB = "pad_vocab"
    """Rows of zeros for the new ids; their logits are 0, so mask them when sampling."""
    SPLIT_FUSED = "split_fused"
    """One tensor's rows become several tensors."""
    FUSE = "fuse"
    """Several tensors' rows become one."""


DOC: Final[Mapping[Transform, str]] = {
    Transform.PERMUTE_QK: "reorder the rows of each head's q and k for the other rotary layout",
    Transform.UNTIE_HEAD: "copy the embedding to the head",
    Transform.REPEAT_KV_HEADS: "repeat every key/value head for the queries that shared it",
    Transform.PAD_VOCAB: "append rows of zeros for the new ids",
    Transform.SPLIT_FUSED: "cut the fused tensor into its parts",
    Transform.FUSE: "join the parts into the fused tensor",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """``rows`` of tensor ``source``, in this order."""

    source: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one tensor of B is made: the pieces joined along dimension 0."""

    target: str
    transform: Transform
    pieces: tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes that head-wise plans need."""

    before: int
    after: int
    head_dim: int


def permute_qk(role_path: str, heads: int, head_dim: int, *, to_half: bool) -> Plan:
    """``to_half``: from interleaved pairs to halves (Meta to Hugging Face order), else back; facts 4.10."""
    half = head_dim // 2
    if to_half:
        order = [2 * i + j for j in range(2) for i in range(half)]
    else:
        order = [j * half + i for i in range(half) for j in range(2)]
    rows = tuple(h * head_dim + r for h in range(heads) for r in order)
    return Plan(role_path, Transform.PERMUTE_QK, (Rows(role_path, rows),))


def repeat_kv_heads(role_path: str, heads: Heads) -> Plan:
    """Head j of B is head j // r of A, r = after / before: the sharing rule of ``attention``."""
    if heads.after % heads.before:
        raise ValueError(f"{heads.before} heads cannot be repeated to {heads.after}")
    times = heads.after // heads.before
    rows = tuple(
        (j // times) * heads.head_dim + r for j in range(heads.after) for r in range(heads.head_dim)
    )
    return Plan(role_path, Transform.REPEAT_KV_HEADS, (Rows(role_path, rows),))


def pad_vocab(role_path: str, before: int, after: int) -> Plan:
    if after < before:
        raise ValueError(f"{before} rows cannot be padded to {after}")
    kept = Rows(role_path, tuple(range(before)))
    return Plan(role_path, Transform.PAD_VOCAB, (kept, Rows(ZERO_ROWS, (0,) * (after - before))))


def untie_head(embedding: str, head: str, rows: int) -> Plan:
    return Plan(head, Transform.UNTIE_HEAD, (Rows(embedding, tuple(range(rows))),))


def split_fused(fused: str, parts: Sequence[tuple[str, int]]) -> tuple[Plan, ...]:
    """``parts`` are (role path, rows) in the order they lie in the fused tensor."""
    plans: list[Plan] = []
    start = 0
    for path, rows in parts:
        piece = Rows(fused, tuple(range(start, start + rows)))
        plans.append(Plan(path, Transform.SPLIT_FUSED, (piece,)))
        start += rows
    return tuple(plans)


def fuse(parts: Sequence[tuple[str, int]], fused: str) -> Plan:
    return Plan(fused, Transform.FUSE, tuple(Rows(p, tuple(range(n))) for p, n in parts))


@dataclass(frozen=True, slots=True)
class WeightChange:
    """One weight that differs: what the rules may know about it. Shapes are none on the side that lacks it."""

    role: str
    """``query``, ``key``, ``value``, ``embedding``, ``head`` or ``other``."""
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    group: tuple[tuple[int, ...], ...] = ()
    """Shapes on the other side in the same block that this tensor's rows would make up."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The sizes of both sides that decide whether a conversion is exact."""

    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    head_dim: tuple[int, int]
    tied: tuple[bool, bool]


def candidate(change: WeightChange, setting: Setting) -> Transform | None:
    """The transform that makes B's tensor out of A's exactly, or none."""
    match change:
        case WeightChange(before=None, after=after) if after is not None:
            if change.role == "head" and setting.tied == (True, False):
                return Transform.UNTIE_HEAD
            if change.group:
                return Transform.SPLIT_FUSED if len(change.group) == 1 else Transform.FUSE
            return None
        case WeightChange(before=before, after=None) if before is not None:
            if change.group:
                return Transform.SPLIT_FUSED if len(change.group) > 1 else Transform.FUSE
            return None
        case WeightChange(before=(rows, *rest), after=(wanted, *same)) if rest == same:
            if change.role in ("key", "value") and _repeats(setting):
                kv, dim = setting.kv_heads, setting.head_dim[0]
                exact = rows == kv[0] * dim and wanted == kv[1] * dim
                return Transform.REPEAT_KV_HEADS if exact else None
            if change.role in ("embedding", "head") and wanted > rows:
                return Transform.PAD_VOCAB
            return None
        case _:
            return None


def _repeats(setting: Setting) -> bool:
    before, after = setting.kv_heads
    same = setting.heads[0] == setting.heads[1] and setting.head_dim[0] == setting.head_dim[1]
    return same and before < after and after % before == 0


def doc(transform: Transform) -> str:
    match transform:
        case (
            Transform.PERMUTE_QK
            | Transform.UNTIE_HEAD
            | Transform.REPEAT_KV_HEADS
            | Transform.PAD_VOCAB
            | Transform.SPLIT_FUSED
            | Transform.FUSE
        ):
            return DOC[transform]
        case _:
            assert_never(transform)
