"""Which stored tensors make every parameter of a model, and everything that is wrong; or which other model it is.

The answer comes from headers alone, except that a stored head beside a tied embedding, and tensors that every rank
repeats, are compared by value (`compare_values`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, product
from typing import assert_never

from llamagen.diagnostics import Diagnostic, LlamagenError, nearest, quoted
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import Graph, all_parameters
from llamagen.ops.op import Parameter
from llamagen.spec.checks import scope_of
from llamagen.spec.expr import ExpressionError, Scope, UnknownName
from llamagen.spec.naming import BoundLayout, bind_layout, known_dialects
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import (
    PLACEHOLDER,
    ConcatSources,
    Identity,
    NameRule,
    ReshapeTo,
    RopePermute,
    SlicePart,
    StackSources,
    TileTableRows,
    TransposeLast,
    placeholders,
)
from llamagen.weights.checkpoint import Checkpoint, StoredTensor
from llamagen.weights.gguf_file import PACKED
from llamagen.weights.packed import decoded
from llamagen.weights.safetensors import WEIGHT_DTYPES, WeightDType, shape_text
from llamagen.weights.tensors import (
    Shape,
    ShapeProblem,
    Tensor,
    concat,
    cut,
    reshape,
    rope_rows,
    scaled,
    stack,
    stored,
    swap_last,
    tile_table,
    unpacked,
)

_NUMBER = re.compile(r"(?<![A-Za-z0-9_])[0-9]+(?![A-Za-z0-9_])")
_OTHER_SPEC = "`llamagen check CHECKPOINT --as ID` compares its headers with another spec"
_DROP = "if it carries no weights, a spec of your own may list it under `checkpoint: {drop: [...]}`"
_STRUCTURAL = frozenset({"LG610", "LG611", "LG612", "LG613"})
"""Findings that a checkpoint of another model has."""
_SHOWN = 4

Rows = tuple[tuple[str, ...], ...]
"""Stored names: rows (one per free number) of columns (`from`)."""


@dataclass(frozen=True, slots=True)
class Binding:
    """How one parameter is made: its role path, the type it is stored in, and what to read."""

    name: str
    dtype: WeightDType
    tensor: Tensor
    sources: tuple[str, ...]
    """Stored names, in reading order."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The dialect that was recognised, a binding per wanted tensor that is usable, and findings."""

    layout: str | None
    bindings: tuple[Binding, ...]
    diagnostics: tuple[Diagnostic, ...]

    def require(self) -> tuple[Binding, ...]:
        """The bindings, one per wanted tensor. Raises LlamagenError if any finding is an error."""
        errors = [one for one in self.diagnostics if one.severity == "error"]
        if errors:
            raise LlamagenError(errors)
        return self.bindings


def bind(
    resolved: ResolvedSpec, graph: Graph, checkpoint: Checkpoint, *, compare_values: bool = True
) -> Resolution:
    """Which stored tensors make each parameter of the model, and everything that is wrong with them.

    ``graph`` is its text model; the parameters of further graphs are wanted as well. The spec's own layouts come
    first, then the known dialects. Raises LG304 as `layouts_for` does.
    """
    wanted = {path: p.shape for path, p in wanted_by(resolved, graph).items()}
    layouts = layouts_for(resolved)
    return resolve_names(wanted, checkpoint, layouts, tied_roles(graph), compare_values)


def wanted_by(resolved: ResolvedSpec, graph: Graph) -> dict[str, Parameter]:
    """Parameters of the whole model: those of its text graph, and of further graphs of its spec."""
    return all_parameters(build_all(resolved)) if resolved.spec.graphs else graph.parameters


def tied_roles(graph: Graph) -> dict[str, str]:
    """Role path of a tied weight -> role path of the parameter that serves as it."""
    return {path: part.tied_to for path, part in graph.ties.items() if part.tied_to is not None}


# Layouts


