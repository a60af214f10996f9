"""What a spec file may hold: typed, closed, documented. spec/schema.json is generated from these models."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date as Date
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)

from llamagen.ops.rope import MAX_TABLE, ROPE_KINDS, RopeKind


class Closed(BaseModel):
    """Base of everything read from a spec: frozen, no unknown keys, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def first_fault(error: ValidationError) -> str:
    """What pydantic found first, after its place."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


MAX_LAYERS = 4096

ModelId: TypeAlias = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*$", max_length=128),
]
Identifier: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
BlockName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,62}$")]
PartName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
Size: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Literal_: TypeAlias = "bool | int | Finite | str | None"


def _whole(value: object) -> object:
    """Python takes `true` and `1.0` for 1."""
    return value if type(value) is int else f"{value}"


# hyperparameters


Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Colours: TypeAlias = tuple[Share, Share, Share]
"""One number each for red, green and blue."""


class VisionBase(Closed):
    hidden_size: Size = Field(description="Width of the encoder's residual stream.")
    num_layers: Size = Field(description="Encoder layers; of a tiled encoder the local ones.")
    num_heads: Size = Field(description="Attention heads a layer.")
    intermediate_size: Size = Field(description="Width of the feed-forward.")
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = Field(description="Of the layer norms.")
    image_size: Size = Field(description="Side of a tile, pixels.")
    patch_size: Size = Field(description="Side of a patch, pixels.")
    num_channels: Size = Field(description="Colours.")
    output_size: Size = Field(description="Width of what the projector reads.")
    max_tiles: Size = Field(description="Tiles an image is cut into at most.")
    image_mean: Colours = Field(description="Subtracted from colours in [0, 1].")
    image_std: Colours = Field(description="What colours are divided by then.")
    pixel_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type that each step of this normalisation is rounded to."
    )


class TiledVision(VisionBase):
    """Llama 3.2 Vision: up to `max_tiles` tiles seen together, local layers and then gated global ones."""

    kind: Literal["tiled"]
    num_global_layers: Size = Field(description="Gated layers over all tiles at the end.")
    intermediate_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        description="Local layers whose states are appended to the output."
    )
    aspect_ratios: tuple[tuple[Size, Size], ...] = Field(
        description="Arrangements of tiles (rows, columns) in the order of their ids, which start at 1."
    )


class PatchVision(VisionBase):
    """Llama 4: every tile by itself, 2-D rotary positions, pixel shuffle; tokens join the text early."""

    kind: Literal["patch"]
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="Base of the two-dimensional rotary frequencies."
    )
    pixel_shuffle_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Side of the patch grid after the shuffle, as a share of what it was."
    )
    adapter_input_size: Size = Field(description="Width between the adapter's two layers.")
    adapter_output_size: Size = Field(description="Width the adapter gives the projector.")


Vision: TypeAlias = Annotated[TiledVision | PatchVision, Field(discriminator="kind")]


PairNumbers: TypeAlias = Annotated[
    tuple[Positive, ...], Field(min_length=1, max_length=MAX_TABLE // 2)
]


class RopeBase(Closed):
    theta: Positive = Field(description="Base of the rotary frequencies (`rope_theta`).")
    layout: Literal["half", "interleaved"] = Field(
        default="half",
        description="Pairs (i, i + d/2) as in Hugging Face Llama, or (2i, 2i + 1) as in Meta's code and Llama 4.",
    )
    partial: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of head_dim that is rotated (`partial_rotary_factor`)."
    )
    kind: str

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if wrong := ROPE_KINDS[self.kind].impossible(self.model_dump()):
            raise ValueError(wrong)
        return self


def _rope_model(kind: RopeKind) -> type[RopeBase]:
    fields: dict[str, Any] = {"kind": (Literal[kind.name], ...)}
    for attr in kind.attrs:
        if attr.only == "table":
            continue
        of: Any = {"float": Positive, "int": Size, "bool": bool, "floats": PairNumbers}[attr.type]
        if attr.optional:
            fields[attr.name] = (of | None, None)
        else:
            fields[attr.name] = (of, ... if attr.default is None else attr.default)
    name = f"{kind.name.capitalize()}Rope"
    return create_model(name, __base__=RopeBase, __doc__=kind.doc, **fields)


if TYPE_CHECKING:
    Rope: TypeAlias = RopeBase
else:
    _KINDS = reduce(or_, map(_rope_model, ROPE_KINDS.values()))
    Rope: TypeAlias = Annotated[_KINDS, Field(discriminator="kind")]


class Hyperparameters(Closed):
    """The vocabulary of sizes and switches. A name that is absent is not a property of the architecture."""

    vocab_size: Size | None = Field(default=None, description="Rows of the input embedding (V).")
    hidden_size: Size | None = Field(default=None, description="Width of the residual stream (D).")
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] | None = Field(
        default=None, description="Decoder layers."
    )
    num_heads: Size | None = Field(default=None, description="Query heads a layer (N).")
    num_kv_heads: Size | None = Field(default=None, description="Key/value heads a layer (K).")
    head_dim: Size | None = Field(default=None, description="Width of one head (H).")
    intermediate_size: Size | None = Field(
        default=None, description="Width of the feed-forward (F)."
    )
    max_positions: Size | None = Field(
        default=None, description="Context the configuration declares (`max_position_embeddings`)."
    )
    norm_eps: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Added inside the root of norms."
    )
    rope: Rope | None = Field(default=None, description="Rotary position embedding.")
    rope_local: Rope | None = Field(
        default=None, description="Rotary embedding of local layers, if it differs."
    )
    tie_embeddings: bool | None = Field(
        default=None, description="Whether the head shares the embedding's weight."
    )
    hidden_act: str | None = Field(default=None, description="Activation of the feed-forward.")
    attention_bias: bool | None = Field(
        default=None, description="Biases on the attention projections."
    )
    mlp_bias: bool | None = Field(
        default=None, description="Biases on the feed-forward projections."
    )
    qk_norm: bool | None = Field(
        default=None, description="Whether queries and keys are normalised."
    )
    sliding_window: Size | None = Field(default=None, description="Keys a local layer sees.")
    attention_chunk_size: Size | None = Field(
        default=None, description="Block of positions a chunked layer attends within."
    )
    attention_scale: Positive | None = Field(default=None, description="Factor on q k^T.")
    attention_softcap: Positive | None = Field(
        default=None, description="Bound of attention scores."
    )
    attention_temperature_scale: Positive | None = Field(
        default=None, description="`attn_scale` of Llama 4's attention temperature."
    )
    attention_temperature_floor: Size | None = Field(
        default=None, description="`floor_scale` of Llama 4's attention temperature, positions."
    )
    logit_softcap: Positive | None = Field(default=None, description="Bound of the logits.")
    embedding_multiplier: Positive | None = Field(default=None, description="Factor on embeddings.")
    residual_multiplier: Positive | None = Field(
        default=None, description="Factor on block outputs."
    )
    logits_scaling: Positive | None = Field(default=None, description="Divisor of the logits.")
    num_experts: Size | None = Field(default=None, description="Routed experts a MoE layer (E).")
    num_experts_per_token: Size | None = Field(
        default=None, description="Routed experts a token uses."
    )
    expert_intermediate_size: Size | None = Field(
        default=None, description="Width of a routed expert."
    )
    shared_expert_intermediate_size: Size | None = Field(
        default=None, description="Width of the expert every token uses."
    )
    dense_intermediate_size: Size | None = Field(
        default=None, description="Feed-forward width of layers without experts, where they differ."
    )
    vision: Vision | None = Field(default=None, description="Sizes of the image encoder.")

    @property
    def context(self) -> int | None:
        """Positions that a model is for: `max_positions`, unless its rope extends them."""
        if self.max_positions is None or self.rope is None or self.rope.kind != "dynamic":
            return self.max_positions
        factor: float = self.rope.model_dump()["factor"]
        return int(self.max_positions * factor)


# wiring


class CyclePattern(Closed):
    """`cycle` repeated over the layers."""

    cycle: tuple[Literal_, ...] = Field(min_length=1, max_length=MAX_LAYERS)


class ListPattern(Closed):
    """One value a layer, written out."""

    list: tuple[Literal_, ...] = Field(min_length=1, max_length=MAX_LAYERS)


class EveryPattern(Closed):
    """`value` for every n-th layer (layers n-1, 2n-1, ...), `otherwise` for the rest."""

    every: Size
    value: Literal_
    otherwise: Literal_


Layers: TypeAlias = tuple[Annotated[int, Field(ge=0, lt=MAX_LAYERS)], ...]


class LayersValue(Closed):
    """A value and the layers that have it."""

    layers: Layers
    value: Literal_


class AtPattern(Closed):
    """`default`, but other values at listed layers (0-based); a value that is no text as `at: [{layers: [3], value:
    false}]`."""

    default: Literal_
    at: dict[str, Layers] | tuple[LayersValue, ...]

    @property
    def others(self) -> tuple[tuple[Literal_, Layers], ...]:
        """Values and the layers that have them, in either form of `at`."""
        if isinstance(self.at, dict):
            return tuple(self.at.items())
        return tuple((one.value, one.layers) for one in self.at)


Pattern: TypeAlias = CyclePattern | ListPattern | EveryPattern | AtPattern


Equations: TypeAlias = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
            ]
        }
    ),
]


class BlockDefinition(Closed):
    """A block: parts with the checkpoint's own names, and dataflow equations over them."""

    doc: str | None = Field(
        default=None, description="One line for readers; goes into generated code."
    )
    inputs: tuple[Identifier, ...] = Field(
        default=("x",), description="Tensors the block is called with."
    )
    options: dict[Identifier, Literal_] = Field(
        default={},
        description="Static arguments and their defaults. An override states all of them: `null` is a value here.",
    )
    parts: dict[PartName, str] = Field(
        default={},
        description="Part name -> `linear(...)`, a block's name, or `stack(n, Block(...))`; `none` removes it.",
    )
    forward: Equations = Field(
        description="Equations, one a line; the last is `return ...`. Where a base has the block, a mapping replaces "
        "single ones by the names that they give: `{q: ...}`, `{'k, v': ...}`, `{return: ...}`. A new name goes before "
        "what reads it, `null` takes an equation away."
    )


