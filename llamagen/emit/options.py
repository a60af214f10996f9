"""What a user may choose about generated files and an exported folder; one object from the command line on.

Cheap to import: the command line makes its options of the fields, the API takes the object, the emitter reads it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar, get_args

from llamagen.diagnostics import LlamagenError, did_you_mean


class Target(StrEnum):
    """One kind of generated files."""

    TEXT = "text"
    TORCH = "torch"
    PARALLEL = "parallel"
    ONNX = "onnx"
    CONFIG = "config"
    TRANSFORMERS = "transformers"
    """Code that transformers and what builds on it load; where it is asked for."""


TARGETS: tuple[Target, ...] = tuple(one for one in Target if one is not Target.TRANSFORMERS)

WeightMode: TypeAlias = Literal["copy", "reference"]
"""Weights are data files of the folder, or the checkpoint's own files linked into it."""


T = TypeVar("T", bound=str)


def one_of(name: str, known: Collection[T], code: str, message: str) -> T:
    """The one of ``known`` that is called ``name``. Raises ``code``, with the nearest as help."""
    for one in known:
        if one == name:
            return one
    raise LlamagenError.of(code, message, help=did_you_mean(name, known, None))


@dataclass(frozen=True, slots=True)
class Shown:
    """How the command line shows a field; ``flag`` where it is not called as the field."""

    help: str
    metavar: str | None = None
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Names and numbers as they are typed; each is checked where it is used."""

    scheme: Annotated[
        str | None,
        Shown(
            "Weights of projections: none, int4, int8, or w8a8 with activations; as they are by default.",
            "TEXT",
            "--quantize",
        ),
    ] = None
    """None: those of a packed file stay packed, where that is exact; all others are in the dtype."""
    block_size: Annotated[int, Shown("Weights that share a scale: 16 to 256.")] = 32
    asymmetric: Annotated[bool, Shown("A zero point for each block too.")] = False
    accuracy_level: Annotated[
        int | None,
        Shown(
            "Products of int4, int8: 1 in float32, 4 with int8 activations; 4; 1 for packed files, WebGPU and --web.",
            "INTEGER",
        ),
    ] = None
    """None: 4, and 1 for weights that stay as a packed file has them, for WebGPU, and for a browser."""
    head: Annotated[
        str | None,
        Shown("Like the projections by default, int8 with int4.", "TEXT", "--quantize-head"),
    ] = None
    embedding: Annotated[
        str | None,
        Shown(
            "none, int4, int8; like the head by default if tied.", "TEXT", "--quantize-embedding"
        ),
    ] = None
    """None: a tied table is the head's, another stays as it is."""
    experts: Annotated[
        str | None,
        Shown("none, int4, int8; like the projections by default.", "TEXT", "--quantize-experts"),
    ] = None
    """None: as the projections, with int8 where those are w8a8."""
    sensitive: Annotated[
        str | None,
        Shown(
            "The projections that suffer most; like the others by default, int8 with int4 and w8a8.",
            "TEXT",
            "--quantize-sensitive",
        ),
    ] = None
    method: Annotated[
        str | None,
        Shown(
            "Scales of int4: search, by what the model computes on a text, or rtn, by the weights alone.",
            "rtn|search",
        ),
    ] = None
    """None: search, where there is a tokenizer."""
    calibrate: Annotated[
        Path | None,
        Shown("The text to search with, or for --cache-dtype, in place of one of ours.", "FILE"),
    ] = None
    requantize: Annotated[
        bool, Shown("Quantise what a packed file decodes to, which rounds a second time.")
    ] = False

    @property
    def asked(self) -> frozenset[str]:
        """The schemes that were typed, for whatever weights."""
        typed = (self.scheme, self.head, self.embedding, self.experts, self.sensitive)
        return frozenset(name for name in typed if name is not None)

    @property
    def chosen(self) -> bool:
        """Whether something was, but that nothing is to be quantised."""
        return replace(self, scheme=None if self.scheme == "none" else self.scheme) != NOT_QUANTIZED


NOT_QUANTIZED = QuantizeOptions()


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Names as they are typed; each is checked where it is used."""

    profile: Annotated[
        str, Shown("The operators to use: portable (ONNX alone), ort-cpu, ort-cuda or ort-webgpu.")
    ] = "portable"
    dtype: Annotated[str, Shown("float32, float16 or bfloat16.")] = "float32"
    cache: Annotated[
        Literal["full", "bounded"],
        Shown("Layers with a window or chunks keep every key, or those still visible."),
    ] = "full"
    cache_dtype: Annotated[
        str | None,
        Shown(
            "Of keys and values: int8, with ort-cpu; as logits by default.",
            "int8",
        ),
    ] = None
    """None: that of the profile for logits and caches."""
    weights: Annotated[
        str, Shown("copy: into data files; reference: link the checkpoint's safetensors.")
    ] = "copy"
    logits: Annotated[
        str | None,
        Shown(
            "After the last token of a call, or after each; portable gives all, the others the last.",
            "last|all",
        ),
    ] = None
    """None is the profile's own choice."""
    max_context: Annotated[
        int | None,
        Shown(
            "Tokens that position tables of fused attention cover; the model's own, at most 131072.",
            "N",
        ),
    ] = None
    runtime: Annotated[
        str | None,
        Shown(
            "Oldest onnxruntime that must run it: 1.27, 1.31 or 1.32; the newest build for the profile.",
            "VERSION",
        ),
    ] = None
    stages: Annotated[
        int | None,
        Shown("Cut it into N graphs of layers too, which onnxruntime-genai runs in turn.", "N"),
    ] = None
    web: Annotated[
        bool,
        Shown("Add index.html, which runs it in a browser; npm fetches transformers.js for that."),
    ] = False
    layout: Annotated[
        Literal["flat", "hub"],
        Shown(
            "flat: model.onnx beside the rest; hub: onnx/model_q4.onnx and so on, as on the Hugging Face Hub."
        ),
    ] = "flat"
    format: Annotated[
        Literal["onnx", "transformers"],
        Shown(
            "onnx, or transformers: a folder for it and for the engines that build on it, such as vLLM."
        ),
    ] = "onnx"
    custom_code: Annotated[
        bool,
        Shown("With --format transformers: our code although transformers has a class for it."),
    ] = False
    scan: Annotated[bool, Shown("Read referenced weights: refuse NaN and infinity, hash.")] = False
    quantize: QuantizeOptions = NOT_QUANTIZED

    @property
    def for_browsers(self) -> bool:
        """Whether what a browser lacks is to be avoided: on the Hub transformers.js looks for models."""
        return self.web or (self.layout == "hub" and self.profile == "portable")

    @property
    def mode(self) -> WeightMode:
        """How weights are given. Raises LG703."""
        modes: tuple[WeightMode, ...] = get_args(WeightMode)
        message = f"weights cannot be given by {self.weights!r}; known: {', '.join(modes)}"
        return one_of(self.weights, modes, "LG703", message)

    @property
    def quantizes(self) -> bool:
        """Whether something was said about weights in codes; a text may be for the cache alone."""
        for_cache = self.cache_dtype is not None
        return replace(
            self.quantize, calibrate=None if for_cache else self.quantize.calibrate
        ).chosen


DEFAULTS = ExportOptions()
