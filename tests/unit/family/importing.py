"""Importing values instead of files."""

from __future__ import annotations

import json
from typing import Any

from llamagen.emit.config import CONFIG_FILE, config_files
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.known import known_models
from llamagen.emit.config.params import read_params
from llamagen.emit.config.read import Imported, import_wanted
from llamagen.emit.config.wanted import read_config
from tests.unit.family.facts import REGISTRY, configs

MODELS = known_models(REGISTRY)
KINDS = ("llama", "llama4", "mllama")


def imported(config: object) -> Imported:
    source = parse_json(json.dumps(config, indent=2).encode(), "config.json")
    return import_wanted(read_config(source, KINDS), "imported/model", MODELS, REGISTRY)


def imported_params(params: object) -> Imported:
    source = parse_json(json.dumps(params, indent=2).encode(), "params.json")
    return import_wanted(read_params(source), "imported/model", MODELS, REGISTRY)


def written(made: Imported) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(config_files(made.resolved)[CONFIG_FILE])
    return config


def base(name: str = "llama-3.2-1b", **changes: object) -> dict[str, Any]:
    return {**configs()[name], **changes}
