"""JSON as files from elsewhere must be read: no duplicate keys, no NaN, no endless nesting."""

from __future__ import annotations

import json

from llamagen.weights.problems import quoted


def parse_strict(text: bytes) -> object:
    """The value of a UTF-8 JSON text. Raises ValueError with the end of a sentence."""
    try:
        value: object = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"it has the key {quoted(key)} twice")
            seen.add(key)
    return table


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")
