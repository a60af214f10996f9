"""Random checkpoints: the same values always, at the scales that make mistakes visible."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llamagen.diagnostics import LlamagenError
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.random import (
    RandomTensor,
    default_fan_in,
    random_values,
    write_random_checkpoint,
)
from tests.unit.weights.files import NUMPY

TENSORS = [
    RandomTensor("model.embed_tokens.weight", (50, 8), "embedding"),
    RandomTensor("model.layers.0.q.weight", (16, 8), "matrix"),
    RandomTensor("model.layers.0.q.bias", (16,), "bias"),
    RandomTensor("model.layers.0.gate", (1,), "gate"),
    RandomTensor("model.norm.weight", (8,), "norm"),
]


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_one_file_holds_the_random_values(tmp_path: Path, dtype: str) -> None:
    target = tmp_path / "out"
    write_random_checkpoint(target, TENSORS, 7, dtype, config={"hidden_size": 8})  # type: ignore[arg-type]
    found = load_file(target / "model.safetensors")
    files = ["config.json", "llamagen.json", "model.safetensors"]
    assert sorted(path.name for path in target.iterdir()) == files
    assert json.loads((target / "config.json").read_text()) == {"hidden_size": 8}
    assert list(Checkpoint.open(target).tensors) == [tensor.name for tensor in TENSORS]
    for name, shape, kind, _ in TENSORS:
        expected = random_values(7, name, shape, kind).astype(NUMPY[dtype])
        np.testing.assert_array_equal(found[name], expected)


def test_shards_and_order_change_no_value(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "one", TENSORS, 7, "BF16")
    write_random_checkpoint(tmp_path / "many", TENSORS[::-1], 7, "BF16", max_shard_bytes=300)
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "many")
    assert [file.name for file in many.stamps] == [
        f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(np.prod(t.shape) for t in TENSORS)
    for name, tensor in one.tensors.items():
        contents = []
        for (piece,) in (tensor.entries, many.tensors[name].entries):
            contents.append(piece.file.read_bytes()[piece.offset :][: piece.nbytes])
        assert contents[0] == contents[1]


def test_values_depend_on_seed_and_name() -> None:
    first = random_values(1, "a", (64,), "matrix")
    assert np.array_equal(first, random_values(1, "a", (64,), "matrix"))
    assert not np.array_equal(first, random_values(2, "a", (64,), "matrix"))
    assert not np.array_equal(first, random_values(1, "b", (64,), "matrix"))


def test_blocks_differ() -> None:
    values = random_values(1, "a", (2, 1 << 20), "embedding")
    assert not np.array_equal(values[0], values[1])


def test_scales() -> None:
    def moments(kind: str, *shape: int) -> tuple[float, float]:
        values = random_values(3, "x", shape, kind)  # type: ignore[arg-type]
        return float(values.mean()), float(values.std())

    assert moments("matrix", 300, 64) == pytest.approx((0, 1 / sqrt(64)), abs=0.01)
    assert moments("embedding", 300, 64) == pytest.approx((0, 1), abs=0.02)
    assert moments("norm", 9000) == pytest.approx((1, 0.1), abs=0.01)
    assert moments("bias", 9000) == pytest.approx((0, 0.5), abs=0.02)
    assert moments("gate", 9000) == pytest.approx((0.6, 0.1), abs=0.01)
    assert random_values(3, "x", (9000,), "gate").min() > 0.05  # never switched off


def test_fan_in() -> None:
    assert default_fan_in((7, 5)) == 5
    assert default_fan_in((4, 5, 6)) == 5
    assert default_fan_in((8, 3, 2, 2)) == 12
    assert default_fan_in((5,)) == 1
    narrow = random_values(1, "x", (4, 100, 25), "matrix", fan_in=25)
    assert float(narrow.std()) == pytest.approx(0.2, rel=0.05)


def test_existing_folder_and_twins(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(LlamagenError) as failure:
        write_random_checkpoint(tmp_path / "out", TENSORS, 7, "BF16")
    assert failure.value.diagnostics[0].code == "LG630"
    with pytest.raises(ValueError, match="same name"):
        write_random_checkpoint(tmp_path / "new", [TENSORS[0]] * 2, 7, "BF16")


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tensors = [RandomTensor("a", (3, 5), "matrix"), RandomTensor("b", (7,), "norm")]
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    write_random_checkpoint(tmp_path / "out", tensors, 0, "F32", progress=report)
    assert seen == [(60, 88), (88, 88)]
