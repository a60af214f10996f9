"""What a GGUF says of its model, against what transformers and the model's own tokenizer make of the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llamagen.diagnostics import LlamagenError
from llamagen.emit.calibrate import built_in_text
from llamagen.weights.gguf_file import read_gguf
from llamagen.weights.gguf_hub import hub_files
from tests.parity.published import pieces_of
from tests.real import smollm2

SIZES: dict[str, Any] = {
    "block_count": 2, "context_length": 512, "embedding_length": 48, "feed_forward_length": 80, "head_count": 6,
    "head_count_kv": 2, "layer_norm_rms_eps": 1e-6, "rope_freq_base": 500000.0, "vocab_size": 40,
    "rope_dimension_count": 8,
}  # fmt: skip

GPT2 = {"tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2"}
SPM = {"tokenizer_model": "llama", "token_list": ["<unk>", "a"], "token_types": [2, 1]}


def written(
    path: Path, architecture: str = "llama", factors: np.ndarray | None = None, **more: Any
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (SIZES | more).items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((40, 48), np.float32))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hub_files(path, read_gguf(path))["config.json"])
    return found


@settings(max_examples=20)
@given(
    st.fixed_dictionaries(
        {
            "head_count_kv": st.sampled_from([1, 2, 3, 6]),
            "layer_norm_rms_eps": st.sampled_from([1e-5, 1e-6, 3e-5]),
            "rope_freq_base": st.sampled_from([10000.0, 500000.0, 130000.0, 123.25]),
            "context_length": st.integers(1, 10**6),
            "feed_forward_length": st.integers(1, 999),
        }
    )
)
def test_the_configuration_is_that_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, more: dict[str, Any]
) -> None:
    path = written(tmp_path_factory.mktemp("gguf") / "m.gguf", **more)
    found = config_of(path)
    peer = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "max_position_embeddings", "vocab_size", "head_dim"):  # fmt: skip
        assert found[name] == peer[name], name
    assert (
        found["rms_norm_eps"] == more["layer_norm_rms_eps"]
    )  # float32 of the file rounds to one decimal
    assert found["rope_theta"] == more["rope_freq_base"]
    assert found["tie_word_embeddings"]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_for_rope_are_those_of_llama_3(factor: float, tmp_path: Path) -> None:
    numbers = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
    config = LlamaConfig(hidden_size=64 * 4, num_attention_heads=4, rope_parameters=numbers)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    path = written(tmp_path / "m.gguf", factors=plain / scaled.numpy().astype(np.float64), head_count=4,
                   embedding_length=256, rope_dimension_count=64)  # fmt: skip
    found = config_of(path)["rope_scaling"]
    assert found == {name: value for name, value in numbers.items() if name != "rope_theta"}
    wrong = plain / scaled.numpy()
    wrong[20] *= 1.001
    other = written(
        tmp_path / "o.gguf",
        factors=wrong,
        head_count=4,
        embedding_length=256,
        rope_dimension_count=64,
    )
    with pytest.raises(LlamagenError, match="LG624"):
        config_of(other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"architecture": "qwen2"}, "qwen2"),
        ({"head_count": None}, "no size"),
        ({"head_count": 0}, "0 under"),
        ({"context_length": None}, "no size"),
        ({"key_length": 16}, "dimensions a head"),
        ({"rope_dimension_count": 4}, "dimensions a head"),
        ({"expert_count": 4}, "experts"),
        ({"layer_norm_rms_eps": 0.0}, "0.0 under"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "scales rope"),
        ({"bos_token_id": 40}, "no token"),
        ({"tokenizer_model": "bert"}, "tokenizer"),
        ({"tokenizer_model": "gpt2", "tokenizer_pre": "whatever"}, "whatever"),
        ({**GPT2, "token_list": ["a"] * 2}, "token_type"),
        ({**GPT2, "token_list": ["a", "a"], "token_types": [1, 1]}, "twice"),
        ({**GPT2, "add_eos_token": True}, "add_eos_token"),
        (SPM, "scores"),
        ({**SPM, "token_scores": [0.0]}, "scores"),
        ({**SPM, "token_scores": [0.0, float("nan")]}, "no numbers"),
        ({**SPM, "token_scores": [0.0, 0.0], "token_types": [1, 1]}, "unknown"),
        ({**SPM, "token_scores": [0.0, 0.0], "tokenizer_pre": "gpt-2"}, "gpt-2"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", **more)
    with pytest.raises(LlamagenError, match=f"LG624.*{said}"):
        hub_files(path, read_gguf(path))


@pytest.fixture(scope="module")
def real() -> dict[str, str]:
    path = smollm2()
    return hub_files(path, read_gguf(path))


def test_a_real_file(real: dict[str, str]) -> None:
    """The values of HuggingFaceTB/SmolLM2-135M-Instruct."""
    config = json.loads(real["config.json"])
    wanted = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5, "rope_theta": 100000, "max_position_embeddings": 8192, "vocab_size": 49152,
        "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    assert config.items() >= wanted.items()
    settings = json.loads(real["tokenizer_config.json"])
    assert settings["bos_token"] == "<|im_start|>"
    assert "<|im_start|>" in settings["chat_template"]


def test_texts_come_back(real: dict[str, str]) -> None:
    """Those whose bytes the model has tokens for; it lacks one for 0xF1 and for control characters."""
    tokenizer = Tokenizer.from_str(real["tokenizer.json"])

    @given(st.text(st.characters(max_codepoint=0x24FF, exclude_categories=["Cc"]), max_size=60))
    def check(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()
    assert len(tokenizer.encode("2024").ids) == 4  # llama.cpp's `smollm`: every digit by itself


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model of the kind that LLaMA, Llama 2 and Mistral have."""
    return pieces_of(tmp_path_factory.mktemp("pieces"))


