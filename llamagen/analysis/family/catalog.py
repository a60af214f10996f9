"""The family as a table, and one model as a page: what `list` and `show` print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

from llamagen.analysis.doubts import conflicts, uncertain
from llamagen.analysis.family.numbers_file import architecture_of
from llamagen.analysis.labels import BYTES_16, attention_kind
from llamagen.analysis.sources import matches
from llamagen.analysis.tables import chosen
from llamagen.spec.registry import Registry, is_sketch
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Hyperparameters
from llamagen.units import bytes_text, count_text

if TYPE_CHECKING:
    from llamagen.ir.graph import Graph

Modality: TypeAlias = Literal["text", "vision"]
Cell: TypeAlias = str | int | None


@dataclass(frozen=True, slots=True)
class Row:
    """One model of `list`. Counts are exact and come from the graph; None is not known or not published."""

    id: str
    released: str | None
    status: str | None
    parameters: int | None
    active: int | None
    layers: int | None
    hidden: int | None
    attention: str | None
    context: int | None
    input: str
    licence: str | None
    uncertain: str | None
    """Paths of this row's values that rest on inference, separated by commas."""

    def cells(self) -> tuple[Cell, ...]:
        """For programs: numbers as numbers."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def shown(self) -> tuple[Cell, ...]:
        """For people: without the last column, but with a question mark at each value that it names."""
        doubtful = (self.uncertain or "").split(", ")
        return tuple(
            _doubted(value) if any(matches(g, path) for g in doubtful for path in paths) else value
            for value, paths in zip(self.cells()[:-1], _PATHS, strict=True)
        )


_PATHS: tuple[tuple[str, ...], ...] = (
    ("id",),
    ("release.date",),
    ("release.status",),
    ("hyperparameters.num_layers", "hyperparameters.hidden_size", "hyperparameters.num_experts"),
    ("hyperparameters.num_experts_per_token", "hyperparameters.num_layers"),
    ("hyperparameters.num_layers",),
    ("hyperparameters.hidden_size",),
    ("hyperparameters.num_heads", "hyperparameters.num_kv_heads"),
    ("training.advertised_context", "hyperparameters.max_positions"),
    ("training.modalities_in",),
    ("release.licence",),
)
"""Paths that the columns rest on, in their order; the last column has none."""


def _doubted(value: Cell) -> Cell:
    match value:
        case None:
            return None
        case int():
            return f"{value:,} ?"
        case _:
            return f"{value} ?"


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of `show` and its lines."""

    title: str
    rows: tuple[tuple[str, str], ...]


def rows(
    registry: Registry, generation: str | None, status: str | None, modality: Modality | None
) -> list[Row]:
    """The models that pass every filter, by release date and id. Raises LG901 for an unknown generation."""
    if generation is not None:
        known = {word: None for i in registry.ids() for word in i.split("/")[1:-1]}
        chosen(known, generation, "a generation")
    found: list[Row] = []
    for spec_id in registry.ids(abstract=False, sketches=status == "sketch"):
        if generation is not None and generation not in spec_id.split("/")[1:-1]:
            continue
        resolved = registry.load(spec_id)
        if resolved.spec.abstract or (status is not None and _status(resolved) != status):
            continue
        if modality is not None and modality != _input(resolved):
            continue
        found.append(row(resolved))
    return sorted(found, key=lambda one: (one.released or "9999", one.id))


def row(resolved: ResolvedSpec) -> Row:
    """One model's row."""
    spec = resolved.spec
    built = architecture_of(resolved)
    counts = built.totals if built is not None else None
    values = spec.hyperparameters
    release, training = spec.release, spec.training
    advertised = training.advertised_context if training is not None else None
    return Row(
        id=spec.id,
        released=str(release.date) if release is not None and release.date else None,
        status=_status(resolved),
        parameters=counts.params if counts is not None else None,
        active=counts.active_params if counts is not None else None,
        layers=values.num_layers,
        hidden=values.hidden_size,
        attention=attention(values),
        context=advertised or values.max_positions,
        input=_input(resolved),
        licence=release.licence if release is not None else None,
        uncertain=", ".join(u.path for u in uncertain(resolved)) or None,
    )


