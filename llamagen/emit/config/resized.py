"""A checkpoint of a known architecture in other sizes, as people make to try things: its config.json has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.analysis.family.identify import Difference, Json, same
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.config.agree import clashes, fitting
from llamagen.emit.config.formats import id_of, wanted_of
from llamagen.emit.config.json_source import read_json
from llamagen.emit.config.known import Known, known_models
from llamagen.emit.config.read import import_wanted
from llamagen.emit.config.table import mapping_of
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import Graph, names_read
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import bind

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Resized:
    """The spec that a checkpoint is of, and what to say about it."""

    resolved: ResolvedSpec
    graph: Graph
    note: Diagnostic
    clashes: tuple[Diagnostic, ...]
    """LG607 for each value that no number makes another: a scaling of the positions, an activation."""


def resized(
    resolved: ResolvedSpec, graph: Graph, checkpoint: Path, registry: Registry
) -> Resized | None:
    """``resolved`` in the sizes of ``checkpoint``, if both its config.json and its tensors say it is just that.

    None when the tensors fit as they are (then a config.json that differs is no matter of size), when the file is that
    of another known model, when it says what this architecture cannot, or when the tensors are not those of the file.
    Raises LG60x and LG10x for files that cannot be read.
    """
    stored = Checkpoint.open(checkpoint)
    mapping = mapping_of(resolved)
    if stored.config_file is None or mapping is None or _fits(resolved, graph, stored):
        return None
    source = read_json(stored.config_file, within=stored.config_file.parent)
    known = known_models(registry)
    wanted = wanted_of(source, tuple(sorted({mapping.kind, *(m.mapping.kind for m in known)})))
    reads = names_read(build_all(resolved)) if resolved.spec.graphs else graph.names_read
    if wanted.kind != mapping.kind or fitting(wanted, known, reads):
        return None
    try:
        made = import_wanted(
            wanted, id_of(stored.config_file), [Known(resolved, mapping)], registry
        )
    except LlamagenError:
        return None  # the tensors that do not fit say more than what the file cannot say
    other = build(made.resolved)
    if not _fits(made.resolved, other, stored):
        return None
    message = f"this is `{resolved.spec.id}` in other sizes, by its {stored.config_file.name}: "
    message += _list(made.nearest.differences)
    help = "`llamagen import` writes them as a spec; an exported folder has it as spec.yaml"
    note = Diagnostic("LG646", "note", message, help=help)
    help = "that is more than another size: `llamagen import` writes a spec of the file"
    found = tuple(
        one.finding(resolved.spec.id, help)
        for one in clashes(wanted, Known(resolved, mapping), reads)
        if not _same_form(one.here, one.spec)
    )
    return Resized(made.resolved, other, note, found)


def _same_form(here: Json, known: Json) -> bool:
    """Numbers for numbers, what is said of every layer, and records of these; silence can stand for a number."""
    match here, known:
        case (bool(), _) | (_, bool()):
            return same(here, known)
        case (int() | float() | None, int() | float() | None):
            return True
        case (list() | tuple(), list() | tuple()):
            return True
        case (Mapping(), Mapping()):
            alike = here.keys() == known.keys()
            return alike and all(_same_form(here[key], known[key]) for key in here)
        case _:
            return same(here, known)


def _fits(resolved: ResolvedSpec, graph: Graph, stored: Checkpoint) -> bool:
    found = bind(resolved, graph, stored, compare_values=False)
    return all(one.severity != "error" for one in found.diagnostics)


def _list(differences: Sequence[Difference]) -> str:
    """The first sizes, and before them the numbers that change what is computed: a rotary base, an epsilon."""
    plain = [one for one in differences if one.known is not None]
    real = [one for one in plain if isinstance(one.here, float)]
    whole = [one for one in plain if isinstance(one.here, int)]
    shown = [f"{one.key} {one.here} for {one.known}" for one in (*real, *whole[:_SHOWN])]
    more = len(differences) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more else [])])
