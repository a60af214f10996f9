"""``check CHECKPOINT --as ID``: a checkpoint's headers against a spec, without reading weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llamagen.analysis.check import CheckReport
from llamagen.diagnostics import Diagnostic
from llamagen.emit.config.agree import disagreements
from llamagen.emit.config.resized import resized
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import bind, explained


def check_checkpoint(
    resolved: ResolvedSpec, graph: Graph, folder: Path, registry: Registry
) -> CheckReport:
    """Missing, extra and misshapen tensors, strange dtypes, a dialect that is not known, another model or config.json.

    A checkpoint of the same architecture in other sizes is compared with these, as ``export`` does. A clean report has
    one note that says what was found. Raises LG601 to LG606 and LG10x for files that cannot be read.
    """
    stored = Checkpoint.open(folder)
    other = resized(resolved, graph, folder, registry)
    sized: tuple[Diagnostic, ...] = ()
    if other is not None and other.clashes:
        return CheckReport(1, other.clashes)
    if other is not None:
        resolved, graph, sized = other.resolved, other.graph, (other.note,)
    found = bind(resolved, graph, stored, compare_values=False)
    if any(one.severity != "note" for one in found.diagnostics):
        return CheckReport(1, (*sized, *explained(found, resolved, graph, stored, registry)))
    compared = disagreements(resolved, stored.config_file, registry)
    if any(one.severity != "note" for one in compared):
        return CheckReport(1, (*sized, *found.diagnostics, *compared))
    dtypes = Counter(tensor.dtype for tensor in stored.tensors.values())
    counted = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    message = f"{len(stored.tensors)} tensors ({counted}) in {found.layout} names fit `{resolved.spec.id}`"
    fits = Diagnostic("LG619", "note", message)
    return CheckReport(1, (*sized, *found.diagnostics, *compared, fits))
