"""Which stored tensors make every tensor that a model wants, and everything that is wrong.

The answer comes from headers alone, except that a stored head beside a tied embedding, and
tensors that every rank repeats, are compared by value (`compare_values`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llamagen.diagnostics import Diagnostic, LlamagenError, did_you_mean
from llamagen.spec.naming import BoundLayout
from llamagen.spec.schema import NameRule
from llamagen.weights.binding import Binding, assemble, source_names
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.dtypes import WEIGHT_DTYPES, as_weight_dtype
from llamagen.weights.nodes import Leaf, Shape, ShapeProblem, shape_of
from llamagen.weights.problems import quoted, shape_text
from llamagen.weights.rules import match_name
from llamagen.weights.stored_tensor import StoredTensor

_NUMBER = re.compile(r"(?<![A-Za-z0-9_])[0-9]+(?![A-Za-z0-9_])")
_OTHER_SPEC = "`llamagen check CHECKPOINT --as ID` compares its headers with another spec"
_DROP = "if it carries no weights, a spec of your own may list it under `checkpoint: {drop: [...]}`"
_NO_TIES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Resolution:
    """The dialect that was recognised, a binding per wanted tensor that is usable, and findings."""

    layout: str | None
    bindings: tuple[Binding, ...]
    diagnostics: tuple[Diagnostic, ...]

    def require(self) -> tuple[Binding, ...]:
        """The bindings, one per wanted tensor. Raises LlamagenError if any finding is an error."""
        errors = [found for found in self.diagnostics if found.severity == "error"]
        if errors:
            raise LlamagenError(errors)
        return self.bindings


@dataclass(frozen=True, slots=True)
class _Plan:
    """A layout applied to the names: complete sources per wanted name, and what is absent."""

    layout: BoundLayout
    sources: Mapping[str, tuple[NameRule, tuple[tuple[str, ...], ...]]]
    absent: Mapping[str, tuple[str, ...]]


def resolve_names(
    wanted: Mapping[str, Shape],
    checkpoint: Checkpoint,
    layouts: Sequence[BoundLayout],
    tied: Mapping[str, str] = _NO_TIES,
    compare_values: bool = True,
) -> Resolution:
    """Bind every wanted role path (-> shape) to stored tensors; all problems at once.

    `layouts` are bound (`bind_layout`). `tied` maps a role that is not wanted because it
    is tied (the head) to the wanted role that it repeats (the embedding).
    """
    plans = [_plan(wanted, checkpoint, layout) for layout in layouts if _fits(layout, checkpoint)]
    plan = max(plans, key=lambda candidate: len(candidate.sources), default=None)
    if plan is None or not plan.sources:
        return Resolution(None, (), (_no_layout(checkpoint, layouts),))
    found = _missing(wanted, plan)
    bindings: list[Binding] = []
    misshapen: dict[str, str] = {}
    mistyped: dict[str, str] = {}
    for name, (rule, rows) in plan.sources.items():
        stored = [[checkpoint.tensors[source] for source in row] for row in rows]
        binding = _bind(name, wanted[name], rule, stored, plan.layout, misshapen, mistyped)
        if binding is not None:
            bindings.append(binding)
    found += _grouped("LG613", misshapen, _OTHER_SPEC)
    found += _grouped("LG614", mistyped, "weights are " + ", ".join(WEIGHT_DTYPES))
    heads, head_notes = _tied_heads(checkpoint, plan, bindings, tied, compare_values)
    found += head_notes
    found += _extra(wanted, checkpoint, plan, heads)
    if compare_values:
        found += _unequal_ranks(checkpoint, bindings)
    return Resolution(plan.layout.name, tuple(bindings), tuple(found))


def _fits(layout: BoundLayout, checkpoint: Checkpoint) -> bool:
    return all(
        any(match_name(pattern, name, layout) is not None for name in checkpoint.tensors)
        for pattern in layout.detect
    )


def _plan(wanted: Iterable[str], checkpoint: Checkpoint, layout: BoundLayout) -> _Plan:
    sources: dict[str, tuple[NameRule, tuple[tuple[str, ...], ...]]] = {}
    absent: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        for rule in layout.rules:
            rows = source_names(rule, name, layout, checkpoint.tensors)
            if rows is None:
                continue
            lacking = tuple(s for row in rows for s in row if s not in checkpoint.tensors)
            if not lacking:
                sources[name] = (rule, rows)
                absent.pop(name, None)
                break
            absent.setdefault(name, lacking)
        else:
            absent.setdefault(name, ())
    return _Plan(layout, sources, absent)


def _bind(
    name: str,
    shape: Shape,
    rule: NameRule,
    rows: Sequence[Sequence[StoredTensor]],
    layout: BoundLayout,
    misshapen: dict[str, str],
    mistyped: dict[str, str],
) -> Binding | None:
    stored = [tensor for row in rows for tensor in row]
    origin = _origin(name, [tensor.name for tensor in stored])
    kinds = list(dict.fromkeys(tensor.read_as for tensor in stored))
    dtype = as_weight_dtype(kinds[0])
    if dtype is None or len(kinds) > 1:
        mistyped[name] = f"{quoted(name)}{origin} is stored as {' and '.join(kinds)}"
        return None
    try:
        source = assemble(rule, rows, layout, shape)
        made = shape_of(source)
    except ShapeProblem as error:
        misshapen[name] = f"{quoted(name)} must be {shape_text(shape)}{origin}, but {error}"
        return None
    if made != shape:
        ranks = len(stored[0].pieces)
        split = f" in each of {ranks} shards" if ranks > 1 else ""
        stored_as = shape_text(stored[0].shape) if split else shape_text(made)
        misshapen[name] = (
            f"{quoted(name)} must be {shape_text(shape)}, but the checkpoint has {stored_as}"
            f"{split}{origin}"
        )
        return None
    return Binding(name, shape, dtype, source, tuple(tensor.name for tensor in stored))


def _origin(name: str, sources: Sequence[str]) -> str:
    if list(sources) == [name]:
        return ""
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f" (from {quoted(sources[0])}{more})"


def _form(name: str) -> str:
    return _NUMBER.sub("{}", name)


def _groups(names: Iterable[str]) -> list[list[str]]:
    """Names that differ only in their numbers, together: one finding for all layers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_form(name), []).append(name)
    return list(groups.values())


