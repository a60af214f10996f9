"""One model as a page: what `show` prints, and the card, the same in Markdown with the source of every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llamagen.analysis.numbers import BYTES_16, cache_of, count_parameters, image_cost
from llamagen.analysis.sources import conflicts, matches, source_of, uncertain
from llamagen.diagnostics.markdown import cell
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN, Graph
from llamagen.resources import templates
from llamagen.spec.registry import is_sketch
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Benchmark
from llamagen.units import bytes_text, count_text

SOURCED: Final = frozenset(
    {"release", "training", "benchmarks", "tokenizer", "lineage", "hyperparameters"}
)
"""Sections whose rows are values of the spec with a source."""


BENCHMARKS: Final = "training.benchmarks"
"""The list of results, which have a section of their own."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its lines."""

    title: str
    rows: tuple[tuple[str, str], ...]


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
    if spec.training is not None and spec.training.benchmarks is not None:
        yield Section("benchmarks", tuple(map(_result, spec.training.benchmarks)))
    if spec.root is not None and not spec.abstract:
        graphs = build_all(resolved)
        mark = "  (assumed)" if is_sketch(spec.id) else ""
        yield Section("size", tuple((name, text + mark) for name, text in _size(graphs)))
        shown: set[tuple[str, str]] = set()
        for name, graph in graphs.items():
            title = "blocks" if name == MAIN else f"blocks of {name}"
            every = [(n, ", ".join(block.parts) or "-") for n, block in graph.blocks.items()]
            blocks = [row for row in every if row not in shown]
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


def _result(one: Benchmark) -> tuple[str, str]:
    shots = f"{one.shots}-shot" if one.shots is not None else None
    return one.name, ", ".join(filter(None, (f"{one.score:g}", shots, one.metric)))


def _leaves(resolved: ResolvedSpec, section: str) -> Iterator[tuple[str, str]]:
    doubtful = [u.path for u in uncertain(resolved)]
    for path, leaf in resolved.leaves:
        head, _, rest = path.partition(".")
        text = " ".join(leaf.origins[-1].text.split())
        if head != section or text == "null" or path == BENCHMARKS:
            continue
        mark = "  (uncertain)" if any(matches(glob, path) for glob in doubtful) else ""
        yield rest or head, text + mark


def _size(graphs: Mapping[str, Graph]) -> Iterator[tuple[str, str]]:
    report = count_parameters(graphs)
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


def _path(section: Section, name: str) -> str:
    """Of a row of a section with sources."""
    return BENCHMARKS if section.title == "benchmarks" else f"{section.title}.{name.strip()}"


def card_text(resolved: ResolvedSpec) -> str:
    """The card as Markdown, every text escaped for its table. Deterministic."""
    spec = resolved.spec
    page = [
        {
            "title": section.title,
            "sourced": section.title in SOURCED,
            "rows": [
                (
                    cell(name.strip()),
                    cell(value),
                    cell(source_of(resolved, _path(section, name)) or ""),
                )
                for name, value in section.rows
            ],
        }
        for section in sections(resolved)
        if section.title != "model"
    ]
    return (
        templates("docs")
        .get_template("card.md.j2")
        .render(
            id=spec.id,
            title=cell(spec.title or spec.id),
            doc=cell(spec.doc) if spec.doc else None,
            sections=page,
        )
    )
