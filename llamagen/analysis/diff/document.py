"""A diff as JSON, version 1: closed models, which spec/diff.schema.json describes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from llamagen.analysis.diff.features import Kind
from llamagen.analysis.diff.judge import Change, Diff, Side, Surface, Verdict
from llamagen.analysis.diff.weights import Transform
from llamagen.spec.schema import Closed


class PlaceDocument(Closed):
    file: str
    line: int = Field(description="1-based.")
    col: int = Field(description="1-based, in characters.")


class SideDocument(Closed):
    text: str | None = Field(description="The value as written; null where this model has none.")
    place: PlaceDocument | None
    source: str | None = Field(description="Provenance key that proves the value.")


class EffectDocument(Closed):
    surface: Surface
    verdict: Verdict
    text: str
    transform: Transform | None = Field(description="Conversion of the weights, where one exists.")


class CauseDocument(Closed):
    path: str
    before: str | None
    after: str | None
    source: str | None


class ChangeDocument(Closed):
    rule: str = Field(description="Id of a rule of spec/rules/diff.yaml.")
    title: str
    kind: Kind
    path: str = Field(description="Role path or spec path; `*` stands for layer numbers.")
    times: int = Field(description="Places with this change.")
    layers: str
    before: SideDocument
    after: SideDocument
    effects: tuple[EffectDocument, ...]
    causes: tuple[CauseDocument, ...]


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
        description="Id of the one model whose wiring is not published: only what is published is compared."
    )
    summary: tuple[str, ...] = Field(description="What an expert would say, in at most ten lines.")
    workload: WorkloadDocument
    surfaces: dict[Surface, Verdict]
    transforms: tuple[Transform, ...]
    ignored: int = Field(description="Changes left out by --policy or --baseline.")
    changes: tuple[ChangeDocument, ...]


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
        changes=tuple(_change(c) for c in result.changes if c.touches(surfaces)),
    )


def schema_text() -> str:
    """The JSON schema of the form: spec/diff.schema.json."""
    return json.dumps(DiffDocument.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _change(change: Change) -> ChangeDocument:
    return ChangeDocument(
        rule=change.rule,
        title=change.title,
        kind=change.kind,
        path=change.path,
        times=change.times,
        layers=change.layers,
        before=_side(change.before),
        after=_side(change.after),
        effects=tuple(
            EffectDocument(surface=e.surface, verdict=e.verdict, text=e.text, transform=e.transform)
            for e in change.effects
        ),
        causes=tuple(
            CauseDocument(path=c.path, before=c.before, after=c.after, source=c.source)
            for c in change.causes
        ),
    )


def _side(side: Side) -> SideDocument:
    span = side.span
    place = (
        PlaceDocument(file=span.file, line=span.line, col=span.col) if span is not None else None
    )
    return SideDocument(text=side.text, place=place, source=side.source)


def json_text(result: Diff, surfaces: Iterable[Surface] = tuple(Surface)) -> str:
    """Version 1, described by spec/diff.schema.json; exact numbers as in the text form."""
    return document(result, tuple(surfaces)).model_dump_json(indent=2) + "\n"
