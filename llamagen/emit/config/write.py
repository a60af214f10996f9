"""config.json of a spec and the files beside it, by its `config:` table."""

from __future__ import annotations

import json
from collections.abc import Mapping

from llamagen.emit.config.codecs import Json
from llamagen.emit.config.table import (
    UnsetError,
    absences,
    config_scope,
    fixed_of,
    flat,
    literals_of,
    mapping_of,
    plain,
    value_of,
    written_fields,
)
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import ConfigMapping, Spec

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"


def config_files(resolved: ResolvedSpec) -> dict[str, str]:
    """File name -> text; empty for a model that no class of transformers describes."""
    mapping = mapping_of(resolved)
    if mapping is None:
        return {}
    try:
        values = config_values(resolved.spec, mapping)
    except UnsetError:
        return {}  # a size is not set: the wiring fits, the model is not complete
    made = {CONFIG_FILE: _text(nested(values))}
    special = generation_values(resolved.spec, mapping)
    if special:
        made[GENERATION_FILE] = _text({"_from_model_config": True, **special})
    for file, table in (
        (PREPROCESSOR_FILE, flat(mapping.preprocessor)),
        (PROCESSOR_FILE, mapping.processor),
    ):
        if table:
            made[file] = _text(nested(_evaluated(resolved.spec, table)))
    return made


def _evaluated(spec: Spec, table: Mapping[str, str]) -> dict[str, Json]:
    scope = config_scope(spec)
    return {key: plain(value_of(text, scope)) for key, text in table.items()}


def config_values(spec: Spec, mapping: ConfigMapping) -> dict[str, Json]:
    """Dotted key -> value of config.json."""
    fields = written_fields(spec, mapping)
    values: dict[str, Json] = {"model_type": mapping.kind}
    values |= fixed_of(mapping) | literals_of(mapping) | fields
    for key, meant in absences(mapping, values | dict.fromkeys(mapping.omits)).items():
        if key in mapping.omits and values.get(key) == meant:
            del values[key]
    for key in mapping.omits:
        if key in values and values[key] is None:
            del values[key]
    return values


def generation_values(spec: Spec, mapping: ConfigMapping) -> dict[str, Json]:
    """Key -> value of generation_config.json; what is not known is left out."""
    found = _evaluated(spec, mapping.generation)
    if all(value is None for value in found.values()):
        return {}
    return {key: value for key, value in found.items() if value is not None}


def nested(values: Mapping[str, Json]) -> dict[str, Json]:
    """`{a.b: 1}` as `{a: {b: 1}}`, keys in order."""
    tree: dict[str, Json] = {}
    for key in sorted(values):
        group, _, name = key.rpartition(".")
        if not group:
            tree[name] = values[key]
            continue
        below = tree.setdefault(group, {})
        assert isinstance(below, dict)
        below[name] = values[key]
    return dict(sorted(tree.items()))


def _text(config: Mapping[str, Json]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
