"""A diff as JSON, version 1: closed models, which spec/diff.schema.json describes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from llamagen.analysis.diff.judge import Change, Diff, Surface, Verdict
from llamagen.analysis.diff.weights import Transform
from llamagen.spec.schema import Closed


class WorkloadDocument(Closed):
    context: int = Field(description="Tokens a sequence.")
    batch: int
    weights: str = Field(description="Storage format of the weights.")
    cache_bytes_per_value: int
    device: str | None = Field(description="Device of spec/hardware.yaml that memory is judged by.")


class DiffDocument(Closed):
    """Two models compared; `surfaces` has the worst verdict of each that was compared."""

    version: Literal[1]
    before: str
    after: str
    unwired: str | None = Field(
        description="Models whose wiring is not published: only what is published is compared."
    )
    summary: tuple[str, ...] = Field(description="What an expert would say, in at most ten lines.")
    workload: WorkloadDocument
    surfaces: dict[Surface, Verdict]
    transforms: tuple[Transform, ...]
    ignored: int = Field(description="Changes left out by --policy or --baseline.")
    changes: tuple[Change, ...]


def document(result: Diff, surfaces: tuple[Surface, ...] = tuple(Surface)) -> DiffDocument:
    """What ``result`` says about ``surfaces``."""
    load = result.workload
    return DiffDocument(
        version=1,
        before=result.before,
        after=result.after,
        unwired=result.unwired,
        summary=result.summary,
        workload=WorkloadDocument(
            context=load.context,
            batch=load.batch,
            weights=load.weights.name,
            cache_bytes_per_value=load.cache_bytes,
            device=result.device,
        ),
        surfaces={s: result.verdict(s) for s in surfaces if result.compared(s)},
        transforms=result.transforms(),
        ignored=result.ignored,
        changes=tuple(c for c in result.changes if c.touches(surfaces)),
    )


def json_text(result: Diff, surfaces: Iterable[Surface] = tuple(Surface)) -> str:
    """Version 1, described by spec/diff.schema.json; exact numbers as in the text form."""
    return document(result, tuple(surfaces)).model_dump_json(indent=2) + "\n"
