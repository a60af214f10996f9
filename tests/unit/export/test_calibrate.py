"""What a text says each column of a weight counts, and exports that go by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from llamagen.api import load, random_checkpoint
from llamagen.diagnostics import LlamagenError
from llamagen.emit.calibrate import WINDOW, built_in_text, calibrated, digest_of
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.ir.reference import evaluate
from llamagen.ops.op import Role
from llamagen.verify.stored import stored_weights
from llamagen.weights.tensors import Region
from tests.parity.models import SPECS, RandomModel

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"


@pytest.mark.parametrize(
    "name", ["reduced/llama-3.1-8b", "reduced/llama-4-scout", "foreign/gemma2"]
)
def test_mean_squares_are_those_of_the_reference(name: str) -> None:
    """Of every input of a projection but the head's, which is not computed; of a table rows are read."""
    model = RandomModel.named(name)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, model.vocab_size, 2 * WINDOW + 5)]
    read: dict[str, int] = {}

    def part(path: str, region: Region) -> NDArray[np.float32]:
        found = model.weight(path)[tuple(slice(*one) for one in region)]
        read[path] = max(read.get(path, 0), found.size)
        return found

    found = calibrated(model.graph, part, ids)
    assert not isinstance(found, str)
    squares = found.squares
    rows = np.asarray(ids[: 2 * WINDOW]).reshape(2, WINDOW)
    values = evaluate(model.flat, model.weight, rows, keep_values=True).values
    heads = 0
    for node in model.flat.nodes:
        if node.row.role is not Role.LINEAR:
            continue
        path = node.parameters["weight"]
        if path not in squares:
            heads += 1
            assert path not in read or path == "model.embed_tokens.weight", path
            continue
        x = values[node.operands[0]].astype(np.float64)
        wanted = np.square(x).reshape(-1, x.shape[-1]).mean(axis=0)
        np.testing.assert_allclose(squares[path], wanted, rtol=1e-2)
    assert heads == 1
    table = next(n.parameters["weight"] for n in model.flat.nodes if n.row.role is Role.EMBEDDING)
    assert read[table] == model.parameters[table].shape[1], "one row at a time"


def checkpoint(folder: Path, words: int = 50, spec: Path = DENSE) -> Path:
    """Random weights, and a tokenizer of single letters."""
    random_checkpoint(spec, folder, seed=1)
    letters = [chr(33 + i) for i in range(words)]
    model = WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="!")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def exported(folder: Path, out: Path, **options: object) -> tuple[str, ...]:
    quantize = QuantizeOptions("int4", **options)  # type: ignore[arg-type]
    written = load(DENSE).export(out, ExportOptions(quantize=quantize), checkpoint=folder)
    return tuple(note.code for note in written.notes)


def test_a_text_is_searched_with_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint")
    assert "LG649" not in exported(folder, tmp_path / "searched")
    record = read_manifest(tmp_path / "searched").quantization
    assert record is not None and record.method == "search"
    assert record.calibration == digest_of(built_in_text())
    assert exported(folder, tmp_path / "again") == exported(
        folder, tmp_path / "plain", method="rtn"
    )
    (folder / "tokenizer.json").unlink()
    assert "LG649" in exported(folder, tmp_path / "without")
    data = {
        n: (tmp_path / n / "model.onnx_data").read_bytes()
        for n in ("searched", "again", "plain", "without")
    }
    assert data["searched"] == data["again"] != data["plain"] == data["without"]
    # eight bits and tables are not searched
    first, second = (stored_weights(tmp_path / name) for name in ("searched", "plain"))
    same = {p for p in first.places if np.array_equal(first.read(p), second.read(p))}
    linear = {p for p, one in load(DENSE).parameters.items() if len(one.shape) == 2}
    careful = ("mlp.down_proj", *(f"self_attn.{name}_proj" for name in "qkv"))
    eight = {
        "lm_head.weight",
        *(f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in careful),
    }
    assert linear - same == linear - eight - {"model.embed_tokens.weight"}


def test_another_text_gives_other_scales(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint")
    (tmp_path / "mine.txt").write_text("a b c d " * WINDOW)
    exported(folder, tmp_path / "ours")
    exported(folder, tmp_path / "theirs", calibrate=tmp_path / "mine.txt")
    record = read_manifest(tmp_path / "theirs").quantization
    assert record is not None and record.calibration == digest_of("a b c d " * WINDOW)
    ours, theirs = (
        (tmp_path / name / "model.onnx_data").read_bytes() for name in ("ours", "theirs")
    )
    assert ours != theirs


@pytest.mark.parametrize(
    ("words", "text", "why"),
    [
        (50, "a b c", "has 3 tokens, and 256 are the least"),
        (50, None, "No such file"),
        (200, f"a {chr(33 + 180)} " * WINDOW, "an id 180 that the model has not"),
    ],
)
def test_a_text_that_cannot_be_searched_with_is_refused(
    words: int, text: str | None, why: str, tmp_path: Path
) -> None:
    folder, file = checkpoint(tmp_path / "checkpoint", words), tmp_path / "mine.txt"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(LlamagenError, match="LG718") as caught:
        exported(folder, tmp_path / "out", calibrate=file)
    assert why in caught.value.diagnostics[0].message
    assert not (tmp_path / "out").exists()
