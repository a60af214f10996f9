"""Facts about the released models (tests/data), independent of the specs under test.

`manifest_*.txt` list parameter names and shapes, `hf_configs.json` the config.json files, `records.json` what
model cards and papers say; names are those of the fact table, `id` in a record is the spec's.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec

DATA = Path(__file__).resolve().parents[2] / "data"
_LAYERS = re.compile(r"\{(.*?)\}")

Shapes = dict[str, tuple[int, ...]]
Record = dict[str, Any]


@cache
def records() -> dict[str, Record]:
    """Name of the fact table -> what is known about the model."""
    found: dict[str, Record] = json.loads((DATA / "records.json").read_text(encoding="utf-8"))
    return found


def configs() -> dict[str, Record]:
    """Name of the fact table -> config.json. Read anew: transformers changes what it is given."""
    found: dict[str, Record] = json.loads((DATA / "hf_configs.json").read_text(encoding="utf-8"))
    return found


@cache
def manifests(kind: str) -> dict[str, Shapes]:
    """Name of the fact table -> parameter -> shape; `kind` is hub, meta or safetensors."""
    found: dict[str, Shapes] = {}
    names: list[str] = []
    for line in (DATA / f"manifest_{kind}.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("== "):
            names = line.split()[1:]
            shared: Shapes = {}
            found.update(dict.fromkeys(names, shared))
        elif line and not line.startswith("#"):
            shared.update(_expanded(line))
    return found


def in_files(name: str) -> Shapes:
    """Names and shapes as the Hub's files have them."""
    return manifests("safetensors").get(name) or manifests("hub")[name]


def _expanded(line: str) -> Shapes:
    name, _, sizes = line.removesuffix("]").partition(" [")
    shape = tuple(int(size) for size in sizes.split(", "))
    layers = _LAYERS.search(name)
    if layers is None:
        return {name: shape}
    found: Shapes = {}
    for part in layers[1].split(","):
        first, _, last = part.partition("-")
        for i in range(int(first), int(last or first) + 1):
            found[f"{name[: layers.start()]}{i}{name[layers.end() :]}"] = shape
    return found


REGISTRY = Registry()


def spec_of(name: str) -> ResolvedSpec:
    return REGISTRY.load(records()[name]["id"])


@cache
def _graph(digest: str, spec_id: str) -> Graph:
    return build(REGISTRY.load(spec_id))


_OWNERS: dict[str, str] = {}


def graph_of(name: str) -> Graph:
    """The graph, built once for models of the same architecture."""
    resolved = spec_of(name)
    return _graph(resolved.digest, _OWNERS.setdefault(resolved.digest, resolved.spec.id))


@cache
def _graphs(digest: str, spec_id: str) -> dict[str, Graph]:
    return build_all(REGISTRY.load(spec_id))


def graphs_of(name: str) -> dict[str, Graph]:
    """All graphs of a model by name; most have the text model alone."""
    resolved = spec_of(name)
    return _graphs(resolved.digest, _OWNERS.setdefault(resolved.digest, resolved.spec.id))


NAMES = sorted(records())
BUILDABLE = [name for name in NAMES if spec_of(name).spec.root is not None]


def architectures() -> list[str]:
    """One name for every distinct architecture that can be built."""
    first: dict[str, str] = {}
    for name in BUILDABLE:
        first.setdefault(spec_of(name).digest, name)
    return sorted(first.values())