def layouts_for(resolved: ResolvedSpec) -> tuple[BoundLayout, ...]:
    """The layouts that the spec states itself, then the known dialects; `checkpoint.drop` counts for all.

    Among layouts that fit equally well the first wins. Raises LG304 for an abstract spec that lacks a number.
    """
    scope = scope_of(resolved.spec)
    layouts: list[BoundLayout] = []
    for name, layout in resolved.spec.checkpoint.layouts.items():
        try:
            layouts.append(bind_layout(name, layout, scope))
        except ExpressionError as error:
            place = resolved.place("checkpoint", "layouts", name)
            raise LlamagenError.of("LG304", error.message, place, error.help) from None
    drop = resolved.spec.checkpoint.drop
    return tuple(replace(one, drop=(*one.drop, *drop)) for one in (*layouts, *dialects_for(scope)))


def dialects_for(scope: Scope) -> tuple[BoundLayout, ...]:
    """Every dialect of spec/dialects/ whose numbers the model has; without them it cannot be the model's."""
    layouts: list[BoundLayout] = []
    for name, layout in known_dialects().items():
        try:
            layouts.append(bind_layout(name, layout, scope))
        except UnknownName:
            continue
    return tuple(layouts)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[re.Pattern[str], tuple[tuple[str, str | None], ...]]:
    text, position = "", 0
    groups: list[tuple[str, str | None]] = []
    for match in PLACEHOLDER.finditer(pattern):
        text += re.escape(pattern[position : match.start()])
        text += "(.+)" if match["name"] == "*" else "(0|[1-9][0-9]*)"
        groups.append((match["index"] or match["name"], match["list"]))
        position = match.end()
    return re.compile(text + re.escape(pattern[position:])), tuple(groups)


def match_name(pattern: str, name: str, layout: BoundLayout) -> Mapping[str, str] | None:
    """What the placeholders stand for if `name` has the form of `pattern`, else None."""
    expression, groups = _compiled(pattern)
    match = expression.fullmatch(name)
    if match is None:
        return None
    captured: dict[str, str] = {}
    for (key, through), text in zip(groups, match.groups(), strict=True):
        value = text
        if through is not None:
            numbers = layout.lists[through]
            if int(text) not in numbers:
                return None
            value = str(numbers.index(int(text)))
        if captured.setdefault(key, value) != value:
            return None
    return captured


