"""``llamagen import``: a foreign configuration as a spec that extends the nearest known model.

The values of the file that differ from that model's are laid over its spec, and the table writes the file again: what
does not come back as it was is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llamagen.diagnostics import Diagnostic, LlamagenError, did_you_mean
from llamagen.emit.config.foreign import Foreign
from llamagen.emit.config.json_source import Json
from llamagen.emit.config.table import (
    CONFIG_FUNCTIONS,
    CodecError,
    ConfigTable,
    config_scope,
    flat,
    leaf_for,
    leaf_of,
    may_be_null,
    nested,
    plain,
    same,
    value_of,
)
from llamagen.ir.elaborate import build
from llamagen.spec.checks import scope_of
from llamagen.spec.expr import Binary, ExpressionError, Name, Scope, evaluate, names, parse
from llamagen.spec.fmt import format_source, lines
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Release, Spec
from llamagen.spec.source import load_source

SECTIONS = ("tokenizer", "hyperparameters", "constants", "patterns")
_DRAFT = "<imported>"
_RECORD = ("title", "doc", "release", "training", "lineage")

Tree = dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value is not that of the known model."""

    key: str
    here: Json
    known: Json


@dataclass(frozen=True, slots=True)
class Match:
    """A known model and where it differs. Without ``differences`` the architecture is the same.

    ``marks`` only tell releases apart.
    """

    id: str
    differences: tuple[Difference, ...]
    marks: tuple[Difference, ...]

    @property
    def exact(self) -> bool:
        return not self.differences and not self.marks


