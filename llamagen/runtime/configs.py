"""What the configurations of a folder say about generation."""

from __future__ import annotations

import json
from pathlib import Path

from llamagen.diagnostics import LlamagenError


def context_of(folder: Path) -> int | None:
    """``max_position_embeddings`` of config.json, or of its part about text."""
    config = _config(folder / "config.json")
    below = config.get("text_config")
    for one in (config, below if isinstance(below, dict) else {}):
        found = one.get("max_position_embeddings")
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None


def stop_tokens(folder: Path) -> frozenset[int]:
    """``eos_token_id`` of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        found = _config(folder / name).get("eos_token_id")
        several = found if isinstance(found, list) else [found]
        ids = frozenset(i for i in several if isinstance(i, int) and not isinstance(i, bool))
        if ids:
            return ids
    return frozenset()


def _config(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        loaded: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LlamagenError.of("LG765", f"{path} is not JSON: {error}") from error
    return {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {}