def _source_names(
    rule: NameRule, wanted: str, layout: BoundLayout, tensors: Mapping[str, StoredTensor]
) -> Rows | None:
    """Stored names that the rule wants; None if it is not about `wanted`.

    Without a free number there is one row. With one, rows go on while the first source exists; there is at least one.
    """
    captured = match_name(rule.to, wanted, layout)
    if captured is None:
        return None

    def row(numbers: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(PLACEHOLDER.sub(lambda m: numbers[m["name"]], s) for s in rule.sources)

    free = [n for source in rule.sources for n in placeholders(source) if n not in captured]
    if not free:
        return (row(captured),)
    rows: list[tuple[str, ...]] = []
    while True:
        names = row({**captured, free[0]: str(len(rows))})
        if rows and names[0] not in tensors:
            return tuple(rows)
        rows.append(names)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A layout applied to the names: complete sources per wanted name, and what is absent."""

    layout: BoundLayout
    sources: Mapping[str, tuple[NameRule, Rows]]
    absent: Mapping[str, tuple[str, ...]]


def _plan(wanted: Iterable[str], checkpoint: Checkpoint, layout: BoundLayout) -> _Plan:
    sources: dict[str, tuple[NameRule, Rows]] = {}
    absent: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        for rule in layout.rules:
            rows = _source_names(rule, name, layout, checkpoint.tensors)
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


# Bindings


def resolve_names(
    wanted: Mapping[str, Shape],
    checkpoint: Checkpoint,
    layouts: Sequence[BoundLayout],
    tied: Mapping[str, str] | None = None,
    compare_values: bool = True,
) -> Resolution:
    """Bind every wanted role path (-> shape) to stored tensors; all problems at once.

    `layouts` are bound (`bind_layout`). `tied` maps a role that is not wanted because it is tied (the head) to the
    wanted role that it repeats (the embedding).
    """
    fitting = [
        layout
        for layout in layouts
        if all(
            any(match_name(pattern, name, layout) is not None for name in checkpoint.tensors)
            for pattern in layout.detect
        )
    ]
    plans = [_plan(wanted, checkpoint, layout) for layout in fitting]
    plan = max(plans, key=lambda candidate: len(candidate.sources), default=None)
    if plan is None or not plan.sources:
        return Resolution(None, (), (_no_layout(checkpoint, layouts),))
    bindings: dict[str, Binding] = {}
    misshapen: dict[str, str] = {}
    mistyped: dict[str, str] = {}
    for name, (rule, rows) in plan.sources.items():
        binding = _bind(name, wanted[name], rule, rows, checkpoint, plan.layout)
        match binding:
            case Binding():
                bindings[name] = binding
            case ("LG613", message):
                misshapen[name] = message
            case (_, message):
                mistyped[name] = message
    findings = _missing(wanted, plan, _packed(checkpoint))
    findings += _grouped("LG613", misshapen, _OTHER_SPEC)
    findings += _grouped("LG614", mistyped, "weights are " + ", ".join(WEIGHT_DTYPES))
    heads: set[str] = set()
    for head, embedding in (tied or {}).items():
        rule_of_head = _plan([head], checkpoint, plan.layout).sources.get(head)
        if rule_of_head is not None and head not in plan.sources:
            rule, rows = rule_of_head
            heads.update(name for row in rows for name in row)
            if embedding in bindings:  # otherwise it has its own finding
                original = bindings[embedding]
                copy = _bind(head, original.tensor.shape, rule, rows, checkpoint, plan.layout)
                findings.append(_tied_head(copy, head, original, compare_values))
    findings += _unwanted(wanted, checkpoint, plan, heads)
    if compare_values:
        findings += _unequal_ranks(checkpoint, bindings.values())
    return Resolution(plan.layout.name, tuple(bindings.values()), tuple(findings))


def _bind(
    name: str,
    shape: Shape,
    rule: NameRule,
    rows: Rows,
    checkpoint: Checkpoint,
    layout: BoundLayout,
) -> Binding | tuple[str, str]:
    """A binding of this shape, or the code and the message of what is wrong."""
    grid = [[checkpoint.tensors[source] for source in row] for row in rows]
    every = [tensor for row in grid for tensor in row]
    first = every[0]
    origin = ""
    if [tensor.name for tensor in every] != [name]:
        more = f" and {len(every) - 1} more" if len(every) > 1 else ""
        origin = f" (from {quoted(first.name)}{more})"
    kinds = list(dict.fromkeys(tensor.read_as for tensor in every))
    dtype = next((one for one in WEIGHT_DTYPES if one == kinds[0]), None)
    if dtype is None or len(kinds) > 1:
        return "LG614", f"{quoted(name)}{origin} is stored as {' and '.join(kinds)}"
    try:
        tensor = _assembled(rule, grid, layout, shape)
    except ShapeProblem as error:
        return "LG613", f"{quoted(name)} must be {shape_text(shape)}{origin}, but {error}"
    if tensor.shape != shape:
        ranks = len(first.entries)
        split = f" in each of {ranks} shards" if ranks > 1 else ""
        has = f"{shape_text(first.shape if split else tensor.shape)}{split}{origin}"
        return "LG613", f"{quoted(name)} must be {shape_text(shape)}, but the checkpoint has {has}"
    return Binding(name, dtype, tensor, tuple(one.name for one in every))


def _assembled(
    rule: NameRule, grid: Sequence[Sequence[StoredTensor]], layout: BoundLayout, shape: Shape
) -> Tensor:
    """The tensor that the rule makes of its sources; joins ranks so that `shape` results.

    If no way of joining gives `shape`, the first is returned, or its ShapeProblem raised.
    """
    fallback: Tensor | None = None
    refused: ShapeProblem | None = None
    # all rows join alike: experts are stored alike
    for dims in product(*(_rank_dims(tensor, layout) for tensor in grid[0])):
        try:
            joined = [
                [_joined(one, dim) for one, dim in zip(row, dims, strict=True)] for row in grid
            ]
            result = _transformed(rule, joined, shape)
        except ShapeProblem as error:
            refused = refused or error
            continue
        if result.shape == shape:
            return result
        fallback = fallback or result
    if fallback is not None:
        return fallback
    assert refused is not None, "a rank has at least one way to join"
    raise refused


def _rank_dims(tensor: StoredTensor, layout: BoundLayout) -> tuple[int | None, ...]:
    for rule in layout.shards if len(tensor.entries) > 1 else ():
        if any(match_name(pattern, tensor.name, layout) is not None for pattern in rule.names):
            return rule.dims
    return (None,)


def _joined(tensor: StoredTensor, dim: int | None) -> Tensor:
    if tensor.scale is not None:
        return scaled(tensor.entries[0], tensor.scale, tensor.swapped_scale)
    if tensor.packed is not None:
        return decoded(tensor.packed)
    if tensor.dtype in PACKED:
        return unpacked(tensor.entries[0])
    if dim is None:
        return stored(tensor.entries[0])
    if dim >= len(tensor.shape):
        raise ShapeProblem(f"shards of {list(tensor.shape)} cannot join along dimension {dim}")
    return concat([stored(entry) for entry in tensor.entries], dim)


def _transformed(rule: NameRule, grid: list[list[Tensor]], shape: Shape) -> Tensor:
    for step in rule.transform:
        match step:
            case Identity():
                pass
            case RopePermute(heads=heads):
                assert isinstance(heads, int), "bind_layout comes first"
                grid = [[rope_rows(tensor, heads) for tensor in row] for row in grid]
            case TransposeLast():
                grid = [[swap_last(tensor) for tensor in row] for row in grid]
            case ConcatSources(dim=dim):
                grid = [[concat(row, dim)] for row in grid]
            case StackSources():
                grid = [[stack(column) for column in zip(*grid, strict=True)]]
            case ReshapeTo(shape=to):
                grid = [
                    [reshape(tensor, shape if to is None else to) for tensor in row] for row in grid
                ]
            case SlicePart(dim=dim, start=start, stop=stop):
                assert isinstance(start, int) and isinstance(stop, int), "bind_layout comes first"
                grid = [[cut(tensor, dim, start, stop) for tensor in row] for row in grid]
            case TileTableRows(grids=grids):
                assert isinstance(grids, tuple), "bind_layout comes first"
                grid = [[tile_table(tensor, grids) for tensor in row] for row in grid]
            case _:
                assert_never(step)
    ((result,),) = grid
    return result


# Findings


def _form(name: str) -> str:
    return _NUMBER.sub("{}", name)


def _groups(names: Iterable[str]) -> list[list[str]]:
    """Names that differ only in their numbers, together: one finding for all layers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_form(name), []).append(name)
    return list(groups.values())


