"""Does a checkpoint hold a model? And if not this one, which one?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.ir.build import build
from llamagen.ir.build_graphs import all_parameters, build_all
from llamagen.ir.graph import Graph, OpPart, instances, join, parameters
from llamagen.ops.op import Parameter
from llamagen.spec.registry import Registry
from llamagen.spec.resolved import ResolvedSpec
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.layouts import layouts_for
from llamagen.weights.names import Resolution, resolve_names
from llamagen.weights.nodes import Shape
from llamagen.weights.problems import quoted

_STRUCTURAL = frozenset({"LG610", "LG611", "LG612", "LG613"})
"""Findings that a checkpoint of another model has."""
_SHOWN = 4


def bind(
    resolved: ResolvedSpec, graph: Graph, stored: Checkpoint, *, compare_values: bool = True
) -> Resolution:
    """Which stored tensors make each parameter of the model, and everything that is wrong with them.

    ``graph`` is its text model; the parameters of further graphs are wanted as well.

    The spec's own layouts come first, then the known dialects. Raises LG304 as `layouts_for` does.
    """
    wanted = {path: p.shape for path, p in wanted_by(resolved, graph).items()}
    return resolve_names(wanted, stored, layouts_for(resolved), tied_roles(graph), compare_values)


def wanted_by(resolved: ResolvedSpec, graph: Graph) -> dict[str, Parameter]:
    """Parameters of the whole model: those of its text graph, and of further graphs of its spec."""
    return all_parameters(build_all(resolved)) if resolved.spec.graphs else parameters(graph)


def tied_roles(graph: Graph) -> dict[str, str]:
    """Role path of a tied weight -> role path of the parameter that serves as it."""
    return {
        join(join(here.path, part.name), "weight"): part.tied_to
        for here in instances(graph)
        for part in here.block.parts.values()
        if isinstance(part, OpPart) and part.tied_to is not None
    }


@dataclass(frozen=True, slots=True)
class Fit:
    """Models of one shape, and how many of their ``tensors`` the checkpoint lacks or has in another shape."""

    ids: tuple[str, ...]
    tensors: int
    misfits: int
    unwanted: bool
    """Whether the checkpoint has more than they want."""

    @property
    def exact(self) -> bool:
        return not self.misfits and not self.unwanted


def best_fit(stored: Checkpoint, registry: Registry) -> Fit | None:
    """The models that the checkpoint's names and shapes are nearest to; None if most of it fits none.

    Headers only. Models of one shape stay together: nothing in a header tells LLaMA 7B from Llama 2 7B.
    """
    known: dict[tuple[str, str], tuple[int, int, bool] | None] = {}
    found: dict[tuple[int, int, bool], list[str]] = {}
    for resolved in _models(registry):
        kind = resolved.digest, resolved.spec.checkpoint.model_dump_json()
        if kind not in known:
            known[kind] = _compared(resolved, stored)
        result = known[kind]
        if result is not None:
            found.setdefault(result, []).append(resolved.spec.id)
    if not found:
        return None
    misfits, tensors, unwanted = best = min(found, key=lambda r: (r[0] + r[2], -r[1]))
    return Fit(tuple(found[best]), tensors, misfits, unwanted)


def _models(registry: Registry) -> Iterator[ResolvedSpec]:
    for spec_id in registry.ids(abstract=False):
        try:
            resolved = registry.load(spec_id)
        except LlamagenError:
            continue  # a broken spec of the user's own root is not what was asked about
        if not resolved.spec.abstract and resolved.spec.root is not None:
            yield resolved


def _compared(resolved: ResolvedSpec, stored: Checkpoint) -> tuple[int, int, bool] | None:
    """Misfits, tensors, whether there are unwanted ones; None when most of the first layer does not fit."""
    try:
        graph = build(resolved)
        layouts = layouts_for(resolved)
    except LlamagenError:
        return None
    wanted: Mapping[str, Shape] = {p: q.shape for p, q in wanted_by(resolved, graph).items()}
    tied = tied_roles(graph)
    few = {path: shape for path, shape in wanted.items() if _is_first(path)}
    found = resolve_names(few, stored, layouts, tied, compare_values=False)
    if 2 * len(found.bindings) <= len(few):
        return None
    found = resolve_names(wanted, stored, layouts, tied, compare_values=False)
    unwanted = any(one.code == "LG612" for one in found.diagnostics)
    return len(wanted) - len(found.bindings), len(wanted), unwanted


def _is_first(path: str) -> bool:
    return all(word == "0" for word in path.split(".") if word.isdigit())


def explained(
    found: Resolution, resolved: ResolvedSpec, graph: Graph, stored: Checkpoint, registry: Registry
) -> tuple[Diagnostic, ...]:
    """The findings, or in their place one LG618 when the checkpoint is rather that of another known model."""
    structural = [one for one in found.diagnostics if one.code in _STRUCTURAL]
    if not structural:
        return found.diagnostics
    fit = best_fit(stored, registry)
    misfits = len(wanted_by(resolved, graph)) - len(found.bindings)
    if fit is None or resolved.spec.id in fit.ids or not (fit.exact or 10 * fit.misfits < misfits):
        return found.diagnostics
    message = (
        f"{quoted(str(stored.path))} is not a checkpoint of `{resolved.spec.id}`: "
        f"{structural[0].message}"
    )
    but = f"all but {fit.misfits} of " if fit.misfits else ""
    more = ", besides others" if fit.unwanted else ""
    help = f"{but}the {fit.tensors} tensors of {listed(fit.ids)} are there{more}"
    return (Diagnostic("LG618", "error", message, help=help),)


def listed(ids: Sequence[str]) -> str:
    """Base models before their variants, generation by generation, the rest counted."""
    chosen = [next(group) for _, group in groupby(ids, key=lambda i: i.rsplit("/", 1)[0])]
    shown = [f"`{i}`" for i in (chosen + [i for i in ids if i not in chosen])[:_SHOWN]]
    if len(ids) > len(shown):
        shown.append(f"{len(ids) - len(shown)} more of equal shape")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