@dataclass(frozen=True, slots=True)
class Imported:
    """The spec as text and resolved, and what became of every key of the file."""

    text: str
    resolved: ResolvedSpec
    nearest: Match
    exact: tuple[str, ...] = ()
    """Ids whose config.json is this one, value for value."""
    alike: tuple[str, ...] = ()
    """Ids whose architecture is this one."""
    handled: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Key as the file calls it -> why nothing is lost."""
    dropped: tuple[str, ...] = ()
    """Invariants of the nearest model that do not hold here."""
    notes: tuple[str, ...] = ()


def import_foreign(
    foreign: Foreign,
    spec_id: str,
    tables: Sequence[ConfigTable],
    registry: Registry,
    licence: str | None = None,
) -> Imported:
    """``licence`` is what the model's own files state.

    Raises LlamagenError: LG107 unknown keys, LG102 missing ones, LG103 and LG108 values that cannot be.
    """
    tables = [
        one for one in tables if one.kind == foreign.kind and foreign.scaled in (None, one.scaled)
    ]
    if not tables:
        message = (
            f"`use_scaled_rope` is {_shown(foreign.scaled)}, as in no known model of this kind"
        )
        help = "write a spec with `extends`"
        raise LlamagenError(foreign.refusal("LG108", message, "use_scaled_rope", help))
    meant = {} if foreign.partial else tables[0].absences(foreign.values)
    values = {**meant, **foreign.values}
    keys = {key for one in tables for key in one.fields}
    marks = {key for one in tables for key in one.literals} & foreign.values.keys()
    ranked = sorted(
        (
            Match(
                one.spec.id,
                tuple(differences({k: v for k, v in values.items() if k in keys}, one.fields)),
                tuple(differences({k: v for k, v in values.items() if k in marks}, one.literals)),
            )
            for one in tables
        ),
        key=lambda match: (len(match.differences), len(match.marks)),
    )
    base = next(one for one in tables if one.spec.id == ranked[0].id)
    findings = [*_unknown(foreign, base, keys)]
    if not foreign.partial:
        for key in base.fields:
            if key not in values and key not in base.mapping.omits:
                message = f"`{foreign.source.file}` lacks `{key}`"
                findings.append(
                    foreign.refusal("LG102", message, None, "no default is right for it")
                )
    for one in differences({k: v for k, v in values.items() if k in base.fixed}, base.fixed):
        what = f"`{foreign.named(one.key)}` is {_shown(one.here)}"
        message = f"{what}; this wiring has {_shown(one.known)}"
        help = "another wiring needs blocks of its own: write a spec with `extends`"
        findings.append(foreign.refusal("LG108", message, one.key, help))
    if findings:
        raise LlamagenError(findings)
    imported = SpecWriter(foreign, base, ranked[0], spec_id, registry, licence).run(
        {key: value for key, value in values.items() if key in keys}
    )
    reasons = {key: base.passed_over(key, value) for key, value in foreign.values.items()}
    whole = {"model_type": foreign.kind, **foreign.values}
    return replace(
        imported,
        exact=tuple(
            one.spec.id for one in tables if not foreign.partial and same(one.config(), whole)
        ),
        alike=tuple(match.id for match in ranked if not match.differences),
        handled=tuple(foreign.named(key) for key, reason in reasons.items() if not reason),
        ignored={
            **foreign.ignored,
            **{foreign.named(key): reason for key, reason in reasons.items() if reason},
        },
    )


def differences(here: Mapping[str, Json], known: Mapping[str, Json]) -> Iterator[Difference]:
    """A key that is not ``here`` says nothing and differs from nothing."""
    for key, value in here.items():
        if not same(value, known.get(key)):
            yield Difference(key, value, known.get(key))


def _unknown(foreign: Foreign, base: ConfigTable, keys: set[str]) -> Iterator[Diagnostic]:
    known = {*keys, *base.fixed}
    for key, value in foreign.values.items():
        if key in known or base.passed_over(key, value) is not None:
            continue
        message = f"`{foreign.named(key)[:80]}` is not a key of the model type `{foreign.kind}` that is known here"
        unless = "remove it if it changes nothing of the graph"
        help = did_you_mean(key, [*known, *base.ignored], unless)
        yield foreign.refusal("LG107", message, key, help)


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _blank(release: Release | None) -> Tree:
    return {} if release is None else dict.fromkeys(release.model_dump(exclude_none=True))


class SpecWriter:
    """The spec file: only what differs from the model that it extends, in canonical form."""

    def __init__(
        self,
        foreign: Foreign,
        base: ConfigTable,
        match: Match,
        spec_id: str,
        registry: Registry,
        licence: str | None,
    ) -> None:
        self.licence = licence
        self.foreign = foreign
        self.base = base
        self.match = match
        self.spec_id = spec_id
        self.registry = registry
        self.from_key: dict[str, str] = {}
        """Path of the spec -> key of the file that sets it."""

    def run(self, fields: Mapping[str, Json]) -> Imported:
        body, resolved, dropped = self.laid()
        self.check(resolved, fields)
        text = format_source(
            load_source(_text(self.draft(body, dropped)), _DRAFT), tuple(Spec.model_fields)
        )
        return Imported(text, resolved, self.match, dropped=dropped, notes=self.foreign.notes)

    def laid(self) -> tuple[Tree, ResolvedSpec, tuple[str, ...]]:
        """The sections that differ from the base's, the spec with them, and invariants of the base that fail in it."""
        formulas = self.base.spec.invariants
        body = self.body()
        spec = self.load(self.draft(body, formulas)).spec
        if tied := tuple(self.tied(spec)):
            for section, name, value in tied:
                below = body.setdefault(section, {})
                assert isinstance(below, dict)
                below[name] = value
            spec = self.load(self.draft(body, formulas)).spec
        dropped = tuple(
            name for name, text in formulas.items() if not _true(text, spec, scope_of(spec))
        )
        return body, self.load(self.draft(body, dropped)), dropped

    def body(self) -> Tree:
        """The sections that differ from the base's."""
        old = {name: self.base.resolved.plain.get(name, {}) for name in SECTIONS}
        new: Tree = copy.deepcopy(dict(old))
        expressions, findings = self.base.expressions, list[Diagnostic]()
        absent = flat(self.base.mapping.absent)
        for one in self.match.differences:
            if one.key not in expressions:
                continue
            optional = (
                one.key in self.base.mapping.omits
                or absent.get(one.key) == "none"
                or may_be_null(expressions[one.key])
            )
            try:
                if one.here is None and not optional:
                    raise CodecError("is no value")
                path, value = leaf_for(expressions[one.key], one.here, self.base.spec)
            except CodecError as error:
                message = f"`{self.foreign.named(one.key)}` = {_shown(one.here)} {error}"
                help = "no spec of this architecture can say that"
                findings.append(self.foreign.refusal("LG108", message, one.key, help))
                continue
            tree = new
            for name in path[:-1]:
                below = tree.setdefault(name, {})
                assert isinstance(below, dict), path
                tree = below
            _merge(tree, path[-1], value)
            self.from_key[".".join(path)] = one.key
        if findings:
            raise LlamagenError(findings)
        body = _changed(new, old)
        if marks := {m.key: m.here for m in self.match.marks if is_literal(m.here)}:
            body["config"] = {"literals": nested(marks)}
        return body

    def draft(self, body: Mapping[str, Json], without: Iterable[str]) -> Tree:
        """``without`` are invariants of the base that are taken away."""
        # an imported model is its own: what is recorded of the one that it resembles is not true of it
        record: Tree = {name: None for name in _RECORD if getattr(self.base.spec, name) is not None}
        if self.licence is not None:
            record["release"] = {
                **_blank(self.base.spec.release),
                "status": "released",
                "licence": self.licence,
            }
        tree: Tree = {"spec": 1, "id": self.spec_id, "extends": self.base.spec.id, **record, **body}
        if taken := dict.fromkeys(without):
            tree["invariants"] = taken
        return tree

    def tied(self, spec: Spec) -> Iterator[tuple[str, str, Json]]:
        """(section, name, value) of names that no longer fulfil a requirement ``name == value``.

        Some numbers have no key of their own in a foreign file, because its reader derives them from others; a later
        requirement may rest on a number of an earlier one.
        """
        scope = config_scope(spec)
        for text in self.base.mapping.requires.values():
            expr = parse(text)
            if isinstance(expr, Binary) and expr.op == "==" and isinstance(expr.left, Name):
                value = evaluate(expr.right, scope, CONFIG_FUNCTIONS)
                if evaluate(expr.left, scope) != value:
                    section, name = leaf_of(expr.left, spec)
                    scope[name] = value
                    yield section, name, plain(value)

    def load(self, draft: Tree) -> ResolvedSpec:
        """Resolve the draft; findings about it point at the foreign file."""
        try:
            return self.registry.load_text(_text(draft), _DRAFT)
        except LlamagenError as error:
            raise LlamagenError(self.moved(one, draft) for one in error.diagnostics) from None

    def moved(self, finding: Diagnostic, draft: Tree) -> Diagnostic:
        if finding.span is None or finding.span.file != _DRAFT:
            return finding
        paths = [path for path, _ in lines(draft)]
        key = self.key_of(paths[finding.span.line - 1])
        place = self.foreign.place(key) if key else self.foreign.source.place("")
        lead = f"`{self.foreign.named(key)}`: " if key else ""
        return replace(finding, span=place, message=f"{lead}{finding.message}", related=())

    def key_of(self, path: str) -> str | None:
        while path:
            if path in self.from_key:
                return self.from_key[path]
            for below, key in self.from_key.items():
                if below.startswith(f"{path}."):
                    return key
            path = path.rpartition(".")[0]
        return None

    def check(self, resolved: ResolvedSpec, fields: Mapping[str, Json]) -> None:
        """The graph can be built, and writing the config again gives what was read."""
        scope = config_scope(resolved.spec)
        findings: list[Diagnostic] = []
        for name, text in self.base.mapping.requires.items():
            if _true(text, resolved.spec, scope):
                continue
            used = [n.id for n in names(parse(text)) if n.id in scope]
            keys = (self.key_of(f"hyperparameters.{n}") for n in used)
            shown = ", ".join(f"{n} = {_shown(plain(scope[n]))}" for n in used)
            message = f"`{name}` does not hold: {text}, with {shown}"
            help = "no model of this architecture has such numbers"
            key = next((k for k in keys if k is not None), None)
            findings.append(self.foreign.refusal("LG108", message, key, help))
        if findings:
            raise LlamagenError(findings)
        if resolved.spec.root is not None:
            build(resolved)
        again = ConfigTable(resolved, self.base.mapping).fields
        for one in differences({k: v for k, v in fields.items() if k in again}, again):
            what = f"`{self.foreign.named(one.key)}` is {_shown(one.here)}"
            message = f"{what}, but the other values make it {_shown(one.known)}"
            help = "the file contradicts itself, or needs a spec of its own"
            findings.append(self.foreign.refusal("LG108", message, one.key, help))
        if findings:
            raise LlamagenError(findings)