def _and_more(group: Sequence[str]) -> str:
    more = f", and so do {len(group) - 1} more up to {quoted(group[-1])}"
    return more if len(group) > 1 else ""


def _grouped(code: str, messages: Mapping[str, str], help: str) -> list[Diagnostic]:
    return [
        Diagnostic(code, "error", messages[group[0]] + _and_more(group), help=help)
        for group in _groups(messages)
    ]


def _packed(checkpoint: Checkpoint) -> str | None:
    """A tensor that is part of a packed matrix, where nothing says how it is packed."""
    parts = (".qweight", ".weight_packed", ".SCB", ".absmax", ".weight_scale_inv")
    return next((name for name in checkpoint.tensors if name.endswith(parts)), None)


def _missing(wanted: Mapping[str, Shape], plan: _Plan, packed: str | None) -> list[Diagnostic]:
    findings: list[Diagnostic] = []
    for group in _groups(plan.absent):
        first, lacking = group[0], plan.absent[group[0]]
        more = f" and {len(group) - 1} more like it, up to {quoted(group[-1])}"
        more = more if len(group) > 1 else ""
        where = "" if not lacking or lacking[0] == first else f", stored as {quoted(lacking[0])}"
        message = f"the checkpoint lacks {quoted(first)} {shape_text(wanted[first])}{where}{more}"
        help = f"is the download complete? {_OTHER_SPEC}"
        if packed is not None:
            help = f"{quoted(packed)} is of packed weights: config.json has to say by `quantization_config` how"
        if not lacking:
            help = f"the naming layout {quoted(plan.layout.name)} has no rule for it"
        findings.append(Diagnostic("LG611", "error", message, help=help))
    return findings


