"""Values: exact conversions, refused NaN, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.weights import values
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import Binding
from llamagen.weights.safetensors import WEIGHT_DTYPES, TargetDType, WeightDType
from llamagen.weights.tensors import cut, stored, swap_last
from llamagen.weights.values import _STEP, convert, first_difference, overflow_magnitude
from tests.unit.weights.files import NUMPY, Array, checkpoint, noise, plain, read_tensor, written

SOURCES: list[WeightDType] = ["F32", "F16", "BF16", "F8_E4M3"]
TARGETS: list[TargetDType] = ["F32", "F16", "BF16"]


def bind(found: Checkpoint, name: str = "t") -> Binding:
    (entry,) = found.tensors[name].entries
    (dtype,) = (one for one in WEIGHT_DTYPES if one == entry.dtype)
    return Binding(name, dtype, stored(entry), (name,))


def refusal(binding: Binding, dtype: TargetDType) -> Diagnostic:
    with pytest.raises(LlamagenError) as failure:
        written(binding, dtype)
    return failure.value.diagnostics[0]


def bits_of(value: Array) -> Array:
    return value.view(f"u{value.dtype.itemsize}")


def nearest_even_bf16(patterns: Array) -> Array:
    """The integer formula for finite float32: add half of the last place, ties to even."""
    wide = patterns.astype(np.uint64)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_f32_to_bf16_is_the_integer_formula(patterns: list[int]) -> None:
    bits = np.array([*patterns, 0x3F808000, 0x3F818000, 1, 0x80000001], np.uint32)
    bits = bits[~np.isnan(bits.view(np.float32))]
    result = convert(bits, "F32", "BF16")
    np.testing.assert_array_equal(bits_of(result), nearest_even_bf16(bits))


@pytest.mark.parametrize("source", ["BF16", "F16", "F8_E4M3"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_small_pattern(source: WeightDType, target: TargetDType) -> None:
    """All patterns: rounded once, and the predicted overflow is the real one."""
    kind = NUMPY[source]
    patterns = np.arange(2 ** (8 * kind.itemsize)).astype(f"u{kind.itemsize}")
    with np.errstate(invalid="ignore"):
        exact = patterns.view(kind).astype(np.float64)
    patterns, exact = patterns[np.isfinite(exact)], exact[np.isfinite(exact)]
    result = convert(patterns, source, target).astype(np.float64)
    limit = overflow_magnitude(source, target)
    magnitudes = patterns & patterns.dtype.type(2 ** (8 * kind.itemsize - 1) - 1)
    overflows = np.zeros(len(patterns), bool) if limit is None else magnitudes >= limit
    np.testing.assert_array_equal(np.isinf(result), overflows)
    with np.errstate(over="ignore", under="ignore"):
        expected = exact.astype(NUMPY[target]).astype(np.float64)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_float32_overflow_begins_exactly_there(target: TargetDType) -> None:
    limit = overflow_magnitude("F32", target)
    assert limit is not None
    bits = np.array([limit - 1, limit, limit | 0x80000000], np.uint32)
    result = convert(bits, "F32", target)
    assert np.isinf(result.astype(np.float32)).tolist() == [False, True, True]


@pytest.mark.parametrize("sign", [0, 0x8000])
@pytest.mark.parametrize("place", [0, _STEP - 1, _STEP, 2 * _STEP, 2 * _STEP + 4])
def test_a_bad_value_anywhere_is_seen(tmp_path: Path, place: int, sign: int) -> None:
    """Large tensors are looked at in steps."""
    bits = np.full(2 * _STEP + 5, 0x3F80, np.uint16)
    kind = NUMPY["BF16"]
    written(bind(plain(tmp_path / "good", {"t": bits.view(kind)})), "BF16")
    bits[place] = 0x7FC0 | sign
    found = refusal(bind(plain(tmp_path / "bad", {"t": bits.view(kind)})), "BF16")
    assert found.code == "LG620" and f"[{place}]" in found.message


@pytest.mark.parametrize("source", SOURCES)
def test_bad_values_are_those_that_numpy_calls_so(tmp_path: Path, source: WeightDType) -> None:
    kind = NUMPY[source]
    size = 8 * kind.itemsize
    top = np.arange(min(2**size, 2**16)).astype(f"u{kind.itemsize}")
    patterns = top << np.array(size - 16 if size > 16 else 0, top.dtype)
    binding = bind(plain(tmp_path, {"t": patterns.view(kind)}))
    for place in range(0, len(patterns), 1 if size == 8 else 37):
        one = ((place, place + 1),)
        if np.isfinite(patterns[place : place + 1].view(kind).astype(np.float32))[0]:
            values.checked(binding, one)
        else:
            with pytest.raises(LlamagenError, match="LG620"):
                values.checked(binding, one)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_copy(
    tmp_path: Path, source: WeightDType, target: TargetDType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", 50)  # many blocks
    value = noise(1, 9, 4, 13, dtype=source)
    binding = bind(plain(tmp_path, {"t": value}))
    expected = value.astype(NUMPY[target])
    assert written(binding, target) == expected.tobytes()
    np.testing.assert_array_equal(read_tensor(binding, target), expected)
    swapped = replace(binding, tensor=swap_last(binding.tensor))
    assert written(swapped, target) == np.ascontiguousarray(expected.swapaxes(1, 2)).tobytes()
    part = replace(binding, tensor=cut(binding.tensor, 1, 1, 3))
    assert written(part, target) == np.ascontiguousarray(expected[:, 1:3]).tobytes()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_with_its_place(
    tmp_path: Path, source: WeightDType, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", 10)
    if source == "F8_E4M3" and np.isinf(bad):
        pytest.skip("e4m3fn has no infinity")
    value = noise(1, 6, 7, dtype=source)
    value[4, 3] = bad
    value[5, 0] = np.nan
    binding = bind(plain(tmp_path, {"t": value}))
    found = refusal(binding, "F32")
    assert found.code == "LG620" and "'t'[4, 3]" in found.message
    assert ("NaN" if np.isnan(bad) else "infinite") in found.message


def test_overflow_names_the_value(tmp_path: Path) -> None:
    value = noise(1, 6, 7, dtype="BF16")
    value[2, 5] = -70144.0
    binding = bind(plain(tmp_path, {"t": value}))
    found = refusal(binding, "F16")
    assert found.code == "LG621" and "'t'[2, 5]" in found.message and "-70144" in found.message
    written(binding, "BF16"), written(binding, "F32")
    wide = np.array([1.0, 3.4e38], np.float32)
    found = refusal(bind(checkpoint(tmp_path, {"t": wide})), "BF16")
    assert found.code == "LG621" and "'t'[1]" in found.message


def test_file_truncated_after_it_was_opened(tmp_path: Path) -> None:
    binding = bind(checkpoint(tmp_path, {"t": noise(1, 50)}))
    path = binding.tensor.entries[0].file
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(binding, "F32").code == "LG622"


def test_first_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", 6)
    value = noise(1, 8, 5, dtype="BF16")
    other = value.astype(np.float32)
    changed = other.copy()
    changed[6, 2] += np.float32(1)
    found = checkpoint(tmp_path, {"t": value, "same": other, "changed": changed, "again": value})
    ours = bind(found)
    assert first_difference(ours, bind(found, "again")) is None
    assert first_difference(ours, bind(found, "same")) is None
    assert first_difference(ours, bind(found, "changed")) == (6, 2)


def test_empty_and_scalar(tmp_path: Path) -> None:
    scalar = np.array(2.5, np.float32)
    found = checkpoint(tmp_path, {"t": np.empty((0, 4), np.float16), "s": scalar})
    assert written(bind(found), "F32") == b""
    assert written(bind(found, "s"), "F16") == scalar.astype(np.float16).tobytes()


MEASURE = """
import resource, sys
from pathlib import Path
from llamagen.weights.names import Binding
from llamagen.weights.safetensors import TensorEntry
from llamagen.weights.tensors import rope_rows, stored, swap_last
from llamagen.weights.values import tensor_pieces
shape = (16384, 8192)
entry = TensorEntry("t", "BF16", shape, Path(sys.argv[1]), 0, 2 * shape[0] * shape[1])
tensor = rope_rows(stored(entry), 128)
tensor = swap_last(tensor) if sys.argv[2] == "transposed" else tensor
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for piece in tensor_pieces(Binding("t", "BF16", tensor, ("t",)), "F16", 0):
    piece.make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("order", ["straight", "transposed"])
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path, order: str) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(2 * 16384 * 8192)  # 256 MiB of zeros that take no space
    command = [sys.executable, "-c", MEASURE, str(path), order]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(text) < 80 * 1024, f"{text} KiB"
