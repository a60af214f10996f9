"""What a foreign configuration says, in the words of config.json whatever dialect it came in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from llamagen.diagnostics import Diagnostic, LlamagenError, Span, did_you_mean
from llamagen.emit.config.codecs import Json
from llamagen.emit.config.json_source import JsonSource

GROUPS = ("text_config", "vision_config")

Dialect = Literal["config.json", "params.json"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Dotted key -> value. ``partial`` files leave to the nearest model what they do not say.

    ``written`` maps a key to the path it has in the file, where that differs; ``ignored`` are
    keys of the file that were passed over before any table was looked at, with the reason.
    """

    source: JsonSource
    dialect: Dialect
    kind: str
    values: Mapping[str, Json]
    written: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    partial: bool = False
    scaled: bool | None = None

    def place(self, key: str) -> Span:
        return self.source.place(self.written.get(key, key))

    def named(self, key: str) -> str:
        """The key as the file calls it."""
        return self.written.get(key, key)


def read_config(source: JsonSource, kinds: tuple[str, ...]) -> Wanted:
    """A Hugging Face config.json, older and newer spellings made one.

    Raises LG102 without `model_type`, LG109 for one that no spec describes.
    """
    kind = source.value.get("model_type")
    if kind is None:
        message = f"`{source.file}` lacks `model_type`"
        help = f"add it; known are {', '.join(kinds)}"
        raise LlamagenError.of("LG102", message, source.place(""), help)
    if kind not in kinds:
        near = did_you_mean(str(kind), kinds)
        help = f"did you mean `{near}`?" if near else f"known are {', '.join(kinds)}"
        message = f"no spec describes the model type `{str(kind)[:60]}`"
        raise LlamagenError.of("LG109", message, source.place("model_type"), help)
    values: dict[str, Json] = {}
    written: dict[str, str] = {}
    for path, value in _leaves(source.value):
        for key, one in _spelled(path, value):
            if key in values:
                raise _twice(source, path, key)
            values[key] = one
            if key != path:
                written[key] = path
    ignored = _undo_filling(values, source)
    return Wanted(source, "config.json", str(kind), values, written, ignored)


def _leaves(config: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    for key, value in config.items():
        if key in GROUPS and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", below) for name, below in value.items())
        elif key != "model_type":
            yield key, value


def _spelled(path: str, value: Json) -> Iterator[tuple[str, Json]]:
    """One key of the file as keys of the tables: transformers 5 joins `rope_theta` and `rope_scaling`."""
    group, _, name = path.rpartition(".")
    lead = f"{group}." if group else ""
    if name == "dtype":
        yield f"{lead}torch_dtype", value
    elif name == "rope_parameters" and isinstance(value, Mapping):
        rest = {key: one for key, one in value.items() if key != "rope_theta"}
        if "rope_theta" in value:
            yield f"{lead}rope_theta", value["rope_theta"]
        if (scaling := _scaling(rest)) is not None:
            yield f"{lead}rope_scaling", scaling
    elif name == "attn_temperature_tuning" and type(value) is int:
        yield path, value != 0  # transformers 4.51 wrote the interval of such layers
    elif name == "rope_scaling":
        yield path, _scaling(value)
    else:
        yield path, value


def _scaling(value: Json) -> Json:
    """`type` is the older word for `rope_type`; the kind `default` is no scaling."""
    if not isinstance(value, Mapping):
        return value
    kinds = {value[key] for key in ("rope_type", "type") if isinstance(value.get(key), str)}
    if len(kinds) != 1:
        return value
    (kind,) = kinds
    rest = {key: one for key, one in value.items() if key not in ("rope_type", "type")}
    return None if kind == "default" and not rest else {**rest, "rope_type": kind}


_USUAL_INTERVAL = 4
"""Llama 4: the layers without positions that transformers fills in for an empty or null `no_rope_layers`."""


def _undo_filling(values: dict[str, Json], source: JsonSource) -> dict[str, str]:
    """What transformers 5 writes out of `no_rope_layers` when it saves a Llama 4: key -> why nothing is lost.

    Raises LG108 for a `layer_types` that says something else.
    """
    lead = "text_config."
    interval = values.get(f"{lead}no_rope_layer_interval", _USUAL_INTERVAL)
    given = {f"{lead}no_rope_layers", f"{lead}no_rope_layer_interval"} & values.keys()
    flags, count = values.get(f"{lead}no_rope_layers"), values.get(f"{lead}num_hidden_layers")
    if flags is None and given:  # transformers fills in for null as for an empty list
        flags = []
    if not isinstance(flags, list) or type(count) is not int or type(interval) is not int:
        return {}
    if interval < 1 or not 0 < count <= 10_000:
        return {}
    ignored: dict[str, str] = {}
    if f"{lead}moe_layers" in values and values[f"{lead}moe_layers"] is None:
        del values[f"{lead}moe_layers"]
        ignored[f"{lead}moe_layers"] = "null is what interleave_moe_layer_step says"
    full = list(flags) or _flags(count, interval)
    values[f"{lead}no_rope_layers"] = [] if full == _flags(count, _USUAL_INTERVAL) else full
    if values.pop(f"{lead}no_rope_layer_interval", None) is not None:
        ignored[f"{lead}no_rope_layer_interval"] = "what an empty no_rope_layers is filled by"
    kinds = values.pop(f"{lead}layer_types", None)
    if kinds is not None:
        wanted = ["chunked_attention" if flag else "full_attention" for flag in full]
        if kinds != wanted:
            message = "`text_config.layer_types` says otherwise than `no_rope_layers`"
            help = "full_attention for a layer without positions, else chunked_attention"
            place = source.place(f"{lead}layer_types")
            raise LlamagenError.of("LG108", message, place, help)
        ignored[f"{lead}layer_types"] = "follows from no_rope_layers"
    return ignored


def _flags(count: int, interval: int) -> list[Json]:
    return [0 if (i + 1) % interval == 0 else 1 for i in range(count)]


def _twice(source: JsonSource, path: str, key: str) -> LlamagenError:
    message = f"`{path}` and another key both say `{key}`"
    help = "keep one of the two spellings"
    return LlamagenError(Diagnostic("LG107", "error", message, source.place(path), (), help))
