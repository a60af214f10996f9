"""The dialects of checkpoints that we know, one file of spec/dialects/ each.

They stand apart from the specs: a dialect belongs to whoever writes the files, one serves many
models, and a reader who opens no checkpoint neither loads nor sees it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from llamagen.resources import data_folder
from llamagen.spec.naming import NamingLayout
from llamagen.spec.source import load_source, to_plain


@cache
def known_dialects() -> Mapping[str, NamingLayout]:
    """Name (of the file) -> layout as written, in the order of names."""
    files = sorted((data_folder("spec") / "dialects").glob("*.yaml"), key=lambda file: file.stem)
    layouts = {
        file.stem: parse_layout(file.read_text(encoding="utf-8"), file.name) for file in files
    }
    return MappingProxyType(layouts)


def parse_layout(text: str, name: str = "<text>") -> NamingLayout:
    """A layout from YAML text. Raises LG0xx for the YAML, pydantic's ValidationError for the rest."""
    return NamingLayout.model_validate_json(json.dumps(to_plain(load_source(text, name).root)))
