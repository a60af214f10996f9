"""Text through a tokenizer in a process of its own: what ends it, and what it leaves as it was."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llamagen.confined import Companion, Limits, Stopped, confined
from llamagen.diagnostics import LlamagenError
from llamagen.runtime.text import Text, chat_text
from llamagen.runtime.tokenizer import Stream
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


def of_bytes(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """A token for each byte, as of Llama 3 and later where no longer one fits."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoder or decoders.ByteLevel()
    return made


A = 256
"""The token of a word."""


def bytes_of_sentencepiece() -> Tokenizer:
    """The bytes, and a word behind them, with the decoder of Llama 1 and 2."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁b": A, "<unk>": A + 1}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return made


@given(
    st.lists(
        st.sampled_from(["a", " b", "é", "日本", "🦙", "\ufffd", b"\xff", b"\xf0\x9f"]), max_size=40
    )
)
@settings(max_examples=60)
def test_pushed_tokens_are_the_text_of_all(words: list[str | bytes]) -> None:
    """Characters of several tokens, broken ones too, at the end as well; only the last tokens are decoded again."""

    text_tokens = of_bytes()

    class Counted:
        decoded = 0

        def decode(self, ids: list[int]) -> str:
            self.decoded += len(ids)
            return text_tokens.decode(ids)

    counted = Counted()
    vocabulary, letters = text_tokens.get_vocab(), bytes_to_unicode()
    data = b"".join(word if isinstance(word, bytes) else word.encode() for word in words)
    ids = [vocabulary[letters[byte]] for byte in data]
    stream = Stream(counted)  # type: ignore[arg-type]
    pushed = [stream.push(token) for token in ids]
    assert (
        "".join(pushed) + stream.flush()
        == text_tokens.decode(ids)
        == data.decode("utf-8", "replace")
    )
    assert counted.decoded <= 32 * (len(ids) + 1), "every token would be decoded with all before it"


@given(st.text(st.sampled_from("aé日🦙"), max_size=40))
@settings(max_examples=60)
def test_characters_in_bytes_of_sentencepiece(words: str) -> None:
    """Its decoder reads byte tokens in a row as one text, which is none while the last character is incomplete."""
    made = bytes_of_sentencepiece()
    stream = Stream(made)
    pushed = [stream.push(token) for token in words.encode()]
    assert "".join(pushed) + stream.flush() == words
    assert max(map(len, pushed), default=0) <= 1, "what is whole is told at once"


@pytest.mark.parametrize("end", [[], [A], [A, *"é🦙".encode()]], ids=["end", "text", "more"])
@pytest.mark.parametrize("broken", [b"\xff", b"\xf0\x9f", b"\xf0\x9f\xa6", b"\xff" * 5])
def test_bytes_that_become_no_character(broken: bytes, end: list[int]) -> None:
    """What was shown stays, and the bytes that break it are shown as such."""
    stream = Stream(bytes_of_sentencepiece())
    ids = [*"aé🦙".encode(), *broken, *end]
    said = "".join(map(stream.push, ids)) + stream.flush()
    assert said.startswith("aé🦙\ufffd")
    assert said.endswith({0: "\ufffd", 1: " b"}.get(len(end), " bé🦙"))


def test_nothing_is_lost_of_a_decoder_that_strips(tmp_path: Path) -> None:
    """The first space of a text, as SentencePiece has it: text of later tokens keeps theirs."""
    vocab = {"<unk>": 0, "▁a": 1, "▁b": 2, "c": 3}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.decoder = decoders.Metaspace()
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    text = Text.of_folder(tmp_path)
    assert text is not None
    ids = [1, 2, 3, 2, 1, *[2, 3] * 20]
    assert "".join(map(text.push, ids)) == made.decode(ids)


def test_a_token_that_changes_the_text_before_it(tmp_path: Path) -> None:
    """What was shown cannot be taken back, and what follows must not be left out."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    text = Text.of_folder(tmp_path)
    assert text is not None and text.push(0) == "a"
    with pytest.raises(LlamagenError, match=r"LG766.*token 1 changes the text before it"):
        text.push(1)


def test_an_incomplete_character_is_told_at_the_end(tmp_path: Path) -> None:
    made = of_bytes()
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    text = Text.of_folder(tmp_path)
    assert text is not None
    first, second, *_ = made.encode("🦙").ids
    assert [text.push(first), text.push(second), text.flush(), text.flush()] == [
        "",
        "",
        "\ufffd",
        "",
    ]


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    codes = {"tokenizer.json": "LG762", "chat_template.jinja": "LG784"}
    (tmp_path / name).write_text("\ufeff{}", encoding="utf-8")
    read = Text.of_folder if name == "tokenizer.json" else lambda folder: chat_text(folder, "a", 0)
    with pytest.raises(LlamagenError, match="it begins with a byte-order mark") as caught:
        read(tmp_path)
    assert caught.value.diagnostics[0].code == codes.get(name, "LG765")
    assert "without a byte-order mark" in (caught.value.diagnostics[0].help or "")


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
