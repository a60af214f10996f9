"""Functions of `config:` expressions. Each has an inverse, so that one table serves both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from llamagen.ops.rope import ROPE_KINDS
from llamagen.spec.evaluate import FUNCTIONS, Static

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""A JSON value. Lists that the language made are tuples."""

_ROPE_KEYS: Mapping[str, Mapping[str, str]] = {
    kind.name: {attr.key or attr.name: attr.name for attr in kind.attrs}
    for kind in ROPE_KINDS.values()
    if kind.attrs
}
"""Kind -> key of `rope_scaling` -> field of `rope`."""


class CodecError(ValueError):
    """A value that the spec language cannot hold; the message ends a sentence about it."""


@dataclass(frozen=True, slots=True)
class Codec:
    """``write`` is called with the evaluated arguments. ``read`` turns a JSON value into that of the first one.

    ``read`` gets the other arguments. What it returns for a mapping is laid over the mapping that is there,
    unless it has a `kind`.
    """

    write: Callable[..., Static]
    read: Callable[..., Json]


def _write_ids(ids: Static) -> Static:
    return ids[0] if isinstance(ids, tuple) and len(ids) == 1 else ids


def _read_ids(value: Json) -> Json:
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return value
    raise CodecError("is not a token id or a list of them")


def _write_rope(rope: Static) -> Static:
    if not isinstance(rope, Mapping):
        return None
    kind = rope["kind"]
    assert isinstance(kind, str)
    if kind == "default":
        return None
    return {key: rope[field] for key, field in sorted(_ROPE_KEYS[kind].items())} | {
        "rope_type": kind
    }


def _read_rope(value: Json) -> Json:
    if value is None:
        return {"kind": "default"}
    if not isinstance(value, Mapping):
        raise CodecError("is neither null nor a mapping")
    named = [value[key] for key in ("rope_type", "type") if key in value]
    kind = named[0] if named else None
    if len(named) == 2 and named[0] != named[1]:
        raise CodecError(f"names two kinds, `{named[0]}` and `{named[1]}`")
    given = {key: one for key, one in value.items() if key not in ("rope_type", "type")}
    if kind == "default" and not given:
        return {"kind": "default"}
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise CodecError(f"has the rope type `{kind}`; known are {', '.join(_ROPE_KEYS)}")
    known = _ROPE_KEYS[kind]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise CodecError(f"has `{unknown[0]}`, which the kind `{kind}` does not know")
    return {"kind": kind, **{known[key]: one for key, one in given.items()}}


def _write_given(value: Static, default: Static) -> Static:
    return default if value is None else value


def _read_given(value: Json, default: Static) -> Json:
    return None if value == default else value


def _write_layers(kinds: Static, wanted: Static) -> Static:
    assert isinstance(kinds, tuple)
    return tuple(i for i, kind in enumerate(kinds) if kind == wanted)


def _read_layers(value: Json, wanted: Static) -> Json:
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise CodecError("is not a list of layers")
    if value != sorted(set(value)):
        raise CodecError("does not rise")
    return {"at": {str(wanted): value}}


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


def _write_step(kinds: Static, wanted: Static) -> Static:
    assert isinstance(kinds, tuple)
    found = [i for i, kind in enumerate(kinds) if kind == wanted]
    return found[0] + 1 if found else 0


def _read_step(value: Json, wanted: Static) -> Json:
    if type(value) is not int or value < 0:
        raise CodecError("is not a whole number")
    return {"every": value, "value": wanted} if value else {"value": "dense", "otherwise": "dense"}


def _read_regular(value: Json, wanted: Static) -> Json:
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
        raise CodecError("is not a list of layers")
    step = value[0] + 1 if value else 0
    if value != [i for i in range(value[-1] + 1 if value else 0) if (i + 1) % step == 0]:
        raise CodecError("is not regular; only every n-th layer can have experts")
    return _read_step(step, wanted)


CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        "given": Codec(_write_given, _read_given),
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
