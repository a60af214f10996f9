"""Hugging Face config.json, written from a spec and read back into one by the same table (`config:`)."""