def _no_name_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    """What goes in and what comes out are told apart by their names."""
    taken = {"input_ids", "attention_mask", "positions", "position_ids"}
    for name in names:
        if name in taken:
            raise ValueError(
                f"`{name}` is an input, or named before: outputs have names of their own"
            )
        taken.add(name)
    return names


OutputNames: TypeAlias = Annotated[tuple[Identifier, ...], AfterValidator(_no_name_twice)]


class GraphDefinition(Closed):
    """One of the graphs of a model that is run in pieces. An output of one is the input of that name of another."""

    doc: str | None = Field(default=None, description="What it computes, in a sentence.")
    root: BlockName = Field(description="The block that is this graph.")
    inputs: dict[Identifier, str] = Field(
        default={},
        description="Shapes of inputs beside `input_ids` and `attention_mask`, which every equation may name: "
        "`[I, 3, vision.image_size]` or `int64([B, I])`, I images.",
    )
    outputs: OutputNames = Field(
        default=("logits",),
        description="Names of what the block returns; empty if all it hands over is what `cross_cache_write` wrote.",
    )


# the record of a model: what is not published is absent, never guessed


SpecId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._/-]*$")]
SourceKey: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*(#.+)?$")]
Month: TypeAlias = Annotated[str, StringConstraints(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$")]
Language: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$|^code$")]


class Amount(Closed):
    """A published number with the precision it was published in."""

    value: Annotated[int, Field(gt=0)]
    bound: Literal["exact", "at_least", "at_most", "about"] = "exact"

    def __str__(self) -> str:
        sign = {"exact": "", "at_least": "+", "at_most": "", "about": ""}[self.bound]
        lead = {"exact": "", "at_least": "", "at_most": "up to ", "about": "~"}[self.bound]
        for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
            if self.value >= size:
                return f"{lead}{self.value / size:g}{unit}{sign}"
        return f"{lead}{self.value:,}{sign}"


ArxivId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}\.[0-9]{4,5}$")]


class Release(Closed):
    status: Literal["released", "served", "announced", "unreleased", "sketch"] = Field(
        description="released: weights are out; served: its publisher runs it for others and keeps the weights; "
        "announced: promised in public; unreleased: trained, kept back; sketch: assumed, no model's record (below "
        "`sketch/`)."
    )
    date: Date | None = Field(
        default=None, description="First publication of the weights, or of the announcement."
    )
    repo: str | None = Field(default=None, description="Repository on the Hugging Face Hub.")
    licence: str | None = None
    published_parameters: str | None = Field(
        default=None,
        description="The count as its publisher writes it; the exact one comes from the graph.",
    )
    paper: ArxivId | None = Field(default=None, description="The paper about it, by its arXiv id.")
    quantised: bool | None = Field(
        default=None,
        description="Another release in fewer bits, with its wiring; left out of timelines by default.",
    )
    note: str | None = None


class Benchmark(Closed):
    """A result of a model as its publisher states it; nothing is measured here."""

    name: str = Field(description="As published.")
    score: float
    shots: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Examples in the prompt, where one number of them is stated."
    )
    metric: str | None = Field(default=None, description="What the score is, as published.")


def _named_once(results: tuple[Benchmark, ...]) -> tuple[Benchmark, ...]:
    for name, count in Counter(one.name for one in results).items():
        if count > 1:
            raise ValueError(f"`{name}` is there {count} times; say in its name what differs")
    return results


class Training(Closed):
    tokens: Amount | None = Field(
        default=None, description="Pretraining tokens, or those of the last stage."
    )
    tokens_note: str | None = None
    context_length: int | None = Field(
        default=None, description="Longest sequence trained on, tokens."
    )
    advertised_context: int | None = Field(
        default=None, description="Context its publisher promises, tokens."
    )
    languages: tuple[Language, ...] | None = Field(
        default=None, description="Officially supported, ISO 639-1."
    )
    languages_note: str | None = None
    modalities_in: tuple[Literal["text", "image"], ...] | None = None
    modalities_out: tuple[Literal["text", "code"], ...] | None = None
    knowledge_cutoff: Month | None = None
    knowledge_cutoff_note: str | None = None
    gpu_hours: Annotated[int, Field(gt=0)] | None = None
    gpu_hours_note: str | None = None
    gpu: str | None = None
    co2_tonnes: Positive | None = Field(
        default=None, description="Emissions of training, location-based, tonnes of CO2eq."
    )
    learning_rate: Positive | None = Field(default=None, description="Peak, of pretraining.")
    batch_tokens: Size | None = Field(
        default=None, description="Tokens of one optimiser step of pretraining."
    )
    benchmarks: Annotated[tuple[Benchmark, ...], AfterValidator(_named_once)] | None = Field(
        default=None, min_length=1, description="Results that its publisher states of it."
    )
    weight_variants: tuple[str, ...] | None = Field(
        default=None, description="Forms the weights were published in."
    )
    infilling: bool | None = Field(
        default=None, description="Trained to fill in the middle (Code Llama)."
    )


class Tokenizer(Closed):
    kind: Literal["sentencepiece", "tiktoken", "bpe"] = Field(
        description="bpe: byte-level BPE as in GPT-2, with a vocabulary and merges of its own."
    )
    bos_id: int
    eos_ids: tuple[int, ...] = Field(
        description="Ids that end a generation, as config.json lists them."
    )
    pad_id: int | None = None
    special_tokens: dict[str, int] = {}
    named_tokens: dict[str, int] = Field(
        default={},
        description="Special tokens behind the ranks of a tiktoken file: texts between `<|` and `|>`, and ids, of "
        "which the first is the number of ranks. The rest of the vocabulary is `<|reserved_special_token_N|>`.",
    )
    note: str | None = None


class Lineage(Closed):
    derived_from: tuple[SpecId, ...]
    how: str | None = None


class Claim(Closed):
    value: str
    source: SourceKey


class Conflict(Closed):
    """Authorities that disagree about one path of the spec, which one is followed, and why."""

    path: str
    claims: tuple[Claim, ...] = Field(min_length=2)
    choice: str
    reason: str


class Uncertain(Closed):
    """A value that rests on inference; shown as uncertain wherever it is shown."""

    path: str
    why: str


class Source(Closed):
    """One authority of spec/sources.yaml."""

    title: str
    place: str
    kind: Literal["paper", "model card", "code", "config", "blog", "count", "derived"]
    note: str | None = None


# how a checkpoint names and lays out what a spec calls by role path; llamagen/weights applies it


Dim: TypeAlias = Annotated[int, Field(ge=0, le=7)]
Count: TypeAlias = Annotated[
    int | str, Field(description="A number, or an expression over the hyperparameters.")
]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _pairs(value: object) -> object:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


class Identity(Closed):
    """As it is stored."""

    kind: Literal["identity"] = "identity"


class RopePermute(Closed):
    """Meta's interleaved rotary rows to half-split rows, head by head (facts 4.10)."""

    kind: Literal["rope_permute"] = "rope_permute"
    heads: Count


class TransposeLast(Closed):
    """[..., A, B] -> [..., B, A]."""

    kind: Literal["transpose"] = "transpose"


class ConcatSources(Closed):
    """Joins the names of `from`, in their order, along `dim`."""

    kind: Literal["concat"] = "concat"
    dim: Dim


class StackSources(Closed):
    """Joins the range of a free number of `from`, such as `experts.{e}`, along a new first dimension."""

    kind: Literal["stack"] = "stack"


class ReshapeTo(Closed):
    """The same elements in the wanted shape, or in `shape`."""

    kind: Literal["reshape"] = "reshape"
    shape: Annotated[tuple[int, ...], BeforeValidator(_as_tuple)] | None = None


class SlicePart(Closed):
    """Elements [start, stop) along `dim`: one part of a fused tensor."""

    kind: Literal["slice"] = "slice"
    dim: Dim
    start: Count
    stop: Count


class TileTableRows(Closed):
    """A grid [rows, columns, ...] by tile position to a table by aspect-ratio id (facts 4.10)."""

    kind: Literal["tile_table"] = "tile_table"
    grids: Annotated[str | tuple[tuple[int, int], ...], BeforeValidator(_pairs)]
    """Rows and columns of tiles by aspect-ratio id, from id 1 on."""


Transform: TypeAlias = Annotated[
    Identity
    | RopePermute
    | TransposeLast
    | ConcatSources
    | StackSources
    | ReshapeTo
    | SlicePart
    | TileTableRows,
    Field(discriminator="kind"),
]


Names: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | tuple[str, ...]),
]
"""One name or a list of names."""