def attention(values: Hyperparameters) -> str | None:
    """Kind of attention in a few words: `MHA 32`, `GQA 64:8`, with the local layers' bound."""
    heads, kv_heads = values.num_heads, values.num_kv_heads
    if heads is None:
        return None
    kind = attention_kind(heads, kv_heads)
    text = f"{kind} {heads}:{kv_heads}" if kind == "GQA" else f"{kind} {heads}"
    if values.sliding_window is not None:
        text += f", window {values.sliding_window}"
    if values.attention_chunk_size is not None:
        text += f", chunk {values.attention_chunk_size}"
    return text


def _status(resolved: ResolvedSpec) -> str | None:
    release = resolved.spec.release
    return release.status if release is not None else None


def _input(resolved: ResolvedSpec) -> Modality:
    training = resolved.spec.training
    kinds = training.modalities_in if training is not None else None
    return "vision" if kinds is not None and "image" in kinds else "text"


def sections(resolved: ResolvedSpec) -> Iterator[Section]:
    """The page of one model."""
    spec = resolved.spec
    about: list[tuple[str, str]] = [("id", spec.id)]
    if spec.title is not None:
        about.append(("title", spec.title))
    if len(resolved.chain) > 1:
        about.append(("extends", " < ".join(reversed(resolved.chain[:-1]))))
    about.append(("digest", resolved.digest))
    if spec.doc is not None:
        about.append(("about", " ".join(spec.doc.split())))
    yield Section("model", tuple(about))
    for name in ("release", "training", "tokenizer", "lineage", "hyperparameters", "constants"):
        rows = tuple(_leaves(resolved, name))
        if rows:
            yield Section(name, rows)
    if spec.root is not None and not spec.abstract:
        from llamagen.ir.elaborate import build_all
        from llamagen.ir.graph import MAIN

        graphs = build_all(resolved)
        mark = "  (assumed)" if is_sketch(spec.id) else ""
        yield Section("size", tuple((name, text + mark) for name, text in _size(graphs)))
        shown: set[tuple[str, str]] = set()
        for name, graph in graphs.items():
            title = "blocks" if name == MAIN else f"blocks of {name}"
            blocks = [row for row in _blocks(graph) if row not in shown]
            shown.update(blocks)
            yield Section(title, tuple(blocks))
    doubts = tuple((u.path, " ".join(u.why.split())) for u in uncertain(resolved))
    if doubts:
        yield Section("uncertain", doubts)
    disputed = tuple(
        (c.path, f"{c.choice}: {' '.join(c.reason.split())}") for c in conflicts(resolved)
    )
    if disputed:
        yield Section("conflicts", disputed)


def _leaves(resolved: ResolvedSpec, section: str) -> Iterator[tuple[str, str]]:
    doubtful = [u.path for u in uncertain(resolved)]
    for path, leaf in resolved.leaves():
        head, _, rest = path.partition(".")
        text = " ".join(leaf.origins[-1].text.split())
        if head != section or text == "null":
            continue
        mark = "  (uncertain)" if any(matches(glob, path) for glob in doubtful) else ""
        yield rest or head, text + mark


def _size(graphs: Mapping[str, Graph]) -> Iterator[tuple[str, str]]:
    from llamagen.analysis.numbers.images import image_cost
    from llamagen.analysis.numbers.memory import cache_of
    from llamagen.analysis.numbers.whole import whole_parameters
    from llamagen.ir.graph import MAIN

    report = whole_parameters(graphs)
    yield "parameters", count_text(report.total)
    if report.active != report.total:
        yield "active a token", count_text(report.active)
    for count in report.components:
        yield f"  {count.component}", count_text(count.count)
    yield "weights in bfloat16", bytes_text(report.total * BYTES_16)
    cache = cache_of(graphs[MAIN])
    yield "cache a token in bfloat16", bytes_text(cache.per_token(BYTES_16))
    images = image_cost(graphs, 1, 1, 1, BYTES_16)
    if images is not None:
        yield "image input", ", ".join(images.inputs)
        yield "FLOPs an image input", count_text(images.encoder.total)
        if images.tokens:
            yield "tokens an image input", str(images.tokens)
        yield "kept of it in bfloat16", bytes_text(images.kept_bytes)


def _blocks(graph: Graph) -> Sequence[tuple[str, str]]:
    return [(name, ", ".join(block.parts) or "-") for name, block in graph.blocks.items()]
