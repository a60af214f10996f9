"""Words about one thing: a value of a model, an op, a diagnostic code."""

from __future__ import annotations

from collections.abc import Iterator

from llamagen.analysis.records import FAMILY
from llamagen.analysis.sources import (
    conflicts,
    family_of,
    known_sources,
    matches,
    source_of,
    uncertain,
)
from llamagen.diagnostics import LlamagenError, did_you_mean, nearest
from llamagen.ir.elaborate import SPELLINGS
from llamagen.ops.op import AttrSpec, Op
from llamagen.ops.table import OPS
from llamagen.spec.expr import FUNCTIONS, ExpressionError, names, parse
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import Branch, Leaf, ResolvedSpec, Tree, value_to_plain
from llamagen.spec.schema import Hyperparameters

_SHORT = ("hyperparameters", "constants", "patterns", "release", "training")
_SHOWN_IDS = 12
_NO_DATE = "9999"


def explain_ops() -> str:
    """The op table and the spellings beside it, one line each."""
    shown = [op for op in OPS.values() if not op.internal]
    width = max(len(op.name) for op in shown)
    parts = [f"  {op.name.ljust(width)}  {_first_line(op.doc)}" for op in shown if op.is_part]
    calls = [f"  {op.name.ljust(width)}  {_first_line(op.doc)}" for op in shown if not op.is_part]
    lines = [
        "Parts (declared under `parts`, they own weights):",
        *parts,
        "",
        "Ops (called in `forward`):",
        *calls,
        "",
        "Spellings (they stand for several ops):",
        *(f"  {spelling.signature}" for spelling in SPELLINGS.values()),
    ]
    return "".join(f"{line}\n" for line in lines)


def explain_named(name: str) -> str:
    """An op or a spelling by name. Raises LG901 for anything else."""
    op, spelling = OPS.get(name), SPELLINGS.get(name)
    if spelling is not None:
        written = f"{spelling.signature}\n\n{spelling.doc}\n"
        return written if op is None else f"{written}\n{explain_op(op)}"
    if op is None:
        message = f"`{name}` is neither an op nor a diagnostic code"
        of_model = "for a value of a model write `llamagen explain ID PATH`"
        help = did_you_mean(name, [*OPS, *SPELLINGS], of_model)
        raise LlamagenError.of("LG901", message, help=help)
    return explain_op(op)


def explain_op(op: Op) -> str:
    """One row of the op table."""
    optional = [f"[{name}]" for name in op.optional_operands]
    operands = [*op.operands, *optional, *(["..."] if op.variadic else [])]
    lines = [f"{op.name}({', '.join(operands)})", "", op.doc, "", f"formula:   {op.formula}"]
    lines.append(f"precision: {op.precision.value}")
    if op.cite:
        lines.append(f"source:    {op.cite.replace('facts ', 'docs/facts.md ')}")
    kind = "declared under `parts`" if op.is_part else "called in `forward`"
    if op.hoisted:
        kind += "; depends on inputs alone, so it is computed once for all layers"
    lines.append(f"use:       {kind}")
    if op.attrs:
        lines += ["", "attributes:"]
        width = max(len(a.name) for a in op.attrs)
        lines += [f"  {a.name.ljust(width)}  {_attribute(a)}" for a in op.attrs]
    return "".join(f"{line}\n" for line in lines)


def _attribute(attr: AttrSpec) -> str:
    if attr.derived:
        return f"{attr.type}, set by a pass over the graph: {attr.doc}"
    text = f"{attr.type}, {'required' if attr.required else f'default {_word(attr.default)}'}"
    if attr.choices:
        text += f", one of {', '.join(attr.choices)}"
    return f"{text}: {attr.doc}"


def _word(value: object) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def explain_value(registry: Registry, resolved: ResolvedSpec, path: str) -> str:
    """A value of a spec: who wrote it, from which source, what ties it, who else has it. Raises LG901."""
    steps, tree = _find(resolved, path)
    dotted = ".".join(steps)
    lines = [f"{resolved.spec.id}: {dotted}"]
    if isinstance(tree, Branch):
        lines.append("a section with:")
        lines += [f"  {name}" for name in tree.entries]
        lines += _disputes(resolved, dotted)
        return "".join(f"{line}\n" for line in lines)
    lines[0] += f" = {_shortened(tree.origins[-1].text)}"
    lines += _meaning(steps)
    lines.append("written by:")
    for origin in reversed(tree.origins):
        lines.append(f"  {origin.span} ({origin.spec_id}): {_shortened(origin.text)}")
    lines += _sources(resolved, dotted)
    lines += _ties(resolved, steps)
    lines += _company(registry, resolved, steps, tree)
    return "".join(f"{line}\n" for line in lines)


