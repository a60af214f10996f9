"""The special tokens of a folder: those of its own configuration files, else of the spec."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.emit.config.settings import Settings
from llamagen.spec.schema import Spec


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids below the vocabulary's size; a model cannot produce others."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def special_tokens(settings: Settings, spec: Spec, vocab_size: int) -> SpecialTokens:
    tokens = spec.tokenizer

    def ids(key: str, fallback: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i for i in settings.ids(key) or fallback if 0 <= i < vocab_size)

    bos = ids("bos_token_id", (tokens.bos_id,) if tokens else ())
    eos = ids("eos_token_id", tokens.eos_ids if tokens else ())
    pad = ids("pad_token_id", (tokens.pad_id,) if tokens and tokens.pad_id is not None else ())
    return SpecialTokens(bos[0] if bos else None, eos, pad[0] if pad else None)
