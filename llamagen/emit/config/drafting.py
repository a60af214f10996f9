"""``llamagen new --like``: the spec of a configuration that no shipped spec describes, begun.

It extends the known model whose keys, and whose names of tensors, are nearest. Its ``config`` table and rules of its
checkpoint are written whole; what is not known stands below as comments that begin with TODO.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.checkpoint import USUAL_KEYS, has_weights
from llamagen.emit.config.foreign import FILES, Foreign, id_of, usual_leaves
from llamagen.emit.config.importing import Match, SpecWriter, Tree, differences, is_literal
from llamagen.emit.config.json_source import Json, read_json
from llamagen.emit.config.table import (
    CONFIG_FUNCTIONS,
    CodecError,
    ConfigTable,
    config_scope,
    flat,
    known_tables,
    leaf_for,
    may_be_null,
    nested,
    same,
    value_of,
)
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import names_read
from llamagen.spec.expr import names, parse
from llamagen.spec.fmt import format_source, lines
from llamagen.spec.registry import Registry
from llamagen.spec.schema import ConfigMapping, Hyperparameters, Spec
from llamagen.spec.source import load_source
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import tied_roles, wanted_by
from llamagen.weights.safetensors import shape_text

_DRAFT = "<new>"
_ALIKE = 0.5
"""Names that share less than this of their letters are not taken for one."""

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""A name with `{i}`, `{j}` for its numbers -> the shapes of the tensors that it stands for."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec as text, the shipped model that it extends, and the lines of what is left to write."""

    text: str
    base: str
    todo: tuple[str, ...]


def heir(base: str, spec_id: str, registry: Registry) -> Draft:
    """The spec that extends ``base``, an id, and says nothing else yet. Raises LG201 for an unknown one."""
    resolved = registry.load(base)
    spec = resolved.spec
    record = [
        n for n in ("title", "release", "training", "lineage") if getattr(spec, n) is not None
    ]
    numbers = resolved.plain.get("hyperparameters", {})
    assert isinstance(numbers, Mapping)
    todo = [
        "TODO what is different. Where nothing is said, this is its base: `llamagen resolve` prints it whole.",
        "hyperparameters:",
        *(f"  {line}" for _, line in lines(numbers)),
    ]
    if spec.blocks:
        todo += ["blocks:", *(f"  {name}: {{parts: {{}}, forward: {{}}}}" for name in spec.blocks)]
    tree: Tree = {"spec": 1, "id": spec_id, "extends": base, **dict.fromkeys(record)}
    return Draft(_finished(tree, todo), base, ())


def draft(path: Path, spec_id: str | None, registry: Registry) -> Draft:
    """The spec of a config.json, or of a folder with one, whose `model_type` no shipped spec describes.

    Raises LG106 for a file that cannot be read, LG102 without `model_type`, LG601 to LG606 for broken weights.
    """
    folder = path if files.is_folder(path) else None
    file = path if folder is None else folder / FILES[0]
    source = read_json(file, within=folder)
    kind = source.value.get("model_type")
    leaves = [leaf for leaf in usual_leaves(source.value) if leaf[0] != "model_type"]
    written = {key: place for key, place, _ in leaves if key != place}
    foreign = Foreign(source, str(kind), {key: value for key, _, value in leaves}, written)
    stored = None
    if folder is not None and has_weights(folder):
        opened = Checkpoint.open(folder)
        stored = _by_form({name: tensor.shape for name, tensor in opened.tensors.items()})
    base = _nearest(foreign, known_tables(registry), stored)
    return _Draft(foreign, base, spec_id or id_of(file), registry).run(stored)


def _nearest(foreign: Foreign, tables: Sequence[ConfigTable], stored: Shapes | None) -> ConfigTable:
    """By names of tensors where there are weights, then by keys, then by values; of equal ones the oldest."""

    def far(table: ConfigTable) -> tuple[int, int]:
        meant = {**table.absences(foreign.values), **foreign.values}
        strange = sum(
            key not in table.expressions and table.passed_over(key, value) is None
            for key, value in foreign.values.items()
            if key not in table.fixed
        )
        others = {k: v for k, v in meant.items() if k in table.fixed and k != "architectures"}
        clashes = sum(1 for _ in differences(others, table.fixed))
        lacking = sum(k not in meant and k not in table.mapping.omits for k in table.fields)
        told = {key: value for key, value in meant.items() if key in table.fields}
        return strange + clashes + lacking, sum(1 for _ in differences(told, table.fields))

    of_kind: dict[str, ConfigTable] = {}
    for table in sorted(tables, key=far):
        of_kind.setdefault(table.kind, table)
    if stored is None:
        return next(iter(of_kind.values()))

    def unlike(table: ConfigTable) -> tuple[int, int]:
        wanted = _wanted(table)
        return len(_ends(wanted) ^ _ends(stored)), len(wanted.keys() ^ stored.keys())

    return min((t for t in of_kind.values() if t.spec.root is not None), key=unlike)


