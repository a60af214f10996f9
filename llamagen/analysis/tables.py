"""Data files of the analyses: strict YAML, closed models, loaded when first asked for."""

from __future__ import annotations

import json
from functools import cache
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llamagen.diagnostics import LlamagenError
from llamagen.resources import data_folder
from llamagen.spec.source import load_source
from llamagen.spec.source_nodes import to_plain

T = TypeVar("T", bound=BaseModel)


def load_table(name: str, model: type[T]) -> T:
    """``spec/<name>`` as ``model``. Raises LlamagenError LG103 for a file that does not fit it."""
    found = _load(name, model)
    assert isinstance(found, model)
    return found


@cache
def _load(name: str, model: type[BaseModel]) -> BaseModel:
    source = load_source(data_folder("spec") / name, f"spec/{name}")
    return parse_table(json.dumps(to_plain(source.root)), f"spec/{name}", model)


def parse_table(text: str, file: str, model: type[T]) -> T:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise LlamagenError.of("LG103", f"{file}: `{place}`: {first['msg']}") from None