Steps: TypeAlias = Annotated[
    tuple[Transform, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=Transform | tuple[Transform, ...]),
]
"""One transform or a list of them, applied from left to right."""

PLACEHOLDER = re.compile(
    r"\{(?:(?P<list>[a-z][a-z0-9_]*)\[(?P<index>[a-z_]+)\]|(?P<name>[a-z_]+|\*))\}"
)


def placeholders(pattern: str) -> tuple[str, ...]:
    """Names of the placeholders, those inside `{list[name]}` included; `*` is one of them."""
    return tuple(match["index"] or match["name"] for match in PLACEHOLDER.finditer(pattern))


class NameRule(Closed):
    """`from` (one or several stored names) make `to`, a role path, through `transform`.

    `{i}` stands for a number, `{*}` for any text, `{cross_layers[i]}` (only in `to`) for the i-th
    number of a list of the layout. A number that only `from` has, such as `experts.{e}`, ranges over
    0, 1, ... and needs a `stack`. Steps before `concat` and `stack` apply to every source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)
    sources: Names = Field(alias="from", description="Stored name or names that are read.")
    to: str = Field(description="Role path that they make.")
    transform: Steps = Field(
        default=(Identity(),), description="What is done to the rows: see `llamagen schema`."
    )

    @model_validator(mode="after")
    def _joins(self) -> Self:
        concats = sum(isinstance(step, ConcatSources) for step in self.transform)
        stacks = sum(isinstance(step, StackSources) for step in self.transform)
        joined = placeholders(self.to)
        free = {n for source in self.sources for n in placeholders(source) if n not in joined}
        if concats != (len(self.sources) > 1):
            raise ValueError(f"{self.to}: several names in `from` need exactly one concat")
        if stacks != len(free):
            raise ValueError(f"{self.to}: a free number in `from` needs exactly one stack")
        return self


class ShardRule(Closed):
    """How the ranks of a Meta checkpoint join: along the first of `dims` that gives the wanted shape."""

    names: tuple[str, ...] = Field(description="Stored names.")
    dims: tuple[Dim | None, ...] = Field(
        description="Dimensions to try; null means that every rank holds the whole tensor."
    )


class NamingLayout(Closed):
    """One way of naming and laying out the tensors of a checkpoint.

    Of the rules whose `to` matches a wanted role path, the first whose sources exist is used.
    """

    detect: Names = Field(
        description="It is a candidate when each of these patterns matches some stored name."
    )
    rules: tuple[NameRule, ...] = Field(description="In order; see below.")
    drop: tuple[str, ...] = Field(
        default=(), description="Stored names that carry no weights, patterns allowed."
    )
    shards: tuple[ShardRule, ...] = Field(
        default=(), description="How model-parallel ranks join; only consolidated.*.pth have them."
    )
    lists: dict[str, str | tuple[int, ...]] = Field(
        default={}, description="Lists of numbers that `to` may index, or expressions for them."
    )
    sources: tuple[str, ...] = Field(
        default=(), description="Keys of spec/sources.yaml: where the names are known from."
    )

    @model_validator(mode="after")
    def _lists_exist(self) -> Self:
        for rule in self.rules:
            for match in PLACEHOLDER.finditer(rule.to):
                if match["list"] is not None and match["list"] not in self.lists:
                    raise ValueError(f"{rule.to}: there is no list `{match['list']}` in `lists`")
        return self


class CheckpointNaming(Closed):
    """What only this architecture's files have; role paths and spec/dialects/ are always understood."""

    layouts: dict[str, NamingLayout] = Field(
        default={}, description="Tried before the dialects that every model may have."
    )
    drop: tuple[str, ...] = Field(
        default=(), description="Stored names to ignore under every layout, patterns allowed."
    )


