"""What a verification reached: which limits of the model its inputs crossed, and what goes into its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from llamagen.ir.build_graphs import MAIN, all_parameters
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph
from llamagen.ops.op import Role
from llamagen.verify.report import Facts, Limit, LimitKind
from llamagen.verify.scenario import FAR, Scenario
from llamagen.verify.stored import StoredWeights

_LIMITS: tuple[tuple[Role, str, LimitKind], ...] = (
    (Role.MASK, "window", "sliding window"),
    (Role.MASK, "chunk", "chunk"),
    (Role.ROPE_TABLE, "original_max_positions", "original context of rope"),
)
"""Role, attribute, and what it limits: slots, or positions for rope."""


def facts_of(
    graphs: Mapping[str, Graph], stored: StoredWeights, seed: int, cases: Sequence[Scenario]
) -> Facts:
    flat = flatten(graphs[MAIN])
    return Facts(
        digest=graphs[MAIN].digest,
        parameters=sum(p.count for p in all_parameters(graphs).values()),
        dtype=stored.dtype,
        profile=stored.metadata.get("llamagen.profile", ""),
        tied=tuple(sorted(_tied(flat))),
        seed=seed,
        cases=tuple(cases),
        limits=_limits(flat, cases),
    )


def far(graph: Graph, tokens: int) -> int:
    """By how much positions of ``tokens`` slots can jump: so far that the bands of a scaled rope differ, and no further
    than the model's context, where a table of learned positions ends."""
    originals = [
        size for kind, size in _sizes(flatten(graph)) if kind == "original context of rope"
    ]
    jump = max(originals, default=FAR)
    context = graph.constants.get("max_positions")
    return max(min(jump, context - tokens), 0) if isinstance(context, int) else jump


def _sizes(flat: FlatGraph) -> Iterator[tuple[LimitKind, int]]:
    for node in flat.nodes:
        for role, name, kind in _LIMITS:
            size = node.attrs.get(name) if node.row.role is role else None
            if isinstance(size, int) and node.attrs.get("scaling") != "default":
                yield kind, size


def _limits(flat: FlatGraph, cases: Sequence[Scenario]) -> tuple[Limit, ...]:
    slots = max(case.input_ids.shape[1] for case in cases)
    positions = 1 + max(int(call[2].max()) for case in cases for call in case.calls())
    return tuple(
        Limit(kind, size, positions if kind == "original context of rope" else slots)
        for kind, size in sorted(set(_sizes(flat)))
    )


def _tied(flat: FlatGraph) -> Iterator[str]:
    for node in flat.nodes:
        for path in node.parameters.values():
            if not path.startswith(f"{node.path}.") and path != node.path:
                yield node.path
