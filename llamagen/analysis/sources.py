"""What is known about a value: the source that proves it, who disagrees, and what is not certain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from functools import cache
from typing import Literal, TypeVar

from pydantic import Field

from llamagen.analysis.tables import load_table
from llamagen.spec.resolve import Branch, Leaf, ResolvedSpec, Tree
from llamagen.spec.schema import Closed, Conflict, Uncertain
from llamagen.spec.source import Seq


def source_of(resolved: ResolvedSpec, path: str) -> str | None:
    """The source key of the value at the dotted ``path``, or none.

    A glob proves what is written in its own file and what that file inherits; none proves a value that an heir writes.
    Of those that match, the longest counts, of equal ones the last. ``hyperparameters.*`` covers nested values too,
    such as ``hyperparameters.rope.theta``.
    """
    written = _last_written(resolved.find(*path.split(".")), resolved.files)
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
    sources = load_table("sources.yaml", _Sources).sources
    return {key: f"{one.title}; {one.place}; {one.kind}" for key, one in sources.items()}


class WideClaim(Closed):
    """What many say about the family, and what primary sources say."""

    about: tuple[str, ...] = Field(description="Generations.")
    claim: str
    verdict: Literal["wrong", "imprecise", "right"]
    fact: str
    sources: tuple[str, ...] = Field(description="Keys of spec/sources.yaml.")
    see: str = Field(description="A command that shows it.")


class _Claims(Closed):
    version: Literal[1]
    claims: dict[str, WideClaim]


def claims() -> dict[str, WideClaim]:
    """By number, of spec/claims.yaml."""
    return load_table("claims.yaml", _Claims).claims


T = TypeVar("T", Conflict, Uncertain)


def conflicts(resolved: ResolvedSpec) -> tuple[Conflict, ...]:
    """Disagreements about values that no later spec of the chain wrote anew."""
    return _open(resolved, "conflicts", resolved.spec.conflicts)


def uncertain(resolved: ResolvedSpec) -> tuple[Uncertain, ...]:
    """Inferred values that no later spec of the chain wrote anew."""
    return _open(resolved, "uncertain", resolved.spec.uncertain)


def _open(resolved: ResolvedSpec, section: str, stated: Sequence[T]) -> tuple[T, ...]:
    leaf = resolved.leaf(section)
    if leaf is None or not isinstance(leaf.node, Seq):
        return tuple(stated)
    files = resolved.files
    kept: list[T] = []
    for entry, node in zip(stated, leaf.node.items, strict=True):
        about = resolved.find(*entry.path.split("."))
        if about is None and "*" not in entry.path:
            continue  # an heir went over to something that has no such value
        if _last_written(about, files) <= files.index(node.span.file):
            kept.append(entry)
    return tuple(kept)


def _last_written(tree: Tree | None, files: Sequence[str]) -> int:
    """The latest of a chain's ``files`` that wrote something at or below ``tree``; -1 for a path with a wildcard."""
    match tree:
        case None:
            return -1
        case Leaf(origins=origins):
            return files.index(origins[-1].span.file)
        case Branch(entries=entries):
            return max((_last_written(below, files) for below in entries.values()), default=-1)
