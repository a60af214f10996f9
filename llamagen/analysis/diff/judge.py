"""The differences of two models, each judged for the surfaces it touches. Rules are data: spec/rules/diff.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from llamagen.analysis.ask import Model
from llamagen.analysis.cost import Device, Workload, workload
from llamagen.analysis.diff.align import Pair, pairs_of
from llamagen.analysis.diff.features import Feature, Kind
from llamagen.analysis.diff.rules import DiffRule, diff_rules
from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.diff.transforms import Setting, Transform, WeightChange, candidate
from llamagen.analysis.sources import source_of
from llamagen.analysis.tables import fill, holds, hyperparameter_scope
from llamagen.diagnostics import Span
from llamagen.spec.expr import Static

DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a change. ``source`` is the provenance key that proves it."""

    text: str | None
    span: Span | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Effect:
    surface: Surface
    verdict: Verdict
    text: str
    transform: Transform | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """A value of the spec whose change brought another one about."""

    path: str
    before: str | None
    after: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Change:
    rule: str
    title: str
    kind: Kind
    path: str
    times: int
    layers: str
    """Which layers, e.g. ``0-31``; empty where there is only one place."""
    before: Side
    after: Side
    effects: tuple[Effect, ...]
    causes: tuple[Cause, ...]

    def verdict(self, surface: Surface) -> Verdict:
        found = [e.verdict for e in self.effects if e.surface is surface]
        return max(found, key=lambda v: v.rank, default=Verdict.SAME)

    def touches(self, surfaces: tuple[Surface, ...]) -> bool:
        """Whether it belongs in a comparison of ``surfaces``; without any effect, in one of all."""
        touched = {e.surface for e in self.effects}
        return not touched.isdisjoint(surfaces) if touched else surfaces == tuple(Surface)


@dataclass(frozen=True, slots=True)
class Diff:
    before: str
    after: str
    workload: Workload
    changes: tuple[Change, ...]
    device: str | None = None
    """Name of the device that memory is judged by, if any."""
    unwired: str | None = None
    """Id of the one model whose wiring is not published; then weights, interface and numbers are not compared."""

    def verdict(self, surface: Surface) -> Verdict:
        """The worst verdict of any change on ``surface``."""
        return max(
            (c.verdict(surface) for c in self.changes), key=lambda v: v.rank, default=Verdict.SAME
        )

    def compared(self, surface: Surface) -> bool:
        """Whether ``surface`` could be judged: without the wiring of both only the record can."""
        return self.unwired is None or surface is Surface.RECORD

    def on(self, surface: Surface) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if any(e.surface is surface for e in c.effects))

    def transforms(self) -> tuple[Transform, ...]:
        """Conversions that the weights need, in the order of the changes."""
        found = (e.transform for c in self.changes for e in c.effects if e.transform is not None)
        return tuple(dict.fromkeys(found))

    def of_kind(self, *kinds: Kind) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.kind in kinds)


class How(StrEnum):
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"


def diff(
    before: Model,
    after: Model,
    load: Workload | None = None,
    device: tuple[str, Device] | None = None,
) -> Diff:
    """Every difference, judged. Numbers are for ``load``: by default one sequence of 4,096 tokens in bfloat16.

    With a ``device`` memory is breaking where A fits it and B does not.
    """
    load = load if load is not None else workload(DEFAULT_CONTEXT)
    pairs = list(pairs_of(before, after, load))
    judge = _Judge(before, after, pairs, device[1] if device is not None else None)
    changes = tuple(judge.change(pair) for pair in pairs)
    name = device[0] if device is not None else None
    alone = [m.id for m in (before, after) if not m.graphs]
    unwired = alone[0] if len(alone) == 1 else None
    return Diff(before.id, after.id, load, _with_derived(changes), name, unwired)


