"""The `config:` table of a spec: config.json and its companions are written by it, and read back by it.

A key stands for an expression over the spec. Its value is laid back on the leaf that the expression names; the
functions of such expressions, ``CODECS``, have an inverse each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Literal, TypeVar

from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.json_source import Json
from llamagen.ops.rope import ROPE_KINDS, RopeAttr
from llamagen.spec.checks import scope_of
from llamagen.spec.expr import (
    FUNCTIONS,
    Attribute,
    Call,
    Expr,
    ExpressionError,
    Literal_,
    Name,
    Scope,
    Static,
    evaluate,
    names,
    parse,
)
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import (
    BlockDefinition,
    Closed,
    ConfigMapping,
    Fixed,
    Hyperparameters,
    Spec,
)

V = TypeVar("V")

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


class UnsetError(Exception):
    """The wiring fits, but the spec leaves a size open that the file needs: its name."""


class CodecError(ValueError):
    """A value that the spec language cannot hold; the message ends a sentence about it."""


class Neutral(Closed):
    value: bool | None
    why: str


class _ConfigKeys(Closed):
    version: Literal[1]
    wiring: str
    ignored: dict[str, str]
    neutral: dict[str, Neutral]


def _config_keys() -> _ConfigKeys:
    return load_table("config_keys.yaml", _ConfigKeys)


@dataclass(frozen=True)
class ConfigTable:
    """A spec and the table that describes it. Keys are dotted."""

    resolved: ResolvedSpec
    mapping: ConfigMapping

    @property
    def spec(self) -> Spec:
        return self.resolved.spec

    @property
    def kind(self) -> str:
        """`model_type`"""
        return self.mapping.kind

    @property
    def scaled(self) -> bool | None:
        """Whether the frequencies of the rotation are scaled, if there is one."""
        rope = self.spec.hyperparameters.rope
        return None if rope is None else rope.kind != "default"

    @cached_property
    def expressions(self) -> dict[str, str]:
        """Key -> expression over the spec."""
        return flat(self.mapping.fields)

    @cached_property
    def fields(self) -> dict[str, Json]:
        """Their values.

        Raises UnsetError for a size that the spec leaves open, LG301 for an expression that has no value otherwise.
        """
        scope = config_scope(self.spec)
        values: dict[str, Json] = {}
        for key, text in self.expressions.items():
            try:
                values[key] = plain(value_of(text, scope))
            except ExpressionError as error:
                if missing := _unset_in(text, self.spec):
                    raise UnsetError(missing[0]) from None
                raise _broken(self.spec, f"config.fields.{key}", text, error) from None
        return values

    @cached_property
    def fixed(self) -> dict[str, Json]:
        """What the wiring implies."""
        fixed: dict[str, Fixed] = flat(self.mapping.fixed)
        return {key: plain(value) for key, value in fixed.items()}

    @cached_property
    def literals(self) -> dict[str, Json]:
        """Values of the released file that say nothing about the architecture."""
        literals: dict[str, Fixed] = flat(self.mapping.literals)
        return {key: plain(value) for key, value in literals.items()}

    @cached_property
    def ignored(self) -> dict[str, str]:
        """Key at any depth -> why import may pass over it: of any config.json, and of this kind."""
        return {**_config_keys().ignored, **self.mapping.ignored}

    def passed_over(self, key: str, value: Json) -> str | None:
        """Why import may pass over the value of a key; none for those that count."""
        if key in self.expressions or key in self.fixed:
            return None
        neutral = _config_keys().neutral.get(key)
        if neutral is not None and neutral.value is value:
            return neutral.why
        return self.ignored.get(key.rpartition(".")[2])

    def absences(self, values: Mapping[str, Json]) -> dict[str, Json]:
        """What the absence of keys means, computed from the keys that are there."""
        meant: dict[str, Json] = {}
        for key, text in flat(self.mapping.absent).items():
            group = key.rpartition(".")[0]
            beside = {
                name.rpartition(".")[2]: _static(value)
                for name, value in {**meant, **values}.items()
                if name.rpartition(".")[0] == group
            }
            try:
                meant[key] = plain(value_of(text, beside))
            except ExpressionError:
                continue  # what it depends on is absent or wrong itself, and reported there
        return meant

    def config(self) -> dict[str, Json]:
        """Key -> value of config.json. Raises as ``fields`` does."""
        omits = self.mapping.omits
        values = {"model_type": self.kind, **self.fixed, **self.literals, **self.fields}
        meant = self.absences(values | dict.fromkeys(omits))
        for key in omits:
            if key in values and (
                values[key] is None or (key in meant and values[key] == meant[key])
            ):
                del values[key]
        return values


def known_tables(registry: Registry) -> list[ConfigTable]:
    """Of all models, older and surer ones first: of two equal ones the first is extended.

    A release in fewer bits is left out: its config.json says how, which no table does.
    """
    specs = (registry.load(spec_id) for spec_id in registry.ids(abstract=False))
    whole = (one for one in specs if not (one.spec.release and one.spec.release.quantised))
    tables = (table_of(resolved) for resolved in whole if resolved.spec.config is not None)
    return sorted((one for one in tables if one is not None), key=_age)


def _age(table: ConfigTable) -> tuple[str, int, int, str]:
    spec = table.spec
    date = (
        "" if spec.release is None or spec.release.date is None else spec.release.date.isoformat()
    )
    return date or "9999", len(table.resolved.chain), len(spec.uncertain), spec.id


@cache
def _shipped() -> Registry:
    """The bases are read once, however many models are asked about."""
    return Registry()


def table_of(resolved: ResolvedSpec) -> ConfigTable | None:
    """The table that describes a spec; none where no class of transformers is its wiring."""
    spec, registry = resolved.spec, _shipped()
    kind = resolved.leaf("config", "kind")
    if spec.config is None or kind is None:
        base = registry.load(_config_keys().wiring).spec
        mapping = base.config
    else:
        # The table speaks about the blocks of the spec that wrote it; an heir with others is no such model.
        writer = kind.origins[-1].spec_id
        known = writer != spec.id and registry.path_of(writer) is not None
        base = registry.load(writer).spec if known else spec
        mapping = spec.config
    scope = config_scope(spec)
    off = {name for name, value in scope.items() if value is None or value is False}
    if mapping is None or spec.root != base.root or _wiring(spec, off) != _wiring(base, off):
        return None
    for text in mapping.requires.values():
        try:
            met = value_of(text, scope) is True
        except ExpressionError as error:
            if not _unset_in(text, spec):
                raise _broken(spec, "config.requires", text, error) from None
            met = False
        if not met:
            return None
    return ConfigTable(resolved, mapping)


_SWITCH = re.compile(r", \w+=(\w+)")
"""An argument that is one name."""


def _wiring(spec: Spec, off: Collection[str]) -> dict[str, BlockDefinition]:
    """Blocks without what they are called for readers, and without arguments that are switched ``off``."""

    def on(text: str) -> str:
        return _SWITCH.sub(lambda switch: "" if switch[1] in off else switch[0], text)

    return {
        name: block.model_copy(
            update={"doc": None, "parts": {part: on(text) for part, text in block.parts.items()}}
        )
        for name, block in spec.blocks.items()
    }


def config_files(resolved: ResolvedSpec) -> dict[str, str]:
    """config.json and its companions, file name -> text; none for a model that no class of transformers describes."""
    table = table_of(resolved)
    if table is None:
        return {}
    try:
        texts = {CONFIG_FILE: _text(table.config())}
    except UnsetError:
        return {}  # a size is not set: the wiring fits, the model is not complete
    scope = config_scope(resolved.spec)

    def evaluated(expressions: Mapping[str, str]) -> dict[str, Json]:
        return {key: plain(value_of(text, scope)) for key, text in expressions.items()}

    mapping = table.mapping
    special = {k: v for k, v in evaluated(mapping.generation).items() if v is not None}
    if special:
        texts[GENERATION_FILE] = _text({"_from_model_config": True, **special})
    if mapping.preprocessor:
        texts["preprocessor_config.json"] = _text(evaluated(flat(mapping.preprocessor)))
    if mapping.processor:
        texts["processor_config.json"] = _text(evaluated(mapping.processor))
    return texts


def _text(values: Mapping[str, Json]) -> str:
    return json.dumps(nested(values), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


# values of keys


def initializer_range(spec: Spec) -> float | None:
    """The standard deviation of fresh weights that the released config.json states, if it does."""
    literals = flat(spec.config.literals) if spec.config is not None else {}
    stated = (value for key, value in literals.items() if key.endswith("initializer_range"))
    return next((value for value in stated if isinstance(value, float)), None)


def flat(tree: Mapping[str, V | dict[str, V]]) -> dict[str, V]:
    """`{a: {b: 1}}` as `{a.b: 1}`; the schema nests no deeper."""

    def leaves() -> Iterator[tuple[str, V]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from ((f"{key}.{name}", below) for name, below in value.items())
            else:
                yield key, value

    return dict(leaves())


def nested(values: Mapping[str, Json]) -> dict[str, Json]:
    """`{a.b: 1}` as `{a: {b: 1}}`"""
    tree: dict[str, Json] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        below = tree.setdefault(group, {}) if group else tree
        assert isinstance(below, dict)
        below[name] = value
    return tree


def config_scope(spec: Spec) -> dict[str, Static]:
    """Names of `config:` expressions: those of the spec, none for what is unset, and `tokenizer`."""
    scope: dict[str, Static] = dict.fromkeys(type(spec.hyperparameters).model_fields)
    scope.update(scope_of(spec))
    unset: Static = {"bos_id": None, "eos_ids": None, "pad_id": None, "special_tokens": {}}
    scope["tokenizer"] = spec.tokenizer.model_dump() if spec.tokenizer is not None else unset
    return scope


def value_of(expression: str, scope: Scope) -> Static:
    return evaluate(parse(expression), scope, CONFIG_FUNCTIONS)


def _unset_in(text: str, spec: Spec) -> tuple[str, ...]:
    """Names of an expression that have no value in an incomplete spec."""
    scope = config_scope(spec)
    return tuple(
        name.id
        for name in names(parse(text))
        if (spec.tokenizer is None if name.id == "tokenizer" else scope.get(name.id, 0) is None)
    )


def _broken(spec: Spec, key: str, text: str, error: ExpressionError) -> LlamagenError:
    start, end = error.extent
    message = f"`{key}` of `{spec.id}`: {error.message}, at `{text[start:end]}` of `{text}`"
    return LlamagenError.of("LG301", message, help=error.help)


def plain(value: Static) -> Json:
    """As JSON has it: lists for tuples."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return value


