"""What the configuration files of a folder say, however it came by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.table import CONFIG_FILE, GENERATION_FILE
from llamagen.spec.schema import Spec

Object = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json and generation_config.json of a folder say. About generation the latter wins."""

    config: Object
    generation: Object

    @classmethod
    def of_folder(cls, folder: Path) -> Settings:
        """Raises LG765 for a file that cannot be read or is not JSON."""
        return cls(json_object(folder / CONFIG_FILE), json_object(folder / GENERATION_FILE))

    def architecture(self, key: str) -> object:
        """A value of config.json, or of its part about text, where a model has images."""
        below = self.config.get("text_config")
        return self.config.get(key, below.get(key) if isinstance(below, dict) else None)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids, of which a file states one or a list; none where neither file has them."""
        for value in (self.generation.get(key), self.architecture(key)):
            several = value if isinstance(value, list) else [value]
            if ids := tuple(one for one in several if type(one) is int):
                return ids
        return ()

    def number(self, key: str) -> float | None:
        value = self.generation.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def context(self) -> int | None:
        """Positions that the model is for; a dynamic scaling extends those that it states."""
        stated = self.architecture("max_position_embeddings")
        if type(stated) is not int:
            return None
        for key in ("rope_scaling", "rope_parameters"):
            match self.architecture(key):
                case {"rope_type": "dynamic", "factor": int() | float() as factor}:
                    return int(stated * factor)
        return stated

    @property
    def model_type(self) -> str | None:
        """The name transformers has for the architecture."""
        kind = self.config.get("model_type")
        return kind if isinstance(kind, str) else None


def json_object(path: Path) -> Object:
    """The object in a file; empty without one, and for another value. Raises LG765 for a file that is not JSON."""
    if not files.exists(path):
        return {}
    text = files.read_text(path, files.SETTINGS, within=path.parent)
    try:
        loaded: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise LlamagenError.of("LG765", f"{path} is not JSON: {reason}") from error
    return {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {}


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids below the vocabulary's size; a model cannot produce others."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def special_tokens(settings: Settings, spec: Spec, vocab_size: int) -> SpecialTokens:
    """Those of the folder's own configuration files, else of the spec."""
    tokens = spec.tokenizer

    def ids(key: str, fallback: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i for i in settings.ids(key) or fallback if 0 <= i < vocab_size)

    bos = ids("bos_token_id", (tokens.bos_id,) if tokens else ())
    eos = ids("eos_token_id", tokens.eos_ids if tokens else ())
    pad = ids("pad_token_id", (tokens.pad_id,) if tokens and tokens.pad_id is not None else ())
    return SpecialTokens(bos[0] if bos else None, eos, pad[0] if pad else None)
