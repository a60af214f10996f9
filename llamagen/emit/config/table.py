"""The `config:` section of a spec, flattened to dotted keys and evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal, TypeVar

from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.codecs import CONFIG_FUNCTIONS, Json
from llamagen.spec.checks import scope_of
from llamagen.spec.expr import ExpressionError, Scope, Static, evaluate, names, parse
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import BlockDefinition, Closed, ConfigMapping, Fixed, Spec

V = TypeVar("V")


class UnsetError(Exception):
    """The wiring fits, but the spec leaves a size open that the file needs: its name."""


def flat(nested: Mapping[str, V | dict[str, V]]) -> dict[str, V]:
    """`{a: {b: 1}}` as `{a.b: 1}`; the schema nests no deeper."""
    return dict(_flat(nested))


def _flat(nested: Mapping[str, V | dict[str, V]]) -> Iterator[tuple[str, V]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", below) for name, below in value.items())
        else:
            yield key, value


def fixed_of(mapping: ConfigMapping) -> dict[str, Json]:
    """Dotted key -> what the wiring implies."""
    found: dict[str, Fixed] = flat(mapping.fixed)
    return {key: plain(value) for key, value in found.items()}


def literals_of(mapping: ConfigMapping) -> dict[str, Json]:
    """Dotted key -> value of the released file."""
    found: dict[str, Fixed] = flat(mapping.literals)
    return {key: plain(value) for key, value in found.items()}


class _ConfigKeys(Closed):
    version: Literal[1]
    wiring: str
    ignored: dict[str, str]


def ignored_by(mapping: ConfigMapping) -> dict[str, str]:
    """Key at any depth -> why import may pass over it: of any config.json, and of this kind."""
    return {**load_table("config_keys.yaml", _ConfigKeys).ignored, **mapping.ignored}


def config_scope(spec: Spec) -> dict[str, Static]:
    """Names of `config:` expressions: those of the spec, none for what is unset, and `tokenizer`."""
    scope: dict[str, Static] = dict.fromkeys(type(spec.hyperparameters).model_fields)
    scope.update(scope_of(spec))
    tokens = spec.tokenizer
    scope["tokenizer"] = (
        tokens.model_dump()
        if tokens is not None
        else {"bos_id": None, "eos_ids": None, "pad_id": None, "special_tokens": {}}
    )
    return scope


def value_of(expression: str, scope: Scope) -> Static:
    return evaluate(parse(expression), scope, CONFIG_FUNCTIONS)


@cache
def _shipped() -> Registry:
    """The bases are read once, however many models are asked about."""
    return Registry()


def mapping_of(resolved: ResolvedSpec) -> ConfigMapping | None:
    """The table that describes a spec; none where no class of transformers is its wiring."""
    spec = resolved.spec
    registry = _shipped()
    kind = resolved.leaf("config", "kind")
    if spec.config is None or kind is None:
        base = registry.load(load_table("config_keys.yaml", _ConfigKeys).wiring).spec
        mapping = base.config
    else:
        # The table speaks about the blocks of the spec that wrote it; an heir with others is no such model.
        writer = kind.origins[-1].spec_id
        if writer == spec.id or registry.path_of(writer) is None:
            base = spec
        else:
            base = registry.load(writer).spec
        mapping = spec.config
    if mapping is None or spec.root != base.root or _wiring(spec) != _wiring(base):
        return None
    met = all(_met(text, spec) for text in mapping.requires.values())
    return mapping if met else None


def _met(text: str, spec: Spec) -> bool:
    try:
        return value_of(text, config_scope(spec)) is True
    except ExpressionError as error:
        if unset_in(text, spec):
            return False
        raise broken(spec, "config.requires", text, error) from None


def unset_in(text: str, spec: Spec) -> tuple[str, ...]:
    """Names of an expression that have no value in an incomplete spec."""
    scope = config_scope(spec)
    return tuple(
        name.id
        for name in names(parse(text))
        if (spec.tokenizer is None if name.id == "tokenizer" else scope.get(name.id, 0) is None)
    )


def broken(spec: Spec, key: str, text: str, error: ExpressionError) -> LlamagenError:
    start, end = error.extent
    message = f"`{key}` of `{spec.id}`: {error.message}, at `{text[start:end]}` of `{text}`"
    return LlamagenError.of("LG301", message, help=error.help)


def _wiring(spec: Spec) -> dict[str, BlockDefinition]:
    return {name: block.model_copy(update={"doc": None}) for name, block in spec.blocks.items()}


def written_fields(spec: Spec, mapping: ConfigMapping) -> dict[str, Json]:
    """Every key of `fields` with its value.

    Raises UnsetError for a size that the spec leaves open, LG301 for an expression that has no value otherwise.
    """
    scope = config_scope(spec)
    found: dict[str, Json] = {}
    for key, text in flat(mapping.fields).items():
        try:
            found[key] = plain(value_of(text, scope))
        except ExpressionError as error:
            if missing := unset_in(text, spec):
                raise UnsetError(missing[0]) from None
            raise broken(spec, f"config.fields.{key}", text, error) from None
    return found


def plain(value: Static) -> Json:
    """As JSON has it: lists for tuples."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return value


def absences(mapping: ConfigMapping, values: Mapping[str, Json]) -> dict[str, Json]:
    """What the absence of keys means, computed from the keys that are there."""
    found: dict[str, Json] = {}
    for key, text in flat(mapping.absent).items():
        group = key.rpartition(".")[0]
        known = {**found, **values}
        beside = {
            name.rpartition(".")[2]: frozen(value)
            for name, value in known.items()
            if name.rpartition(".")[0] == group
        }
        try:
            found[key] = plain(value_of(text, beside))
        except ExpressionError:
            continue  # what it depends on is absent or wrong itself, and reported there
    return found


def frozen(value: Json) -> Static:
    if isinstance(value, list | tuple):
        return tuple(frozen(one) for one in value)
    if isinstance(value, Mapping):
        return {key: frozen(one) for key, one in value.items()}
    assert value is None or isinstance(value, bool | int | float | str)
    return value
