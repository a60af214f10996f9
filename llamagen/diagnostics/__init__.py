"""Findings as data: a place, a reason and a next step, raised together and rendered once.

Nothing here prints or exits. Importing this package costs a few milliseconds: the renderer
(`llamagen.diagnostics.render`) and the code table (`llamagen.diagnostics.codes`) are imported
by whoever needs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from llamagen.diagnostics.names import NAME_ALIASES, did_you_mean, nearest, quoted

__all__ = [
    "NAME_ALIASES",
    "Diagnostic",
    "Fix",
    "LlamagenError",
    "Related",
    "Severity",
    "Span",
    "did_you_mean",
    "nearest",
    "quoted",
]

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A region of a text file: 1-based lines and columns (in characters), end exclusive.

    Without an end the span covers the one character at its start. Spans order by file, line, col.
    """

    file: str
    line: int
    col: int
    end_line: int = 0
    end_col: int = 0

    def __post_init__(self) -> None:
        if self.end_line == 0:
            object.__setattr__(self, "end_line", self.line)
        if self.end_col == 0:
            object.__setattr__(self, "end_col", self.col + 1)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"


@dataclass(frozen=True, slots=True)
class Related:
    """A second place that a finding speaks about: the other end of a conflict."""

    message: str
    span: Span


@dataclass(frozen=True, slots=True)
class Fix:
    """What stands at a place of a file, written otherwise: `llamagen fmt --upgrade` does it."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `code` is a row of spec/rules/diagnostics.yaml, `message` one sentence."""

    code: str
    severity: Severity
    message: str
    span: Span | None = None
    related: tuple[Related, ...] = ()
    help: str | None = None
    fixes: tuple[Fix, ...] = ()
    """The one next step, where there is one that needs no judgement."""

    def __str__(self) -> str:
        place = f"{self.span}: " if self.span is not None else ""
        return f"{place}{self.severity}[{self.code}]: {self.message}"


class LlamagenError(Exception):
    """The input cannot be used; `diagnostics` (at least one) say where, why and what to do."""

    diagnostics: tuple[Diagnostic, ...]

    def __init__(self, *diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        findings: list[Diagnostic] = []
        for one in diagnostics:
            findings.extend((one,) if isinstance(one, Diagnostic) else one)
        if not findings:
            raise ValueError("LlamagenError needs at least one diagnostic")
        super().__init__(*findings)
        self.diagnostics = tuple(findings)

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        span: Span | None = None,
        help: str | None = None,
        related: Iterable[Related] = (),
    ) -> Self:
        """An error that carries one diagnostic."""
        return cls(Diagnostic(code, "error", message, span, tuple(related), help))

    def __str__(self) -> str:
        return "\n".join(str(one) for one in self.diagnostics)
