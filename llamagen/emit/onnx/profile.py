"""What an ONNX file is made for: the operator set it may use and how each dtype is stored.

``portable`` uses ai.onnx operators only and runs on every execution provider, the CPU's first. Measured with ONNX
Runtime 1.32: opset 24 is the newest whose Attention the CPU runs natively (opset 25 inlines its function body), and
no arithmetic operator of the CPU provider takes bfloat16. ``ort-cpu`` and ``ort-cuda`` are rewritten by the rules of
spec/rules/rewrites.yaml for operators that only ONNX Runtime has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from llamagen.analysis.rewrites import Logits
from llamagen.diagnostics import LlamagenError, did_you_mean

OnnxDType: TypeAlias = Literal["float32", "float16", "bfloat16"]
"""The dtype a model is exported in: weights and the results of every op."""

ONNX_DTYPES: tuple[OnnxDType, ...] = get_args(OnnxDType)

MOVES = frozenset(
    {
        "Cast",
        "Concat",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "If",
        "Reshape",
        "Scan",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that move values without arithmetic; every provider takes them in every dtype."""


CONTRIB = frozenset(
    {
        "DynamicQuantizeMatMul",
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "MoE",
        "QMoE",
        "QuickGelu",
        "SkipSimplifiedLayerNormalization",
    }
)
"""Operators of ONNX Runtime's own domain."""

CONTRIB_DOMAIN = "com.microsoft"

CUDA_WITHOUT_BFLOAT16 = frozenset({"Clip", "Pad", "ReduceMean", "Softplus", "TopK"})
"""Neither the CUDA provider nor the CPU has a kernel for them in bfloat16: a graph with one is not loaded."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One row of ``PROFILES``.

    ``widened`` dtypes are stored but not computed in: every operator outside ``MOVES`` works on float32 casts and its
    result is rounded back; so does one of ``without_bfloat16``. ``io_dtypes`` gives the dtype of logits and key/value
    caches outside the graph.
    """

    name: Literal["portable", "ort-cpu", "ort-cuda"]
    opset: int
    ir_version: int
    widened: frozenset[OnnxDType]
    io_dtypes: Mapping[OnnxDType, OnnxDType]
    provider: str
    """The execution provider it is made for."""
    logits: Logits
    """Which logits the model gives unless the export says otherwise."""
    without_bfloat16: frozenset[str] = frozenset()


PORTABLE = Profile(
    name="portable",
    opset=24,
    ir_version=11,
    widened=frozenset({"bfloat16"}),
    # numpy has no bfloat16, and ONNX Runtime's Python API can neither feed nor read it; the values passed as float32
    # are bfloat16 values, so nothing is lost.
    io_dtypes=MappingProxyType({"float32": "float32", "float16": "float16", "bfloat16": "float32"}),
    provider="CPUExecutionProvider",
    logits="all",
)

ORT_CPU = replace(PORTABLE, name="ort-cpu", logits="last")

ORT_CUDA = Profile(
    name="ort-cuda",
    opset=24,
    ir_version=11,
    widened=frozenset(),
    io_dtypes=MappingProxyType({d: d for d in ONNX_DTYPES}),
    provider="CUDAExecutionProvider",
    logits="last",
    without_bfloat16=CUDA_WITHOUT_BFLOAT16,
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {p.name: p for p in (PORTABLE, ORT_CPU, ORT_CUDA)}
)


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises LG701."""
    found = PROFILES.get(name)
    if found is None:
        near = did_you_mean(name, PROFILES)
        raise LlamagenError.of(
            "LG701",
            f"there is no ONNX profile {name!r}; known: {', '.join(PROFILES)}",
            help=f"did you mean {near}?" if near else None,
        )
    return found


def dtype_named(name: str) -> OnnxDType:
    """The export dtype of that name. Raises LG702."""
    for dtype in ONNX_DTYPES:
        if dtype == name:
            return dtype
    near = did_you_mean(name, ONNX_DTYPES)
    raise LlamagenError.of(
        "LG702",
        f"a model cannot be exported in {name!r}; known: {', '.join(ONNX_DTYPES)}",
        help=f"did you mean {near}?" if near else None,
    )