def _static(value: Json) -> Static:
    if isinstance(value, list | tuple):
        return tuple(_static(one) for one in value)
    if isinstance(value, Mapping):
        return {key: _static(one) for key, one in value.items()}
    assert value is None or isinstance(value, bool | int | float | str)
    return value


def same(a: Json, b: Json) -> bool:
    """Equality of JSON: 1 is 1.0, but no truth value is a number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# values laid back on the spec


def leaf_for(expression: str, value: Json, spec: Spec) -> tuple[tuple[str, ...], Json]:
    """Path and value of the leaf with which ``expression`` gives ``value``.

    Raises CodecError, with the end of a sentence.
    """
    expr = parse(expression)
    match expr:
        case Call(function=Name(id=name), arguments=(first, *rest)) if name in CODECS:
            scope = config_scope(spec)
            arguments = (evaluate(one, scope) for one in rest)
            return leaf_of(first, spec), CODECS[name].read(value, *arguments)
        case Name() | Attribute():
            return leaf_of(expr, spec), value
        case _:
            raise CodecError(f"follows from other values: `{expression}`")


def may_be_null(expression: str) -> bool:
    """Whether null is a value of its own: of `given(NAME, none)`."""
    match parse(expression):
        case Call(function=Name(id="given"), arguments=(_, Literal_(value=None))):
            return True
        case _:
            return False


def leaf_of(expr: Expr, spec: Spec) -> tuple[str, ...]:
    """Path of the leaf that a name stands for."""
    match expr:
        case Name(id=name):
            if name in Hyperparameters.model_fields:
                return ("hyperparameters", name)
            if name in spec.patterns:
                return ("patterns", name)
            return (name,) if name == "tokenizer" else ("constants", name)
        case Attribute(base=base, name=name):
            return (*leaf_of(base, spec), name)
        case _:
            raise AssertionError(expr)


@dataclass(frozen=True, slots=True)
class Codec:
    """``write`` is called with the evaluated arguments. ``read`` turns a JSON value into that of the first one.

    ``read`` gets the other arguments. What it returns for a mapping is laid over the mapping that is there,
    unless it has a `kind`.
    """

    write: Callable[..., Static]
    read: Callable[..., Json]


_ROPE_KEYS: Mapping[str, Mapping[str, RopeAttr]] = {
    kind.name: {attr.key or attr.name: attr for attr in kind.attrs if attr.only != "table"}
    for kind in ROPE_KINDS.values()
    if kind.attrs
}
"""Kind -> key of `rope_scaling` -> field of `rope`."""


def knows(kind: Json, key: str) -> bool:
    """Whether `rope_scaling` of a kind has a key."""
    return isinstance(kind, str) and key in _ROPE_KEYS.get(kind, {})


def without_defaults(kind: str, scaling: Mapping[str, Json]) -> dict[str, Json]:
    """`rope_scaling` without what says no more than its absence: nulls, and what a reader takes instead."""
    known = _ROPE_KEYS.get(kind, {})
    return {
        key: value
        for key, value in scaling.items()
        if key not in known or (value is not None and value != known[key].default)
    }


def _write_rope(rope: Static) -> Static:
    if not isinstance(rope, Mapping) or rope["kind"] == "default":
        return None
    kind = str(rope["kind"])
    stated = {key: plain(rope[attr.name]) for key, attr in sorted(_ROPE_KEYS[kind].items())}
    return _static({**without_defaults(kind, stated), "rope_type": kind})


def _read_rope(value: Json) -> Json:
    if value is None:
        return {"kind": "default"}
    if not isinstance(value, Mapping):
        raise CodecError("is neither null nor a mapping")
    kinds = [value[key] for key in ("rope_type", "type") if key in value]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise CodecError(f"names two kinds, `{kinds[0]}` and `{kinds[1]}`")
    kind = kinds[0] if kinds else None
    numbers = {key: one for key, one in value.items() if key not in ("rope_type", "type")}
    if kind == "default" and not numbers:
        return {"kind": "default"}
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise CodecError(f"has the rope type `{kind}`; known are {', '.join(_ROPE_KEYS)}")
    known = _ROPE_KEYS[kind]
    for key in numbers:
        if key not in known:
            raise CodecError(f"has `{key}`, which the kind `{kind}` does not know")
    return {"kind": kind, **{known[key].name: one for key, one in numbers.items()}}


def _write_ids(ids: Static) -> Static:
    return ids[0] if isinstance(ids, tuple) and len(ids) == 1 else ids


def _read_ids(value: Json) -> Json:
    if type(value) is int:
        return [value]
    if value and _is_ints(value):
        return value
    raise CodecError("is not a token id or a list of them")


def _is_ints(value: Json) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


def _write_layers(kinds: Static, kind: Static) -> Static:
    assert isinstance(kinds, tuple)
    return tuple(i for i, one in enumerate(kinds) if one == kind)


def _read_layers(value: Json, kind: Static) -> Json:
    if not isinstance(value, list) or not _is_ints(value):
        raise CodecError("is not a list of layers")
    if value != sorted(set(value)):
        raise CodecError("does not rise")
    return {"at": {str(kind): value}}


def _write_first(kinds: Static, kind: Static) -> Static:
    """How many layers at the start are of the kind; no layer behind them is."""
    assert isinstance(kinds, tuple)
    count = kinds.count(kind)
    return count if all(one == kind for one in kinds[:count]) else None


def _read_first(value: Json, kind: Static) -> Json:
    if type(value) is not int or value < 0:
        raise CodecError("is not a whole number")
    return {"at": {str(kind): list(range(value))}}


def _write_flags(kinds: Static, without: Static, usual_every: Static) -> Static:
    """An empty list stands for every ``usual_every``-th layer without positions."""
    assert isinstance(kinds, tuple)
    assert isinstance(usual_every, int)
    flags = tuple(0 if kind == without else 1 for kind in kinds)
    usual = tuple(0 if (i + 1) % usual_every == 0 else 1 for i in range(len(kinds)))
    return () if flags == usual else flags


def _read_flags(value: Json, without: Static, usual_every: Static) -> Json:
    if not isinstance(value, list) or any(type(i) is not int or i not in (0, 1) for i in value):
        raise CodecError("is not a list of 0 and 1")
    if not value:
        return {"every": usual_every, "value": without}
    if all(value):
        return {"value": "rotated", "otherwise": "rotated"}
    every = value.index(0) + 1
    if value != [0 if (i + 1) % every == 0 else 1 for i in range(len(value))]:
        raise CodecError("is not regular; only every n-th layer can be without positions")
    return {"every": every, "value": without}


def _write_step(kinds: Static, kind: Static) -> Static:
    assert isinstance(kinds, tuple)
    return kinds.index(kind) + 1 if kind in kinds else 0


def _read_step(value: Json, kind: Static) -> Json:
    if type(value) is not int or value < 0:
        raise CodecError("is not a whole number")
    return {"every": value, "value": kind} if value else {"value": "dense", "otherwise": "dense"}


def _read_regular(value: Json, kind: Static) -> Json:
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
        raise CodecError("is not a list of layers")
    step = value[0] + 1 if value else 0
    if value != [i for i in range(value[-1] + 1 if value else 0) if (i + 1) % step == 0]:
        raise CodecError("is not regular; only every n-th layer can have experts")
    return _read_step(step, kind)


def _write_cycle(layers: Static, words: Static) -> Static:
    assert isinstance(layers, int)
    assert isinstance(words, tuple)
    return tuple(words[i % len(words)] for i in range(layers))


def _read_cycle(value: Json, words: Static) -> Json:
    """How many layers there are."""
    if not isinstance(value, list) or value != plain(_write_cycle(len(value), words)):
        raise CodecError(f"is not {json.dumps(plain(words))}, again and again")
    return len(value)


def _write_inverse_square(scale: Static) -> Static:
    assert isinstance(scale, float)
    exact = scale**-2
    return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-12) else exact


def _read_inverse_square(value: Json) -> Json:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CodecError("is no number above 0")
    return 1 / math.sqrt(value)


CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        "cycle": Codec(_write_cycle, _read_cycle),
        "first_layers": Codec(_write_first, _read_first),
        "given": Codec(
            lambda value, default: default if value is None else value,
            lambda value, default: None if value == default else value,
        ),
        "inverse_square": Codec(_write_inverse_square, _read_inverse_square),
        "layer_step": Codec(_write_step, _read_step),
        "layers_of": Codec(_write_layers, _read_layers),
        "one_or_many": Codec(_write_ids, _read_ids),
        "regular_layers": Codec(_write_layers, _read_regular),
        "rope_flags": Codec(_write_flags, _read_flags),
        "rope_scaling": Codec(_write_rope, _read_rope),
    }
)

CONFIG_FUNCTIONS: Mapping[str, Callable[..., Static]] = MappingProxyType(
    {**FUNCTIONS, **{name: codec.write for name, codec in CODECS.items()}}
)
