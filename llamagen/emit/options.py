"""What the user may choose about an exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.manifest import WeightMode
from llamagen.emit.quantize_options import NOT_QUANTIZED, QuantizeOptions
from llamagen.ir.bounded import CacheKind


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Names as they are typed; each is checked where it is used."""

    profile: str = "portable"
    dtype: str = "float32"
    weights: str = "copy"
    """``copy`` writes data files; ``reference`` links the checkpoint's own."""
    logits: str | None = None
    """``last`` or ``all``; None is the profile's own choice."""
    max_context: int | None = None
    """Tokens that tables of positions cover; None is the model's context, within bounds."""
    runtime: str | None = None
    """Version of ONNX Runtime whose operators may be used; None is the newest that the profile's provider has."""
    quantize: QuantizeOptions = NOT_QUANTIZED
    scan: bool = False
    """Read every byte of referenced weights: refuse NaN and infinity, and hash the files."""
    ignore_config: bool = False
    """Export although the checkpoint's own config.json makes another graph; the folder gets the spec's."""

    cache: CacheKind = "full"
    """``bounded``: layers behind a window or chunks keep only what a later token can read."""

    @property
    def mode(self) -> WeightMode:
        """Raises LG703."""
        for mode in MODES:
            if mode == self.weights:
                return mode
        near = did_you_mean(self.weights, MODES)
        raise LlamagenError.of(
            "LG703",
            f"weights cannot be given by {self.weights!r}; known: {', '.join(MODES)}",
            help=f"did you mean {near}?" if near else None,
        )


MODES: tuple[WeightMode, ...] = get_args(WeightMode)