def _and_more(group: Sequence[str]) -> str:
    if len(group) == 1:
        return ""
    return f", and so do {len(group) - 1} more up to {quoted(group[-1])}"


def _grouped(code: str, messages: Mapping[str, str], help: str | None = None) -> list[Diagnostic]:
    return [
        Diagnostic(code, "error", messages[group[0]] + _and_more(group), help=help)
        for group in _groups(messages)
    ]


def _missing(wanted: Mapping[str, Shape], plan: _Plan) -> list[Diagnostic]:
    found = []
    for group in _groups(plan.absent):
        first, lacking = group[0], plan.absent[group[0]]
        more = (
            f" and {len(group) - 1} more like it, up to {quoted(group[-1])}"
            if len(group) > 1
            else ""
        )
        stored = "" if not lacking or lacking[0] == first else f", stored as {quoted(lacking[0])}"
        found.append(
            Diagnostic(
                "LG611",
                "error",
                f"the checkpoint lacks {quoted(first)} {shape_text(wanted[first])}{stored}{more}",
                help=f"is the download complete? {_OTHER_SPEC}"
                if lacking
                else f"the naming layout {quoted(plan.layout.name)} has no rule for it",
            )
        )
    return found


def _extra(
    wanted: Mapping[str, Shape], checkpoint: Checkpoint, plan: _Plan, heads: frozenset[str]
) -> list[Diagnostic]:
    used = {name for _, rows in plan.sources.values() for row in rows for name in row} | heads
    extra = [
        name
        for name in checkpoint.tensors
        if name not in used
        and not any(match_name(drop, name, plan.layout) is not None for drop in plan.layout.drop)
    ]
    absent = [source for sources in plan.absent.values() for source in sources]
    found = []
    for group in _groups(extra):
        first = group[0]
        more = f" and {len(group) - 1} more like it" if len(group) > 1 else ""
        found.append(
            Diagnostic(
                "LG612",
                "error",
                f"the checkpoint has {quoted(first)} "
                f"{shape_text(checkpoint.tensors[first].shape)}{more}, which the model does not "
                "want",
                help=_meant(first, absent, wanted) or _DROP,
            )
        )
    return found


