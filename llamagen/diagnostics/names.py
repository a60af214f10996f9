"""What a misspelt or foreign name probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

NAME_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        # Meta's params.json
        "dim": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "n_kv_heads": "num_kv_heads",
        "ffn_dim": "intermediate_size",
        "hidden_dim": "intermediate_size",
        "max_seq_len": "max_positions",
        "n_experts": "num_experts",
        "n_vocab": "vocab_size",
        "use_scaled_rope": "rope.kind",
        # Hugging Face config.json
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "rms_norm_eps": "norm_eps",
        "layer_norm_eps": "norm_eps",
        "layer_norm_epsilon": "norm_eps",
        "rms_norm_epsilon": "norm_eps",
        "max_position_embeddings": "max_positions",
        "max_sequence_length": "max_positions",
        "rope_theta": "rope.theta",
        "rope_base": "rope.theta",
        "rope_scaling": "rope",
        "rope_parameters": "rope",
        "rope_type": "rope.kind",
        "partial_rotary_factor": "rope.partial",
        "tie_word_embeddings": "tie_embeddings",
        "num_local_experts": "num_experts",
        "n_routed_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_token",
        "num_selected_experts": "num_experts_per_token",
        "top_k_experts": "num_experts_per_token",
        "ffn_hidden_size": "intermediate_size",
        "d_ff": "intermediate_size",
        "n_inner": "intermediate_size",
        # GPT-2 and friends
        "d_model": "hidden_size",
        "n_embd": "hidden_size",
        "embed_dim": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_head_kv": "num_kv_heads",
        "n_positions": "max_positions",
        "n_ctx": "max_positions",
        "context_length": "max_positions",
        "d_head": "head_dim",
        "d_kv": "head_dim",
        "attention_head_dim": "head_dim",
        "kv_channels": "head_dim",
    }
)
"""Names of other dialects -> ours. A dotted target names a leaf inside a mapping."""

_WORD_LIMIT = 80  # difflib is quadratic in the word


_Otherwise = TypeVar("_Otherwise", bound=str | None)


def did_you_mean(word: str, candidates: Iterable[str], otherwise: _Otherwise) -> str | _Otherwise:
    """The next step where a name is not known: the one that was probably meant, or ``otherwise``."""
    near = nearest(word, candidates)
    return f"did you mean `{near}`?" if near else otherwise


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` most probably meant, or None.

    An exact alias wins if its target, or the first segment of its dotted target, is a candidate; then spelling (case,
    `-` and `_` do not count).
    """
    known = list(dict.fromkeys(candidates))
    target = NAME_ALIASES.get(word) or NAME_ALIASES.get(_folded(word))
    if target is not None and (target in known or target.split(".", 1)[0] in known):
        return target
    if not word or len(word) > _WORD_LIMIT:
        return None
    by_folded = {_folded(candidate): candidate for candidate in reversed(known)}
    by_folded.pop(_folded(word), None) if word in known else None
    if _folded(word) in by_folded:
        return by_folded[_folded(word)]
    from difflib import get_close_matches

    close = get_close_matches(_folded(word), list(by_folded), n=1, cutoff=0.65)
    if close:
        return by_folded[close[0]]
    longer = [name for folded, name in by_folded.items() if folded.startswith(_folded(word))]
    return longer[0] if len(longer) == 1 else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def quoted(name: str, limit: int = 160) -> str:
    """A name from a file, safe to print: control characters escaped, length bounded."""
    shown = name if len(name) <= limit else name[: limit - 3] + "..."
    return f"'{shown}'" if shown.isprintable() else ascii(shown)