def of_pieces(model: Path, path: Path, **more: Any) -> Path:
    """As llama.cpp's converter writes it (gguf-py, vocab.py: `LlamaVocab`)."""
    spm = SentencePieceProcessor(model_file=str(model))
    ids = range(spm.vocab_size())
    types = [
        *(
            2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1
            for i in ids
        )
    ]
    types[spm.piece_to_id("<FILL>")] = 4
    return written(
        path, tokenizer_model="llama", token_list=[spm.id_to_piece(i) for i in ids], vocab_size=len(ids),
        token_scores=[spm.get_score(i) for i in ids], token_types=types,
        bos_token_id=spm.bos_id(), eos_token_id=spm.eos_id(), unk_token_id=spm.unk_id(), **more,
    )  # fmt: skip


def test_pieces_are_joined_as_sentencepiece_and_transformers_join_them(
    spm: Path, tmp_path: Path
) -> None:
    path = of_pieces(spm, tmp_path / "m.gguf")
    ours = Tokenizer.from_str(hub_files(path, read_gguf(path))["tokenizer.json"])
    theirs = SentencePieceProcessor(model_file=str(spm))
    peer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = built_in_text()
    parts = [text[start : start + 60 + start % 50] for start in range(0, 4000, 61)]
    for part in [*parts, "", "h\u00e9llo \u65e5\u672c \U0001f642", "a  b\n\tc", "\u2581x"]:
        ids = ours.encode(part, add_special_tokens=False).ids
        assert ids == theirs.encode(part), part
        assert ours.decode(ids) == theirs.decode(ids)
        if not part.startswith((" ", "\u2581")):  # transformers puts no further space before one
            assert ours.encode(part).ids == peer.encode(part), part
    assert ours.encode("Hi").ids[0] == theirs.bos_id()
    assert ours.encode("a<FILL>").ids[-1] == theirs.piece_to_id("<FILL>")


def test_no_space_and_no_first_token_where_the_file_says_so(spm: Path, tmp_path: Path) -> None:
    path = of_pieces(spm, tmp_path / "m.gguf", add_bos_token=False, add_space_prefix=False)
    ours = Tokenizer.from_str(hub_files(path, read_gguf(path))["tokenizer.json"])
    theirs = SentencePieceProcessor(model_file=str(spm))
    assert ours.encode(" the").ids == theirs.encode("the") != ours.encode("the").ids
    assert ours.decode(ours.encode(" the").ids) == " the"
