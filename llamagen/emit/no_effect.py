"""Options of an export that change nothing in its folder: to be said, since a typed option is a wish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from llamagen.diagnostics import Diagnostic
from llamagen.emit.options import ExportOptions
from llamagen.emit.quantize_options import NOT_QUANTIZED, QuantizeOptions

if TYPE_CHECKING:
    from llamagen.emit.onnx.model import OnnxModel


def without_effect(
    options: ExportOptions, emitted: Mapping[str, OnnxModel]
) -> tuple[Diagnostic, ...]:
    return tuple(
        Diagnostic("LG647", "note", text, help=help) for text, help in _said(options, emitted)
    )


def _said(options: ExportOptions, emitted: Mapping[str, OnnxModel]) -> Iterator[tuple[str, str]]:
    models = emitted.values()
    if options.max_context is not None and all(m.max_context is None for m in models):
        yield (
            "--max-context bounds nothing: no operator of this model reads a table of positions",
            "the length of a generation is up to who runs the model",
        )
    if options.runtime is not None and not any(m.fused_attention for m in models):
        yield (
            "--runtime changes nothing: every version that it takes has the operators of this model",
            "leave it out",
        )
    chosen = options.quantize
    if chosen == NOT_QUANTIZED or any(i.part for m in models for i in m.initializers):
        return
    if _names_no_scheme(chosen):
        yield "the weights are not quantised", "add --quantize int4, int8 or w8a8"
    else:
        yield (
            "nothing is quantised: the model has no such weights",
            "--quantize takes projections too",
        )


def _names_no_scheme(chosen: QuantizeOptions) -> bool:
    """Only how to quantise was said, not what."""
    plain = NOT_QUANTIZED
    return chosen == replace(
        plain,
        block_size=chosen.block_size,
        asymmetric=chosen.asymmetric,
        accuracy_level=chosen.accuracy_level,
    )
