"""What a configuration from elsewhere says, in the words of config.json: the Hub's own file, or Meta's params.json.

params.json is read by spec/params_keys.yaml and the formulas of Meta's code (llama-models models/{llama3,llama4},
meta-llama/llama): every key of a file is turned into a value, passed over for a reason of the table, or refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llamagen.analysis.tables import load_table
from llamagen.diagnostics import Diagnostic, LlamagenError, Span, did_you_mean
from llamagen.emit.config.json_source import Json, JsonSource
from llamagen.emit.config.table import knows, without_defaults
from llamagen.spec.expr import ceil_to
from llamagen.spec.schema import Closed

FILES = ("config.json", "params.json")
GROUPS = ("text_config", "vision_config")


@dataclass(frozen=True, slots=True)
class Foreign:
    """Dotted key -> value. ``partial`` files leave to the nearest model what they do not say.

    ``written`` maps a key to the path it has in the file, where that differs; ``ignored`` are
    keys of the file that were passed over before any table was looked at, with the reason.
    """

    source: JsonSource
    kind: str
    values: Mapping[str, Json]
    written: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    partial: bool = False
    scaled: bool | None = None

    def named(self, key: str) -> str:
        """The key as the file calls it."""
        return self.written.get(key, key)

    def place(self, key: str) -> Span:
        return self.source.place(self.named(key))

    def refusal(self, code: str, message: str, key: str | None, help: str) -> Diagnostic:
        """A finding at a key, or about the file."""
        place = self.place(key) if key else self.source.place("")
        return Diagnostic(code, "error", message, place, (), help)


def foreign_of(source: JsonSource, kinds: Iterable[str]) -> Foreign:
    """What a params.json, or a config.json of one of ``kinds``, says. Raises as the readers of both do."""
    if "model_type" not in source.value and "dim" in source.value:
        return read_params(source)
    return read_config(source, sorted(set(kinds)))


def id_of(file: Path) -> str:
    """An id for the spec of a configuration file, made from its folder's name."""
    above = file.absolute().parent
    folder = above.name if file.name in FILES else file.stem
    if above.parent.name == "snapshots":  # of the Hub's cache: models--ORG--NAME/snapshots/COMMIT
        folder = above.parent.parent.name.rpartition("--")[2]
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("-._")
    return f"imported/{name or 'model'}"


# config.json


def read_config(source: JsonSource, kinds: list[str]) -> Foreign:
    """Older and newer spellings made one.

    Raises LG102 without `model_type`, LG109 for one that no spec describes, LG107 for one value in two spellings.
    """
    kind = source.value.get("model_type")
    if kind is None:
        help = f"add it; known are {', '.join(kinds)}"
        raise LlamagenError.of(
            "LG102", f"`{source.file}` lacks `model_type`", source.place(""), help
        )
    text = source.value.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    if kind not in kinds and inner in kinds:
        assert isinstance(text, Mapping)
        return _text_part(source, str(inner), text)
    if kind not in kinds:
        help = did_you_mean(str(kind), kinds, f"known are {', '.join(kinds)}")
        message = f"no spec describes the model type `{str(kind)[:60]}`"
        raise LlamagenError.of("LG109", message, source.place("model_type"), help)
    values: dict[str, Json] = {}
    written: dict[str, str] = {}
    for path, value in _leaves(source.value, GROUPS):
        for key, one in () if path == "model_type" else _spelled(path, value):
            if key.endswith("head_dim") and one is None:
                continue  # LlamaConfig: hidden_size // num_attention_heads, as without the key
            if key in values:
                message = f"`{path}` and another key both say `{key}`"
                help = "keep one of the two spellings"
                raise LlamagenError.of("LG107", message, source.place(path), help)
            values[key] = one
            if key != path:
                written[key] = path
    _state_original_context(values)
    ignored = _undo_filling(values, source)
    return Foreign(source, str(kind), values, written, ignored)


_OF_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _text_part(source: JsonSource, kind: str, text: Mapping[str, Json]) -> Foreign:
    """Of a model whose other parts no spec describes, that which is a model of text."""
    values: dict[str, Json] = {}
    written: dict[str, str] = {}
    beside = {
        key: one for key, one in source.value.items() if key in _OF_TOKENS and key not in text
    }
    for lead, tree in (("text_config.", text), ("", beside)):
        for path, value in tree.items():
            for key, one in () if path == "model_type" else _spelled(path, value):
                values[key], written[key] = one, f"{lead}{path}"
    _state_original_context(values)
    others = source.value.keys() - {"text_config", "model_type", *beside}
    ignored = dict.fromkeys(sorted(others), "of the parts beside the text, which are not read")
    note = f"only the text part of the `{source.value['model_type']}` is read"
    return Foreign(source, kind, values, written, ignored, (note,))


