"""Families of models: the first word of an id. What is asked without one is asked of LLaMA."""

from __future__ import annotations

from typing import Final

FAMILY: Final = "llama"
"""What lists, queries and histories are of, unless another family is named: a history through two is none."""
EVERY_FAMILY: Final = "all"


def family_of(spec_id: str) -> str:
    """``llama`` of ``llama/3/8b``."""
    return spec_id.split("/", 1)[0]


def within(family: str, spec_id: str) -> bool:
    """Whether a model is of a family, or any model of ``all``."""
    return family in (EVERY_FAMILY, family_of(spec_id))