def _with_derived(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """Values take over the effects of the changes that they cause, so that each says what it leads to."""
    by_path: dict[str, list[Effect]] = {}
    for change in changes:
        for cause in change.causes:
            by_path.setdefault(cause.path, []).extend(change.effects)
    result: list[Change] = []
    for change in changes:
        if change.kind is not Kind.VALUE:
            result.append(change)
            continue
        own = {e.surface for e in change.effects}
        derived: dict[Surface, Effect] = {}
        for effect in by_path.get(change.path, ()):
            known = derived.get(effect.surface)
            if effect.surface not in own and (
                known is None or effect.verdict.rank > known.verdict.rank
            ):
                derived[effect.surface] = effect
        result.append(replace(change, effects=(*change.effects, *derived.values())))
    return tuple(result)


class _Judge:
    def __init__(
        self, before: Model, after: Model, pairs: list[Pair], device: Device | None
    ) -> None:
        self.device: Mapping[str, Static] | None = (
            {"title": device.title, "memory_bytes": device.memory_bytes}
            if device is not None
            else None
        )
        self.before = before
        self.after = after
        self.pairs = pairs
        self.a = hyperparameter_scope(before.resolved)
        self.b = hyperparameter_scope(after.resolved)
        self.sources: dict[tuple[bool, str], str | None] = {}
        self.values = [p for p in pairs if p.kind is Kind.VALUE]
        self.setting = Setting(
            _both(self.a, self.b, "num_heads"),
            _both(self.a, self.b, "num_kv_heads"),
            _both(self.a, self.b, "head_dim"),
            (self.a.get("tie_embeddings") is True, self.b.get("tie_embeddings") is True),
        )

    def change(self, pair: Pair) -> Change:
        scope = self.scope(pair)
        rule_id, rule = self.rule(pair, scope)
        causes = () if pair.kind is Kind.VALUE else tuple(self.causes(pair))
        effects = tuple(
            Effect(surface, e.verdict, fill(e.text, scope), _transform(e.transform, scope))
            for surface, e in rule.effects.items()
        )
        return Change(
            rule_id,
            rule.title,
            pair.kind,
            pair.path,
            pair.times,
            pair.layers,
            self.side(pair.before, self.before, pair.path, causes),
            self.side(pair.after, self.after, pair.path, causes),
            effects,
            causes,
        )

    def side(self, end: Feature | None, model: Model, path: str, causes: tuple[Cause, ...]) -> Side:
        """What one model has at ``path``, proven by the source of the value or else of one of its ``causes``."""
        if end is None:
            return Side(None, None, None)
        paths = (path, *(cause.path for cause in causes))
        source = next((s for p in paths if (s := self.source(model, p))), None)
        return Side(end.text, end.span, source)

    def source(self, model: Model, path: str) -> str | None:
        """What proves the value at ``path``; many changes rest on few values."""
        key = (model is self.after, path)
        if key not in self.sources:
            self.sources[key] = source_of(model.resolved, path)
        return self.sources[key]

    def scope(self, pair: Pair) -> dict[str, Static]:
        before, after = pair.before, pair.after
        how = How.ADDED if before is None else How.REMOVED if after is None else How.CHANGED
        role = next((e.role for e in (after, before) if e is not None), "other")
        return {
            "change": how.value,
            "path": pair.path,
            "name": pair.path.rsplit(".", 1)[-1].rsplit(":", 1)[-1],
            "times": pair.times,
            "before": before.value if before is not None else None,
            "after": after.value if after is not None else None,
            "before_text": before.text if before is not None else "none",
            "after_text": after.text if after is not None else "none",
            "role": role,
            "transform": self.transform(pair, role),
            "device": self.device,
            "regrouped": pair.regrouped,
            "a": self.a,
            "b": self.b,
        }

    def transform(self, pair: Pair, role: str) -> str | None:
        if pair.kind is not Kind.PARAMETER:
            return None
        shapes = [_shape(e.value) if e is not None else None for e in (pair.before, pair.after)]
        found = candidate(WeightChange(role, shapes[0], shapes[1], pair.group), self.setting)
        return found.value if found is not None else None

    def rule(self, pair: Pair, scope: Mapping[str, Static]) -> tuple[str, DiffRule]:
        for rule_id, rule in diff_rules().items():
            if (
                rule.subject is pair.kind
                and scope["change"] in rule.change
                and holds(rule.when, scope)
            ):
                return rule_id, rule
        message = f"no rule of diff.yaml covers `{pair.path}` ({pair.kind}, {scope['change']})"
        raise AssertionError(message)

    def causes(self, pair: Pair) -> Iterator[Cause]:
        """Changed values that the declaration reads; else those that changed from and to the same numbers."""
        if pair.kind in (
            Kind.VALUE,
            Kind.NUMBER,
            Kind.RECORD,
            Kind.NAMING,
            Kind.TOKENIZER,
            Kind.RUNTIME,
        ):
            return
        reads = {n for e in (pair.before, pair.after) if e is not None for n in e.reads}
        found = [v for v in self.values if len(w := v.path.split(".")) > 1 and w[1] in reads]
        if not found and pair.elsewhere and pair.layers and not (pair.before and pair.after):
            found = [v for v in self.values if v.path == "hyperparameters.num_layers"]
        if not found and pair.before is not None and pair.after is not None:
            ends = _ends(pair)
            alike = [v for v in self.values if _ends(v) == ends]
            # Of several values that moved alike, one that has the setting's name: `chunk`, attention_chunk_size.
            named = [v for v in alike if pair.path.rsplit(":", 1)[-1] in v.path]
            found = named or (alike if len(alike) == 1 else [])
            if pair.path.endswith(":scaling"):
                # Another kind of scaling brings its own constants, which have no counterpart.
                parents = {v.path.rsplit(".", 1)[0] for v in found}
                found = [v for v in self.values if v.path.rsplit(".", 1)[0] in parents]
        for value in found:
            before, after = value.before, value.after
            yield Cause(
                value.path,
                before.text if before is not None else None,
                after.text if after is not None else None,
                self.source(self.after if after is not None else self.before, value.path),
            )


def _ends(pair: Pair) -> tuple[Static, Static]:
    """Both values; an op's ``none`` is as good as a value that is not set."""
    first, second = (
        None if end is None or end.text == "none" else end.value
        for end in (pair.before, pair.after)
    )
    return first, second


def _shape(value: Static) -> tuple[int, ...] | None:
    if not isinstance(value, tuple):
        return None
    return tuple(n for n in value if isinstance(n, int))


def _both(a: Mapping[str, Static], b: Mapping[str, Static], name: str) -> tuple[int, int]:
    first, second = a.get(name), b.get(name)
    return (
        first if isinstance(first, int) else 0,
        second if isinstance(second, int) else 0,
    )


def _transform(name: str | None, scope: Mapping[str, Static]) -> Transform | None:
    if name is None:
        return None
    found = scope["transform"] if name == "candidate" else name
    return Transform(found) if isinstance(found, str) else None