def _unwanted(
    wanted: Mapping[str, Shape], checkpoint: Checkpoint, plan: _Plan, heads: set[str]
) -> list[Diagnostic]:
    used = {name for _, rows in plan.sources.values() for row in rows for name in row} | heads
    unused = [
        name
        for name in checkpoint.tensors
        if name not in used
        and not any(match_name(drop, name, plan.layout) is not None for drop in plan.layout.drop)
    ]
    absent = [source for sources in plan.absent.values() for source in sources]
    findings: list[Diagnostic] = []
    for group in _groups(unused):
        first = group[0]
        more = f" and {len(group) - 1} more like it" if len(group) > 1 else ""
        what = f"{quoted(first)} {shape_text(checkpoint.tensors[first].shape)}{more}"
        message = f"the checkpoint has {what}, which the model does not want"
        if near := _nearest(first, absent):
            help = f"{quoted(near)} is missing: did you mean that?"
        elif near := _nearest(first, wanted):
            help = f"the nearest tensor of the model is {quoted(near)}"
        else:
            help = _DROP
        findings.append(Diagnostic("LG612", "error", message, help=help))
    return findings


def _nearest(name: str, others: Iterable[str]) -> str | None:
    """Of ``others``, by their forms."""
    forms: dict[str, str] = {}
    for other in others:
        forms.setdefault(_form(other), other)
    near = nearest(_form(name), forms)
    return None if near is None else forms[near]


def _no_layout(checkpoint: Checkpoint, layouts: Sequence[BoundLayout]) -> Diagnostic:
    names = list(checkpoint.tensors)
    sample = ", ".join(map(quoted, names[:3])) or "nothing"
    tried = "; ".join(
        f"{layout.name} looks for {', '.join(map(quoted, layout.detect or ('role paths',)))}"
        for layout in layouts
    )
    message = (
        f"the {len(names)} tensor names of {quoted(str(checkpoint.path))} follow no layout that "
        f"this model knows; it begins with {sample}"
    )
    return Diagnostic("LG610", "error", message, help=tried or None)


def _tied_head(
    copy: Binding | tuple[str, str], head: str, original: Binding, compare_values: bool
) -> Diagnostic:
    """What is to be said about a stored head that the model ties."""
    if not isinstance(copy, Binding):
        help = f"the model ties it to {quoted(original.name)}"
        return Diagnostic("LG613", "error", copy[1], help=help)
    pair = f"{quoted(head)} is stored beside {quoted(original.name)}, which the model ties it to"
    if not compare_values:
        return Diagnostic("LG616", "note", f"{pair}; the values were not compared")
    from llamagen.weights.values import first_difference  # numpy only when values are read

    place = first_difference(copy, original)
    if place is None:
        return Diagnostic("LG616", "note", f"{pair}; it is an equal copy and is not used")
    message = f"{pair}, but it differs from it, first at {shape_text(place)}"
    help = "this checkpoint needs a spec with tie_embeddings: false"
    return Diagnostic("LG615", "error", message, help=help)