def usual_leaves(config: Mapping[str, Json]) -> Iterator[tuple[str, str, Json]]:
    """Key as `read_config` spells it, key as the file does, value; the share that is rotated has a key of its own."""
    values: dict[str, Json] = {}
    written: dict[str, str] = {}
    for path, value in _leaves(config, GROUPS):
        for key, one in _spelled(path, value):
            share = one.get(_SHARE) if isinstance(one, Mapping) else None
            if key.endswith("rope_scaling") and isinstance(one, Mapping) and share is not None:
                values[name := key.replace("rope_scaling", _SHARE)], written[name] = share, path
                one = _scaling({name: below for name, below in one.items() if name != _SHARE})
            if key in values:
                yield key, path, one
            else:
                values[key], written[key] = one, path
    _state_original_context(values)
    yield from ((key, written[key], value) for key, value in values.items())


_SHARE = "partial_rotary_factor"


def entries(value: Json) -> Iterable[tuple[str, Json]]:
    """Of a mapping; none of any other value."""
    return value.items() if isinstance(value, Mapping) else ()


def _leaves(config: Mapping[str, Json], groups: Iterable[str]) -> Iterator[tuple[str, Json]]:
    """Dotted key -> value, of ``groups`` what is below them."""
    for key, value in config.items():
        if key in groups and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", below) for name, below in value.items())
        else:
            yield key, value


_ROTATED = {"full_attention", "sliding_attention"}
"""Kinds of layers that transformers 5 gives a rotation each (Gemma 3); `rope_local_base_freq` was the older word."""


def _spelled(path: str, value: Json) -> Iterator[tuple[str, Json]]:
    """One key of the file as keys of the tables: transformers 5 joins `rope_theta` and `rope_scaling`."""
    group, dot, name = path.rpartition(".")
    lead = group + dot
    if name == "dtype":
        yield f"{lead}torch_dtype", value
    elif name == "rope_parameters" and isinstance(value, Mapping) and value.keys() == _ROTATED:
        yield from _spelled(path, value["full_attention"])
        for key, one in _spelled(path, value["sliding_attention"]):
            yield key.replace("rope_", "rope_local_").replace("_theta", "_base_freq"), one
    elif name == "rope_parameters" and isinstance(value, Mapping):
        if "rope_theta" in value:
            yield f"{lead}rope_theta", value["rope_theta"]
        whole = {"rope_theta", *([_SHARE] if value.get(_SHARE) == 1 else [])}  # all of it rotates
        scaling = _scaling({key: one for key, one in value.items() if key not in whole})
        if scaling:  # transformers takes a missing kind for the plain one
            yield f"{lead}rope_scaling", scaling
    elif name == "attn_temperature_tuning" and type(value) is int:
        yield path, value != 0  # transformers 4.51 wrote the interval of such layers
    elif name == "rope_scaling":
        yield path, _scaling(value)
    elif name == "hidden_act" and value == "swish":
        yield path, "silu"  # transformers' ACT2FN: the same function
    else:
        yield path, value


def _scaling(value: Json) -> Json:
    """`type` is the older word for `rope_type`; the kind `default` is no scaling."""
    if not isinstance(value, Mapping):
        return value
    kinds = {one for key in ("rope_type", "type") if isinstance(one := value.get(key), str)}
    if len(kinds) != 1:
        return value
    (kind,) = kinds
    rest = {key: one for key, one in value.items() if key not in ("rope_type", "type")}
    rest = without_defaults(kind, rest)
    return None if kind == "default" and not rest else {**rest, "rope_type": kind}


def _state_original_context(values: dict[str, Json]) -> None:
    """transformers takes it from the configuration, where it has that key, or else the context that is declared."""
    name = "original_max_position_embeddings"
    for key, scaling in list(values.items()):
        group, dot, last = key.rpartition(".")
        kind = scaling.get("rope_type") if isinstance(scaling, Mapping) else None
        if last == "rope_scaling" and isinstance(scaling, Mapping) and knows(kind, name):
            stated = scaling.get(name, values.get(f"{group}{dot}max_position_embeddings"))
            stated = values.pop(f"{group}{dot}{name}", stated)
            values[key] = scaling if stated is None else {**scaling, name: stated}


_USUAL_INTERVAL = 4
"""Llama 4: the layers without positions that transformers fills in for an empty or null `no_rope_layers`."""


