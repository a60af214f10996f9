"""Applying the patterns of a naming layout to names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from llamagen.spec.naming import BoundLayout
from llamagen.spec.schema import PLACEHOLDER


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[re.Pattern[str], tuple[tuple[str, str | None], ...]]:
    text = ""
    groups: list[tuple[str, str | None]] = []
    position = 0
    for match in PLACEHOLDER.finditer(pattern):
        text += re.escape(pattern[position : match.start()])
        text += "(.+)" if match["name"] == "*" else "(0|[1-9][0-9]*)"
        groups.append((match["index"] or match["name"], match["list"]))
        position = match.end()
    return re.compile(text + re.escape(pattern[position:])), tuple(groups)


def match_name(pattern: str, name: str, layout: BoundLayout) -> Mapping[str, str] | None:
    """What the placeholders stand for if `name` has the form of `pattern`, else None."""
    expression, groups = _compiled(pattern)
    match = expression.fullmatch(name)
    if match is None:
        return None
    captured: dict[str, str] = {}
    for (key, through), text in zip(groups, match.groups(), strict=True):
        value = text
        if through is not None:
            numbers = layout.lists[through]
            if int(text) not in numbers:
                return None
            value = str(numbers.index(int(text)))
        if captured.setdefault(key, value) != value:
            return None
    return captured


def fill_name(pattern: str, captured: Mapping[str, str]) -> str:
    """`pattern` with its placeholders replaced; all of them must be in `captured`."""
    return PLACEHOLDER.sub(lambda match: captured[match["name"]], pattern)
