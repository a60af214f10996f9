"""How a model wants its images: the numbers of ``hyperparameters.vision`` and the tokens, for a folder's manifest."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias, assert_never

from pydantic import Field, ValidationError, model_validator

from llamagen.diagnostics import LlamagenError
from llamagen.spec.schema import Closed, Colours, PatchVision, Spec, TiledVision, first_fault

PixelDType: TypeAlias = Literal["float32", "bfloat16"]


TokenId: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
MAX_TOKENS = 1 << 20
"""That stand for one image."""
MAX_TILE_PIXELS = 1 << 26
"""Of all tiles of one image, which take 12 bytes a pixel."""
_Tiles: TypeAlias = Annotated[int, Field(ge=1, le=1 << 10)]
_Divisor: TypeAlias = Annotated[float, Field(ge=1e-3, le=1)]


class RecipeBase(Closed):
    tile_size: int = Field(ge=1, le=1 << 13, description="Side of a tile, pixels.")
    max_tiles: int = Field(ge=1, le=1 << 10, description="Tiles that an image is cut into at most.")
    mean: Colours = Field(description="Subtracted from red, green and blue in [0, 1].")
    std: tuple[_Divisor, _Divisor, _Divisor] = Field(
        description="What the differences are divided by."
    )
    pixel_dtype: PixelDType = Field(description="Type that every step of that is rounded to.")
    image_token: TokenId = Field(description="`<|image|>`, which marks the place of an image.")
    bos_token: TokenId = Field(description="Begins a text.")

    @model_validator(mode="after")
    def _held(self) -> Self:
        pixels = self.tile_size**2 * self.max_tiles
        if pixels > MAX_TILE_PIXELS:
            raise ValueError(f"an image of {pixels:,} pixels; {MAX_TILE_PIXELS:,} are the most")
        return self


class TilesRecipe(RecipeBase):
    """Llama 4: tiles one by one, then the whole image as a small one; patch tokens stand for each in the text."""

    kind: Literal["tiles"] = "tiles"
    tokens_per_tile: int = Field(
        ge=1, le=MAX_TOKENS, description="Patch tokens that stand for a tile."
    )
    patch_token: TokenId
    start_token: TokenId
    end_token: TokenId
    x_separator_token: TokenId = Field(description="Between two tiles of a row.")
    y_separator_token: TokenId = Field(description="After each row of tiles.")

    @model_validator(mode="after")
    def _written(self) -> Self:
        tokens = self.tokens_per_tile * self.max_tiles
        if tokens > MAX_TOKENS:
            raise ValueError(f"{tokens:,} tokens for an image; {MAX_TOKENS:,} are the most")
        return self


class CanvasRecipe(RecipeBase):
    """Llama 3.2 Vision: a canvas of tiles that are seen together; text attends to the images before it."""

    kind: Literal["canvas"] = "canvas"
    aspect_ratios: tuple[tuple[_Tiles, _Tiles], ...] = Field(
        min_length=1,
        max_length=1 << 10,
        description="Canvases, rows and columns of tiles, in the order of their ids, which start at 1.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wrong = [r for r in self.aspect_ratios if r[0] * r[1] > self.max_tiles]
        if wrong:
            raise ValueError(f"a canvas of {wrong[0]} tiles; {self.max_tiles} are the most")
        return self


Recipe: TypeAlias = Annotated[TilesRecipe | CanvasRecipe, Field(discriminator="kind")]

_TILE_TOKENS = (
    "image",
    "patch",
    "image_start",
    "image_end",
    "tile_x_separator",
    "tile_y_separator",
)


def recipe_of(spec: Spec) -> Recipe | None:
    """None for a model of text, and where the tokens that stand for images are not published.

    Raises LG785 for numbers that no image could be prepared by.
    """
    try:
        return _recipe(spec)
    except ValidationError as error:
        message = f"images of {spec.id} cannot be prepared: {first_fault(error)}"
        raise LlamagenError.of("LG785", message, help="see `hyperparameters.vision`") from error


def _recipe(spec: Spec) -> Recipe | None:
    vision, tokenizer = spec.hyperparameters.vision, spec.tokenizer
    if vision is None or tokenizer is None:
        return None
    tokens = tokenizer.special_tokens
    match vision:
        case PatchVision():
            if any(name not in tokens for name in _TILE_TOKENS):
                return None
            side = vision.image_size // vision.patch_size
            return TilesRecipe(
                tile_size=vision.image_size,
                max_tiles=vision.max_tiles,
                mean=vision.image_mean,
                std=vision.image_std,
                pixel_dtype=vision.pixel_dtype,
                image_token=tokens["image"],
                bos_token=tokenizer.bos_id,
                tokens_per_tile=round(side * side * vision.pixel_shuffle_ratio**2),
                patch_token=tokens["patch"],
                start_token=tokens["image_start"],
                end_token=tokens["image_end"],
                x_separator_token=tokens["tile_x_separator"],
                y_separator_token=tokens["tile_y_separator"],
            )
        case TiledVision():
            if "image_token" not in tokens:
                return None
            return CanvasRecipe(
                tile_size=vision.image_size,
                max_tiles=vision.max_tiles,
                mean=vision.image_mean,
                std=vision.image_std,
                pixel_dtype=vision.pixel_dtype,
                image_token=tokens["image_token"],
                bos_token=tokenizer.bos_id,
                aspect_ratios=vision.aspect_ratios,
            )
        case _:
            assert_never(vision)
