"""What surrounds a generation: stop strings, conversations, prompts in turn, from Python and from stdin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import llamagen
from llamagen.api import Runner
from llamagen.diagnostics import LlamagenError
from llamagen.runtime.generation import Generation
from llamagen.runtime.text import Stops, messages_of
from tests.cases.runner import COMMON

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    llamagen.load(COMMON / "tiny.yaml").export(out, random_weights=7)
    words = {"one": 1, "two": 2, "three": 3, "<system>": 4, "<user>": 5, "<assistant>": 6, "?": 0}
    tokenizer = Tokenizer(
        models.WordLevel(words | {f"w{i}": i for i in range(7, 96)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(TEMPLATE)
    return out


def text_of(stream: Generation) -> str:
    return "".join(piece.text for piece in stream)


letters = st.text("ab", max_size=12)


@given(st.lists(st.text("ab", max_size=4), max_size=8), st.lists(letters.filter(bool), max_size=3))
def test_text_ends_before_the_first_string(parts: list[str], strings: list[str]) -> None:
    """However it comes in pieces, and never later than it must."""
    stops, shown, whole = Stops(strings), "", ""
    for part in parts:
        whole += part
        added, reached = stops.push(part)
        shown += added
        places = [at for string in strings if (at := whole.find(string)) >= 0]
        assert reached == bool(places)
        if reached:
            assert shown == whole[: min(places)]
            return
        rest = whole[len(shown) :]
        assert whole.startswith(shown)
        assert not rest or any(string.startswith(rest) for string in strings)
    assert shown + stops.flush() == whole


def test_why_a_generation_ends(folder: Path) -> None:
    free = llamagen.run(folder, "one two three", max_new_tokens=6)
    text = text_of(free)
    assert free.ended == "length" and len(free.tokens) == 6
    words = text.removeprefix("w").split("w")
    stream = llamagen.run(folder, "one two three", stop=[f"w{words[3]}"], max_new_tokens=6)
    assert text_of(stream) == "".join(f"w{word}" for word in words[:3])
    assert stream.ended == "string" and stream.tokens == free.tokens[:4]
    with pytest.raises(LlamagenError, match="LG901"):
        llamagen.run(folder, "one", stop=[""])


def test_a_conversation_is_what_the_template_makes_of_it(folder: Path) -> None:
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    said.append({"role": "user", "content": "three"})
    wanted = llamagen.run(folder, [4, 1, 1, 5, 1, 6, 2, 5, 3, 6], max_new_tokens=5)
    found = llamagen.run(folder, said, system="one one", max_new_tokens=5)
    assert list(found.prompt.input_ids) == list(wanted.prompt.input_ids)
    text_of(wanted), text_of(found)
    assert found.tokens == wanted.tokens
    alone = llamagen.run(folder, "one", chat=True, system="two", max_new_tokens=1)
    assert list(alone.prompt.input_ids) == [4, 2, 5, 1, 6]


def test_an_answer_does_not_depend_on_those_before(folder: Path) -> None:
    runner = Runner(folder)
    for prompt in ("one two", "three", "one two"):
        first = runner.run(prompt, stop=["w9"], max_new_tokens=5)
        alone = llamagen.run(folder, prompt, stop=["w9"], max_new_tokens=5)
        assert (text_of(first), first.tokens) == (text_of(alone), alone.tokens)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "[1]", '[{"role": "user"}]', '[{"role": 1, "content": ""}]', "[" * 9999]
)  # fmt: skip
def test_what_is_no_conversation(text: str) -> None:
    with pytest.raises(LlamagenError, match="LG769"):
        messages_of(text, "said.json")


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        (["--prompts", "-"], b"one\n\ntwo\n", ""),
        (["--messages", "-"], b'[{"role": "user", "content": "one"}]', ""),
        (["--prompts", "-"], b"\n", "LG769"),
        (["--prompts", "-"], b"\xff\n", "LG769"),
        (["--prompts", "nowhere.txt"], b"", "LG769"),
    ],
)
def test_stdin(words: list[str], data: bytes, said: str, folder: Path) -> None:
    more = ["--max-new-tokens", "2", "--format", "json"]
    command = [sys.executable, "-m", "llamagen.cli", "run", str(folder), *words, *more]
    done = subprocess.run(command, input=data, capture_output=True)
    assert said.encode() in done.stderr and bool(done.returncode) is bool(said)
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        assert answer["ended"] == "length" and answer["written"] == 2
        assert set(answer["seconds"]) == {"open", "images", "read", "write"}
    if not said:
        assert len(done.stdout.splitlines()) == (2 if "--prompts" in words else 1)
