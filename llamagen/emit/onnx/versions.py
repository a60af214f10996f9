"""Versions of ONNX Runtime, and what of its operators came with which. The facts are data: spec/onnxruntime.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError
from llamagen.spec.naming import Closed

if TYPE_CHECKING:
    import onnx

Version: TypeAlias = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
"""Major and minor number: 1.32."""


class LaterInput(Closed):
    """An input that an operator did not always have."""

    place: int = Field(ge=0, description="Counted from 0.")
    since: Version


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


def has_input(runtime: Version, operator: str, name: str) -> bool:
    """Whether ``operator`` has the input ``name`` in ``runtime``; one of the table."""
    return not is_older(runtime, runtime_versions().inputs[operator][name].since)


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
