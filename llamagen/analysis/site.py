"""The atlas: one folder of static files that shows the family in a browser, from disk, without a network.

Everything shown is what the commands say: releases, values with their sources, summaries of diffs, towers, numbers. The
calculator evaluates the polynomials that the op table counts (``work`` of a model), so it gives what `cost` gives. Data
are scripts that register themselves, because a page that is opened from disk may not fetch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from llamagen.analysis.cost import Counts, devices, workload
from llamagen.analysis.diff.align import pairs_of
from llamagen.analysis.diff.judge import diff_rules
from llamagen.analysis.diff.match import match
from llamagen.analysis.diff.summary import summary
from llamagen.analysis.numbers import STORAGE, cache_of, weight_bytes
from llamagen.analysis.pictures import tower_svg, towers
from llamagen.analysis.records import Record, architecture_of
from llamagen.analysis.releases import releases
from llamagen.analysis.show import BENCHMARKS
from llamagen.analysis.sources import claims, conflicts, known_sources, source_of, uncertain
from llamagen.analysis.targets import Model, built
from llamagen.diagnostics.codes import load_codes
from llamagen.ir.shard import plan
from llamagen.ops.dims import Dim
from llamagen.ops.table import OPS
from llamagen.resources import data_folder

Data = dict[str, object]

SHOWN = ("release", "training", "lineage", "tokenizer", "hyperparameters", "constants", "patterns")
"""Sections of a spec whose values a model's page shows."""


def write_site(
    folder: Path,
    family: Sequence[Record],
    mainline: Sequence[Record],
    progress: Callable[[int, int], None],
) -> None:
    """The files of the atlas of ``family`` in ``folder``, whose releases are those of ``mainline``; deterministic."""
    shutil.copytree(data_folder("templates") / "site", folder, dirs_exist_ok=True)
    models = {record.id: built(record.resolved) for record in family}
    wirings: dict[str, Model] = {}
    for model in models.values():
        if model.graphs:
            wirings.setdefault(model.resolved.digest, model)
    data = folder / "data"
    (data / "towers").mkdir(parents=True)
    atlas: Data = {
        "models": [_model(record, models[record.id]) for record in family],
        "wirings": {digest[:16]: _wiring(model) for digest, model in wirings.items()},
        "releases": [asdict(one) | {"claims": [n for n, _ in one.claims]} for one in releases(mainline)],
        "claims": {number: one.model_dump() for number, one in claims().items()},
        "sources": known_sources(),
        "devices": {
            name: one.model_dump(include={"title", "memory_bytes"})
            for name, one in devices().items()
        },
        "ops": [
            {"name": op.name, "doc": op.doc, "formula": op.formula, "operands": op.operands,
             "cite": op.cite, "precision": op.precision.value, "part": op.is_part}
            for op in OPS.values() if not op.internal
        ],
        "rules": {
            name: {"title": rule.title, "surfaces": {s.value: e.verdict.value for s, e in rule.effects.items()}}
            for name, rule in diff_rules().items()
        },
        "codes": [asdict(code) for code in load_codes().values()],
    }  # fmt: skip
    _write(data / "atlas.js", "ATLAS.add", atlas)
    for digest, model in wirings.items():
        svg = tower_svg(towers(model.graphs))
        _write(data / "towers" / f"{digest[:16]}.js", "ATLAS.tower", digest[:16], svg)
    pairs = [(a, b) for a in wirings for b in wirings if a != b]
    said: dict[str, tuple[str, ...]] = {}
    for n, (a, b) in enumerate(pairs):
        progress(n, len(pairs))
        said[f"{a[:16]} {b[:16]}"] = _summary(wirings[a], wirings[b])
    _write(data / "diffs.js", "ATLAS.diffs", _interned(said))


def _write(path: Path, call: str, *values: object) -> None:
    texts = (
        json.dumps(v, ensure_ascii=False, separators=(",", ":"), default=date.isoformat)
        for v in values
    )
    # a text that ends a script element must not be read as its end
    safe = ",".join(texts).replace("</", "<\\/").replace("\u2028", "\\u2028")
    path.write_text(f"{call}({safe});\n", encoding="utf-8", newline="\n")


def _summary(before: Model, after: Model) -> tuple[str, ...]:
    load = workload(4096)
    same = match(before.graphs, after.graphs)
    return summary(before, after, same, list(pairs_of(before, after, same, load)), load)


def _interned(said: Mapping[str, tuple[str, ...]]) -> Data:
    """Sentences once, and by pair of wirings which they are."""
    sentences = {
        text: i for i, text in enumerate(dict.fromkeys(t for ts in said.values() for t in ts))
    }
    return {
        "sentences": list(sentences),
        "pairs": {pair: [sentences[text] for text in texts] for pair, texts in said.items()},
    }


def _model(record: Record, model: Model) -> Data:
    resolved = record.resolved
    lineage, training = resolved.spec.lineage, resolved.spec.training
    results = training.benchmarks if training is not None else None
    return {
        "id": record.id,
        **{
            name: record[name]
            for name in (
                "generation", "title", "status", "released", "licence", "repo", "published_parameters", "tokens",
                "context", "cutoff",
                "params", "active_params", "num_layers", "hidden_size", "num_heads", "num_kv_heads", "attention",
                "vocab_size", "max_positions", "languages", "modalities_in", "kv_bytes_per_token", "moe_layers",
            )
        },
        "wiring": resolved.digest[:16] if model.graphs else None,
        "doc": " ".join(resolved.spec.doc.split()) if resolved.spec.doc is not None else None,
        "benchmarks": [one.model_dump() for one in results or ()],
        "benchmarks_source": source_of(resolved, BENCHMARKS),
        "extends": resolved.spec.extends,
        "derived_from": list(lineage.derived_from) if lineage is not None else [],
        "derived_how": lineage.how if lineage is not None else None,
        "values": [
            [path, " ".join(leaf.origins[-1].text.split()), source_of(resolved, path)]
            for path, leaf in resolved.leaves
            if path.split(".", 1)[0] in SHOWN and path != BENCHMARKS and leaf.origins[-1].text not in ("null", "~")
        ],
        "disputes": [one.model_dump() for one in conflicts(resolved)],
        "uncertain": [one.model_dump() for one in uncertain(resolved)],
    }  # fmt: skip


def _wiring(model: Model) -> Data:
    graphs = model.graphs
    counted = Counts(graphs, workload(1))
    cache = cache_of(counted.graph)
    architecture = architecture_of(model.resolved)
    assert architecture is not None
    return {
        "parameters": [[one.path, one.times, one.count] for one in architecture.weights],
        "components": [
            [c.component.value, c.count, c.active] for c in counted.parameters.components
        ],
        "weights": {name: weight_bytes(graphs, form) for name, form in STORAGE.items()},
        "cache_values": cache.per_token(1),
        "layers": [
            [one.kv_heads, one.key_dim, one.window, one.chunk, one.rope] for one in cache.layers
        ],
        "work": {
            "matmul": _terms(counted.flops.matmul),
            "attention": _terms(counted.flops.attention),
            "head": _terms(counted.flops.head),
            "live": [_terms(level) for level in counted.activations],
        },
        "degrees": list(plan(counted.graph).degrees),
    }


def _terms(dim: Dim) -> list[list[object]]:
    """``4*B*S`` as [4, "B", "S"]."""
    return [[count, *names] for names, count in dim.terms]