# how a spec becomes a Hugging Face config.json, and is recognised in one


Expression: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Fixed: TypeAlias = (
    bool
    | int
    | Annotated[float, Field(allow_inf_nan=False)]
    | str
    | tuple[bool | int | Annotated[float, Field(allow_inf_nan=False)] | str, ...]
)


class ConfigMapping(Closed):
    """One table for both directions. Keys nest one level, as in config.json (`text_config: {...}`).

    A spec that gives another `kind` replaces the table whole.
    """

    kind: str = Field(description="`model_type` of the config.json.")
    fields: dict[str, Expression | dict[str, Expression]] = Field(
        description="Key -> expression over hyperparameters, constants, patterns and `tokenizer`."
    )
    fixed: dict[str, Fixed | dict[str, Fixed]] = Field(
        default={}, description="Key -> what the wiring implies; import refuses any other value."
    )
    literals: dict[str, Fixed | dict[str, Fixed]] = Field(
        default={},
        description="Key -> value of the released file; says nothing about the architecture.",
    )
    ignored: dict[str, str] = Field(
        default={}, description="Key at any depth -> why import may pass over its value."
    )
    absent: dict[str, Expression | dict[str, Expression]] = Field(
        default={},
        description="Key -> what its absence means, an expression over the keys beside it.",
    )
    omits: tuple[str, ...] = Field(
        default=(),
        description="Dotted keys that are left out where they say none, or what absence says.",
    )
    requires: dict[str, Expression] = Field(
        default={}, description="Expressions over the spec that must hold for the file to mean it."
    )
    generation: dict[str, Expression] = Field(
        default={}, description="Keys of generation_config.json; none leaves a key out."
    )
    preprocessor: dict[str, Expression | dict[str, Expression]] = Field(
        default={}, description="Keys of preprocessor_config.json, for a model that reads images."
    )
    processor: dict[str, Expression] = Field(
        default={}, description="Keys of processor_config.json, which joins images and text."
    )


