"""What a GGUF says of its model, as the small files of a Hub checkpoint: config.json, the tokenizer, the chat template.

Keys: ggml-org/ggml docs/gguf.md and llama.cpp src/llama-arch.cpp. Only the architecture `llama` is read; what would
change numbers and is not understood is refused (LG624).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from math import pi
from pathlib import Path
from struct import pack, unpack

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import WEIGHTS, open_file
from llamagen.weights.byte_bpe import PRE_TOKENIZERS, WHOLE_WORDS_FIRST, Json, byte_bpe
from llamagen.weights.gguf_file import GgufHeader, GgufValue
from llamagen.weights.safetensors import TensorEntry
from llamagen.weights.sentencepiece_reader import CONTROL, UNKNOWN, USER_DEFINED, tokenizer_of


def hub_files(path: Path, header: GgufHeader) -> dict[str, str]:
    """The texts of the files, by name. Raises LG624 for a model that is not understood whole."""
    keys = _Keys(path, header.keys)
    files = {"config.json": _config(keys, header), **_tokenizer(keys)}
    return {
        name: json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        for name, value in files.items()
        if value is not None
    }


class _Keys:
    """The keys of the model, each of the type that is asked for."""

    def __init__(self, path: Path, values: Mapping[str, GgufValue]) -> None:
        self.path = path
        self.values = values

    def refused(self, what: str, help: str | None = None) -> LlamagenError:
        return LlamagenError.of("LG624", f"{quoted(str(self.path))} {what}", help=help)

    def size(self, name: str, default: int | None = None) -> int:
        """A number above zero."""
        value = self.values.get(name, default)
        if type(value) is not int or value <= 0:
            raise self.refused(
                f"has no size under {quoted(name)}"
                if value is None
                else f"has {value!r} under {quoted(name)}"
            )
        return value

    def token(self, name: str, count: int) -> int | None:
        value = self.values.get(name)
        if value is not None and (type(value) is not int or not 0 <= value < count):
            raise self.refused(f"has {value!r} under {quoted(name)}, which is no token")
        return value

    def real(self, name: str, default: float) -> float:
        """The shortest decimal that the stored float32 is nearest to, which is what was written."""
        value = self.values.get(name, default)
        if not isinstance(value, float) or not value > 0:
            raise self.refused(f"has {value!r} under {quoted(name)}")
        for digits in range(1, 10):
            short = float(f"{value:.{digits}g}")
            if pack("<f", short) == pack("<f", value):
                return short
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise self.refused(f"has no text under {quoted(name)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if type(value) is not bool:
            raise self.refused(f"has {value!r} under {quoted(name)}, which is no boolean")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.refused(f"has no texts under {quoted(name)}")
        return value


def _config(keys: _Keys, header: GgufHeader) -> dict[str, Json]:
    """As `LlamaConfig` of transformers has it."""
    architecture = keys.text("general.architecture")
    if architecture != "llama":
        raise keys.refused(
            f"is of the architecture {quoted(architecture)}; `llama` is read",
            "convert the model's safetensors",
        )
    if keys.values.get("llama.expert_count", 0) != 0:
        raise keys.refused(
            "has experts, which are not read from GGUF", "convert the model's safetensors"
        )
    shapes = {one.name: one.shape for one in header.tensors}
    hidden, heads = keys.size("llama.embedding_length"), keys.size("llama.attention.head_count")
    head_dim = keys.size("llama.attention.key_length", max(1, hidden // heads))
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if keys.size(name, head_dim) != head_dim:
            raise keys.refused(
                f"has {keys.values[name]} under {quoted(name)}, and {head_dim} dimensions a head"
            )
    table = shapes.get("token_embd.weight", ())
    vocab = keys.size("llama.vocab_size", table[0] if table else None)
    scaling = _rope_scaling(keys, header, head_dim)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": keys.size("llama.feed_forward_length"),
        "num_hidden_layers": keys.size("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.real("llama.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": keys.real("llama.rope.freq_base", 10000.0),
        "rope_scaling": scaling,
        "max_position_embeddings": keys.size("llama.context_length"),
        "vocab_size": vocab,
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_down.bias" in shapes,
        "bos_token_id": keys.token("tokenizer.ggml.bos_token_id", vocab),
        "eos_token_id": keys.token("tokenizer.ggml.eos_token_id", vocab),
        "pad_token_id": keys.token("tokenizer.ggml.padding_token_id", vocab),
    }  # fmt: skip


def _rope_scaling(keys: _Keys, header: GgufHeader, head_dim: int) -> dict[str, Json] | None:
    kind = keys.text("llama.rope.scaling.type", "none")
    stored = next((one for one in header.tensors if one.name == "rope_freqs.weight"), None)
    if (
        stored is not None
        and kind == "none"
        and stored.dtype == "F32"
        and stored.shape == (head_dim // 2,)
    ):
        factors = _floats(keys.path, stored)
        # what llama.cpp's converter made them of is not kept: Meta's numbers, the only published ones, are tried
        scaling: dict[str, Json] = {
            "rope_type": "llama3",
            "factor": round(max(factors), 3),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        wanted = _llama3_factors(keys.real("llama.rope.freq_base", 10000.0), head_dim, max(factors))
        if all(abs(a - b) <= 1e-6 * b for a, b in zip(factors, wanted, strict=True)):
            return scaling
    elif stored is None and kind == "none":
        return None
    elif stored is None and kind == "linear":
        return {"rope_type": "linear", "factor": keys.real("llama.rope.scaling.factor", 1.0)}
    raise keys.refused(
        "scales rope in a way that is not read from GGUF", "convert the model's safetensors"
    )


def _floats(path: Path, entry: TensorEntry) -> tuple[float, ...]:
    with open_file(path, WEIGHTS) as file:
        file.seek(entry.offset)
        data = file.read(entry.nbytes)
    if len(data) != entry.nbytes:
        raise LlamagenError.of("LG603", f"{quoted(str(path))} became shorter while it was read")
    return unpack(f"<{entry.nbytes // 4}f", data)


def _llama3_factors(theta: float, head_dim: int, factor: float) -> Iterator[float]:
    """By which each frequency is divided: llama.cpp convert_hf_to_gguf.py, from Meta's `apply_scaling`."""
    for pair in range(head_dim // 2):
        turns = 8192 / (2 * pi * theta ** (2 * pair / head_dim))
        smooth = min(max((turns - 1) / (4 - 1), 0.0), 1.0)
        yield 1 / ((1 - smooth) / factor + smooth)


def _tokenizer(keys: _Keys) -> dict[str, dict[str, Json]]:
    if "tokenizer.ggml.model" not in keys.values:
        return {}
    kind, pre = keys.text("tokenizer.ggml.model"), keys.text("tokenizer.ggml.pre", "default")
    pieces = kind == "llama" and pre == "default"
    if not pieces and (kind != "gpt2" or pre not in PRE_TOKENIZERS):
        raise keys.refused(
            f"has the tokenizer {quoted(kind)}, {quoted(pre)}; read are llama, and gpt2 with "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    for name in ("add_eos_token", "remove_extra_whitespaces"):
        if keys.flag(f"tokenizer.ggml.{name}", False):
            raise keys.refused(f"has {quoted(f'tokenizer.ggml.{name}')}, which is not read")
    tokens, types = (
        keys.texts("tokenizer.ggml.tokens"),
        keys.values.get("tokenizer.ggml.token_type"),
    )
    if not isinstance(types, array) or len(types) != len(tokens):
        raise keys.refused("has no `tokenizer.ggml.token_type` for every token")
    if len(set(tokens)) != len(tokens):
        raise keys.refused("has a token twice")
    named = {
        word: keys.token(f"tokenizer.ggml.{name}_token_id", len(tokens))
        for word, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    settings: dict[str, Json] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{word}_token": tokens[i] for word, i in named.items() if i is not None},
        "clean_up_tokenization_spaces": False,
    }
    template = keys.text("tokenizer.chat_template")
    if template:
        settings["chat_template"] = template
    make = _of_pieces if pieces else _of_bytes
    tokenizer = make(keys, tokens, types, named["bos"])
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def _of_pieces(
    keys: _Keys, tokens: Sequence[str], types: Sequence[int | float], bos: int | None
) -> dict[str, Json]:
    """SentencePiece's BPE: llama.cpp src/llama-vocab.cpp, `llm_tokenizer_spm`."""
    scores = keys.values.get("tokenizer.ggml.scores")
    if not isinstance(scores, array) or len(scores) != len(tokens):
        raise keys.refused("has no `tokenizer.ggml.scores` for every token")
    if UNKNOWN not in types:
        raise keys.refused("has no token for what is unknown")
    if any(score != score for score in scores):
        raise keys.refused("has scores of tokens that are no numbers")
    first = bos is not None and keys.flag("tokenizer.ggml.add_bos_token", True)
    space = keys.flag("tokenizer.ggml.add_space_prefix", True)
    pieces = [
        (text, score, int(kind)) for text, score, kind in zip(tokens, scores, types, strict=True)
    ]
    return tokenizer_of(pieces, bos or 0, first, {}, space)


def _of_bytes(
    keys: _Keys, tokens: Sequence[str], types: Sequence[int | float], bos: int | None
) -> dict[str, Json]:
    pre = keys.text("tokenizer.ggml.pre")
    added = {
        i: (text, kind == CONTROL)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    }
    first = keys.flag("tokenizer.ggml.add_bos_token", pre in WHOLE_WORDS_FIRST)
    merges = keys.texts("tokenizer.ggml.merges")
    return byte_bpe(pre, tokens, merges, added, bos if first else None)
