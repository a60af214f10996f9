"""What the user may choose about quantised weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Names and numbers as they are typed."""

    scheme: str = "none"
    block_size: int = 32
    asymmetric: bool = False
    accuracy_level: int = 4
    head: str | None = None
    """None: as the projections."""
    embedding: str | None = None
    """None: a tied table is the head's, another stays as it is."""
    experts: str | None = None
    """None: as the projections, with int8 where those are w8a8."""


NOT_QUANTIZED = QuantizeOptions()
