"""The record of a model: what was released when, trained on what, derived from what, and how sure we are.

A fact that is not published is absent, never guessed; what authorities disagree on is a ``Conflict`` with a choice.
"""

from __future__ import annotations

from datetime import date as Date
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints

from llamagen.spec.naming import Closed

SpecId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._/-]*$")]
SourceKey: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*(#.+)?$")]
Month: TypeAlias = Annotated[str, StringConstraints(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$")]
Language: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$|^code$")]


class Amount(Closed):
    """A published number with the precision it was published in."""

    value: Annotated[int, Field(gt=0)]
    bound: Literal["exact", "at_least", "at_most", "about"] = "exact"

    def __str__(self) -> str:
        sign = {"exact": "", "at_least": "+", "at_most": "", "about": ""}[self.bound]
        lead = {"exact": "", "at_least": "", "at_most": "up to ", "about": "~"}[self.bound]
        for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
            if self.value >= size:
                return f"{lead}{self.value / size:g}{unit}{sign}"
        return f"{lead}{self.value:,}{sign}"


class Release(Closed):
    status: Literal["released", "announced", "unreleased", "sketch"] = Field(
        description="released: weights are out; announced: promised in public; unreleased: trained, kept back; "
        "sketch: assumed, no model's record (below `sketch/`)."
    )
    date: Date | None = Field(
        default=None, description="First publication of the weights, or of the announcement."
    )
    repo: str | None = Field(default=None, description="Repository on the Hugging Face Hub.")
    licence: str | None = None
    published_parameters: str | None = Field(
        default=None,
        description="The count as its publisher writes it; the exact one comes from the graph.",
    )
    note: str | None = None


class Training(Closed):
    tokens: Amount | None = Field(
        default=None, description="Pretraining tokens, or those of the last stage."
    )
    tokens_note: str | None = None
    context_length: int | None = Field(
        default=None, description="Longest sequence trained on, tokens."
    )
    advertised_context: int | None = Field(
        default=None, description="Context its publisher promises, tokens."
    )
    languages: tuple[Language, ...] | None = Field(
        default=None, description="Officially supported, ISO 639-1."
    )
    languages_note: str | None = None
    modalities_in: tuple[Literal["text", "image"], ...] | None = None
    modalities_out: tuple[Literal["text", "code"], ...] | None = None
    knowledge_cutoff: Month | None = None
    knowledge_cutoff_note: str | None = None
    gpu_hours: Annotated[int, Field(gt=0)] | None = None
    gpu_hours_note: str | None = None
    gpu: str | None = None
    weight_variants: tuple[str, ...] | None = Field(
        default=None, description="Forms the weights were published in."
    )
    infilling: bool | None = Field(
        default=None, description="Trained to fill in the middle (Code Llama)."
    )


class Tokenizer(Closed):
    kind: Literal["sentencepiece", "tiktoken"]
    bos_id: int
    eos_ids: tuple[int, ...] = Field(
        description="Ids that end a generation, as config.json lists them."
    )
    pad_id: int | None = None
    special_tokens: dict[str, int] = {}
    note: str | None = None


class Lineage(Closed):
    derived_from: tuple[SpecId, ...]
    how: str | None = None


class Claim(Closed):
    value: str
    source: SourceKey


class Conflict(Closed):
    """Authorities that disagree about one path of the spec, which one is followed, and why."""

    path: str
    claims: tuple[Claim, ...] = Field(min_length=2)
    choice: str
    reason: str


class Uncertain(Closed):
    """A value that rests on inference; shown as uncertain wherever it is shown."""

    path: str
    why: str


class Source(Closed):
    """One authority of spec/sources.yaml."""

    title: str
    place: str
    kind: Literal["paper", "model card", "code", "config", "blog", "count", "derived"]
    note: str | None = None
