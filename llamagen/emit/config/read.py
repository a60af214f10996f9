"""``llamagen import``: a foreign configuration as a spec that extends the nearest known model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llamagen.analysis.identify import Candidate, Match, nearest, same
from llamagen.diagnostics import Diagnostic, LlamagenError, did_you_mean
from llamagen.emit.config.codecs import CodecError, Json
from llamagen.emit.config.inverse import change_for, lay
from llamagen.emit.config.known import Known
from llamagen.emit.config.render import Draft, changed, draft
from llamagen.emit.config.table import (
    absences,
    config_scope,
    fixed_of,
    flat,
    plain,
    value_of,
    written_fields,
)
from llamagen.emit.config.ties import tied_values
from llamagen.emit.config.wanted import Wanted
from llamagen.emit.config.write import config_values
from llamagen.ir.elaborate import build
from llamagen.spec.checks import scope_of
from llamagen.spec.expr import ExpressionError, evaluate, names, parse
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Spec
from llamagen.spec.source import load_source

SECTIONS = ("tokenizer", "hyperparameters", "constants", "patterns")


@dataclass(frozen=True, slots=True)
class Imported:
    """The spec as text and resolved, and what became of every key of the file."""

    text: str
    resolved: ResolvedSpec
    nearest: Match
    exact: tuple[str, ...]
    """Ids whose config.json is this one, value for value."""
    alike: tuple[str, ...]
    """Ids whose architecture is this one."""
    handled: tuple[str, ...]
    ignored: Mapping[str, str]
    """Key as the file calls it -> why nothing is lost."""
    dropped: tuple[str, ...]
    """Invariants of the nearest model that do not hold here."""
    notes: tuple[str, ...] = ()


def import_wanted(
    wanted: Wanted, spec_id: str, models: Sequence[Known], registry: Registry
) -> Imported:
    """Raises LlamagenError: LG107 unknown keys, LG102 missing ones, LG103 and LG108 values that cannot be."""
    models = [one for one in models if one.mapping.kind == wanted.kind and _scaled(one, wanted)]
    mapping = models[0].mapping
    meant = {} if wanted.partial else absences(mapping, wanted.values)
    values = {**meant, **wanted.values}
    keys = {key for one in models for key in one.fields}
    fields = {key: value for key, value in values.items() if key in keys}
    literals = {key for one in models for key in one.literals}
    marks = {key: value for key, value in wanted.values.items() if key in literals}
    ranked = nearest(
        fields, marks, (Candidate(one.spec.id, one.fields, one.literals) for one in models)
    )
    base = next(one for one in models if one.spec.id == ranked[0].id)
    findings = [*_unknown(wanted, base, keys), *_missing(wanted, base, values)]
    findings += _not_fixed(wanted, base, values)
    if findings:
        raise LlamagenError(findings)
    made = _Writer(wanted, base, ranked[0], spec_id, registry).run(fields)
    exact = tuple(
        one.spec.id
        for one in models
        if not wanted.partial and same(config_values(one.spec, one.mapping), _whole(wanted))
    )
    return replace(
        made,
        exact=exact,
        alike=tuple(match.id for match in ranked if not match.differences),
        handled=tuple(wanted.named(key) for key in wanted.values if not _reason(base, key)),
        ignored={
            **wanted.ignored,
            **{wanted.named(k): r for k in wanted.values if (r := _reason(base, k))},
        },
    )


def _scaled(one: Known, wanted: Wanted) -> bool:
    rope = one.spec.hyperparameters.rope
    return wanted.scaled is None or (rope is not None and (rope.kind != "default")) == wanted.scaled


def _whole(wanted: Wanted) -> dict[str, Json]:
    return {"model_type": wanted.kind, **wanted.values}


def _reason(base: Known, key: str) -> str | None:
    """Why the value of a key does not count; none for keys that do."""
    if key in base.fields or key in fixed_of(base.mapping):
        return None
    return base.ignored.get(key.rpartition(".")[2])


def _unknown(wanted: Wanted, base: Known, keys: set[str]) -> Iterator[Diagnostic]:
    known = {*keys, *fixed_of(base.mapping)}
    for key in wanted.values:
        if key in known or _reason(base, key) is not None:
            continue
        shown = wanted.named(key)
        message = (
            f"`{shown[:80]}` is not a key of the model type `{wanted.kind}` that is known here"
        )
        near = did_you_mean(key, [*known, *base.ignored], aliases={})
        help = f"did you mean `{near}`?" if near else "remove it if it changes nothing of the graph"
        yield Diagnostic("LG107", "error", message, wanted.place(key), (), help)


def _missing(wanted: Wanted, base: Known, values: Mapping[str, Json]) -> Iterator[Diagnostic]:
    for key in () if wanted.partial else base.fields:
        if key not in values and key not in base.mapping.omits:
            message = f"`{wanted.source.file}` lacks `{key}`"
            place = wanted.source.place("")
            yield Diagnostic("LG102", "error", message, place, (), "no default is right for it")


def _not_fixed(wanted: Wanted, base: Known, values: Mapping[str, Json]) -> Iterator[Diagnostic]:
    for key, fixed in fixed_of(base.mapping).items():
        if key in values and not same(values[key], fixed):
            found = f"`{wanted.named(key)}` is {_shown(values[key])}"
            message = f"{found}; this wiring has {_shown(fixed)}"
            help = "another wiring needs blocks of its own: write a spec with `extends`"
            yield Diagnostic("LG108", "error", message, wanted.place(key), (), help)


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Writer:
    def __init__(
        self, wanted: Wanted, base: Known, match: Match, spec_id: str, registry: Registry
    ) -> None:
        self.wanted = wanted
        self.base = base
        self.match = match
        self.spec_id = spec_id
        self.registry = registry
        self.from_key: dict[str, str] = {}
        """Path of the spec -> key of the file that sets it."""

    def run(self, fields: Mapping[str, Json]) -> Imported:
        body = self.body()
        loose = self.draft(body, dict.fromkeys(self.base.spec.invariants))
        spec = self.load(loose).spec
        for section, tied in tied_values(self.base.mapping.requires, spec).items():
            given = body.get(section, {})
            assert isinstance(given, dict)
            body = {**body, section: {**given, **tied}}
        spec = self.load(self.draft(body, dict.fromkeys(self.base.spec.invariants))).spec
        dropped = tuple(
            name for name, text in self.base.spec.invariants.items() if not _holds(text, spec)
        )
        final = self.draft(body, dict.fromkeys(dropped))
        resolved = self.load(final)
        self.check(resolved, fields)
        text = _canonical(final.text)
        return Imported(text, resolved, self.match, (), (), (), {}, dropped, self.wanted.notes)

    def body(self) -> dict[str, Json]:
        """The sections that differ from the base's."""
        old = self.base.resolved.plain
        new: dict[str, Json] = copy.deepcopy({name: old.get(name, {}) for name in SECTIONS})
        expressions = flat(self.base.mapping.fields)
        findings: list[Diagnostic] = []
        for one in self.match.differences:
            if one.key not in expressions:
                continue
            try:
                if one.here is None and not self.optional(one.key):
                    raise CodecError("is no value")
                change = change_for(expressions[one.key], one.here, self.base.spec)
            except CodecError as error:
                message = f"`{self.wanted.named(one.key)}` = {_shown(one.here)} {error}"
                help = "no spec of this architecture can say that"
                place = self.wanted.place(one.key)
                findings.append(Diagnostic("LG108", "error", message, place, (), help))
                continue
            lay(new, change)
            self.from_key[".".join(change.path)] = one.key
        if findings:
            raise LlamagenError(findings)
        body = changed(new, {name: old.get(name, {}) for name in SECTIONS})
        marks = {m.key: m.here for m in self.match.marks if _literal(m.here)}
        if marks:
            literals: dict[str, Json] = {}
            for key, value in marks.items():
                group, _, name = key.rpartition(".")
                below = literals.setdefault(group, {}) if group else literals
                assert isinstance(below, dict)
                below[name] = value
            body["config"] = {"literals": literals}
        return body

    def optional(self, key: str) -> bool:
        """Whether null means something."""
        mapping = self.base.mapping
        return key in mapping.omits or flat(mapping.absent).get(key) == "none"

    def draft(self, body: Mapping[str, Json], invariants: Mapping[str, Json]) -> Draft:
        head: dict[str, Json] = {"spec": 1, "id": self.spec_id, "extends": self.base.spec.id}
        last: dict[str, Json] = {"invariants": invariants} if invariants else {}
        return draft(head, {**body, **last})

    def load(self, made: Draft) -> ResolvedSpec:
        """Resolve the draft; findings about it point at the foreign file."""
        try:
            return self.registry.load_text(made.text, _DRAFT)
        except LlamagenError as error:
            found = (self.moved(one, made) for one in error.diagnostics)
            raise LlamagenError(found) from None

    def moved(self, found: Diagnostic, made: Draft) -> Diagnostic:
        if found.span is None or found.span.file != _DRAFT:
            return found
        path = made.lines.get(found.span.line, "")
        key = self.key_of(path)
        place = self.wanted.place(key) if key else self.wanted.source.place("")
        named = f"`{self.wanted.named(key)}`: " if key else ""
        return replace(found, span=place, message=f"{named}{found.message}", related=())

    def key_of(self, path: str) -> str | None:
        while path:
            if path in self.from_key:
                return self.from_key[path]
            below = [key for here, key in self.from_key.items() if here.startswith(f"{path}.")]
            if below:
                return below[0]
            path = path.rpartition(".")[0]
        return None

    def check(self, resolved: ResolvedSpec, fields: Mapping[str, Json]) -> None:
        """The graph can be built, and writing the config again gives what was read."""
        scope = config_scope(resolved.spec)
        findings: list[Diagnostic] = []
        for name, text in self.base.mapping.requires.items():
            if _true(text, resolved.spec):
                continue
            used = [n.id for n in names(parse(text)) if n.id in scope]
            keys = (self.key_of(f"hyperparameters.{n}") for n in used)
            key = next((k for k in keys if k is not None), None)
            place = self.wanted.place(key) if key else self.wanted.source.place("")
            shown = ", ".join(f"{n} = {_shown(plain(scope[n]))}" for n in used)
            message = f"`{name}` does not hold: {text}, with {shown}"
            help = "no model of this architecture has such numbers"
            findings.append(Diagnostic("LG108", "error", message, place, (), help))
        if findings:
            raise LlamagenError(findings)
        if resolved.spec.root is not None:
            build(resolved)
        again = written_fields(resolved.spec, self.base.mapping)
        for key, value in fields.items():
            if key in again and not same(again[key], value):
                found = f"`{self.wanted.named(key)}` is {_shown(value)}"
                message = f"{found}, but the other values make it {_shown(again[key])}"
                help = "the file contradicts itself, or needs a spec of its own"
                findings.append(
                    Diagnostic("LG108", "error", message, self.wanted.place(key), (), help)
                )
        if findings:
            raise LlamagenError(findings)


_DRAFT = "<imported>"


def _literal(value: Json) -> bool:
    """Whether `config.literals` can hold a value."""
    if isinstance(value, list):
        return all(isinstance(one, bool | int | float | str) for one in value)
    return isinstance(value, bool | int | float | str)


def _holds(text: str, spec: Spec) -> bool:
    try:
        return evaluate(parse(text), scope_of(spec)) is True
    except ExpressionError:
        return False


def _true(text: str, spec: Spec) -> bool:
    try:
        return value_of(text, config_scope(spec)) is True
    except ExpressionError:
        return False


def _canonical(text: str) -> str:
    from llamagen.spec.fmt import format_source

    return format_source(load_source(text, _DRAFT), tuple(Spec.model_fields))