def _meant(name: str, absent: Sequence[str], wanted: Mapping[str, Shape]) -> str | None:
    near = did_you_mean(_form(name), dict.fromkeys(map(_form, absent)))
    if near is not None:
        missing = next(other for other in absent if _form(other) == near)
        return f"{quoted(missing)} is missing: did you mean that?"
    near = did_you_mean(_form(name), dict.fromkeys(map(_form, wanted)))
    if near is None:
        return None
    role = next(other for other in wanted if _form(other) == near)
    return f"the nearest tensor of the model is {quoted(role)}"


def _no_layout(checkpoint: Checkpoint, layouts: Sequence[BoundLayout]) -> Diagnostic:
    names = list(checkpoint.tensors)
    sample = ", ".join(quoted(name) for name in names[:3]) or "nothing"
    tried = "; ".join(
        f"{layout.name} looks for {', '.join(map(quoted, layout.detect or ('role paths',)))}"
        for layout in layouts
    )
    return Diagnostic(
        "LG610",
        "error",
        f"the {len(names)} tensor names of {quoted(str(checkpoint.path))} follow no layout that "
        f"this model knows; it begins with {sample}",
        help=tried or None,
    )


def _tied_heads(
    checkpoint: Checkpoint,
    plan: _Plan,
    bindings: Sequence[Binding],
    tied: Mapping[str, str],
    compare_values: bool,
) -> tuple[frozenset[str], list[Diagnostic]]:
    """Stored heads that the model ties, and what is to be said about them."""
    bound = {binding.name: binding for binding in bindings}
    stored_heads: set[str] = set()
    found: list[Diagnostic] = []
    for head, embedding in tied.items():
        copy = _plan([head], checkpoint, plan.layout).sources.get(head)
        original = bound.get(embedding)
        if copy is None or head in plan.sources:
            continue
        rule, rows = copy
        stored_heads.update(name for row in rows for name in row)
        if original is None:
            continue  # the embedding has its own finding
        stored = [[checkpoint.tensors[source] for source in row] for row in rows]
        trouble: dict[str, str] = {}
        binding = _bind(head, original.shape, rule, stored, plan.layout, trouble, trouble)
        if binding is None:
            found += _grouped("LG613", trouble, f"the model ties it to {quoted(embedding)}")
            continue
        found.append(_compared(binding, original, compare_values))
    return frozenset(stored_heads), found


def _compared(head: Binding, original: Binding, compare_values: bool) -> Diagnostic:
    pair = (
        f"{quoted(head.name)} is stored beside {quoted(original.name)}, which the model ties it to"
    )
    if not compare_values:
        return Diagnostic("LG616", "note", f"{pair}; the values were not compared")
    from llamagen.weights.stream import first_difference  # numpy only when values are read

    place = first_difference(head, original)
    if place is None:
        return Diagnostic("LG616", "note", f"{pair}; it is an equal copy and is not used")
    return Diagnostic(
        "LG615",
        "error",
        f"{pair}, but it differs from it, first at {shape_text(place)}",
        help="this checkpoint needs a spec with tie_embeddings: false",
    )


def _unequal_ranks(checkpoint: Checkpoint, bindings: Sequence[Binding]) -> list[Diagnostic]:
    if all(len(tensor.pieces) == 1 for tensor in checkpoint.tensors.values()):
        return []
    from llamagen.weights.stream import first_difference

    differing: dict[str, str] = {}
    for binding in bindings:
        read = set(binding.entries)
        for name in binding.sources:
            pieces = checkpoint.tensors[name].pieces
            if len(pieces) == 1 or read.issuperset(pieces):
                continue
            for rank, piece in enumerate(pieces[1:], start=1):
                one, other = (
                    Binding(name, part.shape, binding.dtype, Leaf(part), (name,))
                    for part in (pieces[0], piece)
                )
                if first_difference(one, other) is not None:
                    differing[name] = f"{quoted(name)} of shard 0 and shard {rank} differ"
                    break
    return [
        Diagnostic(
            "LG617",
            "warning",
            f"{differing[group[0]]} though every rank should hold the same{_and_more(group)}",
            help="the first shard is used; are these files of one model?",
        )
        for group in _groups(differing)
    ]
