"""The models of the family as rows of named values: what list, show, query, timeline, plot and sql ask.

Each value is computed when first asked for. What the graphs of an architecture add up to is saved beside the shipped
specs (spec/numbers.json), so that questions need not build them; it is looked up by the digest of the wiring and the
values, so a spec that changed, or is not shipped, is measured anew. That the saved numbers are those of the op table is
a contract test.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from datetime import date
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel

from llamagen.analysis.layers import layers_of, with_images
from llamagen.analysis.numbers import (
    BYTES_16,
    CacheLayer,
    CacheReport,
    Component,
    cache_of,
    collapse,
    count_flops,
    count_parameters,
    encoder_flops,
    flops_of,
    rotates,
    slices_used,
)
from llamagen.analysis.sources import conflicts, matches, uncertain
from llamagen.analysis.tables import chosen
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN, Block, OpPart, all_parameters, places
from llamagen.ops.op import Role
from llamagen.ops.rope import ROPE_KINDS
from llamagen.resources import data_folder, data_text
from llamagen.spec.checks import expand
from llamagen.spec.expr import Static
from llamagen.spec.families import EVERY_FAMILY, FAMILY, family_of, within
from llamagen.spec.registry import Registry, is_sketch
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Hyperparameters, Spec
from llamagen.writing import write_changed

# what the graphs of one architecture add up to


@dataclass(frozen=True, slots=True)
class Weight:
    """Weights of one shape at the same place of ``times`` layers. ``path`` has ``*`` for the layers' numbers."""

    path: str
    times: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Parameters of one of them."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that questions about the family ask of graphs."""

    totals: Mapping[str, int | None]
    """By name of a column. Parameters are those of all graphs; attention, cache and FLOPs are of the text model."""
    ops: tuple[str, ...]
    graphs: tuple[str, ...]
    activation: str | None
    """Of the dense feed-forward, or of the shared expert."""
    norm: str | None
    """Of the layers."""
    norms_at: str | None
    """Where these stand: before attention and feed-forward, behind them, on the sum of both, or some of it."""
    latent: bool
    """Attention of the text model is over one vector a token that all heads share (`Heads.latent`)."""
    cache: CacheReport
    """Of the text model."""
    weights: tuple[Weight, ...]


def measure(resolved: ResolvedSpec) -> Architecture:
    """Builds every graph. Raises LlamagenError as ``build_all`` does."""
    graphs = build_all(resolved)
    text = graphs[MAIN]
    weights = all_parameters(graphs)
    cache = cache_of(text)
    of_text = count_parameters({MAIN: text})
    params = sum(p.count for p in weights.values())
    totals = {
        "params": params,
        "active_params": of_text.active,
        "kv_bytes_per_token": cache.per_token(BYTES_16),
        "flops_per_token": count_flops(flops_of(text), 1, 1, 0).total,
        "local_layers": cache.local_layers,
        "nope_layers": sum(1 for a in places(text, Role.ATTENTION) if not rotates(a.block)),
        "moe_layers": sum(1 for here in text.instances if _has_experts(here.block)),
        "biases": sum(1 for p in text.parameters.values() if p.kind == "bias"),
        "vision_params": count_parameters(graphs).of(Component.VISION),
        "image_flops": encoder_flops(graphs),
    }
    blocks = (block for graph in graphs.values() for block in graph.blocks.values())
    ops = {node.op for block in blocks for node in block.nodes if not node.row.control}
    times = Counter((collapse(path)[0], p.shape) for path, p in weights.items())
    folded = (Weight(path, count, shape) for (path, shape), count in times.items())
    _, layers = layers_of(with_images(graphs))
    return Architecture(
        totals,
        tuple(sorted(ops)),
        tuple(graphs),
        next((one.activation for one in layers if one.activation), None),
        next((one.norms[1] for one in layers if one.norms[1]), None),
        next((one.normed for one in layers if one.normed), None),
        any(one.heads is not None and one.heads.latent is not None for one in layers),
        cache,
        tuple(folded),
    )


