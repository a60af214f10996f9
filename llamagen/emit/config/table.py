"""The `config:` section of a spec, flattened to dotted keys and evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal, TypeVar

from llamagen.analysis.tables import load_table
from llamagen.emit.config.codecs import CONFIG_FUNCTIONS, Json
from llamagen.spec.config_mapping import ConfigMapping, Fixed
from llamagen.spec.evaluate import Scope, Static, evaluate
from llamagen.spec.expr import ExpressionError, parse
from llamagen.spec.naming import Closed
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import BlockDefinition, Spec
from llamagen.spec.validate import scope_of

WIRING = "llama/1/_base"
"""A spec without `config:` whose blocks are these, word for word, is described by this one's table."""

V = TypeVar("V")


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
        base = registry.load(WIRING).spec
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
    scope = config_scope(spec)
    try:
        met = all(value_of(text, scope) is True for text in mapping.requires.values())
    except ExpressionError:
        return None
    return mapping if met else None


def _wiring(spec: Spec) -> dict[str, BlockDefinition]:
    return {name: block.model_copy(update={"doc": None}) for name, block in spec.blocks.items()}


def written_fields(spec: Spec, mapping: ConfigMapping) -> dict[str, Json]:
    """Every key of `fields` with its value. Raises ExpressionError for a name that the spec lacks."""
    scope = config_scope(spec)
    return {key: plain(value_of(text, scope)) for key, text in flat(mapping.fields).items()}


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
