"""What the configurations of a folder say about generation."""

from __future__ import annotations

from pathlib import Path

from llamagen.emit.config.settings import Settings


def context_of(folder: Path) -> int | None:
    """``max_position_embeddings`` of config.json, or of its part about text."""
    found = Settings.of_folder(folder).architecture("max_position_embeddings")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def stop_tokens(folder: Path) -> frozenset[int]:
    """``eos_token_id`` of generation_config.json, else of config.json."""
    return frozenset(Settings.of_folder(folder).ids("eos_token_id"))
