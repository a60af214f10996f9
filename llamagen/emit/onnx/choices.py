"""What an export may choose within a profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from llamagen.analysis.rewrites import Logits
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.onnx.profile import Profile
from llamagen.emit.onnx.quantization import NO_QUANTIZATION, Quantization
from llamagen.ir.graph import Graph

DEFAULT_MAX_CONTEXT = 131_072
"""The tables of a head of 128 features then take 64 MiB in float32; those of Scout's 10M tokens would take 5 GiB."""


WeightPlaces: TypeAlias = Literal["copied", "referenced"]


@dataclass(frozen=True, slots=True)
class Choices:
    """``max_context`` bounds tables of positions, where a profile's operators read such tables.

    ``weights`` says whether tensors are written anew, so that several can be joined, or stay in the checkpoint's files.
    """

    logits: Logits
    max_context: int
    weights: WeightPlaces = "copied"
    quantization: Quantization = NO_QUANTIZATION
    runtime: str | None = None
    """Version of ONNX Runtime that must run it; None is the newest that is published for the profile's provider."""


def choices_of(
    graph: Graph, profile: Profile, logits: str | None = None, max_context: int | None = None
) -> Choices:
    """The profile's own choices where none is given. Raises LG704 for logits, LG706 for a context."""
    known = graph.constants.get("max_positions")
    context = known if isinstance(known, int) and not isinstance(known, bool) else None
    if max_context is not None and not 1 <= max_context <= (context or max_context):
        most = f"; the model has {context:,} positions" if context else ""
        message = f"a context of {max_context:,} tokens is not possible{most}"
        raise LlamagenError.of("LG706", message, help="give a number of tokens from 1 on")
    return Choices(
        profile.logits if logits is None else _logits(logits),
        max_context or min(context or DEFAULT_MAX_CONTEXT, DEFAULT_MAX_CONTEXT),
    )


def _logits(name: str) -> Logits:
    for logits in get_args(Logits):
        if logits == name:
            found: Logits = logits
            return found
    near = did_you_mean(name, get_args(Logits))
    raise LlamagenError.of(
        "LG704",
        f"a model gives the logits of the `last` token of a call or of `all`, not {name!r}",
        help=f"did you mean {near}?" if near else None,
    )
