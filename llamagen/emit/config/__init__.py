"""Hugging Face config.json, written from a spec and read back into one by the same table (`config:`)."""

from llamagen.emit.config.write import CONFIG_FILE, GENERATION_FILE, config_files

__all__ = ["CONFIG_FILE", "GENERATION_FILE", "config_files"]