def _has_experts(block: Block) -> bool:
    parts = [part for part in block.parts.values() if isinstance(part, OpPart)]
    return any(part.row.role is Role.EXPERTS or slices_used(part) for part in parts)


_known: dict[str, Architecture] = {}
"""By digest; several models can be of one architecture."""


def architecture_of(resolved: ResolvedSpec) -> Architecture | None:
    """Saved numbers, or measured now; None while the wiring is not published."""
    if resolved.spec.root is None:
        return None
    digest = resolved.digest
    if digest not in _known:
        saved = _saved().get(digest)
        _known[digest] = _read(saved) if saved is not None else measure(resolved)
    return _known[digest]


def numbers_path() -> Path:
    """The file of saved numbers."""
    return data_folder("spec") / "numbers.json"


@cache
def _saved() -> Mapping[str, Any]:
    try:
        table: dict[str, Any] = json.loads(data_text("spec", numbers_path().name))
    except FileNotFoundError:  # while it is made
        return {}
    return table


def _read(saved: Mapping[str, Any]) -> Architecture:
    return Architecture(
        saved["totals"],
        tuple(saved["ops"]),
        tuple(saved["graphs"]),
        saved["activation"],
        saved["norm"],
        saved["norms_at"],
        saved["latent"],
        CacheReport(tuple(CacheLayer(*row) for row in saved["layers"])),
        tuple(Weight(path, times, tuple(shape)) for path, times, shape in saved["weights"]),
    )


def save_numbers() -> bool:
    """Measure the graphs of every shipped model and save the numbers in spec/numbers.json; whether the file changed."""
    path = numbers_path()
    written, _ = write_changed(path.parent, {path.name: numbers_text()})
    return bool(written)


def numbers_text() -> str:
    """What spec/numbers.json must hold, measured now: rows of its two tables as lists."""
    saved: dict[str, str] = {}
    registry = Registry()
    for resolved in map(registry.load, registry.ids(abstract=False)):
        if resolved.spec.root is not None and resolved.digest not in saved:
            built = measure(resolved)
            record = {
                "totals": built.totals,
                "ops": built.ops,
                "graphs": built.graphs,
                "activation": built.activation,
                "norm": built.norm,
                "norms_at": built.norms_at,
                "latent": built.latent,
                "layers": [astuple(layer)[:-1] for layer in built.cache.layers],
                "weights": [astuple(weight) for weight in built.weights],
            }
            saved[resolved.digest] = json.dumps(record, separators=(",", ":"))
    lines = [f'"{digest}": {saved[digest]}' for digest in sorted(saved)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


# one model as a row


class Record(Mapping[str, Static]):
    """One model. Names are those of ``COLUMNS``; unpublished values are none, unknown names raise KeyError."""

    def __init__(self, resolved: ResolvedSpec, registry: Registry) -> None:
        self.resolved = resolved
        self.registry = registry
        self._known: dict[str, Static] = {}

    def __getitem__(self, name: str) -> Static:
        if name not in self._known:
            source = COLUMNS[name].source
            self._known[name] = (
                _at(self.resolved.spec, source) if isinstance(source, str) else source(self)
            )
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in COLUMNS

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMNS)

    def __len__(self) -> int:
        return len(COLUMNS)

    @property
    def id(self) -> str:
        return self.resolved.spec.id

    @cached_property
    def architecture(self) -> Architecture | None:
        """Numbers of its graphs; none where the wiring is not published."""
        return architecture_of(self.resolved)


def records_of(registry: Registry, *, sketches: bool = False, family: str = FAMILY) -> list[Record]:
    """The concrete models of a family by release date, then id; models without a date last.

    Raises LG901 for an unknown family.
    """
    ids = registry.ids(abstract=False, sketches=sketches)
    families = dict.fromkeys((EVERY_FAMILY, *map(family_of, ids)))
    chosen(families, family, "a family")
    records = [
        Record(resolved, registry)
        for spec_id in ids
        if within(family, spec_id) or is_sketch(spec_id)
        if not (resolved := registry.load(spec_id)).spec.abstract
    ]
    return sorted(records, key=lambda r: (str(r["released"] or "9999"), r.id))


