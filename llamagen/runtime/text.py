"""Text in and out of an exported folder, through its tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

from llamagen import files
from llamagen.confined import Companion, Limits, Stopped
from llamagen.diagnostics import LlamagenError

TOKENIZER_FILE = "tokenizer.json"
_SCRIPT = Path(__file__).with_name("tokenizer.py")
_LIMITS = Limits(seconds=20, memory=2 << 30, answer=64 << 20)
"""Llama 3's tokenizer, 17 MB, opens in 0.5 s and 200 MiB; Llama 4's takes half more."""


def require_utf8(prompt: str) -> None:
    """Raises LG767."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"the prompt is not UTF-8: character {error.start + 1:,} is half of one"
        help = "a terminal or a script in another encoding gave it; write it in UTF-8"
        raise LlamagenError.of("LG767", message, help=help) from error


class Text:
    """Encodes a prompt, and decodes tokens as they come."""

    def __init__(self, tokenizer: Companion) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def of_folder(cls, folder: Path) -> Text | None:
        """The tokenizer of a folder; None if it has none. Raises LG762."""
        path = folder / TOKENIZER_FILE
        if not files.exists(path):
            return None
        data = files.read_bytes(path, files.TOKENIZER, within=folder)
        tokenizer = Companion(_SCRIPT, (), _LIMITS)
        try:
            tokenizer.ask(data)
        except Stopped as error:
            message = f"{path} cannot be read: {error}"
            raise LlamagenError.of("LG762", message, help="copy the file again") from error
        return cls(tokenizer)

    def encode(self, prompt: str, *, bare: bool = False) -> tuple[int, ...]:
        """Ids of a prompt, with the special tokens that the tokenizer adds unless it is ``bare``.

        Raises LG766 where the tokenizer refuses it, LG767 for a prompt that is not UTF-8.
        """
        require_utf8(prompt)
        ids = json.loads(self._asked({"encode": prompt, "bare": bare}))
        return tuple(ids)

    def push(self, token: int) -> str:
        """What a further token adds to the text; empty while a character is incomplete. Raises LG766."""
        return self._asked({"push": token}).decode("utf-8")

    def _asked(self, question: dict[str, object]) -> bytes:
        try:
            return self.tokenizer.ask(json.dumps(question).encode())
        except Stopped as error:
            what = "encode the prompt" if "encode" in question else "decode what was generated"
            message = f"{TOKENIZER_FILE} cannot {what}: {error}"
            help = "give token ids with --ids, or copy the model's own tokenizer.json there"
            raise LlamagenError.of("LG766", message, help=help) from error
