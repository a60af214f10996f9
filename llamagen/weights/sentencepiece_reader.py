"""A SentencePiece model as a tokenizer.json; run by ``confined``, which limits what it may take.

GGUF keeps the same pieces, scores and types.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""sentencepiece_model.proto, ModelProto.SentencePiece.Type; llama.h, enum llama_token_type."""

SAMPLES = (
    "",
    "Hello world",
    "  two  spaces ",
    "\n\nnew\tline\r",
    "123 4567",
    "h\u00e9llo \u65e5\u672c \U0001f642",
    "\ufb01 \u2460 \u00bd a\u0301",
    "a <b> \u2581 c",
)
"""Texts that normalisers, splitters and fallbacks treat differently."""


class NotRead(Exception):
    """The text says what the model is."""


def answer(arguments: Sequence[str]) -> Iterator[bytes]:
    """Of the model on stdin; ``arguments``: whether it puts a first token before a text, and further tokens as JSON.

    Raises NotRead for a kind of model that is not read, or one whose tokens come out otherwise.
    """
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]
        ModelProto,  # made when it is imported
    )
    from tokenizers import Tokenizer

    data = sys.stdin.buffer.read()
    proto = ModelProto.FromString(data)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise NotRead("is no BPE model")
    first, more = json.loads(arguments[0]), json.loads(arguments[1])
    pieces = [(one.piece, one.score, one.type) for one in proto.pieces]
    text = json.dumps(
        tokenizer_of(pieces, proto.trainer_spec.bos_id, first, more), ensure_ascii=False
    )
    theirs, ours = SentencePieceProcessor(model_proto=data), Tokenizer.from_str(text)
    for sample in SAMPLES:
        if theirs.encode(sample) != ours.encode(sample, add_special_tokens=False).ids:
            raise NotRead(f"splits {sample!r} in a way that no tokenizer.json of ours does")
    yield text.encode("utf-8")


def tokenizer_of(
    pieces: Sequence[tuple[str, float, int]],
    bos: int,
    first: bool,
    more: Mapping[str, dict[str, Any]],
    space: bool = True,
) -> dict[str, Any]:
    """As the tokenizer.json of Llama 2 is: spaces become U+2581, one is put in front, merges are by rank.

    ``pieces`` are texts, scores and SentencePiece's types, of which there is one of an unknown piece; ``first`` says
    whether the token ``bos`` begins a text, ``space`` whether a space does.
    """
    names = [name for name, _, _ in pieces]
    vocabulary = {name: index for index, name in enumerate(names)}
    words = {name: score for name, score, kind in pieces if kind == NORMAL}
    pairs = sorted(
        (-score, vocabulary[word[:at]], vocabulary[word[at:]], word[:at], word[at:])
        for word, score in words.items()
        for at in range(1, len(word))
        if word[:at] in words and word[at:] in words
    )
    added = {
        index: {"content": name, "special": kind != USER_DEFINED}
        for index, (name, _, kind) in enumerate(pieces)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    } | {int(index): token for index, token in more.items() if int(index) >= len(pieces)}
    unknown = next(name for name, _, kind in pieces if kind == UNKNOWN)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    one, two = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    head = [{"SpecialToken": {"id": names[bos], "type_id": i}} if first else None for i in range(2)]
    prepend = [{"type": "Prepend", "prepend": "\u2581"}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **plain, **token} for index, token in sorted(added.items())],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *prepend,
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [part for part in (head[0], one) if part],
            "pair": [part for part in (head[0], one, head[1], two) if part],
            "special_tokens": {names[bos]: {"id": names[bos], "ids": [bos], "tokens": [names[bos]]}}
            if first
            else {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[left, right] for _, _, _, left, right in pairs],
        },
    }
