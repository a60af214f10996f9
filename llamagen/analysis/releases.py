"""The history of a family at one look: every release, what was new in it, and what is often said wrongly about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Literal

from llamagen.analysis.records import Record
from llamagen.analysis.sources import WideClaim, claims
from llamagen.analysis.tables import fill, holds, load_table, static_text
from llamagen.ops.op import Role
from llamagen.ops.table import OPS
from llamagen.spec.expr import Static
from llamagen.spec.families import FAMILY
from llamagen.spec.schema import Closed
from llamagen.units import count_short


@dataclass(frozen=True, slots=True)
class Release:
    """The models of one generation of a family."""

    family: str
    generation: str
    date: date | None
    ids: tuple[str, ...]
    sizes: tuple[str, ...]
    """Parameters, and those a token uses where that is not all."""
    architecture: str
    context: str
    """Tokens that its publisher promises, or else the positions that it has."""
    techniques: tuple[str, ...]
    """What no earlier release had."""
    claims: tuple[tuple[int, WideClaim], ...]
    """Wide-spread claims about it, by number of spec/claims.yaml."""


def releases(family: Sequence[Record]) -> tuple[Release, ...]:
    """One of each generation of released models of the main line, by date."""
    generations: dict[tuple[str, str], list[Record]] = {}
    for record in family:
        key = static_text(record["family"]), static_text(record["generation"])
        generations.setdefault(key, []).append(record)
    seen: set[str] = set()
    every: list[Release] = []
    for (name, generation), unsorted in generations.items():
        records = sorted(unsorted, key=_count)
        traits = dict.fromkeys(text for record in records for text in _traits(record))
        new = tuple(text for text in traits if text not in seen)
        seen.update(traits)
        about = tuple(
            (int(n), one)
            for n, one in claims().items()
            if name == FAMILY and generation in one.about
        )
        every.append(
            Release(
                name,
                generation,
                min((day for r in records if (day := _day(r)) is not None), default=None),
                tuple(r.id for r in records),
                tuple(dict.fromkeys(map(_size, records))),
                ", ".join(dict.fromkeys(map(_kind, records))),
                _range([r.resolved.spec.context for r in records]),
                new,
                about,
            )
        )
    return tuple(every)


def _day(record: Record) -> date | None:
    release = record.resolved.spec.release
    return release.date if release is not None else None


def _count(record: Record) -> int:
    params = record["params"]
    return params if isinstance(params, int) else 0


def _size(record: Record) -> str:
    active = record["active_params"]
    text = count_short(_count(record))
    chosen = record["num_experts"] is not None and isinstance(active, int)
    return f"{text} ({count_short(active)} active)" if chosen and isinstance(active, int) else text


def _kind(record: Record) -> str:
    dense = "dense" if record["num_experts"] is None else "mixture of experts"
    return f"{dense} with images" if record["vision_params"] else dense


def _range(values: Sequence[Static]) -> str:
    numbers = sorted({v for v in values if isinstance(v, int)})
    return (
        " to ".join(f"{n:,}" for n in dict.fromkeys((numbers[0], numbers[-1]))) if numbers else ""
    )


class _Technique(Closed):
    name: str
    when: str


class _Techniques(Closed):
    version: Literal[1]
    techniques: tuple[_Technique, ...]


def _traits(record: Record) -> Iterator[str]:
    vocabulary, built = record["vocab_size"], record.architecture
    early = built is not None and any(OPS[op].role is Role.PLACEHOLDERS for op in built.ops)
    scope: dict[str, Static] = {
        **record,
        "vocabulary": f"{vocabulary:,}" if isinstance(vocabulary, int) else None,
        "fusion": "early fusion" if early else "cross-attention",
    }
    for one in load_table("techniques.yaml", _Techniques).techniques:
        if holds(one.when, record):
            yield fill(one.name, scope)


def text(releases: Sequence[Release]) -> str:
    """A paragraph a release; a claim about several stands with the first of them."""
    said: set[int] = set()
    return "".join(f"{line}\n" for one in releases for line in _lines(one, said)).removeprefix("\n")


def _lines(one: Release, said: set[int]) -> Iterator[str]:
    yield ""
    yield f"{one.family} {one.generation}  {one.date or 'no date'}"
    yield f"  sizes         {', '.join(one.sizes)}"
    yield f"  architecture  {one.architecture}"
    yield f"  context       {one.context} tokens"
    yield f"  new           {'; '.join(one.techniques) or 'nothing in the architecture'}"
    for number, claim in one.claims:
        if number in said:
            continue
        said.add(number)
        yield f"  often said    {number}. {claim.claim}"
        yield f"    {claim.verdict:<11} {' '.join(claim.fact.split())} [{'; '.join(claim.sources)}]"


def json_text(releases: Sequence[Release]) -> str:
    """A list of releases; claims with number, verdict, fact, sources and a command."""
    documents = [
        asdict(one) | {"claims": [{"number": n} | c.model_dump() for n, c in one.claims]}
        for one in releases
    ]
    whole = {"version": 1, "releases": documents}
    return json.dumps(whole, indent=2, ensure_ascii=False, default=date.isoformat) + "\n"
