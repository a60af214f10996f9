"""Ranks of tiktoken as a tokenizer.json: against tiktoken's own rule, written from its `_educational.py`."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llamagen.diagnostics import Diagnostic
from llamagen.emit.calibrate import built_in_text
from llamagen.emit.supply import tokenizer_of
from llamagen.spec.registry import Registry
from llamagen.weights.byte_bpe import of_ranks

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""meta-llama/llama3, llama/tokenizer.py."""


def ranks_of(count: int = 128_000) -> dict[bytes, int]:
    """Every byte, and tokens that two before them make: first pairs of a text, then any."""
    random, text = np.random.default_rng(3), built_in_text().encode()
    tokens = {bytes([byte]): byte for byte in random.permutation(256).tolist()}
    for size in (2, 3, 4, 5):
        for start in range(len(text) - size):
            part = text[start : start + size]
            if any(part[:at] in tokens and part[at:] in tokens for at in range(1, size)):
                tokens.setdefault(part, 0)
    known = list(tokens)
    while len(tokens) < count:
        left, right = (known[int(i)] for i in random.integers(0, len(known), 2))
        if left + right not in tokens:
            tokens[left + right] = 0
            known.append(left + right)
    return {token: rank for rank, token in enumerate(list(tokens)[:count])}


def file_of(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


RANKS = ranks_of()


def made(data: bytes, spec_id: str = "llama/3.1/8b") -> str:
    """The tokenizer.json of a model whose file of ranks is ``data``."""
    spec = Registry().load(spec_id).spec
    assert spec.tokenizer is not None
    assert spec.hyperparameters.vocab_size is not None
    return json.dumps(of_ranks(data, spec.tokenizer.named_tokens, spec.hyperparameters.vocab_size))


def encoded(text: str) -> list[int]:
    ids: list[int] = []
    for word in regex.findall(PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            pairs = [RANKS.get(a + b, 1 << 30) for a, b in itertools.pairwise(parts)]
            least = min(pairs)
            if least == 1 << 30:
                break
            at = pairs.index(least)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        whole = RANKS.get(word.encode())
        ids += [whole] if whole is not None else [RANKS[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.from_str(made(file_of(RANKS)))


def test_texts_are_split_as_tiktoken_splits_them(ours: Tokenizer) -> None:
    text = built_in_text()
    for start in range(0, 6000, 97):
        part = text[start : start + 60 + start % 50]
        assert ours.encode(part, add_special_tokens=False).ids == encoded(part), part

    @given(st.text(st.characters(max_codepoint=0x1F6FF, exclude_categories=["Cs"]), max_size=40))
    def check(text: str) -> None:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == encoded(text)
        assert ours.decode(ids) == text

    check()


@pytest.mark.parametrize("later", [False, True])
def test_special_tokens_follow_the_ranks(later: bool, ours: Tokenizer) -> None:
    """Of Llama 3 and 3.1, by their published tokenizer.json: 256 of them."""
    found = ours if later else Tokenizer.from_str(made(file_of(RANKS), "llama/3/8b-instruct"))
    names = {
        "begin_of_text": 0, "end_of_text": 1, "start_header_id": 6, "end_header_id": 7, "eot_id": 9,
        **({"finetune_right_pad_id": 4, "eom_id": 8, "python_tag": 10, "reserved_special_token_247": 255} if later
           else {"reserved_special_token_3": 5, "reserved_special_token_4": 8, "reserved_special_token_250": 255}),
        "reserved_special_token_0": 2, "reserved_special_token_1": 3,
    }  # fmt: skip
    for name, at in names.items():
        assert found.token_to_id(f"<|{name}|>") == 128_000 + at
    assert found.encode("<|eot_id|>").ids == [128_000, 128_009]
    assert found.get_vocab_size() == 128_256


def test_the_spec_says_what_stands_behind_the_ranks(tmp_path: Path) -> None:
    """Not the kind of its rope: people extend the context of Llama 3, and take the scaling of 3.1 away."""
    file = tmp_path / "tokenizer.model"
    file.write_bytes(file_of(RANKS))
    plain = "hyperparameters: {rope: {kind: default, theta: 5.0e+5}}"
    for base, eighth in (("llama/3/8b", "reserved_special_token_4"), ("llama/3.1/8b", "eom_id")):
        spec = Registry().load_text(f"spec: 1\nid: own/model\nextends: {base}\n{plain}\n").spec
        text = tokenizer_of({file.name: file}, spec)
        assert isinstance(text, str)
        assert Tokenizer.from_str(text).token_to_id(f"<|{eighth}|>") == 128_008
    for other in ("smollm/2/135m-instruct", "llama/4/scout"):
        note = tokenizer_of({file.name: file}, Registry().load(other).spec)
        assert isinstance(note, Diagnostic)
        assert note.code == "LG650"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file_of(ranks_of(300)), "300 tokens"),
        (b"IQ== 0\nIQ== 1\n", "line 2 is not the token of rank 1"),
        (b"IQ== 0\nIg== 2\n", "line 2 is not the token of rank 1"),
        (b"IQ== 0\n?? 1\n", "line 2 is no token in base 64"),
        (b" 0\n", "line 1 is not the token of rank 0"),
    ],
)
def test_what_is_no_such_file(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(data)
