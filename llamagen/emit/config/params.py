"""Meta's params.json in the words of config.json, by spec/params_keys.yaml and the formulas of Meta's code.

Rules: llama-models models/{llama3,llama4}, meta-llama/llama. Every key of a file is turned into a value, passed over
for a reason that the table states, or refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llamagen.diagnostics import Diagnostic, LlamagenError, did_you_mean
from llamagen.emit.config.codecs import Json
from llamagen.emit.config.json_source import JsonSource
from llamagen.emit.config.params_table import Interval, ParamsKind, ParamsTable, params_table
from llamagen.emit.config.wanted import Wanted
from llamagen.spec.expr import ceil_to

_LARGEST = 2**31
_NEEDED = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")


def read_params(source: JsonSource) -> Wanted:
    """Raises LG107 for an unknown key, LG102 for a missing one, LG108 for a value no rule takes."""
    table = params_table()
    kind = next(
        name
        for name, one in table.kinds.items()
        if one.marker is None or one.marker in source.value
    )
    rules = table.kinds[kind]
    given = _leaves(source, rules)
    _refuse(source, given, table, rules)
    made = _Made(source, given)
    made.mapped(rules)
    match kind:
        case "llama4":
            made.llama4()
        case "mllama":
            made.mllama()
        case _:
            made.llama(table)
    scaled = given.get("use_scaled_rope", False)
    if not isinstance(scaled, bool):
        raise _wrong(source, "use_scaled_rope", "is neither true nor false")
    if scaled:
        made.notes.append(
            "the factors of `use_scaled_rope` are in Meta's code; they are the nearest model's"
        )
    return Wanted(
        source,
        "params.json",
        kind,
        made.values,
        made.written,
        {key: table.ignored[key] for key in given if key in table.ignored},
        tuple(made.notes),
        partial=True,
        scaled=scaled,
    )


def _leaves(source: JsonSource, rules: ParamsKind) -> dict[str, Json]:
    """Dotted key -> value; groups are those that the table has."""
    groups = {path.partition(".")[0] for path in rules.known() if "." in path}
    found: dict[str, Json] = {}
    for key, value in source.value.items():
        if key not in groups:
            found[key] = value
        elif not isinstance(value, Mapping):
            raise _wrong(source, key, "is not a mapping")
        else:
            found.update({f"{key}.{name}": below for name, below in value.items()})
    return found


@dataclass(slots=True)
class _Made:
    source: JsonSource
    given: Mapping[str, Json]
    values: dict[str, Json] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def say(self, key: str, value: Json, path: str) -> None:
        self.values[key] = value
        self.written[key] = path

    def mapped(self, rules: ParamsKind) -> None:
        """What the table alone says, and what holds for every kind."""
        for path, keys in rules.fields.items():
            if path in self.given:
                for key in keys:
                    self.say(key, self.given[path], path)
        for path, key in rules.squares.items():
            if path in self.given:
                self.say(key, self.side(path), path)
        for path, interval in rules.intervals.items():
            if path in self.given:
                self.say(interval.key, self.flags(path, interval), path)
        (vocabulary,) = rules.fields["vocab_size"]
        if self.given.get("vocab_size", -1) == -1:
            self.notes.append("the vocabulary is not stated; it is that of the nearest model")
            self.values.pop(vocabulary, None)
        self.whole("n_heads")
        (groups,) = rules.fields["n_kv_heads"]
        self.values.setdefault(groups, self.given["n_heads"])

    def llama(self, table: ParamsTable) -> None:
        if "rope_theta" not in self.given:
            rule = table.rope_theta
            newer = "use_scaled_rope" in self.given
            self.say("rope_theta", rule.with_use_scaled_rope if newer else rule.plain, "rope_theta")
        self.say("intermediate_size", self.width(1), "multiple_of")
        if "head_dim" not in self.given:
            self.values["head_dim"] = self.whole("dim") // self.whole("n_heads")

    def mllama(self) -> None:
        """Cross-attention stands before every k-th self-attention layer, counted from the last (fusion schedule)."""
        self.say("text_config.intermediate_size", self.width(1), "multiple_of")
        path = "vision_num_cross_attention_layers"
        layers, cross = self.whole("n_layers"), self.whole(path)
        schedule = list(range(layers))[:: -math.ceil(layers / cross)][:cross][::-1]
        if len(schedule) != cross:
            raise _wrong(self.source, path, f"cannot be spread over {layers} layers")
        self.say("text_config.num_hidden_layers", layers + cross, "n_layers")
        places: list[Json] = [at + i for i, at in enumerate(schedule)]
        self.say("text_config.cross_attention_layers", places, path)

    def llama4(self) -> None:
        dense = "text_config.intermediate_size_mlp"
        self.say(dense, self.width(1), "multiple_of")
        scales = self.given.get("moe_args.auto_scale_F", True)
        if not isinstance(scales, bool):
            raise _wrong(self.source, "moe_args.auto_scale_F", "is neither true nor false")
        # auto_scale_F: what capacity and shared expert use comes off the width
        used = self.number("moe_args.capacity_factor") + 1 if scales else 1
        self.say("text_config.intermediate_size", self.width(used), "multiple_of")
        ratio = "vision_args.mlp_ratio"
        if ratio in self.given:
            inner = int(self.whole("vision_args.dim") * self.number(ratio))
            self.say("vision_config.intermediate_size", inner, ratio)

    def width(self, used: int | float) -> int:
        """Width of the feed-forward; of an expert where there are experts (facts 1 and 4.8)."""
        exp = self.number("ffn_exp") if "ffn_exp" in self.given else 4
        inner = int(2 * int(exp * self.whole("dim")) / 3)
        if self.given.get("ffn_dim_multiplier") is not None:
            inner = int(self.number("ffn_dim_multiplier") * inner)
        return ceil_to(int(inner / used), self.whole("multiple_of"))

    def side(self, path: str) -> int:
        value = self.given[path]
        if not isinstance(value, list) or len(value) != 2 or value[0] != value[1]:
            raise _wrong(self.source, path, "is not [n, n]; only squares are known here")
        return _whole(self.source, path, value[0])

    def flags(self, path: str, interval: Interval) -> list[Json]:
        """1 for a layer with positions; null is Meta's word for all of them."""
        layers = self.whole("n_layers")
        if self.given[path] is None:
            return [1] * layers
        every = self.whole(path)
        if every > layers:
            raise _wrong(self.source, path, f"is more than the {layers} layers")
        if every == interval.usual:
            return []
        return [0 if (i + 1) % every == 0 else 1 for i in range(layers)]

    def number(self, path: str) -> int | float:
        return _number(self.source, path, self.given.get(path))

    def whole(self, path: str) -> int:
        return _whole(self.source, path, self.given.get(path))


