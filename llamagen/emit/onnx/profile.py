"""What an ONNX file is made for: the operator set it may use and how each dtype is stored.

``portable`` uses ai.onnx operators only; docs/providers.md tells where it was run. Measured with ONNX Runtime 1.32:
opset 24 is the newest whose Attention the CPU runs natively (opset 25 inlines its function body), and
no arithmetic operator of the CPU provider takes bfloat16. ``ort-cpu``, ``ort-cuda`` and ``ort-webgpu`` are rewritten by
the rules of spec/rules/rewrites.yaml for operators that only ONNX Runtime has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias, get_args

from pydantic import Field, StringConstraints, model_validator

from llamagen.analysis.rewrites import Logits
from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import one_of
from llamagen.spec.schema import Closed

if TYPE_CHECKING:
    import onnx

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

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
WEBGPU = "WebGpuExecutionProvider"

CUDA_WITHOUT_BFLOAT16 = frozenset(
    {
        "Ceil",
        "Clip",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Log",
        "Pad",
        "Reciprocal",
        "ReduceMax",
        "ReduceMin",
        "Round",
    }
)
"""Neither the CUDA provider nor the CPU has a kernel for them in bfloat16: a graph with one is not loaded."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One row of ``PROFILES``.

    ``widened`` dtypes are stored but not computed in: every operator outside ``MOVES`` works on float32 casts and its
    result is rounded back; so does one of ``without_bfloat16``. ``io_dtypes`` gives the dtype of logits and key/value
    caches outside the graph.
    """

    name: Literal["portable", "ort-cpu", "ort-cuda", "ort-webgpu"]
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
    provider=CPU,
    logits="all",
)

ORT_CPU = replace(PORTABLE, name="ort-cpu", logits="last")

ORT_CUDA = Profile(
    name="ort-cuda",
    opset=24,
    ir_version=11,
    widened=frozenset(),
    io_dtypes=MappingProxyType({d: d for d in ONNX_DTYPES}),
    provider=CUDA,
    logits="last",
    without_bfloat16=CUDA_WITHOUT_BFLOAT16,
)

ORT_WEBGPU = replace(PORTABLE, name="ort-webgpu", provider=WEBGPU, logits="last")
"""The provider has no kernel in bfloat16 either."""

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {p.name: p for p in (PORTABLE, ORT_CPU, ORT_CUDA, ORT_WEBGPU)}
)


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises LG701."""
    message = f"there is no ONNX profile {name!r}; known: {', '.join(PROFILES)}"
    return PROFILES[one_of(name, PROFILES, "LG701", message)]


def dtype_named(name: str) -> OnnxDType:
    """The export dtype of that name. Raises LG702."""
    message = f"a model cannot be exported in {name!r}; known: {', '.join(ONNX_DTYPES)}"
    return one_of(name, ONNX_DTYPES, "LG702", message)


# versions of ONNX Runtime, and what of its operators came with which: spec/onnxruntime.yaml

Version: TypeAlias = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
"""Major and minor number: 1.32."""


class LaterInput(Closed):
    """An input that an operator did not always have, and that other providers do not heed."""

    place: int = Field(ge=0, description="Counted from 0.")
    since: Version
    heeded: tuple[str, ...] = Field(description="By these providers.")


class RuntimeVersions(Closed):
    version: Literal[1]
    runtimes: tuple[Version, ...]
    published: dict[str, Version]
    inputs: dict[str, dict[str, LaterInput]]

    @model_validator(mode="after")
    def _known(self) -> Self:
        later = [one.since for inputs in self.inputs.values() for one in inputs.values()]
        for name in (*later, *self.published.values()):
            if name not in self.runtimes:
                raise ValueError(f"{name} is none of `runtimes`")
        return self


def runtime_versions() -> RuntimeVersions:
    return load_table("onnxruntime.yaml", RuntimeVersions)


def runtime_named(name: str | None, provider: str) -> Version:
    """The runtime of that name; without one, the newest published build of ``provider``. Raises LG717."""
    table = runtime_versions()
    if name is None:
        return table.published[provider]
    if name not in table.runtimes:
        raise LlamagenError.of(
            "LG717",
            f"graphs cannot be made for onnxruntime {name!r}; known: {', '.join(table.runtimes)}",
            help="later versions run it too: name the newest that is not above yours",
        )
    return name


def has_input(runtime: Version, provider: str, operator: str, name: str) -> bool:
    """Whether ``operator`` has the input ``name``, one of the table, in ``runtime``, and ``provider`` heeds it."""
    one = runtime_versions().inputs[operator][name]
    return provider in one.heeded and not is_older(runtime, one.since)


def needed(model: onnx.ModelProto) -> Iterator[tuple[Version, str]]:
    """What of the graph a runtime has only from a version on: the version, and the input of an operator."""
    table = runtime_versions().inputs
    for node in _nodes(model.graph.node):
        for name, one in table.get(node.op_type, {}).items():
            if len(node.input) > one.place and node.input[one.place]:
                yield one.since, f"the input `{name}` of {node.op_type}"


def is_older(installed: str, wanted: Version) -> bool:
    """Of ``1.31.1`` and ``1.32``."""
    return _number(installed) < _number(wanted)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _number(version: str) -> tuple[int, int]:
    """Of ``1.32`` or ``1.32.0+cu13``."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
