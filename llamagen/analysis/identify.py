"""Which known model is this? Values compared key by key; the one with the fewest differences is the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value is not that of the known model."""

    key: str
    here: Json
    known: Json


@dataclass(frozen=True, slots=True)
class Candidate:
    """A known model: ``values`` make the architecture, ``marks`` only tell releases apart."""

    id: str
    values: Mapping[str, Json]
    marks: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Match:
    """A known model and where it differs. Without ``differences`` the architecture is the same."""

    id: str
    differences: tuple[Difference, ...]
    marks: tuple[Difference, ...]

    @property
    def exact(self) -> bool:
        return not self.differences and not self.marks


def nearest(
    values: Mapping[str, Json], marks: Mapping[str, Json], known: Iterable[Candidate]
) -> tuple[Match, ...]:
    """Every known model, the nearest first: fewest differences, then fewest different marks, then the order given.

    A key that ``values`` or ``marks`` lack says nothing and differs from nothing.
    """
    found = (
        Match(
            one.id,
            tuple(_differences(values, one.values)),
            tuple(_differences(marks, one.marks)),
        )
        for one in known
    )
    return tuple(sorted(found, key=_order))


def _order(match: Match) -> tuple[int, int]:
    return len(match.differences), len(match.marks)


def _differences(here: Mapping[str, Json], known: Mapping[str, Json]) -> Iterable[Difference]:
    for key, value in here.items():
        if not same(value, known.get(key)):
            yield Difference(key, value, known.get(key))


def same(a: Json, b: Json) -> bool:
    """Equality of JSON: 1 is 1.0, but no truth value is a number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
