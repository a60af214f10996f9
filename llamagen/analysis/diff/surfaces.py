"""What a difference can matter for, and how much; apart from the rules so that the command line can list it cheaply."""

from __future__ import annotations

from enum import StrEnum


class Surface(StrEnum):
    WEIGHTS = "weights"
    """Whether a checkpoint of A loads into B."""
    TOKENS = "tokens"
    """Whether the same text gives the same ids."""
    NUMERICS = "numerics"
    """Whether the same weights and ids give the same logits."""
    INTERFACE = "interface"
    """Inputs, outputs and cache layout of the exported model."""
    OPERATORS = "operators"
    """What a runtime must implement."""
    MEMORY = "memory"
    COMPUTE = "compute"
    RECORD = "record"
    """Dates, licence, lineage."""


class Verdict(StrEnum):
    SAME = "same"
    COMPATIBLE = "compatible"
    CONVERTIBLE = "convertible"
    BREAKING = "breaking"

    @property
    def rank(self) -> int:
        return list(Verdict).index(self)
