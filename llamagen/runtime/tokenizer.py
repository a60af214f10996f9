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
_BYTES = 3
"""Of a character, that may be there before the last one comes; each may be a token, and is shown as ``_INCOMPLETE``."""
_WINDOW = 8
"""Tokens that the text of the next one may depend on: a decoder joins bytes, and strips the first space of a text."""
_RUN = 128
"""Tokens that are decoded again while they are bytes in a row, which a decoder of SentencePiece reads as one text."""


def answering(arguments: Sequence[str]) -> Callable[[bytes], bytes]:
    """The first question is a tokenizer.json, each later one ``{encode, bare}``, ``{push}`` or ``{flush}`` as JSON.

    Ids are answered as JSON. What a pushed token adds to the text is answered as it is; bytes of an incomplete
    character are held back until the next token or the flush.
    """
    opened: list[Stream] = []

    def answer(question: bytes) -> bytes:
        if not opened:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            from tokenizers import Tokenizer

            opened.append(Stream(Tokenizer.from_str(question.decode("utf-8"))))
            return b""
        (stream,), asked = opened, json.loads(question)
        if "encode" in asked:
            encoded = stream.tokenizer.encode(asked["encode"], add_special_tokens=not asked["bare"])
            return json.dumps(encoded.ids).encode()
        text = stream.push(asked["push"]) if "push" in asked else stream.flush()
        return text.encode("utf-8")

    return answer


class Stream:
    """Text of tokens as they come: only the last few are decoded again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.told = ""
        """Of the text of ``ids``."""
        self.late = 0
        """Tokens at the end of ``ids`` with which what was told is no character any more."""

    def push(self, token: int) -> str:
        """Raises ValueError where the text of the tokens before it becomes another one."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if text.startswith(self.told):
            self.late = 0
        else:
            # byte tokens in a row are characters all of them or none: those that were told come back with the last byte
            self.late += 1
            broken = self.told.startswith(text.rstrip(_INCOMPLETE))
            if broken and self.late <= _BYTES:
                return ""
            if not broken and self.late == 1:
                raise ValueError(f"token {token} changes the text before it")
            text = self._apart()
        held = min(len(text) - len(text.rstrip(_INCOMPLETE)), _BYTES, len(text) - len(self.told))
        added = text[len(self.told) : len(text) - held]
        self.told += added
        if len(self.ids) >= 2 * _WINDOW:
            ids = self.ids[-_WINDOW:]
            last = self.tokenizer.decode(ids)
            if text.endswith(last) or len(self.ids) >= _RUN:
                self.ids, self.told = ids, last[: len(last) - held]
        return added

    def flush(self) -> str:
        """What was held back."""
        text = self._apart() if self.late else self.tokenizer.decode(self.ids)
        added = text[len(self.told) :]
        self.ids, self.told = [], ""
        return added

    def _apart(self) -> str:
        """The text of the late tokens, which are from now on all that there are."""
        self.ids, self.told, self.late = self.ids[-self.late :], "", 0
        text: str = self.tokenizer.decode(self.ids)
        return text
