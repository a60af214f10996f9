"""A prompt as the first message of a conversation, by the chat template of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from llamagen import files
from llamagen.diagnostics import LlamagenError

TEMPLATE_FILE = "chat_template.jinja"
OLDER_FILE = "chat_template.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
IMAGE_MARKER = "<|image|>"

Content: TypeAlias = "str | list[dict[str, str]]"


def chat_text(folder: Path, prompt: str, images: int) -> str:
    """The text of a conversation that begins with ``prompt``, up to where the model answers.

    Templates are programs of strangers: they run in jinja2's sandbox, as in transformers, and know neither the time
    nor this machine, so that equal prompts give equal texts. Raises LG784 for a folder without a template, and for one
    that does not work.
    """
    source = _template(folder)
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from llamagen.runtime.chat_tags import Generation

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    message = {"role": "user", "content": content(prompt, images)}
    try:
        template = environment.from_string(source)
        return template.render(
            messages=[message], add_generation_prompt=True, **_special_tokens(folder)
        )
    except Exception as error:  # a template can raise anything
        raise LlamagenError.of("LG784", f"the chat template of {folder} fails: {error}") from error


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
        found = _json(folder / name).get("chat_template")
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
    for name, value in _json(folder / TOKENIZER_CONFIG).items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _json(path: Path) -> Mapping[str, object]:
    if not files.exists(path):
        return {}
    text = files.read_text(path, files.SETTINGS, within=path.parent)
    try:
        loaded: object = json.loads(text)
    except ValueError as error:
        raise LlamagenError.of("LG765", f"{path} is not JSON: {error}") from error
    return loaded if isinstance(loaded, dict) else {}
