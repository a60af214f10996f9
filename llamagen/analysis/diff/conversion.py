"""How the weights of A become those of B, tensor by tensor, as row selections that anybody can execute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llamagen.analysis.ask import Model
from llamagen.analysis.diff.align import fused_group
from llamagen.analysis.diff.features import Feature, Kind, parameter_features, setting_features
from llamagen.analysis.diff.transforms import (
    Heads,
    Plan,
    Rows,
    Setting,
    Transform,
    WeightChange,
    candidate,
    fuse,
    pad_vocab,
    permute_qk,
    repeat_kv_heads,
    split_fused,
    untie_head,
)
from llamagen.analysis.tables import hyperparameter_scope
from llamagen.diagnostics import Diagnostic, LlamagenError

MAX_FINDINGS = 10


@dataclass(frozen=True, slots=True)
class _Side:
    weights: Mapping[str, Feature]
    """Full role path -> its feature."""
    layouts: Mapping[str, str]
    """Role path of an attention block -> its rotary layout."""
    numbers: Mapping[str, object]

    def size(self, name: str) -> int:
        value = self.numbers.get(name)
        return value if isinstance(value, int) else 0


def conversion(before: Model, after: Model) -> tuple[Plan, ...]:
    """A plan for every tensor of B that is not A's tensor of the same name as it is, in B's order.

    Raises LG902 with the tensors that no exact conversion gives.
    """
    return tuple(_Converter(_side(before), _side(after)).run())


def _side(model: Model) -> _Side:
    weights: dict[str, Feature] = {}
    layouts: dict[str, str] = {}
    for graph in model.graphs.values():
        for feature in parameter_features(graph):
            weights.setdefault(_full(feature), feature)
        for feature in setting_features(graph):
            if feature.path.endswith("rope:layout"):
                block = _full(feature).split(":", 1)[0].rsplit(".", 1)[0]
                layouts.setdefault(block, feature.text)
    return _Side(weights, layouts, hyperparameter_scope(model.resolved))


def _full(feature: Feature) -> str:
    index = iter(feature.index)
    return ".".join(str(next(index)) if w == "*" else w for w in feature.path.split("."))


class _Converter:
    def __init__(self, a: _Side, b: _Side) -> None:
        self.a = a
        self.b = b
        self.setting = Setting(
            self.both("num_heads"),
            self.both("num_kv_heads"),
            self.both("head_dim"),
            (a.numbers.get("tie_embeddings") is True, b.numbers.get("tie_embeddings") is True),
        )

    def both(self, name: str) -> tuple[int, int]:
        return self.a.size(name), self.b.size(name)

    def run(self) -> Iterator[Plan]:
        findings: list[Diagnostic] = []
        used: set[str] = set()
        for path, feature in self.b.weights.items():
            plan = self.plan(path, feature)
            if plan is None:
                mine = self.a.weights.get(path)
                of_a = f"{list(_shape(mine))} of A" if mine is not None else "the weights of A"
                message = f"`{path}` {list(_shape(feature))} of B cannot be made from {of_a}"
                findings.append(Diagnostic("LG902", "error", message, feature.span))
                continue
            used.update(piece.source for piece in plan.pieces)
            plan = self.permuted(path, feature, plan)
            if not _trivial(plan, self.a.weights):
                yield plan
        unused = [p for p in self.a.weights if p not in used]
        for path in unused:
            message = f"`{path}` of A has no place in B"
            findings.append(Diagnostic("LG902", "error", message, self.a.weights[path].span))
        if findings:
            count = len(findings)
            help = f"{count} tensors; `llamagen diff A B --surface weights` compares both models"
            findings[:] = [replace(one, help=help) for one in findings[:MAX_FINDINGS]]
            raise LlamagenError(findings)

    def plan(self, path: str, feature: Feature) -> Plan | None:
        wanted = _shape(feature)
        mine = self.a.weights.get(path)
        if mine is not None and mine.value == feature.value:
            return Plan(path, Transform.PERMUTE_QK, (Rows(path, tuple(range(wanted[0]))),))
        if mine is not None:
            change = WeightChange(feature.role, _shape(mine), wanted)
            return self.reshaped(path, change)
        if feature.role == "head" and self.setting.tied == (True, False):
            source = next((p for p, f in self.a.weights.items() if f.role == "embedding"), None)
            return untie_head(source, path, wanted[0]) if source is not None else None
        return self.regrouped(path, feature)

    def reshaped(self, path: str, change: WeightChange) -> Plan | None:
        match candidate(change, self.setting):
            case Transform.REPEAT_KV_HEADS:
                before, after = self.setting.kv_heads
                return repeat_kv_heads(path, Heads(before, after, self.setting.head_dim[0]))
            case Transform.PAD_VOCAB:
                assert change.before is not None
                assert change.after is not None
                return pad_vocab(path, change.before[0], change.after[0])
            case _:
                return None

    def regrouped(self, path: str, feature: Feature) -> Plan | None:
        """Parts of a fused tensor of A, or a fused tensor of B."""
        parent = path.rsplit(".", 2)[0]
        gone = _children(self.a.weights, self.b.weights, parent)
        new = _children(self.b.weights, self.a.weights, parent)
        for whole, whole_feature in gone.items():
            names = fused_group(whole_feature, new)
            if path in names:
                parts = [(n, _shape(new[n])[0]) for n in names]
                return next(p for p in split_fused(whole, parts) if p.target == path)
        names = fused_group(feature, gone)
        return fuse([(n, _shape(gone[n])[0]) for n in names], path) if names else None

    def permuted(self, path: str, feature: Feature, plan: Plan) -> Plan:
        """The same rows in the order of B's rotary layout."""
        block = path.rsplit(".", 2)[0]
        before, after = self.a.layouts.get(block), self.b.layouts.get(block)
        if feature.role not in ("query", "key") or before == after or None in (before, after):
            return plan
        heads = self.b.size("num_heads" if feature.role == "query" else "num_kv_heads")
        order = permute_qk(path, heads, self.b.size("head_dim"), to_half=after == "half")
        flat = [(piece.source, row) for piece in plan.pieces for row in piece.rows]
        return Plan(path, Transform.PERMUTE_QK, _pieces([flat[i] for i in order.pieces[0].rows]))


def _pieces(rows: list[tuple[str, int]]) -> tuple[Rows, ...]:
    pieces: list[tuple[str, list[int]]] = []
    for source, row in rows:
        if pieces and pieces[-1][0] == source:
            pieces[-1][1].append(row)
        else:
            pieces.append((source, [row]))
    return tuple(Rows(source, tuple(numbers)) for source, numbers in pieces)


def _children(
    here: Mapping[str, Feature], there: Mapping[str, Feature], parent: str
) -> dict[str, Feature]:
    """Tensors directly below ``parent`` that only one side has."""
    return {
        path: feature
        for path, feature in here.items()
        if path not in there and path.rsplit(".", 2)[0] == parent
    }


def _shape(feature: Feature) -> tuple[int, ...]:
    assert feature.kind is Kind.PARAMETER
    assert isinstance(feature.value, tuple)
    return tuple(n for n in feature.value if isinstance(n, int))


def _trivial(plan: Plan, weights: Mapping[str, Feature]) -> bool:
    """Whether the plan is A's tensor of the same name, all rows in order."""
    if len(plan.pieces) != 1 or plan.pieces[0].source != plan.target:
        return False
    rows = plan.pieces[0].rows
    return rows == tuple(range(_shape(weights[plan.target])[0]))
