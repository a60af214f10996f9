"""A SentencePiece model as a tokenizer.json; run by ``confined``, which limits what it may take."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

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
    text = json.dumps(tokenizer_of(proto, first, more), ensure_ascii=False)
    theirs, ours = SentencePieceProcessor(model_proto=data), Tokenizer.from_str(text)
    for sample in SAMPLES:
        if theirs.encode(sample) != ours.encode(sample, add_special_tokens=False).ids:
            raise NotRead(f"splits {sample!r} in a way that no tokenizer.json of ours does")
    yield text.encode("utf-8")


def tokenizer_of(proto: Any, first: bool, more: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """As the tokenizer.json of Llama 2 is: spaces become U+2581, one is put in front, merges are by rank."""
    pieces = list(proto.pieces)
    names = [piece.piece for piece in pieces]
    vocabulary = {name: index for index, name in enumerate(names)}
    kinds = type(pieces[0])
    words = {piece.piece: piece.score for piece in pieces if piece.type == kinds.NORMAL}
    pairs = sorted(
        (-score, vocabulary[word[:at]], vocabulary[word[at:]], word[:at], word[at:])
        for word, score in words.items()
        for at in range(1, len(word))
        if word[:at] in words and word[at:] in words
    )
    added = {
        index: {"content": piece.piece, "special": piece.type != kinds.USER_DEFINED}
        for index, piece in enumerate(pieces)
        if piece.type in (kinds.UNKNOWN, kinds.CONTROL, kinds.USER_DEFINED)
    } | {int(index): token for index, token in more.items() if int(index) >= len(pieces)}
    unknown = next(piece.piece for piece in pieces if piece.type == kinds.UNKNOWN)
    bos = proto.trainer_spec.bos_id
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    one, two = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    head = [{"SpecialToken": {"id": names[bos], "type_id": i}} if first else None for i in range(2)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **plain, **token} for index, token in sorted(added.items())],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
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
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
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
