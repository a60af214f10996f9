"""Which source proves a value: a spec's ``provenance`` globs, and the keys of spec/sources.yaml."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache

from llamagen.resources import data_folder
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.source import load_source
from llamagen.spec.source_nodes import Map, Scalar


def source_of(resolved: ResolvedSpec, path: str) -> str | None:
    """The source key of the value at the dotted ``path``, or none.

    Of the globs that match, one written in the file of the value, or in an heir of it, goes before inherited ones,
    of these the nearest; then the longest. ``hyperparameters.*`` covers nested values too, such as
    ``hyperparameters.rope.theta``.
    """
    leaf = resolved.leaf(*path.split("."))
    written = _depth(resolved, leaf.origins[-1].spec_id) if leaf is not None else 0
    best: tuple[tuple[int, int], str] | None = None
    for glob, source in resolved.spec.provenance.items():
        if not matches(glob, path):
            continue
        entry = resolved.leaf("provenance", glob)
        depth = _depth(resolved, entry.origins[-1].spec_id) if entry is not None else 0
        weight = (min(depth, written), len(glob.replace("*", "")))
        if best is None or weight >= best[0]:
            best = (weight, source)
    return best[1] if best is not None else None


def _depth(resolved: ResolvedSpec, spec_id: str) -> int:
    return resolved.chain.index(spec_id) if spec_id in resolved.chain else 0


def matches(glob: str, path: str) -> bool:
    if "*" not in glob and "?" not in glob and "[" not in glob:
        return path == glob or path.startswith(f"{glob}.")
    return fnmatchcase(path, glob) or path.startswith(f"{glob}.")


@cache
def known_sources() -> dict[str, str]:
    """Key -> one line about it, of spec/sources.yaml; empty when the installation has no such file."""
    path = data_folder("spec") / "sources.yaml"
    if not path.is_file():
        return {}
    root = load_source(path, "spec/sources.yaml").root
    listed = root.get("sources")
    entries = listed.entries if isinstance(listed, Map) else root.entries
    return {key.text: _line(node) for key, node in entries}


def _line(node: object) -> str:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Map):
        texts = (item.text for _, item in node.entries if isinstance(item, Scalar))
        return "; ".join(texts)
    return ""
