"""The dialects that we know, one YAML file each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from llamagen.weights.rules import NamingLayout


def layouts_for(values: Mapping[str, int | tuple[int, ...]]) -> tuple[NamingLayout, ...]:
    """Every known layout, bound to the hyperparameters of a model.

    `values` has `num_heads` and `num_kv_heads`, and for models with cross-attention layers the
    lists `self_layers` and `cross_layers`. A layout that needs a value that the model does not
    have cannot be its dialect, and is left out.
    """
    return tuple(
        layout.bound(values) for layout in known_layouts() if layout.parameters() <= values.keys()
    )


@cache
def known_layouts() -> tuple[NamingLayout, ...]:
    """The layouts as written, in the order of their file names."""
    folder = Path(__file__).parent
    return tuple(
        parse_layout(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yaml"))
    )


def parse_layout(text: str) -> NamingLayout:
    """A layout from YAML text of our own. Raises pydantic's ValidationError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return NamingLayout.model_validate(yaml.load(text, Loader=loader))
