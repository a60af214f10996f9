"""The differences of two models, each judged for the surfaces it touches. Rules are data: spec/rules/diff.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from llamagen.analysis.cost import Device, Workload, workload
from llamagen.analysis.diff.align import Pair, pairs_of
from llamagen.analysis.diff.causes import influences
from llamagen.analysis.diff.features import Feature, Kind
from llamagen.analysis.diff.match import match
from llamagen.analysis.diff.summary import summary
from llamagen.analysis.diff.weights import Transform, candidate, setting_of
from llamagen.analysis.sources import source_of
from llamagen.analysis.tables import fill, holds, hyperparameter_scope, load_table
from llamagen.analysis.targets import Model
from llamagen.spec.expr import Static
from llamagen.spec.schema import Closed

DEFAULT_CONTEXT = 4096


class Surface(StrEnum):
    WEIGHTS = "weights"
    """Whether a checkpoint of A loads into B."""
    TOKENS = "tokens"
    """Whether the same text gives the same ids."""
    NUMERICS = "numerics"
    """Whether the same weights and ids give the same logits."""
    INTERFACE = "interface"
    """Inputs, outputs and cache layout of the exported model."""
    OPERATORS = "operators"
    """What each runtime of spec/runtimes.yaml makes of the graph."""
    MEMORY = "memory"
    """Bytes at the stated workload, and whether they fit the stated device."""
    COMPUTE = "compute"
    """FLOPs at the stated workload."""
    RECORD = "record"
    """Dates, licence, lineage."""


class Verdict(StrEnum):
    """From harmless to fatal; of several changes the last one counts."""

    SAME = "same"
    COMPATIBLE = "compatible"
    GROWS = "grows"
    """It works as before and takes more: memory, work, or a slower path of a runtime."""
    CONVERTIBLE = "convertible"
    BREAKING = "breaking"

    @property
    def rank(self) -> int:
        return list(Verdict).index(self)


class EffectRule(Closed):
    """``text`` is a template over the names of the change; ``transform: candidate`` takes the one that fits."""

    verdict: Verdict
    text: str
    transform: Transform | Literal["candidate"] | None = None


class RuleCase(Closed):
    """Two overlays on the test model: the rule fires from ``before`` to ``after``, ``mirror`` the other way."""

    before: str
    after: str
    device: str | None = Field(
        default=None, description="Name of spec/hardware.yaml; default: none."
    )


class DiffRule(Closed):
    title: str
    subject: Kind
    change: tuple[Literal["changed", "added", "removed"], ...]
    when: str = "true"
    effects: dict[Surface, EffectRule] = {}
    listed: bool = Field(
        default=False,
        description="The text form lists the change under each surface of its own effects too.",
    )
    mirror: str = Field(description="Id of the rule that fires for the opposite change.")
    case: RuleCase


DiffRuleId = Annotated[str, StringConstraints(pattern=r"^D[1-9][0-9]{2}$")]


class DiffRules(Closed):
    version: Literal[1]
    rules: dict[DiffRuleId, DiffRule]


def diff_rules() -> dict[str, DiffRule]:
    """Every rule by id; the first that fits a change judges it."""
    return dict(load_table("rules/diff.yaml", DiffRules).rules)


class WrittenAt(Closed):
    file: str
    line: int = Field(description="1-based.")
    col: int = Field(description="1-based, in characters.")

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"


class Side(Closed):
    """One end of a change."""

    text: str | None = Field(description="The value as written; null where this model has none.")
    place: WrittenAt | None
    source: str | None = Field(description="Provenance key that proves the value.")


class Effect(Closed):
    surface: Surface
    verdict: Verdict
    text: str
    transform: Transform | None = Field(description="Conversion of the weights, where one exists.")


class Cause(Closed):
    """A value of the spec whose change brought another one about."""

    path: str
    before: str | None
    after: str | None
    source: str | None


class Change(Closed):
    rule: str = Field(description="Id of a rule of spec/rules/diff.yaml.")
    title: str
    kind: Kind
    path: str = Field(description="Role path or spec path; `*` stands for layer numbers.")
    times: int = Field(description="Places with this change.")
    layers: str = Field(description="Such as `0-31`; empty where there is only one place.")
    before: Side
    after: Side
    effects: tuple[Effect, ...]
    causes: tuple[Cause, ...]

    def verdict(self, surface: Surface) -> Verdict:
        verdicts = (e.verdict for e in self.effects if e.surface is surface)
        return max(verdicts, key=lambda v: v.rank, default=Verdict.SAME)

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
    summary: tuple[str, ...] = ()
    """What an expert would say, at most ten sentences."""
    ignored: int = 0
    """Changes that were left out because a reviewer said so."""
    unwired: str | None = None
    """Models whose wiring is not published; then weights, interface and numbers are not compared."""

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
        needed = (e.transform for c in self.changes for e in c.effects if e.transform is not None)
        return tuple(dict.fromkeys(needed))


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
    same = match(before.graphs, after.graphs)
    pairs = list(pairs_of(before, after, same, load))
    judge = _Judge(before, after, pairs, device[1] if device is not None else None)
    changes = tuple(judge.change(pair) for pair in pairs)
    name = device[0] if device is not None else None
    unwired = " and ".join(m.id for m in (before, after) if not m.graphs) or None
    said = summary(before, after, same, pairs, load)
    return Diff(before.id, after.id, load, _with_derived(changes), name, said, unwired=unwired)


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
        effects = (*change.effects, *derived.values())
        result.append(change.model_copy(update={"effects": effects}))
    return tuple(result)


WIRED = frozenset(
    {Kind.PARAMETER, Kind.BLOCK, Kind.EQUATION, Kind.SETTING, Kind.INTERFACE, Kind.OPERATOR}
)
"""Differences of the graphs."""


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
        wired = any(p.kind in WIRED for p in pairs)
        self.influences = influences(before, after, [p.path for p in self.values] if wired else [])
        self.setting = setting_of(before.resolved, after.resolved)

    def change(self, pair: Pair) -> Change:
        transform = self.transform(pair)
        scope = self.scope(pair, transform)
        rule_id, rule = self.rule(pair, scope)
        causes = tuple(self.causes(pair)) if pair.kind in WIRED else ()
        effects = tuple(
            Effect(
                surface=surface,
                verdict=e.verdict,
                text=fill(e.text, scope),
                transform=transform if e.transform == "candidate" else e.transform,
            )
            for surface, e in rule.effects.items()
        )
        return Change(
            rule=rule_id,
            title=rule.title,
            kind=pair.kind,
            path=pair.path,
            times=pair.times,
            layers=pair.layers,
            before=self.side(pair.before, self.before, pair.path, causes),
            after=self.side(pair.after, self.after, pair.path, causes),
            effects=effects,
            causes=causes,
        )

    def side(self, end: Feature | None, model: Model, path: str, causes: tuple[Cause, ...]) -> Side:
        """What one model has at ``path``, proven by the source of the value or else of one of its ``causes``."""
        if end is None:
            return Side(text=None, place=None, source=None)
        paths = (path, *(cause.path for cause in causes))
        source = next((s for p in paths if (s := self.source(model, p))), None)
        span = end.span
        place = WrittenAt(file=span.file, line=span.line, col=span.col) if span else None
        return Side(text=end.text, place=place, source=source)

    def source(self, model: Model, path: str) -> str | None:
        """What proves the value at ``path``; many changes rest on few values."""
        key = (model is self.after, path)
        if key not in self.sources:
            self.sources[key] = source_of(model.resolved, path)
        return self.sources[key]

    def scope(self, pair: Pair, transform: Transform | None) -> dict[str, Static]:
        before, after = pair.before, pair.after
        how = "added" if before is None else "removed" if after is None else "changed"
        return {
            "change": how,
            "path": pair.path,
            "name": pair.path.rsplit(".", 1)[-1].rsplit(":", 1)[-1],
            "times": pair.times,
            "before": before.value if before is not None else None,
            "after": after.value if after is not None else None,
            "before_text": before.text if before is not None else "none",
            "after_text": after.text if after is not None else "none",
            "role": _role(pair),
            "transform": transform,
            "device": self.device,
            "regrouped": pair.regrouped,
            "reordered": pair.reordered,
            "a": self.a,
            "b": self.b,
        }

    def transform(self, pair: Pair) -> Transform | None:
        """The conversion that fits, if it is a weight."""
        if pair.kind is not Kind.PARAMETER:
            return None
        before, after = (e.shape if e is not None else None for e in (pair.before, pair.after))
        return candidate(_role(pair), before, after, self.setting, pair.group)

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
        """Changed values with which the difference comes or goes."""
        moving = self.influences.on(pair.before, pair.after)
        for value in self.values:
            if value.path in moving:
                before, after = value.before, value.after
                yield Cause(
                    path=value.path,
                    before=before.text if before is not None else None,
                    after=after.text if after is not None else None,
                    source=self.source(
                        self.after if after is not None else self.before, value.path
                    ),
                )


def _role(pair: Pair) -> str:
    return next((e.role for e in (pair.after, pair.before) if e is not None), "other")
