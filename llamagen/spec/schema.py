"""What a spec file may hold: typed, closed, documented. spec/schema.json is generated from these models."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints, create_model

from llamagen.ops.rope import ROPE_KINDS, RopeKind
from llamagen.spec.config_mapping import ConfigMapping
from llamagen.spec.naming import CheckpointNaming, Closed
from llamagen.spec.record import Conflict, Lineage, Release, Tokenizer, Training, Uncertain
from llamagen.spec.schema_vision import Vision

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


def _rope_model(kind: RopeKind) -> type[RopeBase]:
    fields: dict[str, Any] = {"kind": (Literal[kind.name], ...)}
    for attr in kind.attrs:
        of = Positive if attr.type == "float" else Size
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


class AtPattern(Closed):
    """`default`, but other values at listed layers (0-based)."""

    default: Literal_
    at: dict[str, tuple[Annotated[int, Field(ge=0, lt=MAX_LAYERS)], ...]]


Pattern: TypeAlias = CyclePattern | ListPattern | EveryPattern | AtPattern


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
    forward: str = Field(description="Equations, one a line; the last is `return ...`.")


class GraphDefinition(Closed):
    """One of the graphs of a model that is run in pieces. An output of one is the input of that name of another."""

    doc: str | None = Field(default=None, description="What it computes, in a sentence.")
    root: BlockName = Field(description="The block that is this graph.")
    inputs: dict[Identifier, str] = Field(
        default={},
        description="Shapes of inputs beside `input_ids` and `attention_mask`, which every equation may name: "
        "`[I, 3, vision.image_size]` or `int64([B, I])`, I images.",
    )
    outputs: tuple[Identifier, ...] = Field(
        default=("logits",),
        description="Names of what the block returns; empty if all it hands over is what `cross_cache_write` wrote.",
    )


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
    release: Release | None = None
    training: Training | None = None
    tokenizer: Tokenizer | None = None
    lineage: Lineage | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    constants: dict[Identifier, bool | int | Finite | str | tuple[int | Finite | str, ...]] = Field(
        default={}, description="Literals only this architecture needs; each must be used."
    )
    patterns: dict[Identifier, Pattern] = Field(default={}, description="Per-layer values by name.")
    root: BlockName | None = Field(
        default=None,
        description="The block that is the model; absent while the wiring is not published.",
    )
    graphs: dict[Identifier, GraphDefinition] = Field(
        default={},
        description="Further graphs beside `root`, the model of text: encoders, and what joins them.",
    )
    blocks: dict[BlockName, BlockDefinition] = {}
    checkpoint: CheckpointNaming = CheckpointNaming()
    config: ConfigMapping | None = Field(
        default=None, description="Hugging Face config.json, see llamagen/emit/config."
    )
    invariants: dict[Identifier, str] = Field(
        default={}, description="Expressions that must be true."
    )
    provenance: dict[str, str] = Field(default={}, description="Path glob -> source key and place.")
    conflicts: tuple[Conflict, ...] = ()
    uncertain: tuple[Uncertain, ...] = ()
