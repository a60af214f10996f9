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
    """What each runtime of spec/runtimes.yaml makes of the graph."""
    MEMORY = "memory"
    """Bytes at the stated workload, and whether they fit the stated device."""
    COMPUTE = "compute"
    """FLOPs at the stated workload."""
    RECORD = "record"
    """Dates, licence, lineage."""


class Verdict(StrEnum):
    """From harmless to fatal; of several changes the last one counts."""

    SAME = "same"
    COMPATIBLE = "compatible"
    GROWS = "grows"
    """It works as before and takes more: memory, work, or a slower path of a runtime."""
    CONVERTIBLE = "convertible"
    BREAKING = "breaking"

    @property
    def rank(self) -> int:
        return list(Verdict).index(self)