# the whole


class Spec(Closed):
    """One model, or with `abstract: true` what several have in common."""

    spec: Annotated[Literal[1], BeforeValidator(_whole)] = Field(
        description="Version of this format."
    )
    id: ModelId = Field(description="Where it lives: `llama/3.2/1b` is spec/llama/3.2/1b.yaml.")
    extends: str | None = Field(
        default=None, description="Id, or path, of the spec this one changes."
    )
    abstract: bool = Field(default=False, description="Not a model by itself.")
    title: str | None = Field(default=None, description="The model's name as people write it.")
    doc: str | None = Field(default=None, description="What is new here, in a few sentences.")
    release: Release | None = Field(
        default=None, description="When, where and under which licence."
    )
    training: Training | None = Field(default=None, description="What was published of it.")
    tokenizer: Tokenizer | None = Field(
        default=None, description="Its kind, and ids that mean something."
    )
    lineage: Lineage | None = Field(default=None, description="What it was made from, and how.")
    hyperparameters: Hyperparameters = Field(
        default=Hyperparameters(), description="Numbers, by the names that the field uses."
    )
    constants: dict[Identifier, bool | int | Finite | str | tuple[int | Finite | str, ...]] = Field(
        default={}, description="Literals only this architecture needs; each must be used."
    )
    patterns: dict[Identifier, Pattern] = Field(default={}, description="Per-layer values by name.")
    root: BlockName | None = Field(
        default=None,
        description="The block that is the model; absent while the wiring is not published.",
    )
    outputs: Annotated[OutputNames, Field(min_length=1)] = Field(
        default=("logits",),
        description="Names of what the root returns, in its order: numbers [B, S, n] for each token, or [B, n] for "
        "each text. `logits` are scores of the next token, [B, S, n]; only they are generated from.",
    )
    graphs: dict[Identifier, GraphDefinition] = Field(
        default={},
        description="Further graphs beside `root`, the model of text: encoders, and what joins them.",
    )
    blocks: dict[BlockName, BlockDefinition] = Field(default={}, description="The wiring.")
    checkpoint: CheckpointNaming = Field(
        default=CheckpointNaming(),
        description="Names of stored tensors that are not those of the parts.",
    )
    config: ConfigMapping | None = Field(
        default=None, description="How a Hugging Face config.json says the same."
    )
    invariants: dict[Identifier, str] = Field(
        default={}, description="Expressions that must be true."
    )
    provenance: dict[str, str] = Field(default={}, description="Path glob -> source key and place.")
    conflicts: tuple[Conflict, ...] = Field(
        default=(), description="Where sources disagree, and which one counts."
    )
    uncertain: tuple[Uncertain, ...] = Field(default=(), description="What was inferred.")

    @property
    def context(self) -> int | None:
        """Tokens that its publisher promises, or else its positions; none where neither is stated."""
        promised = self.training.advertised_context if self.training is not None else None
        return promised or self.hyperparameters.max_positions