def _at(spec: Spec, path: str) -> Static:
    """The value at a dotted path of a spec; none where a section is not stated, or has no such value."""
    value: object = spec
    for name in path.split("."):
        value = getattr(value, name, None)
    match value:
        case None | int() | float() | str() | tuple():
            return value
        case date():
            return value.isoformat()
        case BaseModel() if path.startswith("hyperparameters."):
            return value.model_dump()
        case _:
            return str(value)


@dataclass(frozen=True, slots=True)
class Column:
    """A name that queries may use, its meaning with unit, and where it comes from: a path of the spec, or a rule."""

    doc: str
    source: str | Callable[[Record], Static]
    from_graph: bool = False
    """Not known for a record whose wiring is not published."""


def _generation(record: Record) -> Static:
    words = record.id.split("/")
    return words[1] if len(words) > 2 else words[0]


def _attention(record: Record) -> Static:
    heads, kv_heads = record["num_heads"], record["num_kv_heads"]
    if not isinstance(heads, int) or not (kv_heads is None or isinstance(kv_heads, int)):
        return None
    built = record.architecture
    return attention_kind(heads, kv_heads, latent=built is not None and built.latent)


def attention_kind(
    heads: int, kv_heads: int | None, *, latent: bool
) -> Literal["MHA", "MQA", "GQA", "MLA"]:
    """Multi-head, multi-query, grouped-query or latent. Without ``kv_heads`` every head has its own keys and values."""
    if latent:
        return "MLA"
    if kv_heads is None or kv_heads == heads:
        return "MHA"
    return "MQA" if kv_heads == 1 else "GQA"


def _pattern_values(record: Record) -> Static:
    spec = record.resolved.spec
    layers = spec.hyperparameters.num_layers or 0
    return {name: expand(pattern, layers) for name, pattern in spec.patterns.items()}


def _benchmark_scores(record: Record) -> Static:
    training = record.resolved.spec.training
    stated = training.benchmarks if training is not None else None
    return None if stated is None else {one.name: one.score for one in stated}


def _total(name: str, doc: str) -> Column:
    def value(record: Record) -> Static:
        return record.architecture.totals[name] if record.architecture is not None else None

    return Column(doc, value, from_graph=True)