def _undo_filling(values: dict[str, Json], source: JsonSource) -> dict[str, str]:
    """What transformers 5 writes out of `no_rope_layers` when it saves a Llama 4: key -> why nothing is lost.

    Raises LG108 for a `layer_types` that says something else.
    """
    lead = "text_config."
    interval = values.get(f"{lead}no_rope_layer_interval", _USUAL_INTERVAL)
    flags, count = values.get(f"{lead}no_rope_layers"), values.get(f"{lead}num_hidden_layers")
    stated = {f"{lead}no_rope_layers", f"{lead}no_rope_layer_interval"} & values.keys()
    if flags is None and stated:  # transformers fills in for null as for an empty list
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
        if kinds != ["chunked_attention" if flag else "full_attention" for flag in full]:
            message = "`text_config.layer_types` says otherwise than `no_rope_layers`"
            help = "full_attention for a layer without positions, else chunked_attention"
            raise LlamagenError.of("LG108", message, source.place(f"{lead}layer_types"), help)
        ignored[f"{lead}layer_types"] = "follows from no_rope_layers"
    return ignored


def _flags(count: int, interval: int) -> list[Json]:
    """1 for a layer with positions."""
    return [0 if (i + 1) % interval == 0 else 1 for i in range(count)]


# params.json


class Interval(Closed):
    """Every n-th layer, which config.json writes as a list of flags; empty for the ``usual`` n."""

    key: str
    usual: int = Field(gt=0)


class ThetaRule(Closed):
    """Base of the rotation that Meta's code takes where the file has none."""

    plain: float
    with_use_scaled_rope: float


class ParamsKind(Closed):
    """Keys of one kind of params.json; ``rules`` are those that a formula of the reader uses."""

    marker: str | None = None
    fields: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    squares: dict[str, str] = {}
    intervals: dict[str, Interval] = {}
    rules: tuple[str, ...]

    def known(self) -> tuple[str, ...]:
        return (*self.fields, *self.squares, *self.intervals, *self.rules)


class ParamsTable(Closed):
    version: Literal[1]
    rope_theta: ThetaRule
    ignored: dict[str, str]
    kinds: dict[str, ParamsKind]


_LARGEST = 2**31
_NEEDED = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")


def read_params(source: JsonSource) -> Foreign:
    """Raises LG107 for an unknown key, LG102 for a missing one, LG108 for a value no rule takes."""
    table = load_table("params_keys.yaml", ParamsTable)
    kind, rules = next(
        (name, one)
        for name, one in table.kinds.items()
        if one.marker is None or one.marker in source.value
    )
    params = _Params(source, rules, table)
    params.require_known()
    params.by_table()
    match kind:
        case "llama4":
            params.llama4()
        case "mllama":
            params.mllama()
        case _:
            params.llama()
    scaled = "use_scaled_rope" in params.stated and params.switch("use_scaled_rope")
    if scaled:
        params.notes.append(
            "the factors of `use_scaled_rope` are in Meta's code; they are the nearest model's"
        )
    return Foreign(
        source,
        kind,
        params.values,
        params.written,
        {key: table.ignored[key] for key in params.stated if key in table.ignored},
        tuple(params.notes),
        partial=True,
        scaled=scaled,
    )


