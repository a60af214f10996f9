"""The configuration files of both worlds: Hub's config.json and Meta's params.json."""

from __future__ import annotations

import re
from pathlib import Path

from llamagen.emit.config.json_source import JsonSource
from llamagen.emit.config.params import read_params
from llamagen.emit.config.wanted import Wanted, read_config

FILES = ("config.json", "params.json")
_NOT_IN_IDS = re.compile(r"[^a-z0-9._-]+")


def wanted_of(source: JsonSource, kinds: tuple[str, ...]) -> Wanted:
    """What a file says, a params.json or a config.json of one of ``kinds``. Raises as the readers of both do."""
    if "model_type" not in source.value and "dim" in source.value:
        return read_params(source)
    return read_config(source, kinds)


def id_of(file: Path) -> str:
    """An id for the spec of a configuration file, made from its folder's name."""
    folder = file.absolute().parent.name if file.name in FILES else file.stem
    name = _NOT_IN_IDS.sub("-", folder.lower()).strip("-._")
    return f"imported/{name or 'model'}"
