"""Text in and out of an exported folder, through its tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamagen import files
from llamagen.diagnostics import LlamagenError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
_INCOMPLETE = "\ufffd"


class Text:
    """Encodes a prompt, and decodes tokens as they come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.shown = ""

    @classmethod
    def of_folder(cls, folder: Path) -> Text | None:
        """The tokenizer of a folder; None if it has none. Raises LG762."""
        path = folder / TOKENIZER_FILE
        if not files.exists(path):
            return None
        from tokenizers import Tokenizer

        data = files.read_bytes(path, files.TOKENIZER, within=folder)
        try:
            return cls(Tokenizer.from_buffer(data))
        except Exception as error:  # tokenizers raises bare Exception
            message = f"{path} cannot be read: {error}"
            raise LlamagenError.of("LG762", message, help="copy the file again") from error

    def encode(self, prompt: str, *, bare: bool = False) -> tuple[int, ...]:
        """Ids of a prompt, with the special tokens that the tokenizer adds unless it is ``bare``."""
        return tuple(self.tokenizer.encode(prompt, add_special_tokens=not bare).ids)

    def push(self, token: int) -> str:
        """What a further token adds to the text; empty while a character is incomplete."""
        self.ids.append(token)
        text: str = self.tokenizer.decode(self.ids)
        if text.endswith(_INCOMPLETE) or not text.startswith(self.shown):
            return ""
        added = text[len(self.shown) :]
        self.shown = text
        return added
