"""Text in and out of an exported folder, through its tokenizer.json and its chat template.

A byte-order mark at the start of one of these files is refused: other runtimes of the folder fail on it, or put it into
the prompt without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from llamagen import files
from llamagen.confined import Companion, Limits, Stopped, confined
from llamagen.diagnostics import LlamagenError
from llamagen.diagnostics.render import escape
from llamagen.emit.config.settings import json_object

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
        return cls.of(files.read_text(path, files.TOKENIZER, within=folder), str(path))

    @classmethod
    def of(cls, data: str, place: str) -> Text:
        """The tokenizer of a tokenizer.json, which findings call ``place``. Raises LG762."""
        tokenizer = Companion(_SCRIPT, (), _LIMITS)
        try:
            tokenizer.ask(data.encode("utf-8"))
        except Stopped as error:
            message = f"{place} cannot be read: {error}"
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
        """What a further token adds to the text; empty while a character is incomplete.

        Raises LG766, also for a tokenizer by which a token changes the text before it.
        """
        return self._asked({"push": token}).decode("utf-8")

    def flush(self) -> str:
        """What the tokens so far leave incomplete, when no more come; the next token begins a text."""
        return self._asked({"flush": True}).decode("utf-8")

    def _asked(self, question: dict[str, object]) -> bytes:
        try:
            return self.tokenizer.ask(json.dumps(question).encode())
        except Stopped as error:
            what = "encode the prompt" if "encode" in question else "decode what was generated"
            message = f"{TOKENIZER_FILE} cannot {what}: {error}"
            help = "give token ids with --ids, or copy the model's own tokenizer.json there"
            raise LlamagenError.of("LG766", message, help=help) from error


class Stops:
    """Lets text through up to the first of some strings; what may be the beginning of one waits."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises LG901 for an empty one."""
        if not all(strings):
            raise LlamagenError.of("LG901", "a stop string is empty, so that no text would come")
        self.strings = strings
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What can be shown once ``text`` was added, and whether a string was reached."""
        self.held += text
        places = [at for string in self.strings if (at := self.held.find(string)) >= 0]
        if places:
            shown, self.held = self.held[: min(places)], ""
            return shown, True
        waiting = max((_overlap(self.held, string) for string in self.strings), default=0)
        cut = len(self.held) - waiting
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown, False

    def flush(self) -> str:
        """What waited, when no more comes."""
        shown, self.held = self.held, ""
        return shown


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of ``text`` begin ``string``, without being all of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)


# Chat

Message: TypeAlias = Mapping[str, str]
"""What someone said: his ``role`` and the ``content``."""

TEMPLATE_FILE = "chat_template.jinja"
OLDER_FILE = "chat_template.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
IMAGE_MARKER = "<|image|>"

_TEMPLATE_SCRIPT = Path(__file__).with_name("template.py")
_SECONDS, _MEMORY, _ROOM = 5, 512 << 20, 1 << 20
"""Of a processor; bytes; bytes of text beside what the prompt takes."""

Content: TypeAlias = "str | list[dict[str, str]]"


def messages_of(text: str, place: str) -> list[Message]:
    """A conversation that a JSON list of messages is. Raises LG769."""
    help = '[{"role": "user", "content": "Hello"}]'
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LlamagenError.of("LG769", f"{place} is not JSON: {error}", help=help) from error
    if not isinstance(found, list) or not found:
        raise LlamagenError.of("LG769", f"{place} is no list of messages", help=help)
    for number, one in enumerate(found):
        if not isinstance(one, dict) or not all(
            isinstance(one.get(key), str) for key in ("role", "content")
        ):
            message = f"message {number + 1} of {place} has no texts `role` and `content`"
            raise LlamagenError.of("LG769", message, help=help)
    return found


def chat_text(folder: Path, said: str | Sequence[Message], images: int) -> str:
    """The text of a conversation, up to where the model answers: of messages, or of one of the user's.

    Images belong to the last message.

    Templates are programs of strangers: they run in a process of their own. Raises LG784 for a folder without a
    template, and for one that does not work or takes too much.
    """
    *before, last = [{"role": "user", "content": said}] if isinstance(said, str) else said
    values = {
        "messages": [*before, {**last, "content": content(last["content"], images)}],
        "tools": None,  # transformers says so: templates ask whether it `is not none`
        "documents": None,
        "add_generation_prompt": True,
        **_special_tokens(folder),
    }
    request = json.dumps({"source": _template(folder), "values": values}).encode()
    room = _ROOM + 4 * len(request)  # a template may show a message more than once
    try:
        text = confined(_TEMPLATE_SCRIPT, (), request, Limits(_SECONDS, _MEMORY + room, room))
    except Stopped as error:
        # a stranger's words: what a terminal would obey is spelled out
        reason = f"the chat template of {folder} fails: {escape(str(error))}"
        raise LlamagenError.of("LG784", reason) from error
    return text.decode("utf-8")


def content(prompt: str, images: int) -> Content:
    """Text, and images where it says ``<|image|>``, or before it."""
    if not images:
        return prompt
    texts = prompt.split(IMAGE_MARKER)
    if len(texts) == 1:
        return [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    items: list[dict[str, str]] = []
    for i, text in enumerate(texts):
        items += [{"type": "image"}] * (i > 0)
        items += [{"type": "text", "text": text}] if text else []
    return items


def _template(folder: Path) -> str:
    path = folder / TEMPLATE_FILE
    if files.exists(path):
        return files.read_text(path, files.TEMPLATE, within=folder)
    for name in (OLDER_FILE, TOKENIZER_CONFIG):
        template = json_object(folder / name).get("chat_template")
        if isinstance(template, list):  # several, each with its name
            named = [one for one in template if isinstance(one, Mapping)]
            template = next((t.get("template") for t in named if t.get("name") == "default"), None)
        if isinstance(template, str):
            return template
    message = f"{str(folder)!r} has no chat template"
    help = f"leave out --chat, or copy the model's {TEMPLATE_FILE} there"
    raise LlamagenError.of("LG784", message, help=help)


def _special_tokens(folder: Path) -> dict[str, str]:
    """``bos_token`` and so on, which templates write."""
    tokens: dict[str, str] = {}
    for name, value in json_object(folder / TOKENIZER_CONFIG).items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens
