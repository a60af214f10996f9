"""How the codes of a quantised weight are read, as metadata of the tensor: what `verify` and other readers go by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llamagen.emit.onnx.initializer import BlockEncoding, ChannelEncoding, ExpertEncoding, Part
from llamagen.spec.schema import Closed


class EncodingRecord(Closed):
    """weight[n, k] = (code - zero point) * scale."""

    kind: Literal["blocks", "channels", "experts"] = Field(
        description="A scale for each `block` weights of a row, or for a row; codes of channels are transposed. "
        "Experts: blocks of each expert's rows."
    )
    bits: Literal[4, 8]
    block: int | None
    scales: str = Field(description="Name of the tensor of scales.")
    zero_points: str | None = Field(
        description="Name of the tensor of zero points; null: 2^(bits - 1) for blocks, 0 for channels."
    )

    transposed: bool = Field(
        default=False, description="The parameter has [inputs, outputs] of each expert."
    )
    paired: bool = Field(
        default=False,
        description="Rows of the first and the second half of an expert's outputs in turns.",
    )

    @staticmethod
    def of(part: Part) -> EncodingRecord:
        """The record of the codes ``part``."""
        scales = f"{part.weight}_scales"
        points = f"{part.weight}_zero_points"
        match part.encoding:
            case BlockEncoding(bits=bits, block=block, symmetric=symmetric):
                return EncodingRecord(
                    kind="blocks",
                    bits=bits,
                    block=block,
                    scales=scales,
                    zero_points=None if symmetric else points,
                )
            case ExpertEncoding(blocks=blocks, transposed=transposed, paired=paired):
                return EncodingRecord(
                    kind="experts",
                    bits=blocks.bits,
                    block=blocks.block,
                    scales=scales,
                    zero_points=None if blocks.symmetric else points,
                    transposed=transposed,
                    paired=paired,
                )
            case ChannelEncoding():
                return EncodingRecord(
                    kind="channels", bits=8, block=None, scales=scales, zero_points=None
                )