def _text(draft: Tree) -> str:
    """One leaf a line."""
    return "".join(f"{line}\n" for _, line in lines(draft))


def _merge(tree: Tree, name: str, value: Json) -> None:
    """A mapping is merged into the one there, unless it is of another kind."""
    old = tree.get(name)
    if not isinstance(value, Mapping) or not isinstance(old, dict):
        tree[name] = dict(value) if isinstance(value, Mapping) else value
    elif "kind" in value and value["kind"] != old.get("kind"):
        kept = {key: old[key] for key in ("theta", "layout", "partial") if key in old}
        tree[name] = {**kept, **value}
    else:
        for key, one in value.items():
            _merge(old, key, one)


def _changed(new: Mapping[str, Json], old: Mapping[str, Json]) -> Tree:
    """What ``new`` states differently, as a spec that extends ``old`` writes it; null for what is gone."""
    changed: Tree = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if value.get("kind") != before.get("kind"):
                changed[key] = value
            elif below := _changed(value, before):
                changed[key] = below
        elif not same(value, before):
            changed[key] = value
    return changed


def is_literal(value: Json) -> bool:
    """Whether `config.literals` can hold a value."""
    return all(
        isinstance(one, bool | int | float | str)
        for one in (value if isinstance(value, list) else [value])
    )


def _true(text: str, spec: Spec, scope: Scope) -> bool:
    try:
        return value_of(text, scope) is True
    except ExpressionError:
        return False
