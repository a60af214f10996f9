"""Does a checkpoint hold a model? And if not this one, which one?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.ir.build import build
from llamagen.ir.graph import Graph, OpPart, instances, join, parameters
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
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
    """Which stored tensors make each parameter of ``graph``, and everything that is wrong with them.

    The spec's own layouts come first, then the known dialects. Raises LG304 as `layouts_for` does.
    """
    wanted = {path: p.shape for path, p in parameters(graph).items()}
    return resolve_names(wanted, stored, layouts_for(resolved), tied_roles(graph), compare_values)


def tied_roles(graph: Graph) -> dict[str, str]:
    """Role path of a tied weight -> role path of the parameter that serves as it."""
    return {
        join(join(here.path, part.name), "weight"): part.tied_to
        for here in instances(graph)
        for part in here.block.parts.values()
        if isinstance(part, OpPart) and part.tied_to is not None
    }


def best_fit(stored: Checkpoint, registry: Registry) -> tuple[str, ...]:
    """Ids of every model whose names and shapes are exactly those of the checkpoint; none if there is none.

    Headers only. Several ids are of one shape: nothing in a header tells LLaMA 7B from Llama 2 7B.
    """
    fitting: list[str] = []
    known: dict[tuple[str, str], bool] = {}
    for resolved in _models(registry):
        kind = resolved.digest, resolved.spec.checkpoint.model_dump_json()
        if kind not in known:
            known[kind] = _fits(resolved, stored)
        if known[kind]:
            fitting.append(resolved.spec.id)
    return tuple(fitting)


def _models(registry: Registry) -> Iterator[ResolvedSpec]:
    for spec_id in registry.ids(abstract=False):
        try:
            resolved = registry.load(spec_id)
        except LlamagenError:
            continue  # a broken spec of the user's own root is not what was asked about
        if not resolved.spec.abstract and resolved.spec.root is not None:
            yield resolved


def _fits(resolved: ResolvedSpec, stored: Checkpoint) -> bool:
    try:
        graph = build(resolved)
        layouts = layouts_for(resolved)
    except LlamagenError:
        return False
    wanted: Mapping[str, Shape] = {path: p.shape for path, p in parameters(graph).items()}
    tied = tied_roles(graph)
    # the first layer and what has no number decide for nearly every model
    few = {path: shape for path, shape in wanted.items() if _is_first(path)}
    for part, codes in ((few, {"LG610", "LG611", "LG613"}), (wanted, _STRUCTURAL)):
        found = resolve_names(part, stored, layouts, tied, compare_values=False)
        if any(one.code in codes for one in found.diagnostics):
            return False
    return True


def _is_first(path: str) -> bool:
    return all(word == "0" for word in path.split(".") if word.isdigit())


def explained(
    found: Iterable[Diagnostic], resolved: ResolvedSpec, stored: Checkpoint, registry: Registry
) -> tuple[Diagnostic, ...]:
    """The findings, or in their place one LG618 when the checkpoint is exactly another known model's."""
    findings = tuple(found)
    if all(one.code not in _STRUCTURAL for one in findings):
        return findings
    fitting = [spec_id for spec_id in best_fit(stored, registry) if spec_id != resolved.spec.id]
    if not fitting:
        return findings
    first = next(one for one in findings if one.code in _STRUCTURAL)
    message = (
        f"{quoted(str(stored.path))} is not a checkpoint of `{resolved.spec.id}`: {first.message}"
    )
    help = f"its names and shapes are those of {_listed(fitting)}"
    return (Diagnostic("LG618", "error", message, help=help),)


def _listed(ids: list[str]) -> str:
    """Base models before their variants, generation by generation, the rest counted."""
    chosen = [next(group) for _, group in groupby(ids, key=lambda i: i.rsplit("/", 1)[0])]
    shown = (chosen + [i for i in ids if i not in chosen])[:_SHOWN]
    more = f" and {len(ids) - len(shown)} more of equal shape" if len(ids) > len(shown) else ""
    return ", ".join(f"`{i}`" for i in shown) + more
