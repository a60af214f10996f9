"""Which source proves a value: a spec's ``provenance`` globs, and the keys of spec/sources.yaml."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache
from typing import Literal

from llamagen.analysis.doubts import last_written
from llamagen.analysis.tables import load_table
from llamagen.spec.naming import Closed
from llamagen.spec.resolved import ResolvedSpec


def source_of(resolved: ResolvedSpec, path: str) -> str | None:
    """The source key of the value at the dotted ``path``, or none.

    A glob proves what is written in its own file and what that file inherits; none proves a value that an heir writes.
    Of those that match, the longest counts, of equal ones the last. ``hyperparameters.*`` covers nested values too,
    such as ``hyperparameters.rope.theta``.
    """
    written = last_written(resolved.find(*path.split(".")), resolved.files)
    best: tuple[int, str] | None = None
    for glob, source in resolved.spec.provenance.items():
        entry = resolved.leaf("provenance", glob)
        if entry is None or not matches(glob, path):
            continue
        if resolved.files.index(entry.origins[-1].span.file) < written:
            continue
        weight = len(glob.replace("*", ""))
        if best is None or weight >= best[0]:
            best = (weight, source)
    return best[1] if best is not None else None


def family_of(spec_id: str) -> str:
    """``llama`` of ``llama/3/8b``."""
    return spec_id.split("/", 1)[0]


def matches(glob: str, path: str) -> bool:
    """Whether ``path`` is what ``glob`` says or lies below it."""
    start, pattern = _pattern(glob)
    return path.startswith(start) and pattern.match(path) is not None


@cache
def _pattern(glob: str) -> tuple[str, re.Pattern[str]]:
    """What a path must begin with, which is quickly seen, and all that it must be."""
    start = re.split(r"[*?\[]", glob, maxsplit=1)[0]
    return start, re.compile(rf"{translate(glob)}|{re.escape(glob)}\.")


class _Authority(Closed):
    title: str
    place: str
    kind: str


class _Sources(Closed):
    version: Literal[1]
    sources: dict[str, _Authority]


@cache
def known_sources() -> dict[str, str]:
    """Key -> one line about it, of spec/sources.yaml. Raises LlamagenError for a file that is not as it was shipped."""
    found = load_table("sources.yaml", _Sources).sources
    return {key: f"{one.title}; {one.place}; {one.kind}" for key, one in found.items()}
