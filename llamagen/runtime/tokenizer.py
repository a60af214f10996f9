"""Encodes and decodes with a tokenizer; run by ``confined``, which limits what it may take.

A tokenizer can pad to 10^12 tokens, replace a letter by a thousand, or panic, which in Rust may end the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_INCOMPLETE = "\ufffd"


def answering(arguments: Sequence[str]) -> Callable[[bytes], bytes]:
    """The first question is a tokenizer.json, each later one ``{encode, bare}`` or ``{push}`` as JSON.

    Ids are answered as JSON. What a pushed token adds to the text is answered as it is; nothing while a character is
    incomplete.
    """
    known: list[Tokenizer] = []
    ids: list[int] = []
    shown = ""

    def answer(question: bytes) -> bytes:
        nonlocal shown
        if not known:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            from tokenizers import Tokenizer

            known.append(Tokenizer.from_str(question.decode("utf-8")))
            return b""
        asked = json.loads(question)
        if "encode" in asked:
            encoded = known[0].encode(asked["encode"], add_special_tokens=not asked["bare"])
            return json.dumps(encoded.ids).encode()
        ids.append(asked["push"])
        text: str = known[0].decode(ids)
        if text.endswith(_INCOMPLETE) or not text.startswith(shown):
            return b""
        added = text[len(shown) :]
        shown = text
        return added.encode("utf-8")

    return answer
