"""The spec file that an import gives: only what differs from the model it extends, in canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamagen.analysis.identify import same
from llamagen.emit.config.codecs import Json
from llamagen.spec.fmt import lines


@dataclass(frozen=True, slots=True)
class Draft:
    """YAML text, one leaf a line, and which path each line (from 1) holds."""

    text: str
    lines: Mapping[int, str]


def draft(head: Mapping[str, Json], body: Mapping[str, Json]) -> Draft:
    text: list[str] = [line for _, line in lines(head)]
    places: dict[int, str] = {}
    for path, line in lines(body):
        text.append(line)
        places[len(text)] = path
    return Draft("\n".join(text) + "\n", places)


def changed(new: Mapping[str, Json], old: Mapping[str, Json]) -> dict[str, Json]:
    """What ``new`` states differently, as a spec that extends ``old`` writes it; null for what is gone."""
    found: dict[str, Json] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if value.get("kind") != before.get("kind"):
                found[key] = value
            elif below := changed(value, before):
                found[key] = below
        elif not same(value, before):
            found[key] = value
    return found
