"""Text through a tokenizer in a process of its own: what ends it, and what it leaves as it was."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from llamagen.confined import Companion, Limits, Stopped, confined
from llamagen.diagnostics import LlamagenError
from llamagen.runtime.text import Text
from tests.hardness.inputs_engines import tokenizer

LIMITS = Limits(seconds=1, memory=256 << 20, answer=1000)


def text_of(folder: Path) -> Text:
    (folder / "tokenizer.json").write_bytes(tokenizer())
    text = Text.of_folder(folder)
    assert text is not None
    return text


def test_a_prompt_that_is_not_utf_8(tmp_path: Path) -> None:
    """As Python gives arguments in another encoding."""
    text = text_of(tmp_path)
    with pytest.raises(LlamagenError) as caught:
        text.encode(b"a caf\xe9".decode("utf-8", "surrogateescape"))
    assert caught.value.diagnostics[0].code == "LG767"
    assert "character 6 " in caught.value.diagnostics[0].message
    assert text.encode("a b") == (0, 1)


def test_the_process_ends_with_the_text(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    child = text.tokenizer.child
    assert child.poll() is None
    del text
    gc.collect()
    assert child.returncode is not None


SCRIPT = """
import os, signal, sys, time
def answering(arguments):
    def answer(question):
        word = question.decode()
        if word == "time":
            while True: pass
        if word == "memory":
            return b"x" * (1 << 30)
        if word == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "abort":
            os.abort()
        if word == "error":
            raise LookupError("no " + "x" * 10_000)
        if word == "base":
            raise SystemExit(0)
        if word == "file":
            os.write(os.open("grown", os.O_CREAT | os.O_WRONLY), b"x")
        return arguments[0].encode() * int(word)
    return answer
def answer(arguments):
    yield answering(arguments)(sys.stdin.buffer.read())
"""

ENDS = {
    "1001": ("limit", "it makes more than 1,000 bytes"),
    "time": ("limit", "it takes more than 1 s of a processor"),
    "memory": ("limit", "it needs more than 256 MiB of memory"),
    "signal": ("limit", "its process ended with -11"),
    "abort": ("limit", "it gives up, as for more than 256 MiB of memory"),
    "error": ("LookupError", "no xxx"),
    "base": ("SystemExit", "0"),
    "word": ("ValueError", "invalid literal"),
}


def asked(script: Path, word: str, many: bool) -> bytes:
    if many:
        return Companion(script, ("a",), LIMITS).ask(word.encode())
    return confined(script, ("a",), word.encode(), LIMITS)


@pytest.mark.parametrize("word", ENDS)
@pytest.mark.parametrize("many", [False, True])
def test_every_limit_has_its_words(word: str, many: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert asked(script, "3", many) == b"aaa"
    with pytest.raises(Stopped) as caught:
        asked(script, word, many)
    kind, reason = ENDS[word]
    assert caught.value.kind == kind
    assert str(caught.value).startswith(reason) and len(str(caught.value)) <= 400


@pytest.mark.parametrize("many", [False, True])
def test_no_file_grows(many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    with pytest.raises(Stopped):
        asked(tmp_path / "script.py", "file", many)
    assert (tmp_path / "grown").stat().st_size == 0


def test_what_the_environment_says_is_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither PYTHONPATH nor a module in the working folder stands in for one of the library."""
    (tmp_path / "json.py").write_text("raise SystemExit('mine')")
    (tmp_path / "script.py").write_text("import json\ndef answer(a): yield json.dumps(1).encode()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert os.path.exists("json.py")
    assert confined(tmp_path / "script.py", (), b"", LIMITS) == b"1"