def _refuse(
    source: JsonSource, given: Mapping[str, Json], table: ParamsTable, rules: ParamsKind
) -> None:
    known = (*rules.known(), *table.ignored)
    findings = [*_unknown(source, given, known), *_missing(source, given)]
    if findings:
        raise LlamagenError(findings)


def _unknown(
    source: JsonSource, given: Mapping[str, Json], known: tuple[str, ...]
) -> Iterator[Diagnostic]:
    for key in given:
        if key not in known:
            near = did_you_mean(key, known, aliases={})
            help = f"did you mean `{near}`?" if near else "remove it if the graph is the same"
            message = f"`{key[:80]}` is not a key of such a params.json that is known here"
            yield Diagnostic("LG107", "error", message, source.place(key), (), help)


def _missing(source: JsonSource, given: Mapping[str, Json]) -> Iterator[Diagnostic]:
    for key in _NEEDED:
        if key not in given:
            message = f"`{source.file}` lacks `{key}`"
            help = "no default is right for it"
            yield Diagnostic("LG102", "error", message, source.place(""), (), help)


def _wrong(source: JsonSource, path: str, what: str) -> LlamagenError:
    help = "write it as Meta's files do"
    return LlamagenError.of("LG108", f"`{path}` {what}", source.place(path), help)


def _number(source: JsonSource, path: str, value: Json) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise _wrong(source, path, "is not a number between 0 and 2^31")
    return value


def _whole(source: JsonSource, path: str, value: Json) -> int:
    number = _number(source, path, value)
    if isinstance(number, float):
        raise _wrong(source, path, "is not a whole number")
    return number
