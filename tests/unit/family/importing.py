"""Importing values instead of files."""

from __future__ import annotations

import json
from typing import Any

from llamagen.emit.config.foreign import read_config, read_params
from llamagen.emit.config.importing import Imported, import_foreign
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.table import CONFIG_FILE, config_files, known_tables
from tests.unit.family.facts import REGISTRY, configs

MODELS = known_tables(REGISTRY)
KINDS = sorted({one.kind for one in MODELS})


def imported(config: object) -> Imported:
    source = parse_json(json.dumps(config, indent=2).encode(), "config.json")
    return import_foreign(read_config(source, KINDS), "imported/model", MODELS, REGISTRY)


def imported_params(params: object) -> Imported:
    source = parse_json(json.dumps(params, indent=2).encode(), "params.json")
    return import_foreign(read_params(source), "imported/model", MODELS, REGISTRY)


def written(made: Imported) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(config_files(made.resolved)[CONFIG_FILE])
    return config


def base(name: str = "llama-3.2-1b", **changes: object) -> dict[str, Any]:
    return {**configs()[name], **changes}
