"""Layouts that a spec states itself (`checkpoint:`), in the form that `resolve_names` applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from llamagen.spec import naming
from llamagen.weights.rules import (
    ConcatSources,
    Identity,
    NameRule,
    NamingLayout,
    ReshapeTo,
    RopePermute,
    ShardRule,
    StackSources,
    TileTableRows,
    Transform,
    TransposeLast,
)

Evaluate = Callable[[str], int]
"""The value of an expression over the hyperparameters of the spec."""


def spec_layouts(stated: naming.CheckpointNaming, evaluate: Evaluate) -> tuple[NamingLayout, ...]:
    """The stated layouts, bound, and the role paths themselves with what is to be dropped.

    They belong before `layouts_for`: among equals the first layout wins.
    """
    everything = NameRule(sources=("{*}",), to="{*}")
    role_paths = NamingLayout(name="role paths", detect=(), rules=(everything,), drop=stated.drop)
    named = (_layout(name, layout, evaluate) for name, layout in stated.layouts.items())
    return (*named, role_paths) if stated.drop else tuple(named)


def _layout(name: str, layout: naming.NamingLayout, evaluate: Evaluate) -> NamingLayout:
    return NamingLayout(
        name=name,
        detect=(layout.detect,),
        rules=tuple(_rule(rule, evaluate) for rule in layout.rules),
        drop=layout.drop,
        shards=tuple(
            ShardRule(names=_names(rule), dims=(rule.shard_dim,)) for rule in layout.rules
        ),
    )


def _names(rule: naming.NameRule) -> tuple[str, ...]:
    return (rule.source,) if isinstance(rule.source, str) else rule.source


def _rule(rule: naming.NameRule, evaluate: Evaluate) -> NameRule:
    return NameRule(sources=_names(rule), to=rule.to, transform=_steps(rule.transform, evaluate))


def _steps(step: naming.Transform, evaluate: Evaluate) -> tuple[Transform, ...]:
    match step:
        case naming.Identity():
            return (Identity(),)
        case naming.RopePermute(heads=heads):
            return (RopePermute(heads=evaluate(heads)),)
        case naming.Transpose():
            return (TransposeLast(),)
        case naming.Concat(dim=dim):
            return (ConcatSources(dim=dim),)
        case naming.Stack(concat_dim=dim):
            first = () if dim is None else (ConcatSources(dim=dim),)
            return (*first, StackSources())
        case naming.Reshape():
            return (ReshapeTo(),)
        case naming.TileTable():
            return (TileTableRows(),)
        case _:
            assert_never(step)