COLUMNS: Mapping[str, Column] = {
    "id": Column("the spec's id", "id"),
    "family": Column("first word of the id: llama, qwen ...", lambda r: family_of(r.id)),
    "generation": Column(
        "second word of the id: 1, 2, 3, 3.1, 3.2, 3.3, 4, code, guard", _generation
    ),
    "title": Column("the model's name", "title"),
    "extends": Column("the spec it extends", "extends"),
    "status": Column("released, served, announced or unreleased", "release.status"),
    "released": Column("date of first publication, YYYY-MM-DD", "release.date"),
    "licence": Column("licence of the weights", "release.licence"),
    "repo": Column("repository on the Hugging Face Hub", "release.repo"),
    "published_parameters": Column("the count as published, text", "release.published_parameters"),
    "tokens": Column("training tokens", "training.tokens.value"),
    "tokens_text": Column("training tokens with their precision, text", "training.tokens"),
    "training_context": Column("longest sequence trained on, tokens", "training.context_length"),
    "context": Column("context its publisher promises, tokens", "training.advertised_context"),
    "languages": Column("officially supported, ISO 639-1", "training.languages"),
    "languages_note": Column("what the card says about them", "training.languages_note"),
    "modalities_in": Column("text, image", "training.modalities_in"),
    "modalities_out": Column("text, code", "training.modalities_out"),
    "cutoff": Column("knowledge cutoff, YYYY-MM", "training.knowledge_cutoff"),
    "gpu_hours": Column("GPU hours of training", "training.gpu_hours"),
    "gpu": Column("GPU that those hours count", "training.gpu"),
    "co2_tonnes": Column(
        "emissions of training, location-based, tonnes of CO2eq", "training.co2_tonnes"
    ),
    "learning_rate": Column("peak learning rate of pretraining", "training.learning_rate"),
    "batch_tokens": Column("tokens of one step of pretraining", "training.batch_tokens"),
    "benchmarks": Column(
        "scores its publisher states, by name: benchmarks['MMLU']", _benchmark_scores
    ),
    "paper": Column("the paper about it, arXiv id", "release.paper"),
    "variants": Column("forms the weights were published in", "training.weight_variants"),
    "quantised": Column(
        "whether it is another release in fewer bits",
        lambda r: bool(_at(r.resolved.spec, "release.quantised")),
    ),
    "tokenizer": Column("sentencepiece, tiktoken or bpe", "tokenizer.kind"),
    "bos_id": Column("beginning of a sequence", "tokenizer.bos_id"),
    "derived_from": Column(
        "ids of the models it was made from",
        lambda r: _at(r.resolved.spec, "lineage.derived_from") or (),
    ),
    "derived_how": Column("how it was made from them", "lineage.how"),
    **{
        name: Column(info.description or "rotary position embedding", f"hyperparameters.{name}")
        for name, info in Hyperparameters.model_fields.items()
    },
    "hidden_act": Column(
        "activation of the feed-forward",
        lambda r: r.architecture.activation if r.architecture is not None else None,
        from_graph=True,
    ),
    "norm": Column(
        "op that normalises in the layers",
        lambda r: r.architecture.norm if r.architecture is not None else None,
        from_graph=True,
    ),
    "norms_at": Column(
        "where the layers' norms stand: before or behind attention and feed-forward, or both",
        lambda r: r.architecture.norms_at if r.architecture is not None else None,
        from_graph=True,
    ),
    "rope_theta": Column("base of the rotary frequencies", "hyperparameters.rope.theta"),
    "rope_kind": Column(
        " or ".join(", ".join(ROPE_KINDS).rsplit(", ", 1)), "hyperparameters.rope.kind"
    ),
    "rope_factor": Column("factor of the frequency scaling", "hyperparameters.rope.factor"),
    "patterns": Column("per-layer values by pattern name", _pattern_values),
    "attention": Column("MHA, GQA, MQA or MLA", _attention),
    "params": _total("params", "parameters, each weight once"),
    "active_params": _total("active_params", "parameters one token of text uses"),
    "kv_bytes_per_token": _total(
        "kv_bytes_per_token", "bytes of cache one more token takes, 16 bit"
    ),
    "flops_per_token": _total("flops_per_token", "FLOPs of one token without a past"),
    "local_layers": _total("local_layers", "attention layers with a window or chunk"),
    "nope_layers": _total("nope_layers", "attention layers without rotary positions"),
    "moe_layers": _total("moe_layers", "layers with routed experts"),
    "biases": _total("biases", "bias tensors of the text model"),
    "ops": Column(
        "names of the ops of all graphs, sorted",
        lambda r: r.architecture.ops if r.architecture is not None else None,
        from_graph=True,
    ),
    "graphs": Column(
        "names of its graphs; `model` is the one of text alone",
        lambda r: r.architecture.graphs if r.architecture is not None else None,
        from_graph=True,
    ),
    "vision_params": _total("vision_params", "parameters that see images alone"),
    "image_flops": _total(
        "image_flops", "FLOPs of seeing one image, or tile where each is an input"
    ),
    "uncertain": Column(
        "paths that rest on inference", lambda r: tuple(u.path for u in uncertain(r.resolved))
    ),
    "conflicts": Column(
        "paths that authorities disagree on",
        lambda r: tuple(c.path for c in conflicts(r.resolved)),
    ),
}
"""Documented names of queries, timelines and the SQL table ``models``."""


# the table of `list`

Modality: TypeAlias = Literal["text", "vision"]
Cell: TypeAlias = str | int | None


