"""How a model wants its images: the numbers of ``hyperparameters.vision`` and the tokens, for a folder's manifest."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field

from llamagen.spec.schema import Closed, Colours, PatchVision, Spec, TiledVision

PixelDType: TypeAlias = Literal["float32", "bfloat16"]


class RecipeBase(Closed):
    tile_size: int = Field(description="Side of a tile, pixels.")
    max_tiles: int = Field(description="Tiles that an image is cut into at most.")
    mean: Colours = Field(description="Subtracted from red, green and blue in [0, 1].")
    std: Colours = Field(description="What the differences are divided by.")
    pixel_dtype: PixelDType = Field(description="Type that every step of that is rounded to.")
    image_token: int = Field(description="`<|image|>`, which marks the place of an image.")
    bos_token: int = Field(description="Begins a text.")


class TilesRecipe(RecipeBase):
    """Llama 4: tiles one by one, then the whole image as a small one; patch tokens stand for each in the text."""

    kind: Literal["tiles"] = "tiles"
    tokens_per_tile: int = Field(description="Patch tokens that stand for a tile.")
    patch_token: int
    start_token: int
    end_token: int
    x_separator_token: int = Field(description="Between two tiles of a row.")
    y_separator_token: int = Field(description="After each row of tiles.")


class CanvasRecipe(RecipeBase):
    """Llama 3.2 Vision: a canvas of tiles that are seen together; text attends to the images before it."""

    kind: Literal["canvas"] = "canvas"
    aspect_ratios: tuple[tuple[int, int], ...] = Field(
        description="Canvases, rows and columns of tiles, in the order of their ids, which start at 1."
    )


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
    """None for a model of text, and where the tokens that stand for images are not published."""
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
