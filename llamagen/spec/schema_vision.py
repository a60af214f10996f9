"""Sizes of image encoders. Their wiring is in blocks; these are the numbers it takes."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from llamagen.spec.naming import Closed

_Size: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Colours: TypeAlias = tuple[_Share, _Share, _Share]
"""One number each for red, green and blue."""


class VisionBase(Closed):
    hidden_size: _Size = Field(description="Width of the encoder's residual stream.")
    num_layers: _Size = Field(description="Encoder layers; of a tiled encoder the local ones.")
    num_heads: _Size = Field(description="Attention heads a layer.")
    intermediate_size: _Size = Field(description="Width of the feed-forward.")
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = Field(description="Of the layer norms.")
    image_size: _Size = Field(description="Side of a tile, pixels.")
    patch_size: _Size = Field(description="Side of a patch, pixels.")
    num_channels: _Size = Field(description="Colours.")
    output_size: _Size = Field(description="Width of what the projector reads.")
    max_tiles: _Size = Field(description="Tiles an image is cut into at most.")
    image_mean: Colours = Field(description="Subtracted from colours in [0, 1].")
    image_std: Colours = Field(description="What colours are divided by then.")
    pixel_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type that each step of this normalisation is rounded to."
    )


class TiledVision(VisionBase):
    """Llama 3.2 Vision: up to `max_tiles` tiles seen together, local layers and then gated global ones."""

    kind: Literal["tiled"]
    num_global_layers: _Size = Field(description="Gated layers over all tiles at the end.")
    intermediate_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        description="Local layers whose states are appended to the output."
    )
    aspect_ratios: tuple[tuple[_Size, _Size], ...] = Field(
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
    adapter_input_size: _Size = Field(description="Width between the adapter's two layers.")
    adapter_output_size: _Size = Field(description="Width the adapter gives the projector.")


Vision: TypeAlias = Annotated[TiledVision | PatchVision, Field(discriminator="kind")]
