"""The checkpoint that every builder gets: random weights in the Hub's format, and the smallest tokenizer of all."""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path

import numpy as np

from bench.measure import run


def checkpoint(spec: str, folder: Path) -> Path:
    """A bfloat16 checkpoint of ``spec``, made once."""
    if not folder.exists():
        command = ["random-checkpoint", spec, "--out", str(folder), "--seed", "0"]
        done = run([sys.executable, "-m", "llamagen", *command])
        if done.returncode:
            raise SystemExit(done.output)
        _soften(folder)
        _tokenizer(folder)
    return folder


def header(file: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    """Entries of a safetensors file by tensor name, and where its data begin."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(size))
    entries.pop("__metadata__", None)
    return entries, 8 + size


def parameter_counts(folder: Path) -> tuple[int, int]:
    """All parameters, and those of the embedding among them."""
    sizes = {
        name: prod(entry["shape"])
        for file in folder.glob("*.safetensors")
        for name, entry in header(file)[0].items()
    }
    return sum(sizes.values()), sizes["model.embed_tokens.weight"]


def _soften(folder: Path) -> None:
    """Scale a tied embedding by 1/16: at unit scale a model with tied embeddings repeats its last token for ever, and
    engines that compute different things would agree."""
    if not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
        return
    (file,) = folder.glob("*.safetensors")
    entries, start = header(file)
    begin, end = entries["model.embed_tokens.weight"]["data_offsets"]
    bits = np.memmap(file, np.uint16, "r+", start + begin, ((end - begin) // 2,))
    for block in np.array_split(bits, max(1, len(bits) >> 22)):
        large = (block & 0x7F80) > 4 << 7  # bfloat16: the exponent is in bits 7 to 14
        block[:] = np.where(large, block - (4 << 7), block & 0x8000)
    bits.flush()


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
