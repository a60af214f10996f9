"""Which source proves a value: a spec's ``provenance`` globs, and the keys of spec/sources.yaml."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache
from typing import Literal

from llamagen.analysis.tables import load_table
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Closed


def source_of(resolved: ResolvedSpec, path: str, *, own_family: bool = True) -> str | None:
    """The source key of the value at the dotted ``path``, or none.

    Of the globs that match, one written in the file of the value, or in an heir of it, goes before inherited ones,
    of these the nearest; then the longest. ``hyperparameters.*`` covers nested values too, such as
    ``hyperparameters.rope.theta``. What a family says of its own models proves no value of a spec that extends them
    from outside, unless ``own_family`` is false.
    """
    leaf = resolved.leaf(*path.split("."))
    writer = leaf.origins[-1].spec_id if leaf is not None else resolved.spec.id
    written = _depth(resolved, writer)
    best: tuple[tuple[int, int], str] | None = None
    for glob, source in resolved.spec.provenance.items():
        if not matches(glob, path):
            continue
        entry = resolved.leaf("provenance", glob)
        prover = entry.origins[-1].spec_id if entry is not None else writer
        depth = _depth(resolved, prover)
        if own_family and depth < written and family_of(prover) != family_of(writer):
            continue
        weight = (min(depth, written), len(glob.replace("*", "")))
        if best is None or weight >= best[0]:
            best = (weight, source)
    return best[1] if best is not None else None


def family_of(spec_id: str) -> str:
    """``llama`` of ``llama/3/8b``."""
    return spec_id.split("/", 1)[0]


def _depth(resolved: ResolvedSpec, spec_id: str) -> int:
    return resolved.chain.index(spec_id) if spec_id in resolved.chain else 0


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
