"""How the weights of A become those of B, tensor by tensor: exact row selections, no arithmetic, no tensor library.

A plan says, for one tensor of B, which rows of which tensors of A it consists of, in order. Whoever holds tensors
executes it by taking and joining rows (dimension 0); ``ZERO_ROWS`` stands for rows of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import Final, TypeAlias

from llamagen.analysis.diff.features import (
    Feature,
    fused_group,
    parameter_features,
    setting_features,
)
from llamagen.analysis.diff.match import match
from llamagen.analysis.tables import hyperparameter_scope
from llamagen.analysis.targets import Model
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.ir.graph import OpPart, all_parameters, join
from llamagen.spec.resolve import ResolvedSpec

MAX_FINDINGS = 10

ZERO_ROWS: Final = ""
"""Source of rows that A does not have."""


class Transform(StrEnum):
    """Names that diff rules and commands use."""

    PERMUTE_QK = "permute_qk"
    UNTIE_HEAD = "untie_head"
    REPEAT_KV_HEADS = "repeat_kv_heads"
    PAD_VOCAB = "pad_vocab"
    SPLIT_FUSED = "split_fused"
    FUSE = "fuse"
    RENAME = "rename"


DOC: Final[Mapping[Transform, str]] = {
    Transform.PERMUTE_QK: "reorder the rows of each head's q and k for the other rotary layout",
    Transform.UNTIE_HEAD: "copy the embedding to the head",
    Transform.REPEAT_KV_HEADS: "repeat every key/value head for the queries that shared it",
    Transform.PAD_VOCAB: "append rows of zeros for the new ids",
    Transform.SPLIT_FUSED: "cut the fused tensor into its parts",
    Transform.FUSE: "join the parts into the fused tensor",
    Transform.RENAME: "take the tensor from the path that it has in A",
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
class Setting:
    """The sizes of both sides that decide whether a conversion is exact."""

    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    head_dim: tuple[int, int]
    tied: tuple[bool, bool]
    same_tokenizer: bool = True
    """An id of A is the same text in B, as far as the kinds of the tokenizers tell."""


def setting_of(before: ResolvedSpec, after: ResolvedSpec) -> Setting:
    """From the hyperparameters of both; 0 for a size that is not set."""
    a, b = hyperparameter_scope(before), hyperparameter_scope(after)
    kinds = [one.spec.tokenizer.kind if one.spec.tokenizer else None for one in (before, after)]

    def both(name: str) -> tuple[int, int]:
        first, second = a.get(name), b.get(name)
        return first if isinstance(first, int) else 0, second if isinstance(second, int) else 0

    tied = (a.get("tie_embeddings") is True, b.get("tie_embeddings") is True)
    return Setting(
        both("num_heads"), both("num_kv_heads"), both("head_dim"), tied, kinds[0] == kinds[1]
    )


Shape: TypeAlias = tuple[int, ...]


def candidate(
    role: str,
    before: Shape | None,
    after: Shape | None,
    setting: Setting,
    group: tuple[Shape, ...] = (),
) -> Transform | None:
    """The transform that makes B's tensor out of A's exactly, or none. A shape is none on the side that lacks it.

    ``group`` has the shapes on the other side, in the same block, that this tensor's rows would make up.
    """
    if before is None or after is None:
        if before is None and role == "head" and setting.tied == (True, False):
            return Transform.UNTIE_HEAD
        if not group:
            return None
        return Transform.FUSE if (len(group) > 1) == (before is None) else Transform.SPLIT_FUSED
    if len(before) != len(after) or before[1:] != after[1:]:
        return None
    if role in ("key", "value") and _repeats(setting):
        rows = tuple(kv * setting.head_dim[0] for kv in setting.kv_heads)
        return Transform.REPEAT_KV_HEADS if (before[0], after[0]) == rows else None
    padded = role in ("embedding", "head") and after[0] > before[0] and setting.same_tokenizer
    return Transform.PAD_VOCAB if padded else None


def _repeats(setting: Setting) -> bool:
    before, after = setting.kv_heads
    same = setting.heads[0] == setting.heads[1] and setting.head_dim[0] == setting.head_dim[1]
    return same and before < after and after % before == 0


def conversion(before: Model, after: Model) -> tuple[Plan, ...]:
    """A plan for every tensor of B that is not A's tensor of the same path as it is, in B's order.

    Raises LG902 with the tensors that no exact conversion gives.
    """
    return tuple(_Converter(before, after).run())


class _Side:
    def __init__(self, model: Model) -> None:
        self.weights: dict[str, Feature] = {}
        """Role path -> its feature."""
        self.layouts: dict[str, str] = {}
        """Role path of an attention block -> its rotary layout."""
        for graph in model.graphs.values():
            for feature in parameter_features(graph):
                self.weights.setdefault(_full(feature), feature)
            for feature in setting_features(graph):
                if feature.path.endswith("rope:layout"):
                    block = _full(feature).split(":", 1)[0].rsplit(".", 1)[0]
                    self.layouts.setdefault(block, feature.text)


def same_weights(before: Model, after: Model) -> dict[str, str]:
    """Role path of a weight of B -> that of the same weight of A, where A has it."""
    pairs = match(before.graphs, after.graphs)
    known = all_parameters(before.graphs)
    found: dict[str, str] = {}
    for name, graph in after.graphs.items():
        for here in graph.instances:
            home = pairs.block(name, here.path)
            if home is None:
                continue
            for part in here.block.parts.values():
                for parameter in part.parameters if isinstance(part, OpPart) else ():
                    mine = pairs.name(name, here.path, part.name)
                    source = join(join(home, mine), parameter.name)
                    if source in known:
                        target = join(join(here.path, part.name), parameter.name)
                        found.setdefault(target, source)
    return found


def _full(feature: Feature) -> str:
    index = iter(feature.index)
    return ".".join(str(next(index)) if w == "*" else w for w in feature.path.split("."))


class _Converter:
    def __init__(self, before: Model, after: Model) -> None:
        self.a = _Side(before)
        self.b = _Side(after)
        self.same = same_weights(before, after)
        self.left = {p: f for p, f in self.a.weights.items() if p not in self.same.values()}
        """Weights of A that are none of B's by themselves."""
        self.sizes = hyperparameter_scope(after.resolved)
        self.setting = setting_of(before.resolved, after.resolved)

    def run(self) -> Iterator[Plan]:
        findings: list[Diagnostic] = []
        used: set[str] = set()
        for path, feature in self.b.weights.items():
            plan = self.plan(path, feature)
            if plan is not None:
                used.update(piece.source for piece in plan.pieces)
                plan = self.permuted(path, feature, plan)
            if plan is None:
                mine = self.a.weights.get(self.same.get(path, path))
                of_a = f"{list(mine.shape)} of A" if mine is not None else "the weights of A"
                message = f"`{path}` {list(feature.shape)} of B cannot be made from {of_a}"
                findings.append(Diagnostic("LG902", "error", message, feature.span))
            elif plan.pieces != (_rows(path, feature.shape[0]),):
                yield plan
        unused = [p for p in self.a.weights if p not in used]
        for path in unused:
            message = f"`{path}` of A has no place in B"
            findings.append(Diagnostic("LG902", "error", message, self.a.weights[path].span))
        if findings:
            count = len(findings)
            help = f"{count} tensors; `llamagen diff A B --surface weights` compares both models"
            raise LlamagenError(replace(one, help=help) for one in findings[:MAX_FINDINGS])

    def plan(self, path: str, feature: Feature) -> Plan | None:
        """How the tensor is made but for the order of rotated rows; None where no exact conversion exists."""
        source = self.same.get(path)
        mine = self.a.weights[source] if source is not None else None
        if source is not None and mine is not None and mine.shape == feature.shape:
            return Plan(path, Transform.RENAME, (_rows(source, feature.shape[0]),))
        if source is not None and mine is not None:
            transform = candidate(feature.role, mine.shape, feature.shape, self.setting)
            if transform is None:
                return None
            before, after = mine.shape[0], feature.shape[0]
            if transform is Transform.REPEAT_KV_HEADS:
                # head j of B is head j // times of A: the sharing rule of `attention`
                dim, heads = self.setting.head_dim[0], self.setting.kv_heads[1]
                times = after // before
                rows = tuple((j // times) * dim + r for j in range(heads) for r in range(dim))
                return Plan(path, transform, (Rows(source, rows),))
            kept = _rows(source, before)
            return Plan(path, transform, (kept, Rows(ZERO_ROWS, (0,) * (after - before))))
        if feature.role == "head" and self.setting.tied == (True, False):
            table = next((p for p, f in self.a.weights.items() if f.role == "embedding"), None)
            if table is None:
                return None
            return Plan(path, Transform.UNTIE_HEAD, (_rows(table, feature.shape[0]),))
        return self.regrouped(path, feature)

    def regrouped(self, path: str, feature: Feature) -> Plan | None:
        """Parts of a fused tensor of A, or a fused tensor of B: of one block."""
        parent = path.rsplit(".", 2)[0]
        new = {
            p: f
            for p, f in self.b.weights.items()
            if p not in self.same and p.rsplit(".", 2)[0] == parent
        }
        home = next(
            (
                self.same[p].rsplit(".", 2)[0]
                for p in self.b.weights
                if p in self.same and p.rsplit(".", 2)[0] == parent
            ),
            parent,
        )
        gone = {p: f for p, f in self.left.items() if p.rsplit(".", 2)[0] == home}
        for whole, whole_feature in gone.items():
            start = 0
            for name in fused_group(whole_feature, new):
                rows = new[name].shape[0]
                if name == path:
                    piece = Rows(whole, tuple(range(start, start + rows)))
                    return Plan(path, Transform.SPLIT_FUSED, (piece,))
                start += rows
        parts = fused_group(feature, gone)
        pieces = tuple(_rows(p, gone[p].shape[0]) for p in parts)
        return Plan(path, Transform.FUSE, pieces) if pieces else None

    def permuted(self, path: str, feature: Feature, plan: Plan) -> Plan | None:
        """The same rows in the order of B's rotary layout: from interleaved pairs to halves, or back; facts 4.10.

        None where the heads of B do not make up the tensor.
        """
        source = plan.pieces[0].source
        before, after = (
            side.layouts.get(p.rsplit(".", 2)[0]) for side, p in ((self.a, source), (self.b, path))
        )
        if feature.role not in ("query", "key") or before == after or None in (before, after):
            return plan
        heads = self.sizes["num_heads" if feature.role == "query" else "num_kv_heads"]
        dim = self.sizes["head_dim"]
        if not (isinstance(heads, int) and isinstance(dim, int)) or heads * dim != feature.shape[0]:
            return None
        half = dim // 2
        if after == "half":  # as from Meta to Hugging Face
            order = [2 * i + j for j in range(2) for i in range(half)]
        else:
            order = [j * half + i for i in range(half) for j in range(2)]
        flat = [(piece.source, row) for piece in plan.pieces for row in piece.rows]
        taken = [flat[h * dim + r] for h in range(heads) for r in order]
        pieces = tuple(
            Rows(source, tuple(row for _, row in run))
            for source, run in groupby(taken, key=lambda one: one[0])
        )
        return Plan(path, Transform.PERMUTE_QK, pieces)


def _rows(source: str, count: int) -> Rows:
    return Rows(source, tuple(range(count)))