def _wanted(table: ConfigTable) -> Shapes:
    graph = build(table.resolved)
    return _by_form({path: one.shape for path, one in wanted_by(table.resolved, graph).items()})


def _by_form(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Tensors of one name but for its numbers together, shapes in the order of the names."""
    forms: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        words = name.split(".")
        numbers = [at for at, word in enumerate(words) if word.isdigit()]
        for at, letter in zip(numbers, "ijklmn", strict=False):
            words[at] = f"{{{letter}}}"
        forms.setdefault(".".join(words), []).append(shape)
    return {form: tuple(sorted(every)) for form, every in forms.items()}


def _ends(forms: Iterable[str]) -> set[str]:
    """`q_proj.weight`: what a tensor is called within its block, which other code puts elsewhere."""
    return {".".join(form.split(".")[-2:]) for form in forms}


class _Draft:
    def __init__(
        self, foreign: Foreign, base: ConfigTable, spec_id: str, registry: Registry
    ) -> None:
        self.foreign = foreign
        self.base = base
        self.spec_id = spec_id
        self.registry = registry
        self.file = Path(foreign.source.file).name
        self.todo: list[str] = []
        self.requires = dict(base.mapping.requires)

    def run(self, stored: Shapes | None) -> Draft:
        id = self.base.spec.id
        fields, strange = self.fields()
        absent = {
            key: text
            for key, text in flat(self.base.mapping.absent).items()
            if key in fields and "tokenizer" not in fields[key]  # ids are each model's own
            if all(n.id in {*fields, *CONFIG_FUNCTIONS} for n in names(parse(text)))
        }
        said_null = {k for k in fields if k in flat(self.base.mapping.absent)}
        values = {
            key: value
            for key, value in self.foreign.values.items()
            if key in fields and not (value is None and key in said_null)
        }
        said = {text: values[key] for key, text in fields.items() if key in values}
        spelt = {key: said[text] for key, text in self.base.expressions.items() if text in said}
        meant = self.base.absences({**self.foreign.values, **spelt})
        silent = {k: meant[k] for k in fields if k not in values and k in meant}
        refused: dict[str, str] = {}
        while True:
            mapping = self.mapping(fields, absent)
            table = ConfigTable(self.base.resolved, mapping)
            told = {key: value for key, value in {**silent, **values}.items() if key in fields}
            match = Match(id, tuple(differences(told, table.fields)), ())
            writer = SpecWriter(self.foreign, table, match, self.spec_id, self.registry, None)
            body, resolved, dropped = writer.laid()
            again = ConfigTable(resolved, mapping).fields
            wrong = [one.key for one in differences(told, again)]
            scope = config_scope(resolved.spec)
            broken = [n for n, rule in self.requires.items() if value_of(rule, scope) is not True]
            if not wrong and not broken:
                break
            for name in broken:
                refused[name] = self.requires.pop(name)
            for key in wrong:
                strange[key] = f"`{fields.pop(key)}` of {id} is {_shown(again[key])}"
        tree = writer.draft(body, dropped)
        tree["config"] = _section(mapping)
        known, told_ids = self.base.spec.tokenizer, tree.get("tokenizer")
        if known is not None and isinstance(told_ids, dict):
            named = [n for n in ("special_tokens", "named_tokens", "note") if getattr(known, n)]
            named += ["pad_id"] if "tokenizer.pad_id" not in fields.values() else []
            tree["tokenizer"] = {**told_ids, **dict.fromkeys(named)}
            self.say(f"TODO is `tokenizer.kind` that of {id}?", [f"kind: {known.kind}"])
        unsaid = [key for key in fields if key in silent]
        self.say(
            f"TODO {self.file} does not state these; they are what {id} takes for silence:",
            [f"{key}: {_shown(silent[key])}" for key in unsaid],
        )
        lacking = [
            key
            for key, text in self.base.expressions.items()
            if text not in fields.values() and key not in strange
        ]
        self.say(
            f"TODO {self.file} has no such key; the value is that of {id}:",
            [
                f"{self.base.expressions[key]}: {_shown(self.base.fields[key])}"
                for key in lacking
                if self.base.fields[key] and key != "pad_token_id"
            ],
        )
        self.say(
            "TODO keys that mean nothing yet: equations for what they do, then `config` for how they are spelt.",
            [
                f"{self.foreign.named(key)}: {_shown(self.foreign.values.get(key))}{f'  ({why})' if why else ''}"
                for key, why in strange.items()
            ],
        )
        self.say(
            f"TODO formulas of {id} that do not hold here; they were taken away:",
            [
                *(f"{name}: {self.base.spec.invariants[name]}" for name in dropped),
                *(f"{name}: {rule}" for name, rule in refused.items()),
            ],
        )
        if stored is not None:
            self.tensors(tree, stored)
        text = _finished(tree, self.todo)
        try:
            build_all(self.registry.load_text(text, _DRAFT))
        except LlamagenError as error:
            told_by = [f"{one.code} {one.message}" for one in error.diagnostics]
            self.say("TODO what `llamagen check` says of it as it stands:", told_by)
            text = _finished(tree, self.todo)
        return Draft(text, id, tuple(line for line in self.todo if line.startswith("TODO")))

    def say(self, head: str, below: Iterable[str]) -> None:
        rows = list(below)
        if rows:
            self.todo += [head, *(f"  {row}" for row in rows)]

    def fields(self) -> tuple[dict[str, str], dict[str, str]]:
        """Key -> expression of what can be said, key -> hint of what cannot."""
        base, spec = self.base, self.base.spec
        reads = names_read(build_all(base.resolved)) if spec.root is not None else frozenset()
        spelt = dict(base.expressions)
        taken = {text for key, text in spelt.items() if key in self.foreign.values}
        fields: dict[str, str] = {}
        strange: dict[str, str] = {}
        for key, value in self.foreign.values.items():
            name = key.rpartition(".")[2]
            usual = USUAL_KEYS.get(name, name if name in Hyperparameters.model_fields else None)
            if key in spelt:
                text: str | None = spelt[key]
            elif usual is not None and usual not in taken:
                text = usual
            else:
                text = None
            wired = key if key in base.fixed else usual or ""
            if wired in base.fixed:
                if key != "architectures" and not same(value, base.fixed[wired]):
                    strange[key] = f"{spec.id} is wired for {_shown(base.fixed[wired])}"
            elif text is None:
                if base.passed_over(key, value) is None and key not in base.literals:
                    strange[key] = ""
            elif text not in spelt.values() and not any(n.id in reads for n in names(parse(text))):
                strange[key] = f"hyperparameter `{text}`, which no equation of {spec.id} reads"
            else:
                try:
                    if value is None and key not in base.mapping.omits and not may_be_null(text):
                        raise CodecError("is no value")
                    leaf_for(text, value, spec)
                    fields[key] = text
                except CodecError as error:
                    strange[key] = f"`{text}` {error}"
        said = set(fields.values())
        absent = flat(base.mapping.absent)
        for key in [k for k, v in self.foreign.values.items() if v is None and k in absent]:
            strange.pop(key, None)  # null is silence
        for key, text in spelt.items():  # silence keeps its meaning, but for token ids
            silent = self.foreign.values.get(key) is None and "tokenizer" not in text
            if silent and text not in said and key in absent:
                fields[key] = text
        return fields, strange

    def mapping(self, fields: Mapping[str, str], absent: Mapping[str, str]) -> ConfigMapping:
        """The whole table of the new kind."""
        base, values = self.base, self.foreign.values
        wired = {k: k if k in base.fixed else USUAL_KEYS.get(k, k) for k in values}
        fixed = {
            k: v for k, v in values.items() if same(v, base.fixed.get(wired[k])) and is_literal(v)
        }
        if is_literal(words := values.get("architectures")) and isinstance(words, list):
            fixed["architectures"] = tuple(str(one) for one in words)
        literals = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key not in fields and key not in fixed and is_literal(value)
            if key in base.literals or key in ("torch_dtype", "use_cache", "initializer_range")
        }
        silent = tuple(key for key in fields if key not in values)
        return ConfigMapping.model_validate(
            {
                "kind": self.foreign.kind,
                "fields": nested(dict(fields)),
                "fixed": nested(fixed),
                "literals": nested(literals),
                "ignored": {k: v for k, v in base.mapping.ignored.items() if k in values},
                "absent": nested(dict(absent)),
                "omits": tuple(
                    dict.fromkeys([*(o for o in base.mapping.omits if o in fields), *silent])
                ),
                "requires": dict(self.requires),
                "generation": dict(base.mapping.generation),
            }
        )

    def tensors(self, tree: Tree, stored: Shapes) -> None:
        """Rules for tensors of another name, and what is then without a partner on either side."""
        resolved = self.registry.load_text("".join(f"{line}\n" for _, line in lines(tree)), _DRAFT)
        table = ConfigTable(resolved, self.base.mapping)
        try:
            wanted = _wanted(table)
            tied = _by_form(dict.fromkeys(tied_roles(build(resolved)), ()))
        except LlamagenError:
            return  # what does not build is said by `check` first
        pairs = _paired(wanted, stored)
        if renamed := {to: source for to, source in pairs.items() if to != source}:
            rules: list[Json] = [{"from": source, "to": to} for to, source in renamed.items()]
            rules.append({"from": "{*}", "to": "{*}"})
            layout: Tree = {"detect": next(iter(renamed.values())), "rules": rules}
            tree["checkpoint"] = {"layouts": {"stored": layout}}
            self.say(
                "TODO rules of `checkpoint`, made by shapes and names, which know nothing of rotations and fusions:",
                [f"{source} is {to}" for to, source in renamed.items()],
            )
        found = set(pairs.values())
        self.say(
            "TODO stored tensors that no rule names: a part in a block, or a rule with a transform, or `drop`:",
            [
                _tensor(form, stored[form])
                for form in stored
                if form not in found and form not in tied
            ],
        )
        self.say(
            f"TODO parameters of {self.base.spec.id} that nothing stored makes: `PART: null` takes a part away:",
            [_tensor(form, wanted[form]) for form in wanted if form not in pairs],
        )
        self.say(
            "TODO parameters of another shape than is stored:",
            [
                f"{to} {shape_text(wanted[to][0])}, stored {shape_text(stored[source][0])}"
                for to, source in pairs.items()
                if set(wanted[to]) != set(stored[source])
            ],
        )


def _paired(wanted: Shapes, stored: Shapes) -> dict[str, str]:
    """Parameter -> what is stored for it: of the same name, or of its shape and each other's likest name."""
    pairs = {name: name for name in wanted if name in stored}
    left = [name for name in wanted if name not in pairs]
    open_ = [name for name in stored if name not in pairs]

    def likeness(to: str, source: str) -> float:
        if wanted[to] != stored[source] or to.count("{") != source.count("{"):
            return 0.0
        return SequenceMatcher(None, to, source).ratio()

    for to in list(left):
        same_shape = [source for source in open_ if stored[source] == wanted[to]]
        if len(same_shape) == 1 and sum(wanted[one] == wanted[to] for one in left) == 1:
            pairs[to] = same_shape[0]
            left.remove(to)
            open_.remove(same_shape[0])
    likest = {to: max(open_, key=lambda s: likeness(to, s), default="") for to in left}
    for to, source in likest.items():
        back = max(left, key=lambda t: likeness(t, source))
        if back == to and likeness(to, source) >= _ALIKE:
            pairs[to] = source
    return pairs


def _tensor(form: str, shapes: tuple[tuple[int, ...], ...]) -> str:
    more = f", {len(shapes)} of them" if len(shapes) > 1 else ""
    return f"{form} {shape_text(shapes[0])}{more}"


def _section(mapping: ConfigMapping) -> Tree:
    section = json.loads(mapping.model_dump_json(exclude_defaults=True))
    assert isinstance(section, dict)
    return section


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _finished(tree: Tree, todo: Sequence[str]) -> str:
    body = "".join(f"{line}\n" for _, line in lines(tree))
    comments = "".join(f"# {line}\n" for line in todo)
    return format_source(load_source(f"{body}\n{comments}", _DRAFT), tuple(Spec.model_fields))
