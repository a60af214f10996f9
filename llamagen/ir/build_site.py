"""What the equations of a block see of the build that they are part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamagen.diagnostics import Diagnostic, Span
from llamagen.ops.op import Attrs, AttrValue, TensorType
from llamagen.spec.evaluate import Static
from llamagen.spec.resolved import ResolvedSpec
from llamagen.spec.schema import Spec


class RecordingScope(dict[str, Static]):
    """A static scope that remembers which names were read, so that unused constants are found."""

    def __init__(self, values: Mapping[str, Static]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Static:
        self.read.add(name)
        return super().__getitem__(name)


@dataclass(frozen=True, slots=True)
class Specialised:
    """A block built for one set of options and operand types; ``key`` names it until names are given."""

    key: str
    outputs: tuple[TensorType, ...]
    context: frozenset[str]


class Site(Protocol):
    """One build of a spec's graph, seen from a block."""

    @property
    def resolved(self) -> ResolvedSpec: ...

    @property
    def spec(self) -> Spec: ...

    @property
    def findings(self) -> Mapping[Diagnostic, None]: ...

    @property
    def everywhere(self) -> tuple[str, ...]: ...

    def specialise(
        self, name: str, options: Mapping[str, AttrValue], operands: Sequence[TensorType]
    ) -> Specialised | None: ...

    def ambient(
        self,
        op_name: str,
        operands: tuple[str, ...],
        attrs: Attrs,
        names: tuple[str, ...],
        span: Span | None,
    ) -> tuple[str, ...]: ...

    def level_type(self, name: str) -> TensorType: ...

    def report(self, finding: Diagnostic) -> None: ...
