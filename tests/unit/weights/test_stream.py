"""Values: exact conversions, refused NaN, bounded memory."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.weights import stream
from llamagen.weights.binding import Binding
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.convert import _STEP, convert, is_bad, largest_magnitude, overflow_magnitude
from llamagen.weights.dtypes import TargetDType, WeightDType, as_weight_dtype
from llamagen.weights.nodes import Leaf
from llamagen.weights.stream import copy_tensor, first_difference, read_tensor
from tests.unit.weights.files import NUMPY, Array, checkpoint, noise, plain

SOURCES: list[WeightDType] = ["F32", "F16", "BF16", "F8_E4M3"]
TARGETS: list[TargetDType] = ["F32", "F16", "BF16"]


def bind(found: Checkpoint, name: str = "t") -> Binding:
    (piece,) = found.tensors[name].pieces
    dtype = as_weight_dtype(piece.dtype)
    assert dtype is not None
    return Binding(name, piece.shape, dtype, Leaf(piece), (name,))


def copied(binding: Binding, dtype: TargetDType) -> bytes:
    out = io.BytesIO()
    copy_tensor(binding, out, dtype)
    return out.getvalue()


def refusal(binding: Binding, dtype: TargetDType) -> Diagnostic:
    with pytest.raises(LlamagenError) as failure:
        copy_tensor(binding, io.BytesIO(), dtype)
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
def test_a_bad_value_anywhere_is_seen(place: int, sign: int) -> None:
    """Large tensors are looked at in steps."""
    bits = np.full(2 * _STEP + 5, 0x3F80, np.uint16)
    assert not is_bad(largest_magnitude(bits, "BF16"), "BF16")
    bits[place] = 0x7FC0 | sign
    assert is_bad(largest_magnitude(bits, "BF16"), "BF16")


@pytest.mark.parametrize("source", SOURCES)
def test_bad_values_are_those_that_numpy_calls_so(source: WeightDType) -> None:
    kind = NUMPY[source]
    size = 8 * kind.itemsize
    top = np.arange(min(2**size, 2**16)).astype(f"u{kind.itemsize}")
    patterns = top << np.array(size - 16 if size > 16 else 0, top.dtype)
    for pattern in patterns[:: 1 if size == 8 else 37]:
        one = pattern.reshape(1)
        finite = bool(np.isfinite(one.view(kind).astype(np.float32))[0])
        assert is_bad(largest_magnitude(one, source), source) is not finite


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_copy(
    tmp_path: Path, source: WeightDType, target: TargetDType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_ELEMENTS", 50)  # many blocks
    value = noise(1, 9, 4, 13, dtype=source)
    binding = bind(plain(tmp_path, {"t": value}))
    expected = value.astype(NUMPY[target])
    assert copied(binding, target) == expected.tobytes()
    np.testing.assert_array_equal(read_tensor(binding, target), expected)
    swapped = expected.swapaxes(1, 2)
    assert copied(binding.transposed(), target) == np.ascontiguousarray(swapped).tobytes()
    part = np.ascontiguousarray(expected[:, 1:3])
    assert copied(binding.part(1, 1, 3), target) == part.tobytes()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_with_its_place(
    tmp_path: Path, source: WeightDType, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_ELEMENTS", 10)
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
    copied(binding, "BF16"), copied(binding, "F32")
    wide = np.array([1.0, 3.4e38], np.float32)
    found = refusal(bind(checkpoint(tmp_path, {"t": wide})), "BF16")
    assert found.code == "LG621" and "'t'[1]" in found.message


def test_file_truncated_after_it_was_opened(tmp_path: Path) -> None:
    binding = bind(checkpoint(tmp_path, {"t": noise(1, 50)}))
    path = binding.entries[0].file
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(binding, "F32").code == "LG622"


def test_short_writes_are_continued(tmp_path: Path) -> None:
    class Reluctant(io.BytesIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:7])

    value = noise(1, 5, 5)
    out = Reluctant()
    copy_tensor(bind(plain(tmp_path, {"t": value})), out, "F32")
    assert out.getvalue() == value.tobytes()


def test_first_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_ELEMENTS", 6)
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
    assert copied(bind(found), "F32") == b""
    assert copied(bind(found, "s"), "F16") == scalar.astype(np.float16).tobytes()


MEASURE = """
import resource, sys
from pathlib import Path
from llamagen.weights import stream
from llamagen.weights.binding import Binding
from llamagen.weights.nodes import Leaf, RopeRows
from llamagen.weights.safetensors_file import TensorEntry
shape = (16384, 8192)
entry = TensorEntry("t", "BF16", shape, Path(sys.argv[1]), 0, 2 * shape[0] * shape[1])
binding = Binding("t", shape, "BF16", RopeRows(Leaf(entry), 128), ("t",))
binding = binding.transposed() if sys.argv[2] == "transposed" else binding
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream.copy_tensor(binding, open("/dev/null", "wb"), "F16")
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
