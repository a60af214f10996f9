"""Every model of the family as one row of named values, each computed when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel

from llamagen.analysis.doubts import conflicts, uncertain
from llamagen.analysis.family.architecture import Architecture
from llamagen.analysis.family.numbers_file import architecture_of
from llamagen.analysis.labels import attention_kind
from llamagen.ops.rope import ROPE_KINDS
from llamagen.spec.evaluate import Static
from llamagen.spec.registry import Registry
from llamagen.spec.resolved import ResolvedSpec
from llamagen.spec.schema import Hyperparameters
from llamagen.spec.scope import expand


class Record(Mapping[str, Static]):
    """One model. Names are those of ``COLUMNS``; unpublished values are none, unknown names raise KeyError."""

    def __init__(self, resolved: ResolvedSpec) -> None:
        self.resolved = resolved
        self._known: dict[str, Static] = {}

    def __getitem__(self, name: str) -> Static:
        if name not in self._known:
            self._known[name] = COLUMNS[name].value(self)
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


@dataclass
class Family:
    """The concrete models of a registry."""

    registry: Registry

    def records(self) -> list[Record]:
        """By release date, then id; models without a date last."""
        found = [
            Record(resolved)
            for spec_id in self.registry.ids(abstract=False)
            if not (resolved := self.registry.load(spec_id)).spec.abstract
        ]
        return sorted(found, key=lambda r: (str(r["released"] or "9999"), r.id))


@dataclass(frozen=True, slots=True)
class Column:
    """A name that queries may use, its meaning with unit, and where it comes from."""

    doc: str
    value: Callable[[Record], Static]
    from_graph: bool = False
    """Not known for a record whose wiring is not published."""


def _hyperparameter(name: str) -> Callable[[Record], Static]:
    def value(record: Record) -> Static:
        found = getattr(record.resolved.spec.hyperparameters, name)
        return found.model_dump() if isinstance(found, BaseModel) else found

    return value


def _rope(name: str) -> Callable[[Record], Static]:
    def value(record: Record) -> Static:
        rope = record["rope"]
        return rope.get(name) if isinstance(rope, Mapping) else None

    return value


def _section(section: str, name: str) -> Callable[[Record], Static]:
    def value(record: Record) -> Static:
        model = getattr(record.resolved.spec, section)
        found = getattr(model, name) if model is not None else None
        return found if isinstance(found, int | float | str | bool | tuple) else _text(found)

    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _released(record: Record) -> Static:
    release = record.resolved.spec.release
    return release.date.isoformat() if release is not None and release.date is not None else None


def _generation(record: Record) -> Static:
    words = record.id.split("/")
    return words[1] if len(words) > 2 else words[0]


def _tokens(record: Record) -> Static:
    training = record.resolved.spec.training
    return training.tokens.value if training is not None and training.tokens is not None else None


def _built(of: Callable[[Architecture], Static]) -> Callable[[Record], Static]:
    def value(record: Record) -> Static:
        return of(record.architecture) if record.architecture is not None else None

    return value


def _total(name: str) -> Callable[[Record], Static]:
    return _built(lambda built: getattr(built.totals, name))


def _attention(record: Record) -> Static:
    heads, kv = record["num_heads"], record["num_kv_heads"]
    if not isinstance(heads, int) or not (kv is None or isinstance(kv, int)):
        return None
    return attention_kind(heads, kv)


def _pattern_values(record: Record) -> Static:
    spec = record.resolved.spec
    layers = spec.hyperparameters.num_layers or 0
    return {name: expand(pattern, layers) for name, pattern in spec.patterns.items()}


def _derived(record: Record) -> Static:
    lineage = record.resolved.spec.lineage
    return tuple(lineage.derived_from) if lineage is not None else ()


def _how(record: Record) -> Static:
    lineage = record.resolved.spec.lineage
    return lineage.how if lineage is not None else None


COLUMNS: Mapping[str, Column] = {
    "id": Column("the spec's id", lambda r: r.id),
    "generation": Column(
        "second word of the id: 1, 2, 3, 3.1, 3.2, 3.3, 4, code, guard", _generation
    ),
    "title": Column("the model's name", lambda r: r.resolved.spec.title),
    "extends": Column("the spec it extends", lambda r: r.resolved.spec.extends),
    "status": Column("released, announced or unreleased", _section("release", "status")),
    "released": Column("date of first publication, YYYY-MM-DD", _released),
    "licence": Column("licence of the weights", _section("release", "licence")),
    "repo": Column("repository on the Hugging Face Hub", _section("release", "repo")),
    "published_parameters": Column(
        "the count as published, text", _section("release", "published_parameters")
    ),
    "tokens": Column("training tokens", _tokens),
    "tokens_text": Column(
        "training tokens with their precision, text",
        lambda r: _text(getattr(r.resolved.spec.training, "tokens", None)),
    ),
    "training_context": Column(
        "longest sequence trained on, tokens", _section("training", "context_length")
    ),
    "context": Column(
        "context its publisher promises, tokens", _section("training", "advertised_context")
    ),
    "languages": Column("officially supported, ISO 639-1", _section("training", "languages")),
    "languages_note": Column(
        "what the card says about them", _section("training", "languages_note")
    ),
    "modalities_in": Column("text, image", _section("training", "modalities_in")),
    "modalities_out": Column("text, code", _section("training", "modalities_out")),
    "cutoff": Column("knowledge cutoff, YYYY-MM", _section("training", "knowledge_cutoff")),
    "gpu_hours": Column("GPU hours of training", _section("training", "gpu_hours")),
    "gpu": Column("GPU that those hours count", _section("training", "gpu")),
    "variants": Column(
        "forms the weights were published in", _section("training", "weight_variants")
    ),
    "tokenizer": Column("sentencepiece or tiktoken", _section("tokenizer", "kind")),
    "bos_id": Column("beginning of a sequence", _section("tokenizer", "bos_id")),
    "derived_from": Column("ids of the models it was made from", _derived),
    "derived_how": Column("how it was made from them", _how),
    **{
        name: Column(info.description or "rotary position embedding", _hyperparameter(name))
        for name, info in Hyperparameters.model_fields.items()
    },
    "rope_theta": Column("base of the rotary frequencies", _rope("theta")),
    "rope_kind": Column(" or ".join(", ".join(ROPE_KINDS).rsplit(", ", 1)), _rope("kind")),
    "rope_factor": Column("factor of the frequency scaling", _rope("factor")),
    "patterns": Column("per-layer values by pattern name", _pattern_values),
    "attention": Column("MHA, GQA or MQA", _attention),
    "params": Column("parameters, each weight once", _total("params"), from_graph=True),
    "active_params": Column("parameters one token uses", _total("active_params"), from_graph=True),
    "kv_bytes_per_token": Column(
        "bytes of cache one more token takes, 16 bit",
        _total("kv_bytes_per_token"),
        from_graph=True,
    ),
    "flops_per_token": Column(
        "FLOPs of one token without a past", _total("flops_per_token"), from_graph=True
    ),
    "local_layers": Column(
        "attention layers with a window or chunk", _total("local_layers"), from_graph=True
    ),
    "nope_layers": Column(
        "attention layers without rotary positions", _total("nope_layers"), from_graph=True
    ),
    "moe_layers": Column("layers with routed experts", _total("moe_layers"), from_graph=True),
    "biases": Column("bias tensors of the text model", _total("biases"), from_graph=True),
    "ops": Column(
        "names of the ops of all graphs, sorted", _built(lambda b: b.ops), from_graph=True
    ),
    "graphs": Column(
        "names of its graphs; `model` is the one of text alone",
        _built(lambda b: b.graphs),
        from_graph=True,
    ),
    "vision_params": Column(
        "parameters that see images alone", _total("vision_params"), from_graph=True
    ),
    "image_flops": Column(
        "FLOPs of seeing one image, or tile where each is an input",
        _total("image_flops"),
        from_graph=True,
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
