"""A prompt as the first message of a conversation, by the chat template of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from llamagen import files
from llamagen.confined import Limits, Stopped, confined
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.settings import json_object

TEMPLATE_FILE = "chat_template.jinja"
OLDER_FILE = "chat_template.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
IMAGE_MARKER = "<|image|>"

_SCRIPT = Path(__file__).with_name("template.py")
_SECONDS, _MEMORY, _ROOM = 5, 512 << 20, 1 << 20
"""Of a processor; bytes; bytes of text beside what the prompt takes."""

Content: TypeAlias = "str | list[dict[str, str]]"


def chat_text(folder: Path, prompt: str, images: int) -> str:
    """The text of a conversation that begins with ``prompt``, up to where the model answers.

    Templates are programs of strangers: they run in a process of their own. Raises LG784 for a folder without a
    template, and for one that does not work or takes too much.
    """
    message = {"role": "user", "content": content(prompt, images)}
    values = {
        "messages": [message],
        "tools": None,  # transformers says so: templates ask whether it `is not none`
        "documents": None,
        "add_generation_prompt": True,
        **_special_tokens(folder),
    }
    request = json.dumps({"source": _template(folder), "values": values}).encode()
    room = _ROOM + 4 * len(request)  # a template may show a message more than once
    try:
        text = confined(_SCRIPT, (), request, Limits(_SECONDS, _MEMORY + room, room))
    except Stopped as error:
        message_text = f"the chat template of {folder} fails: {error}"
        raise LlamagenError.of("LG784", message_text) from error
    return text.decode("utf-8")


def content(prompt: str, images: int) -> Content:
    """Text, and images where it says ``<|image|>``, or before it."""
    if not images:
        return prompt
    pieces = prompt.split(IMAGE_MARKER)
    if len(pieces) == 1:
        return [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    made: list[dict[str, str]] = []
    for i, piece in enumerate(pieces):
        made += [{"type": "image"}] * (i > 0)
        made += [{"type": "text", "text": piece}] if piece else []
    return made


def _template(folder: Path) -> str:
    path = folder / TEMPLATE_FILE
    if files.exists(path):
        return files.read_text(path, files.TEMPLATE, within=folder)
    for name in (OLDER_FILE, TOKENIZER_CONFIG):
        found = json_object(folder / name).get("chat_template")
        if isinstance(found, list):  # several, each with its name
            named = [one for one in found if isinstance(one, Mapping)]
            found = next((t.get("template") for t in named if t.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    message = f"{str(folder)!r} has no chat template"
    help = f"leave out --chat, or copy the model's {TEMPLATE_FILE} there"
    raise LlamagenError.of("LG784", message, help=help)


def _special_tokens(folder: Path) -> dict[str, str]:
    """``bos_token`` and so on, which templates write."""
    found: dict[str, str] = {}
    for name, value in json_object(folder / TOKENIZER_CONFIG).items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
