"""The model card: what ``show`` tells, as Markdown, with the source of every published value."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.analysis.family.catalog import sections
from llamagen.analysis.sources import source_of
from llamagen.diagnostics.markdown import cell
from llamagen.resources import templates
from llamagen.spec.resolve import ResolvedSpec

SOURCED = frozenset({"release", "training", "tokenizer", "lineage", "hyperparameters"})
"""Sections whose rows are leaves of the spec."""


@dataclass(frozen=True, slots=True)
class CardRow:
    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class CardSection:
    title: str
    sourced: bool
    rows: tuple[CardRow, ...]


@dataclass(frozen=True, slots=True)
class Card:
    id: str
    title: str
    doc: str | None
    sections: tuple[CardSection, ...]


def card_of(resolved: ResolvedSpec) -> Card:
    """Everything a card shows, escaped for Markdown tables."""
    spec = resolved.spec
    made = tuple(
        CardSection(
            section.title,
            section.title in SOURCED,
            tuple(
                CardRow(
                    cell(name.strip()),
                    cell(value),
                    cell(source_of(resolved, f"{section.title}.{name.strip()}") or ""),
                )
                for name, value in section.rows
            ),
        )
        for section in sections(resolved)
        if section.title != "model"
    )
    doc = cell(spec.doc) if spec.doc else None
    return Card(spec.id, cell(spec.title or spec.id), doc, made)


def card_text(resolved: ResolvedSpec) -> str:
    """The card as Markdown. Deterministic."""
    return templates("docs").get_template("card.md.j2").render(card=card_of(resolved))
