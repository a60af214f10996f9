"""Float8 tensors and their scales: read as products, in any part, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import Binding
from llamagen.weights.tensors import cut, scaled, swap_last, whole
from llamagen.weights.values import read_part
from tests.unit.weights.files import Array, checkpoint, read_tensor, written

RANDOM = np.random.default_rng(0)


def codes(*shape: int) -> Array:
    return (RANDOM.standard_normal(shape) * 100).astype(ml_dtypes.float8_e4m3fn)


def scales(*shape: int) -> Array:
    return np.abs(RANDOM.standard_normal(shape)).astype(np.float32) / np.float32(7)


def bound(found: Checkpoint, name: str = "w") -> Binding:
    tensor = found.tensors[name]
    assert tensor.scale is not None and tensor.read_as == "F32"
    product = scaled(tensor.entries[0], tensor.scale, tensor.swapped_scale)
    return Binding(name, "F32", product, (name,))


@pytest.mark.parametrize(
    ("shape", "scale", "of_output"),
    [
        ((6, 10), (6, 1), lambda s: s),
        ((3, 10, 6), (3, 1, 6), lambda s: s),
        ((3, 10, 6), (3, 6, 1), lambda s: s.transpose(0, 2, 1)),
        ((3, 6, 6), (3, 6, 1), lambda s: s.transpose(0, 2, 1)),  # square: still by output
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_values_are_products(
    tmp_path: Path, shape: tuple[int, ...], scale: tuple[int, ...], of_output: Any, dtype: Any
) -> None:
    value, factors = codes(*shape), scales(*scale).astype(dtype)
    found = checkpoint(tmp_path, {"w": value, "w_scale": factors})
    assert set(found.tensors) == {"w"}, "the scale is no tensor of its own"
    exact = value.astype(np.float64) * of_output(factors.astype(np.float64))
    binding = bound(found)
    assert np.array_equal(read_tensor(binding, "F32"), exact.astype(np.float32))
    rows = read_part(binding, ((1, 3), *whole(shape[1:])))
    assert np.array_equal(rows, exact[1:3].astype(np.float32))
    swapped = replace(binding, tensor=swap_last(binding.tensor))
    expected = np.swapaxes(exact, -1, -2).astype(np.float32)
    assert np.array_equal(read_tensor(swapped, "F32"), expected)
    part = replace(binding, tensor=cut(binding.tensor, len(shape) - 1, 2, 5))
    assert np.array_equal(read_tensor(part, "F32"), exact[..., 2:5].astype(np.float32))


def test_what_carries_no_weight_is_left_out(tmp_path: Path) -> None:
    tensors = {
        "a.weight": codes(4, 6),
        "a.weight_scale": scales(4, 1),
        "a.input_scale_ub": np.array([1200.0], np.float32),
        "b.weight": np.ones((2, 2), np.float32),
    }
    assert set(checkpoint(tmp_path, tensors).tensors) == {"a.weight", "b.weight"}
    # without float8 tensors nothing is left out, and what looks like a scale is a tensor
    other = {"b.weight": np.ones((2, 2), np.float32), "b.weight_scale": scales(2, 1)}
    assert set(checkpoint(tmp_path / "other", other).tensors) == set(other)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"w": codes(4, 6)}, "there is no 'w_scale'"),
        ({"w": codes(4, 6), "w_scale_inv": scales(1, 1)}, "there is no 'w_scale'"),
        ({"w": codes(4, 6), "w_scale": scales(6, 1)}, "no scale for each of its outputs"),
        ({"w": codes(4, 6), "w_scale": scales(2, 3)}, "no scale for each"),
        ({"w": codes(2, 4, 6), "w_scale": scales(2, 4, 1)}, "no scale for each"),
        ({"w": codes(4, 6), "w_scale": np.ones((4, 1), np.int32)}, "is I32 [4, 1]"),
    ],
)
def test_other_scales_are_refused(tmp_path: Path, tensors: Mapping[str, Array], words: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        checkpoint(tmp_path, tensors)
    (one,) = caught.value.diagnostics
    assert one.code == "LG609" and words in one.message


@pytest.mark.parametrize("where", ["w", "w_scale"])
def test_nan_is_refused(tmp_path: Path, where: str) -> None:
    tensors = {"w": codes(4, 6), "w_scale": scales(4, 1)}
    tensors[where][2, 0] = np.nan
    with pytest.raises(LlamagenError) as caught:
        written(bound(checkpoint(tmp_path / "in", tensors)), "F16")
    assert caught.value.diagnostics[0].code == "LG620"
    assert "'w'[2, 0]" in caught.value.diagnostics[0].message