def _find(resolved: ResolvedSpec, path: str) -> tuple[tuple[str, ...], Tree]:
    steps = tuple(path.split("."))
    for prefix in ((), *((section,) for section in _SHORT)):
        tree = resolved.find(*prefix, *steps)
        if tree is not None:
            return (*prefix, *steps), tree
    known = [dotted for dotted, _ in resolved.leaves]
    short = {dotted.split(".", 1)[-1]: dotted for dotted in known}
    near = nearest(path, [*known, *short])
    message = f"`{resolved.spec.id}` has no value at `{path}`"
    help = (
        f"did you mean `{short.get(near, near)}`?"
        if near
        else "`llamagen resolve ID` shows every path"
    )
    raise LlamagenError.of("LG901", message, help=help)


def _shortened(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{first} ..." if rest.strip() else first


def _meaning(steps: tuple[str, ...]) -> Iterator[str]:
    if steps[0] != "hyperparameters" or len(steps) < 2:
        return
    field = Hyperparameters.model_fields.get(steps[1])
    if field is not None and field.description:
        yield f"meaning: {field.description}"


def _sources(resolved: ResolvedSpec, dotted: str) -> Iterator[str]:
    key = source_of(resolved, dotted)
    if key is None:
        yield "source: none; only `provenance` of the file that wrote it, or of an heir, can name one"
    else:
        about = known_sources().get(key.split("#", 1)[0])
        yield f"source: {key}" + (f" ({about})" if about else "")
    for doubt in uncertain(resolved):
        if matches(doubt.path, dotted):
            yield f"uncertain: {' '.join(doubt.why.split())}"
    yield from _disputes(resolved, dotted)


def _disputes(resolved: ResolvedSpec, dotted: str) -> Iterator[str]:
    """About a value, or about anything in a section."""
    for conflict in conflicts(resolved):
        inside = conflict.path.startswith(f"{dotted}.")
        if inside or matches(conflict.path, dotted):
            about = f" {conflict.path.removeprefix(f'{dotted}.')}" if inside else ""
            yield f"disputed{about}: {conflict.choice} was chosen, {' '.join(conflict.reason.split())}"
            yield from (f"  {claim.value}, says {claim.source}" for claim in conflict.claims)


def _ties(resolved: ResolvedSpec, steps: tuple[str, ...]) -> Iterator[str]:
    name = steps[1] if len(steps) > 1 else steps[0]
    for key, text in resolved.spec.invariants.items():
        try:
            used = {n.id for n in names(parse(text))} - set(FUNCTIONS)
        except ExpressionError:
            continue
        if name in used:
            yield f"invariant {key}: {text.strip()}"


def _company(
    registry: Registry, resolved: ResolvedSpec, steps: tuple[str, ...], leaf: Leaf
) -> Iterator[str]:
    value = value_to_plain(leaf)
    same: list[tuple[str, str]] = []
    families = {FAMILY, family_of(resolved.spec.id)}
    for spec_id in registry.ids(abstract=False):
        if family_of(spec_id) not in families:
            continue
        other = registry.load(spec_id)
        tree = other.find(*steps)
        if isinstance(tree, Leaf) and value_to_plain(tree) == value:
            same.append((_date(other), spec_id))
    others = sorted(spec_id for _, spec_id in same if spec_id != resolved.spec.id)
    if not others:
        yield "nobody else has this value"
        return
    date, first = min(same)
    more = f" and {len(others) - _SHOWN_IDS} more" if len(others) > _SHOWN_IDS else ""
    yield f"first: {first}" + (f", {date}" if date < _NO_DATE else "")
    yield f"the same in {len(others)}: {', '.join(others[:_SHOWN_IDS])}{more}"


def _date(resolved: ResolvedSpec) -> str:
    release = resolved.spec.release
    return str(release.date) if release is not None and release.date is not None else _NO_DATE
