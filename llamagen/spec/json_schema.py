"""spec/schema.json: what editors use to complete, hover and underline in spec files."""

from __future__ import annotations

import json
from typing import TypeAlias

from llamagen.spec.schema import Spec

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_ROOT_REQUIRED: list[Json] = ["spec", "id"]
_NULL: Json = {"type": "null"}


def schema_text() -> str:
    """The JSON schema of one spec file, generated from the pydantic models.

    A file may state any part and inherit the rest, so nothing but ``spec`` and ``id`` is required, and a
    value of several kinds need not repeat its ``kind``. ``null`` unsets whatever is inherited. `llamagen check`
    judges the resolved whole.
    """
    schema: Json = Spec.model_json_schema()
    loosened = _loosened(schema)
    assert isinstance(loosened, dict)
    head: dict[str, Json] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "llamagen spec",
        "required": _ROOT_REQUIRED,
    }
    return (
        json.dumps({**head, **{k: v for k, v in loosened.items() if k != "title"}}, indent=2) + "\n"
    )


def _loosened(schema: Json) -> Json:
    match schema:
        case list():
            return [_loosened(item) for item in schema]
        case dict():
            schema_: dict[str, Json] = {}
            for key, value in schema.items():
                if key == "required" and isinstance(value, list):
                    continue
                if key == "discriminator" and isinstance(value, dict) and "mapping" in value:
                    continue
                if key == "title" and isinstance(value, str):
                    continue
                loose = _loosened(value)
                if key in ("properties", "patternProperties") and isinstance(loose, dict):
                    loose = {k: v if k in _ROOT_REQUIRED else _or_null(v) for k, v in loose.items()}
                elif key == "additionalProperties" and isinstance(loose, dict):
                    loose = _or_null(loose)
                schema_["anyOf" if key == "oneOf" else key] = loose
            if "patternProperties" in schema_:  # names of another form are refused
                schema_["additionalProperties"] = False
            return schema_
        case _:
            return schema


def _or_null(schema: Json) -> Json:
    """What ``schema`` takes, or null; words for the editor stay in front."""
    if not isinstance(schema, dict):
        return schema
    match schema:
        case {"anyOf": list(choices)}:
            return {**schema, "anyOf": choices if _NULL in choices else [*choices, _NULL]}
        case {"type": str(kind)} if "enum" not in schema and "const" not in schema:
            return schema if kind == "null" else {**schema, "type": [kind, "null"]}
    words = {k: v for k, v in schema.items() if k in ("description", "default")}
    rest: Json = {k: v for k, v in schema.items() if k not in words}
    return {"anyOf": [rest, _NULL], **words} if rest else schema