@dataclass(frozen=True, slots=True)
class Row:
    """One model of `list`. Counts are exact and come from the graph; None is not known or not published."""

    id: str
    released: date | None
    status: str | None
    parameters: int | None
    active: int | None
    layers: int | None
    hidden: int | None
    attention: str | None
    """Its kind in a few words: `MHA 32`, `GQA 64:8`, with the local layers' bound."""
    context: int | None
    input: str
    licence: str | None
    uncertain: str | None
    """Paths of this row's values that rest on inference, separated by commas."""

    def cells(self) -> tuple[Cell, ...]:
        """For programs: numbers as numbers, dates as ISO 8601 has them."""
        return tuple(one.isoformat() if isinstance(one, date) else one for one in astuple(self))

    def shown(self) -> tuple[Cell, ...]:
        """For people: without the last column, but with a question mark at each value that it names."""
        doubtful = (self.uncertain or "").split(", ")

        def marked(value: Cell, paths: tuple[str, ...]) -> Cell:
            if value is None or not any(matches(g, path) for g in doubtful for path in paths):
                return value
            return f"{value:,} ?" if isinstance(value, int) else f"{value} ?"

        return tuple(map(marked, self.cells(), _PATHS.values()))


LIST_COLUMNS: Final = tuple(field.name for field in fields(Row))

_PATHS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "released": ("release.date",),
    "status": ("release.status",),
    "parameters": tuple(
        f"hyperparameters.{name}" for name in ("num_layers", "hidden_size", "num_experts")
    ),
    "active": ("hyperparameters.num_experts_per_token", "hyperparameters.num_layers"),
    "layers": ("hyperparameters.num_layers",),
    "hidden": ("hyperparameters.hidden_size",),
    "attention": ("hyperparameters.num_heads", "hyperparameters.num_kv_heads"),
    "context": ("training.advertised_context", "hyperparameters.max_positions"),
    "input": ("training.modalities_in",),
    "licence": ("release.licence",),
}
"""Paths that the columns rest on, in their order; the last column has none."""


def list_models(
    *,
    family: str = FAMILY,
    generation: str | None = None,
    status: str | None = None,
    modality: Modality | None = None,
) -> list[Row]:
    """The shipped models that pass every filter, by release date and id, with exact parameter counts.

    Raises LG901 for an unknown family or generation.
    """
    records = records_of(Registry(), sketches=status == "sketch", family=family)
    if generation is not None:
        known = {word: None for record in records for word in record.id.split("/")[1:-1]}
        chosen(known, generation, "a generation")
    return [
        row
        for record in records
        if generation is None or generation in record.id.split("/")[1:-1]
        if status is None or record["status"] == status
        if modality is None or _input(record) == modality
        for row in [_row(record)]
    ]


def _row(record: Record) -> Row:
    spec, built = record.resolved.spec, record.architecture
    values, release = spec.hyperparameters, spec.release
    heads, kv_heads = values.num_heads, values.num_kv_heads
    attention = None
    if heads is not None:
        kind = attention_kind(heads, kv_heads, latent=built is not None and built.latent)
        attention = f"{kind} {heads}:{kv_heads}" if kind == "GQA" else f"{kind} {heads}"
        if values.sliding_window is not None:
            attention += f", window {values.sliding_window}"
        if values.attention_chunk_size is not None:
            attention += f", chunk {values.attention_chunk_size}"
    return Row(
        id=spec.id,
        released=release.date if release is not None else None,
        status=release.status if release is not None else None,
        parameters=built.totals["params"] if built is not None else None,
        active=built.totals["active_params"] if built is not None else None,
        layers=values.num_layers,
        hidden=values.hidden_size,
        attention=attention,
        context=spec.context,
        input=_input(record),
        licence=release.licence if release is not None else None,
        uncertain=", ".join(u.path for u in uncertain(record.resolved)) or None,
    )


def _input(record: Record) -> Modality:
    training = record.resolved.spec.training
    kinds = training.modalities_in if training is not None else None
    return "vision" if kinds is not None and "image" in kinds else "text"
