"""How a checkpoint names and lays out what a spec calls by role path: rules as data.

A layout stands in a spec under ``checkpoint.layouts``, or, when many models share it, in a file of
spec/dialects/. llamagen/weights applies it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Closed(BaseModel):
    """Base of everything read from a spec: frozen, no unknown keys, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


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
    transform: Steps = (Identity(),)

    @model_validator(mode="after")
    def _joins(self) -> Self:
        concats = sum(isinstance(step, ConcatSources) for step in self.transform)
        stacks = sum(isinstance(step, StackSources) for step in self.transform)
        made = placeholders(self.to)
        free = {n for source in self.sources for n in placeholders(source) if n not in made}
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
    rules: tuple[NameRule, ...]
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
