"""Chat templates: rendered as transformers renders them, sandboxed, and clear when they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.models.llama4.processing_llama4 import chat_template as LLAMA_4
from transformers.utils.chat_template_utils import render_jinja_template

from llamagen.diagnostics import LlamagenError
from llamagen.runtime.text import chat_text, content

SHORT = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m['role'] not in ('user', 'system') %}{{ raise_exception('who?') }}{% endif %}
    {{- '<' + m.role + '>' + (m.content if m.content is string else m.content | tojson) }}
    {%- if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
"""


def folder(path: Path, template: str, bos: object = "<s>") -> Path:
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": None}))
    return path


@pytest.mark.parametrize(
    ("prompt", "images"),
    [("Hello", 0), ("What is <b>?", 2), ("<|image|>A<|image|> or\nb", 2), ("a <|image|>", 1)],
)
def test_llama_4_is_rendered_as_transformers_does(prompt: str, images: int, tmp_path: Path) -> None:
    message = {"role": "user", "content": content(prompt, images)}
    expected, _ = render_jinja_template(
        conversations=[[message]],
        chat_template=LLAMA_4,
        add_generation_prompt=True,
        bos_token="<|begin_of_text|>",
    )
    found = chat_text(folder(tmp_path, LLAMA_4, {"content": "<|begin_of_text|>"}), prompt, images)
    assert [found] == expected
    assert found.count("<|image|>") == images


@pytest.mark.parametrize(
    "template",
    [
        "{% if tools is not none %}{{ tools | length }}{% endif %}a",
        "{% if documents is not none %}{{ documents | length }}{% endif %}a",
        "{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}",
        "{{ messages | tojson(separators=(',', ':')) }}{{ messages | tojson(indent=2) }}",
    ],
)
def test_what_transformers_gives_a_template(template: str, tmp_path: Path) -> None:
    message = {"role": "user", "content": "né"}
    expected, _ = render_jinja_template(conversations=[[message]], chat_template=template)
    assert [chat_text(folder(tmp_path, template), "né", 0)] == expected


def test_a_template_knows_no_time(tmp_path: Path) -> None:
    assert chat_text(folder(tmp_path, SHORT), "né", 0) == "<s><user>né<assistant>"


def test_the_template_of_a_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "chat_template": SHORT})
    )
    assert chat_text(tmp_path, "a", 0) == "<s><user>a<assistant>"


@pytest.mark.parametrize("file", ["chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "stored",
    [SHORT, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": SHORT}]],
    ids=["one", "named"],
)
def test_templates_in_json(file: str, stored: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    (tmp_path / file).write_text(json.dumps({"bos_token": "<s>", "chat_template": stored}))
    assert chat_text(tmp_path, "a", 0) == "<s><user>a<assistant>"


def test_marks_of_what_a_model_answered(tmp_path: Path) -> None:
    marked = "{% for m in messages %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{% endfor %}"
    expected, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": "a"}]], chat_template=marked
    )
    assert [chat_text(folder(tmp_path, marked), "a", 0)] == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{% generation %}a",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_does_not_work(template: str, tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        chat_text(folder(tmp_path, template), "a", 0)
    assert caught.value.diagnostics[0].code == "LG784"


def test_what_a_template_says_is_no_command_for_a_terminal(tmp_path: Path) -> None:
    template = "{{ raise_exception('\x1b[31mred\x07\u202e\nerror: mine') }}"
    with pytest.raises(LlamagenError) as caught:
        chat_text(folder(tmp_path, template), "a", 0)
    assert caught.value.diagnostics[0].message.endswith(
        r"fails: \u{1b}[31mred\u{7}\u{202e}\u{a}error: mine"
    )


def test_a_folder_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError, match="no chat template"):
        chat_text(tmp_path, "a", 0)
