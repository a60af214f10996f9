"""The special tokens and the sampling of a folder: its own configuration files, else the spec."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen.diagnostics import LlamagenError
from llamagen.emit.config import CONFIG_FILE, GENERATION_FILE
from llamagen.spec.schema import Spec

Object = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids below the vocabulary's size; a model cannot produce others."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json and generation_config.json of a folder say. The latter is about generation, so it wins."""

    config: Object
    generation: Object

    @classmethod
    def of_folder(cls, folder: Path) -> Settings:
        """Raises LG765 for a file that is not JSON."""
        return cls(_object(folder / CONFIG_FILE), _object(folder / GENERATION_FILE))

    def find(self, key: str) -> object:
        return self.generation.get(key, self.config.get(key))

    def number(self, key: str) -> float | None:
        found = self.generation.get(key)
        return found if isinstance(found, int | float) and not isinstance(found, bool) else None

    @property
    def model_type(self) -> str | None:
        """The name transformers has for the architecture."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else None


def special_tokens(settings: Settings, spec: Spec, vocab_size: int) -> SpecialTokens:
    tokens = spec.tokenizer

    def ids(key: str, fallback: tuple[int, ...]) -> tuple[int, ...]:
        stated = tuple(_ids(settings.find(key))) or fallback
        return tuple(i for i in stated if 0 <= i < vocab_size)

    bos = ids("bos_token_id", (tokens.bos_id,) if tokens else ())
    eos = ids("eos_token_id", tokens.eos_ids if tokens else ())
    pad = ids("pad_token_id", (tokens.pad_id,) if tokens and tokens.pad_id is not None else ())
    return SpecialTokens(bos[0] if bos else None, eos, pad[0] if pad else None)


def _ids(found: object) -> Iterator[int]:
    """One id or a list of them."""
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, int) and not isinstance(one, bool):
            yield one


def _object(path: Path) -> Object:
    if not path.is_file():
        return {}
    try:
        loaded: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LlamagenError.of("LG765", f"{path} is not JSON: {error}") from error
    return {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {}
