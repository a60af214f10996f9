"""genai_config.json: what onnxruntime-genai must know to generate with a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from llamagen.emit.clients.decoder import Decoder
from llamagen.emit.clients.tokens import SpecialTokens
from llamagen.emit.config.settings import Settings

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_LENGTH = 4096
"""Tokens of prompt and answer together, unless the caller asks for more. A cache that past and present share is
allocated at this length when a generation starts: at the 131,072 of Llama 3.1 that is 8.6 GB for a 1B model."""

GENERIC = "decoder"
NAMED = frozenset({"llama"})
"""Names of transformers that the runtime knows too; every other decoder is the generic one."""


PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "CPUExecutionProvider": (),
    "CUDAExecutionProvider": ("cuda",),
}
"""Execution provider -> what this runtime calls it beyond the CPU, which it always has."""


def genai_config(
    decoder: Decoder,
    tokens: SpecialTokens,
    settings: Settings,
    *,
    filename: str,
    context: int,
    hidden_size: int | None,
    share_buffer: bool,
    providers: Sequence[str],
    session: Mapping[str, str],
) -> str:
    """The file's text.

    Threads are left to ONNX Runtime, because a folder does not know the machine it runs on. Without a padding token
    of its own a model pads with the one that ends a text: the runtime takes padding at the end of a row only.
    """
    kind = settings.model_type
    pad = tokens.pad if tokens.pad is not None else next(iter(tokens.eos), None)
    model: dict[str, Json] = {
        "type": kind if kind in NAMED else GENERIC,
        "context_length": context,
        "vocab_size": decoder.vocab_size,
        "bos_token_id": tokens.bos,
        "eos_token_id": _one_or_many(tokens.eos),
        "pad_token_id": pad,
        "decoder": {
            "filename": filename,
            "session_options": {
                "log_id": "onnxruntime-genai",
                **session,
                "provider_options": [{name: {}} for name in providers],
            },
            "head_size": decoder.head_dim,
            "hidden_size": hidden_size,
            "num_attention_heads": decoder.num_heads,
            "num_hidden_layers": decoder.layers,
            "num_key_value_heads": decoder.num_kv_heads,
            "inputs": {
                **{name: name for name in decoder.inputs},
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    search: dict[str, Json] = {
        "max_length": min(context, MAX_LENGTH),
        "past_present_share_buffer": share_buffer,
        **_sampling(settings),
    }
    return json.dumps(_known({"model": model, "search": search}), indent=2) + "\n"


def _one_or_many(ids: tuple[int, ...]) -> Json:
    match ids:
        case ():
            return None
        case (one,):
            return one
        case several:
            return list(several)


def _sampling(settings: Settings) -> dict[str, Json]:
    """As generation_config.json has it; greedy without one, as in transformers."""
    found: dict[str, Json] = {"do_sample": settings.generation.get("do_sample") is True}
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = settings.number(name)
        if value is not None:
            found[name] = value
    return found


def _known(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Without what is not known: the runtime takes null for a mistake."""
    return {
        key: _known(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }
