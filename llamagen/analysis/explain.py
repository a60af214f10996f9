"""Words about one thing: a value of a model, an op, a diagnostic code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamagen.analysis.sources import (
    conflicts,
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
from llamagen.spec.families import FAMILY, family_of
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


@dataclass(frozen=True, slots=True)
class Writing:
    """A place that wrote a value: the last of them counts."""

    place: str
    spec: str
    text: str


@dataclass(frozen=True, slots=True)
class Dispute:
    """Authorities that disagree about a value, and which was followed."""

    path: str
    choice: str
    reason: str
    claims: tuple[tuple[str, str], ...]
    """Values and the sources that have them."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of one value of a spec, or of a section of it."""

    id: str
    path: str
    value: str | None
    """None of a section."""
    section: tuple[str, ...]
    """Names in it."""
    meaning: str | None
    written: tuple[Writing, ...]
    """The one that counts first."""
    source: str | None
    """Key of spec/sources.yaml, with a place in it."""
    source_title: str | None
    uncertain: tuple[str, ...]
    """Why it is an inference."""
    disputes: tuple[Dispute, ...]
    invariants: tuple[tuple[str, str], ...]
    """Names and formulas that it stands in."""
    first: str | None
    """The earliest model of the family that has this value; none where nobody else has it."""
    first_date: str | None
    same: tuple[str, ...]
    """Others that have it."""


def explained(registry: Registry, resolved: ResolvedSpec, path: str) -> Explanation:
    """What is known of a value: who wrote it, from which source, what ties it, who else has it. Raises LG901."""
    steps, tree = _find(resolved, path)
    dotted = ".".join(steps)
    disputes = tuple(_disputes(resolved, dotted))
    if isinstance(tree, Branch):
        names_in = tuple(tree.entries)
        return Explanation(
            resolved.spec.id, dotted, None, names_in, None, (), None, None, (), disputes, (), None, None, ()
        )  # fmt: skip
    key = source_of(resolved, dotted)
    first, same = _company(registry, resolved, steps, tree)
    return Explanation(
        id=resolved.spec.id,
        path=dotted,
        value=tree.origins[-1].text,
        section=(),
        meaning=_meaning(steps),
        written=tuple(Writing(str(o.span), o.spec_id, o.text) for o in reversed(tree.origins)),
        source=key,
        source_title=known_sources().get(key.split("#", 1)[0]) if key is not None else None,
        uncertain=tuple(
            " ".join(doubt.why.split())
            for doubt in uncertain(resolved)
            if matches(doubt.path, dotted)
        ),
        disputes=disputes,
        invariants=tuple(_ties(resolved, steps)),
        first=first[1] if first is not None else None,
        first_date=first[0] if first is not None and first[0] < _NO_DATE else None,
        same=same,
    )


def explain_value(registry: Registry, resolved: ResolvedSpec, path: str) -> str:
    """What is known of a value, for people. Raises LG901."""
    return explanation_text(explained(registry, resolved, path))


def explanation_text(one: Explanation) -> str:
    """For people: a line each."""
    return "".join(f"{line}\n" for line in _explanation_lines(one))


def _explanation_lines(one: Explanation) -> Iterator[str]:
    if one.value is None:
        yield f"{one.id}: {one.path}"
        yield "a section with:"
        yield from (f"  {name}" for name in one.section)
        yield from _disputes_said(one)
        return
    yield f"{one.id}: {one.path} = {_shortened(one.value)}"
    if one.meaning is not None:
        yield f"meaning: {one.meaning}"
    yield "written by:"
    for by in one.written:
        yield f"  {by.place} ({by.spec}): {_shortened(by.text)}"
    if one.source is None:
        yield "source: none; only `provenance` of the file that wrote it, or of an heir, can name one"
    else:
        yield f"source: {one.source}" + (f" ({one.source_title})" if one.source_title else "")
    yield from (f"uncertain: {why}" for why in one.uncertain)
    yield from _disputes_said(one)
    yield from (f"invariant {name}: {formula}" for name, formula in one.invariants)
    if one.first is None:
        yield "nobody else has this value"
        return
    yield f"first: {one.first}" + (f", {one.first_date}" if one.first_date else "")
    more = f" and {len(one.same) - _SHOWN_IDS} more" if len(one.same) > _SHOWN_IDS else ""
    yield f"the same in {len(one.same)}: {', '.join(one.same[:_SHOWN_IDS])}{more}"


def _disputes_said(one: Explanation) -> Iterator[str]:
    for dispute in one.disputes:
        about = (
            f" {dispute.path.removeprefix(f'{one.path}.')}"
            if dispute.path.startswith(f"{one.path}.")
            else ""
        )
        yield f"disputed{about}: {dispute.choice} was chosen, {dispute.reason}"
        yield from (f"  {value}, says {source}" for value, source in dispute.claims)


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


def _meaning(steps: tuple[str, ...]) -> str | None:
    if steps[0] != "hyperparameters" or len(steps) < 2:
        return None
    field = Hyperparameters.model_fields.get(steps[1])
    return field.description if field is not None else None


def _disputes(resolved: ResolvedSpec, dotted: str) -> Iterator[Dispute]:
    """About a value, or about anything in a section."""
    for conflict in conflicts(resolved):
        if conflict.path.startswith(f"{dotted}.") or matches(conflict.path, dotted):
            said = tuple((str(claim.value), claim.source) for claim in conflict.claims)
            reason = " ".join(conflict.reason.split())
            yield Dispute(conflict.path, str(conflict.choice), reason, said)


def _ties(resolved: ResolvedSpec, steps: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    name = steps[1] if len(steps) > 1 else steps[0]
    for key, text in resolved.spec.invariants.items():
        try:
            used = {n.id for n in names(parse(text))} - set(FUNCTIONS)
        except ExpressionError:
            continue
        if name in used:
            yield key, text.strip()


def _company(
    registry: Registry, resolved: ResolvedSpec, steps: tuple[str, ...], leaf: Leaf
) -> tuple[tuple[str, str] | None, tuple[str, ...]]:
    """Date and id of the first that has the value, and who else has it."""
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
    others = tuple(sorted(spec_id for _, spec_id in same if spec_id != resolved.spec.id))
    return (min(same) if others else None), others


def _date(resolved: ResolvedSpec) -> str:
    release = resolved.spec.release
    return str(release.date) if release is not None and release.date is not None else _NO_DATE
