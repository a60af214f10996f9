"""Data files of the analyses: strict YAML, closed models, loaded when first asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.resources import data_folder
from llamagen.spec.source import load_source, to_plain

T = TypeVar("T", bound=BaseModel)
V = TypeVar("V")


def load_table(name: str, model: type[T]) -> T:
    """``spec/<name>`` as ``model``. Raises LlamagenError LG103 for a file that does not fit it."""
    found = _load(name, model)
    assert isinstance(found, model)
    return found


@cache
def _load(name: str, model: type[BaseModel]) -> BaseModel:
    source = load_source(data_folder("spec") / name, f"spec/{name}")
    return parse_table(json.dumps(to_plain(source.root)), f"spec/{name}", model)


def chosen(known: Mapping[str, V], name: str, what: str) -> V:
    """The entry ``name``. Raises LG901, "`name` is not ``what``", with the nearest known one."""
    if name not in known:
        hint = did_you_mean(name, known)
        help = f"did you mean `{hint}`?" if hint else f"known: {', '.join(known)}"
        raise LlamagenError.of("LG901", f"`{name}` is not {what}", help=help)
    return known[name]


def parse_table(text: str, file: str, model: type[T]) -> T:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise LlamagenError.of("LG103", f"{file}: `{place}`: {first['msg']}") from None
