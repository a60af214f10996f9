"""What ``generate`` can write; apart from the emitters so that the command line can list it cheaply."""

from __future__ import annotations

from enum import StrEnum


class Target(StrEnum):
    """One kind of generated files."""

    TEXT = "text"
    TORCH = "torch"
    ONNX = "onnx"
    CONFIG = "config"


TARGETS: tuple[Target, ...] = tuple(Target)