class _Params:
    """The keys of one file, ``stated`` by dotted path, and the ``values`` of config.json that follow from them."""

    def __init__(self, source: JsonSource, rules: ParamsKind, table: ParamsTable) -> None:
        self.source = source
        self.rules = rules
        self.table = table
        groups = {path.partition(".")[0] for path in rules.known() if "." in path}
        self.stated = dict(_leaves(source.value, groups))
        for group in sorted(groups & self.stated.keys()):
            raise self.wrong(group, "is not a mapping")
        self.values: dict[str, Json] = {}
        self.written: dict[str, str] = {}
        self.notes: list[str] = []

    def require_known(self) -> None:
        known = (*self.rules.known(), *self.table.ignored)
        findings: list[Diagnostic] = []
        for key in self.stated:
            if key not in known:
                help = did_you_mean(key, known, "remove it if the graph is the same")
                message = f"`{key[:80]}` is not a key of such a params.json that is known here"
                place = self.source.place(key)
                findings.append(Diagnostic("LG107", "error", message, place, (), help))
        for key in _NEEDED:
            if key not in self.stated:
                message, help = f"`{self.source.file}` lacks `{key}`", "no default is right for it"
                place = self.source.place("")
                findings.append(Diagnostic("LG102", "error", message, place, (), help))
        if findings:
            raise LlamagenError(findings)

    def say(self, key: str, value: Json, path: str) -> None:
        self.values[key] = value
        self.written[key] = path

    def by_table(self) -> None:
        """What the table alone says, and what holds for every kind."""
        rules = self.rules
        for path, keys in rules.fields.items():
            for key in keys if path in self.stated else ():
                self.say(key, self.stated[path], path)
        for path, key in rules.squares.items():
            if path in self.stated:
                side = self.stated[path]
                if not isinstance(side, list) or len(side) != 2 or side[0] != side[1]:
                    raise self.wrong(path, "is not [n, n]; only squares are known here")
                self.stated[path] = side[0]
                self.say(key, self.whole(path), path)
        for path, interval in rules.intervals.items():
            if path in self.stated:
                self.say(interval.key, self.flags(path, interval), path)
        (vocabulary,) = rules.fields["vocab_size"]
        if self.stated.get("vocab_size", -1) == -1:
            self.notes.append("the vocabulary is not stated; it is that of the nearest model")
            self.values.pop(vocabulary, None)
        (groups,) = rules.fields["n_kv_heads"]
        self.values.setdefault(groups, self.whole("n_heads"))

    def llama(self) -> None:
        if "rope_theta" not in self.stated:
            rule, newer = self.table.rope_theta, "use_scaled_rope" in self.stated
            self.say("rope_theta", rule.with_use_scaled_rope if newer else rule.plain, "rope_theta")
        self.say("intermediate_size", self.width(1), "multiple_of")
        if "head_dim" not in self.stated:
            self.values["head_dim"] = self.whole("dim") // self.whole("n_heads")

    def mllama(self) -> None:
        """Cross-attention stands before every k-th self-attention layer, counted from the last (fusion schedule)."""
        self.say("text_config.intermediate_size", self.width(1), "multiple_of")
        path = "vision_num_cross_attention_layers"
        layers, cross = self.whole("n_layers"), self.whole(path)
        schedule = list(range(layers))[:: -math.ceil(layers / cross)][:cross][::-1]
        if len(schedule) != cross:
            raise self.wrong(path, f"cannot be spread over {layers} layers")
        self.say("text_config.num_hidden_layers", layers + cross, "n_layers")
        places: list[Json] = [at + i for i, at in enumerate(schedule)]
        self.say("text_config.cross_attention_layers", places, path)

    def llama4(self) -> None:
        self.say("text_config.intermediate_size_mlp", self.width(1), "multiple_of")
        scale = "moe_args.auto_scale_F"
        # auto_scale_F: what capacity and shared expert use comes off the width
        scales = scale not in self.stated or self.switch(scale)
        used = self.number("moe_args.capacity_factor") + 1 if scales else 1
        self.say("text_config.intermediate_size", self.width(used), "multiple_of")
        ratio = "vision_args.mlp_ratio"
        if ratio in self.stated:
            inner = int(self.whole("vision_args.dim") * self.number(ratio))
            self.say("vision_config.intermediate_size", inner, ratio)

    def width(self, used: int | float) -> int:
        """Width of the feed-forward; of an expert where there are experts (facts 1 and 4.8)."""
        exp = self.number("ffn_exp") if "ffn_exp" in self.stated else 4
        inner = int(2 * int(exp * self.whole("dim")) / 3)
        if self.stated.get("ffn_dim_multiplier") is not None:
            inner = int(self.number("ffn_dim_multiplier") * inner)
        return ceil_to(int(inner / used), self.whole("multiple_of"))

    def flags(self, path: str, interval: Interval) -> list[Json]:
        """1 for a layer with positions; null is Meta's word for all of them."""
        layers = self.whole("n_layers")
        if self.stated[path] is None:
            return [1] * layers
        every = self.whole(path)
        if every > layers:
            raise self.wrong(path, f"is more than the {layers} layers")
        return [] if every == interval.usual else _flags(layers, every)

    def switch(self, path: str) -> bool:
        value = self.stated[path]
        if not isinstance(value, bool):
            raise self.wrong(path, "is neither true nor false")
        return value

    def number(self, path: str) -> int | float:
        value = self.stated.get(path)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < _LARGEST
        ):
            raise self.wrong(path, "is not a number between 0 and 2^31")
        return value

    def whole(self, path: str) -> int:
        number = self.number(path)
        if isinstance(number, float):
            raise self.wrong(path, "is not a whole number")
        return number

    def wrong(self, path: str, what: str) -> LlamagenError:
        help = "write it as Meta's files do"
        return LlamagenError.of("LG108", f"`{path}` {what}", self.source.place(path), help)
