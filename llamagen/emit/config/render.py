"""The spec file that an import gives: only what differs from the model it extends, in canonical form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamagen.analysis.family.identify import same
from llamagen.emit.config.codecs import Json


@dataclass(frozen=True, slots=True)
class Draft:
    """YAML text, one leaf a line, and which path each line (from 1) holds."""

    text: str
    lines: Mapping[int, str]


def draft(head: Mapping[str, Json], body: Mapping[str, Json]) -> Draft:
    lines: list[str] = [f"{key}: {_scalar(value)}" for key, value in head.items()]
    places: dict[int, str] = {}
    for path, line in _lines(body, (), 0):
        lines.append(line)
        places[len(lines)] = path
    return Draft("\n".join(lines) + "\n", places)


def _lines(
    tree: Mapping[str, Json], path: tuple[str, ...], depth: int
) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        here = (*path, key)
        lead = f"{'  ' * depth}{key if key.isidentifier() else json.dumps(key)}:"
        if isinstance(value, Mapping) and value:
            yield ".".join(here), lead
            yield from _lines(value, here, depth + 1)
        else:
            yield ".".join(here), f"{lead} {_scalar(value)}"


def _scalar(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            text = repr(value)
            mantissa, e, exponent = text.partition("e")
            return text if "." in mantissa or not e else f"{mantissa}.0e{exponent}"
        case int():
            return str(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(k)}: {_scalar(v)}" for k, v in value.items()) + "}"
        case _:
            return f"[{', '.join(map(_scalar, value))}]"


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
