"""The tokenizer.json of byte-level BPE: of merges, as in GGUF, or of tiktoken's ranks, as in Meta's Llama 3."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

# What splits a text before merges: llama.cpp src/llama-vocab.cpp by `tokenizer.ggml.pre`, tokenizer.json of the models.
_BYTES: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: Mapping[str, Json] = MappingProxyType(
    {
        "gpt-2": _BYTES,
        "smollm": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
        },
        "llama-bpe": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _LLAMA_3}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
    }
)  # fmt: skip
WHOLE_WORDS_FIRST = frozenset({"llama-bpe"})
"""Where a word that is a token is not merged from its characters."""


def byte_bpe(
    pre: str,
    tokens: Sequence[str],
    merges: Sequence[str],
    added: Mapping[int, tuple[str, bool]],
    bos: int | None,
) -> dict[str, Json]:
    """``pre`` is one of ``PRE_TOKENIZERS``; ``added`` are texts by id, and whether they are special; ``bos`` is put
    first."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    post: Json = None
    if bos is not None:
        name = tokens[bos]
        one: list[Json] = [
            {"SpecialToken": {"id": name, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        other: list[Json] = [
            {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ]
        post = {
            "type": "TemplateProcessing",
            "single": one,
            "pair": one + other,
            "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **plain, "special": special}
            for i, (text, special) in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS_FIRST,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": merges,
        },
    }  # fmt: skip


def of_ranks(data: bytes, named: Mapping[str, int], size: int) -> dict[str, Json]:
    """Of a tokenizer.model of Meta's: a line has a token in base 64, and its rank; ``size`` ids with special tokens.

    ``named`` are those that the spec names, the first behind the ranks. Raises ValueError, whose text says what the
    file is not.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        word, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(word, validate=True)
        except binascii.Error as error:
            raise ValueError(f"line {number + 1} is no token in base 64") from error
        if not token or rank != b"%d" % number or token in ranks:
            raise ValueError(f"line {number + 1} is not the token of rank {number}")
        ranks[token] = number
    first = min(named.values(), default=0)
    if len(ranks) != first or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(f"it has {len(ranks):,} tokens, the spec names those behind {first:,}")
    spelling = _spelling()
    texts = {token: "".join(spelling[byte] for byte in token) for token in ranks}
    # a token is merged from any two that come before it: the ways of one in the order of their parts
    merges = (
        f"{texts[token[:at]]} {texts[token[at:]]}"
        for token in ranks
        for at in sorted(
            (at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks),
            key=lambda at: (ranks[token[:at]], ranks[token[at:]]),
        )
    )
    texts_of = {index: text for text, index in named.items()}
    reserved = count()
    special = [
        f"<|{texts_of.get(i) or f'reserved_special_token_{next(reserved)}'}|>"
        for i in range(first, size)
    ]
    added = {first + i: (text, True) for i, text in enumerate(special)}
    tokens = [*(texts[token] for token in ranks), *special]
    return byte_bpe("llama-bpe", tokens, list(merges), added, first)


def _spelling() -> Mapping[int, str]:
    """The character that stands for each byte: itself where it is printed, else one from U+0100 on (as in GPT-2)."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printed)
    return {
        **{byte: chr(byte) for byte in printed},
        **{byte: chr(256 + i) for i, byte in enumerate(others)},
    }
