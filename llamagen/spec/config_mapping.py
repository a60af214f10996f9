"""How a spec becomes a Hugging Face config.json, and is recognised in one: a table read in both directions."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, StringConstraints

from llamagen.spec.naming import Closed

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
