"""The part of MANIFEST.json about images: which graphs run when, what they hand over, how files become tiles."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from llamagen.images.recipe import MAX_TOKENS, Recipe, TilesRecipe, TokenId, recipe_of
from llamagen.ir.build_graphs import build_all
from llamagen.ir.pipeline import pipeline_of
from llamagen.spec.naming import Closed
from llamagen.spec.resolved import ResolvedSpec


class HandOver(Closed):
    """An output of one graph that is an input, of that name, of others."""

    made_by: str
    read_by: tuple[str, ...]
    placeholder: TokenId | None = Field(
        default=None,
        description="Token that stands for its rows; rows are used up by the tokens, in order. "
        "Null: read whole at every call.",
    )
    rows: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        default=None, description="Rows of an item (a tile), one a token."
    )


class ImagesRecord(Closed):
    """Graphs by role. Text without images needs the graph `model` alone."""

    once: tuple[str, ...] = Field(description="Run once for all images of a prompt, in order.")
    steps: tuple[str, ...] = Field(
        min_length=1,
        description="Run at every call, in order; the last one has the cache and gives logits.",
    )
    inputs: tuple[str, ...] = Field(description="What preprocessing gives the graphs run once.")
    beside: tuple[str, ...] = Field(
        description="What it gives the others, one entry a token; a new token is as the last one."
    )
    hand_overs: dict[str, HandOver]
    preprocessing: Recipe | None = Field(
        description="From image files to these inputs; null where its tokens are not published."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Tokens that the recipe writes stand for the rows that are handed over."""
        recipe = self.preprocessing
        if isinstance(recipe, TilesRecipe):
            written = recipe.patch_token, recipe.tokens_per_tile
            for name, one in self.hand_overs.items():
                if one.placeholder is not None and (one.placeholder, one.rows) != written:
                    raise ValueError(f"tokens stand for rows of {name!r} that are not the recipe's")
        return self


def images_record(resolved: ResolvedSpec) -> ImagesRecord | None:
    """None for a model of text. Raises LG407 as ``pipeline_of`` does."""
    if not resolved.spec.graphs:
        return None
    graphs = build_all(resolved)
    pipeline = pipeline_of(graphs)
    if pipeline is None:
        return None
    hand_overs = {}
    for made_by in pipeline.graphs:
        for name in pipeline.makes[made_by]:
            readers = [n for n in pipeline.graphs if name in pipeline.reads[n]]
            placeholder = pipeline.placeholders.get(name)
            if readers:
                hand_overs[name] = HandOver(
                    made_by=made_by,
                    read_by=tuple(readers),
                    placeholder=placeholder.token if placeholder else None,
                    rows=placeholder.rows if placeholder else None,
                )
    return ImagesRecord(
        once=pipeline.once,
        steps=pipeline.steps,
        inputs=pipeline.images,
        beside=pipeline.beside,
        hand_overs=hand_overs,
        preprocessing=recipe_of(resolved.spec),
    )