def _unequal_ranks(checkpoint: Checkpoint, bindings: Iterable[Binding]) -> list[Diagnostic]:
    """Tensors that every rank repeats are those of which only the first is read."""
    differing: dict[str, str] = {}
    for binding in bindings:
        for name in binding.sources:
            entries = checkpoint.tensors[name].entries
            if len(entries) == 1 or set(binding.tensor.entries).issuperset(entries):
                continue
            from llamagen.weights.values import first_difference

            first, *others = (Binding(name, binding.dtype, stored(e), (name,)) for e in entries)
            for rank, other in enumerate(others, start=1):
                if first_difference(first, other) is not None:
                    differing[name] = f"{quoted(name)} of shard 0 and shard {rank} differ"
                    break
    help = "the first shard is used; are these files of one model?"
    return [
        Diagnostic(
            "LG617",
            "warning",
            f"{differing[group[0]]} though every rank should hold the same{_and_more(group)}",
            help=help,
        )
        for group in _groups(differing)
    ]


# And if it is not this model, which one?


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


def best_fit(checkpoint: Checkpoint, registry: Registry) -> Fit | None:
    """The models that the checkpoint's names and shapes are nearest to; None if most of it fits none.

    Headers only. Models of one shape stay together: nothing in a header tells LLaMA 7B from Llama 2 7B.
    """
    known: dict[tuple[str, str], tuple[int, int, bool] | None] = {}
    fits: dict[tuple[int, int, bool], list[str]] = {}
    for resolved in _models(registry):
        kind = resolved.digest, resolved.spec.checkpoint.model_dump_json()
        if kind not in known:
            known[kind] = _compared(resolved, checkpoint)
        result = known[kind]
        if result is not None:
            fits.setdefault(result, []).append(resolved.spec.id)
    if not fits:
        return None
    misfits, tensors, unwanted = best = min(fits, key=lambda r: (r[0] + r[2], -r[1]))
    return Fit(tuple(fits[best]), tensors, misfits, unwanted)


def _models(registry: Registry) -> Iterator[ResolvedSpec]:
    for spec_id in registry.ids(abstract=False):
        try:
            resolved = registry.load(spec_id)
        except LlamagenError:
            continue  # a broken spec of the user's own root is not what was asked about
        if not resolved.spec.abstract and resolved.spec.root is not None:
            yield resolved


def _compared(resolved: ResolvedSpec, checkpoint: Checkpoint) -> tuple[int, int, bool] | None:
    """Misfits, tensors, whether there are unwanted ones; None when most of the first layer does not fit."""
    try:
        graph = build(resolved)
        layouts = layouts_for(resolved)
    except LlamagenError:
        return None
    wanted = {path: p.shape for path, p in wanted_by(resolved, graph).items()}
    tied = tied_roles(graph)
    few = {
        path: shape
        for path, shape in wanted.items()
        if all(word == "0" for word in path.split(".") if word.isdigit())
    }
    first = resolve_names(few, checkpoint, layouts, tied, compare_values=False)
    if 2 * len(first.bindings) <= len(few):
        return None
    every = resolve_names(wanted, checkpoint, layouts, tied, compare_values=False)
    unwanted = any(one.code == "LG612" for one in every.diagnostics)
    return len(wanted) - len(every.bindings), len(wanted), unwanted


def explained(
    resolution: Resolution,
    resolved: ResolvedSpec,
    graph: Graph,
    checkpoint: Checkpoint,
    registry: Registry,
) -> tuple[Diagnostic, ...]:
    """The findings, or in their place one LG618 when the checkpoint is rather that of another known model."""
    findings = resolution.diagnostics
    structural = [one for one in findings if one.code in _STRUCTURAL]
    if not structural:
        return findings
    fit = best_fit(checkpoint, registry)
    misfits = len(wanted_by(resolved, graph)) - len(resolution.bindings)
    if fit is None or resolved.spec.id in fit.ids or not (fit.exact or 10 * fit.misfits < misfits):
        return findings
    message = (
        f"{quoted(str(checkpoint.path))} is not a checkpoint of `{resolved.spec.id}`: "
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
