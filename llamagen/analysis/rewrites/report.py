"""Words about profiles: their rules, and what the rules do to a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from llamagen.analysis.rewrites.rewrite import ExpertCodes, Export, rewrite
from llamagen.analysis.rewrites.rows import LAST_ROW, PACKING
from llamagen.analysis.rewrites.table import (
    REWRITTEN_PROFILES,
    RewrittenProfile,
    Rule,
    rewrite_rules,
)
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph
from llamagen.ops.op import Role

_SHOWN: Mapping[RewrittenProfile, tuple[str, ...]] = {
    "ort-cpu": ("float32", "float16"),
    "ort-cuda": ("float16", "float32"),
}
"""Dtypes whose rewrites differ; bfloat16 is rewritten like float16 on CUDA, and without skip-norm on the CPU."""

_CODES = ExpertCodes(bits=4, block=32, level=4)
"""What `--quantize int4` gives."""

_PACKING = """\
Where every attention is fused, ids (and positions, where they are still read) are sorted once as they enter, and hidden
states go back to the places of their tokens before the head. Padding may stand anywhere. Where another attention
remains (chunks), rows are sorted around each fused one instead, and rotations stay outside, by the positions given."""

_LAST_ROW = """\
The head is the largest product of a prompt, and only its last row is used to generate. `--logits last` is the default
of these profiles; `--logits all` keeps every row."""

_WHOLE: Mapping[str, tuple[str, str]] = {
    PACKING: ("Real tokens to the front of their row", _PACKING),
    LAST_ROW: ("Logits of the last real token of a call", _LAST_ROW),
}
"""Rewrites of the whole graph (rows.py): title and why."""


def rules_text(profile: RewrittenProfile) -> str:
    """Every rule of ``profile`` in the order in which it applies, as it is written."""
    lines = [f"{profile}: the graph rewritten for operators of ONNX Runtime, rule by rule."]
    for rule in rewrite_rules().values():
        if profile in rule.row.profiles:
            lines += ["", *_rule(rule)]
    for name, (title, why) in _WHOLE.items():
        lines += ["", f"{name}: {title}", f"  why: {' '.join(why.split())}"]
    return "".join(f"{line}\n" for line in lines)


def _rule(rule: Rule) -> Iterator[str]:
    row = rule.row
    yield f"{rule.name}: {row.title}"
    yield from (f"  - {line}" for line in row.pattern.splitlines())
    yield from (f"    {line}" for line in row.given.splitlines())
    yield from (f"  + {line}" for line in row.replacement.splitlines())
    yield from (f"  if {need.condition}, else {need.reason}" for need in row.needs)
    yield f"  why: {' '.join(row.why.split())}"


def profiles_text(graphs: Mapping[str, Graph]) -> str:
    """How often each rule applies to each graph, and why it does not, for each profile and dtype."""
    return "".join(
        f"{name}.onnx\n{_graph(graph)}" if len(graphs) > 1 else _graph(graph)
        for name, graph in graphs.items()
    )


def _graph(graph: Graph) -> str:
    flat = flatten(graph)
    choices: list[ExpertCodes | None] = [None]
    if any(node.row.role is Role.EXPERTS for node in flat.nodes):
        choices.append(_CODES)
    lines: list[str] = []
    for profile in REWRITTEN_PROFILES:
        for dtype, codes in product(_SHOWN[profile], choices):
            export = Export(profile, dtype, logits="last", experts=codes)
            found = rewrite(flat, export, graph.output_names)
            kind = dtype if codes is None else f"{dtype}, experts int{codes.bits}"
            lines.append(f"{profile} {kind}: {len(flat.nodes)} ops become {len(found.flat.nodes)}")
            lines += (f"  {count:5} {name}" for name, count in found.fired.items() if count)
            lines += (
                f"  {count:5} not {name}: {reason}"
                for name, reasons in found.stopped.items()
                for reason, count in reasons.items()
            )
    return "".join(f"{line}\n" for line in lines)
