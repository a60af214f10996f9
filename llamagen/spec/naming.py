"""Names of a checkpoint's tensors as data: how a layout's names become role paths.

A layout is written in a spec under ``checkpoint.layouts``; llamagen/weights applies it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Closed(BaseModel):
    """Base of everything read from a spec: frozen, no unknown keys, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(Closed):
    kind: Literal["identity"] = "identity"


class RopePermute(Closed):
    """Meta's interleaved q/k rows to Hugging Face's half-rotate order (facts 4.10)."""

    kind: Literal["rope_permute"]
    heads: str = Field(description="Expression for the number of heads, e.g. `num_heads`.")


class Transpose(Closed):
    """Swap the last two dimensions."""

    kind: Literal["transpose"]


class Concat(Closed):
    """Join the tensors of several `from` names along a dimension."""

    kind: Literal["concat"]
    dim: int


class Stack(Closed):
    """Join the tensors of `{e}` = 0, 1, ... along a new first dimension; several `from` names are first joined
    along `concat_dim` for each `{e}`."""

    kind: Literal["stack"]
    concat_dim: int | None = None


class Reshape(Closed):
    """The same elements in the wanted shape."""

    kind: Literal["reshape"]


class TileTable(Closed):
    """mllama: a [4, 4, ...] grid by tile position to a table by aspect-ratio id (facts 4.10)."""

    kind: Literal["tile_table"]


Transform = Annotated[
    Identity | RopePermute | Transpose | Concat | Stack | Reshape | TileTable,
    Field(discriminator="kind"),
]


class NameRule(Closed):
    """Tensor names of the file -> one role path. `{i}` stands for a number, `{e}` for one that is stacked."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)
    source: str | tuple[str, ...] = Field(alias="from")
    to: str
    transform: Transform = Identity()
    shard_dim: int | None = Field(
        default=None,
        description="Dimension split over Meta's consolidated.NN files; absent: every file has the whole tensor.",
    )


class NamingLayout(Closed):
    """One way of naming a checkpoint's tensors."""

    detect: str = Field(description="A tensor name that only this layout has.")
    rules: tuple[NameRule, ...]
    drop: tuple[str, ...] = Field(
        default=(), description="Names that carry no weights, `{i}` allowed."
    )


class CheckpointNaming(Closed):
    """Layouts besides the role paths themselves, which every checkpoint may use."""

    layouts: dict[str, NamingLayout] = {}
    drop: tuple[str, ...] = Field(
        default=(), description="Names to ignore in a role-path checkpoint."
    )
