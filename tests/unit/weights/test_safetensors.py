"""Headers: what is refused, and that nothing else than a correct file is accepted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from llamagen.diagnostics import LlamagenError
from llamagen.weights.safetensors import HEADER_LIMIT, read_header
from tests.unit.weights.files import raw

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
GOOD = {"a": A, "b": B}
DATA = bytes(32)


def code(path: Path) -> str:
    with pytest.raises(LlamagenError) as failure:
        read_header(path)
    return failure.value.diagnostics[0].code


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    values: dict[str, np.ndarray[Any, Any]] = {
        "x": np.ones((2, 3), np.float32),
        "e": np.ones((0, 4), np.float16),
        "s": np.array(1),
    }
    save_file(values, path, metadata={"format": "pt"})
    entries = {entry.name: entry for entry in read_header(path)}
    assert entries["x"].shape == (2, 3) and entries["x"].dtype == "F32"
    assert entries["e"].nbytes == 0 and entries["s"].shape == ()
    content = path.read_bytes()
    x = entries["x"]
    assert content[x.offset : x.offset + x.nbytes] == values["x"].tobytes()


def test_padding_after_the_header_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(raw(json.dumps(GOOD).encode() + b"   ", DATA))
    assert [entry.name for entry in read_header(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "expected", "words"),
    [
        (b" " + json.dumps(GOOD).encode(), "LG602", "begins with ' '"),
        (
            b'{"a":' + json.dumps(A).encode() + b',"a":' + json.dumps(A).encode() + b"}",
            "LG602",
            "'a' twice",
        ),
        (
            b'{"a":{"dtype":"F32","dtype":"I32","shape":[8],"data_offsets":[0,32]}}',
            "LG602",
            "'dtype' twice",
        ),
        (b"[]", "LG602", "begins with"),
        (b'{"a": NaN}', "LG602", "NaN"),
        (b'{"a": ' + b"[" * 100_000, "LG602", "JSON"),
        (b'{"a\xff": 1}', "LG602", "JSON"),
        (json.dumps({**GOOD, "b": {**B, "dtype": "F4"}}).encode(), "LG602", "'F4'"),
        (json.dumps({**GOOD, "b": {**B, "shape": [4.0]}}).encode(), "LG602", "shape"),
        (json.dumps({**GOOD, "b": {**B, "shape": [-4]}}).encode(), "LG602", "shape"),
        (json.dumps({**GOOD, "b": {**B, "shape": [True, 4]}}).encode(), "LG602", "shape"),
        (json.dumps({**GOOD, "b": {**B, "shape": [2**62, 0]}}).encode(), "LG602", "shape"),
        (json.dumps({**GOOD, "b": {**B, "more": 1}}).encode(), "LG602", "exactly"),
        (json.dumps({**GOOD, "__metadata__": {"x": 1}}).encode(), "LG602", "__metadata__"),
        (json.dumps({**GOOD, "b": {**B, "shape": [3]}}).encode(), "LG603", "6 bytes"),
        (
            json.dumps({**GOOD, "b": {**B, "data_offsets": [32, 24]}}).encode(),
            "LG603",
            "impossible",
        ),
        (
            json.dumps({**GOOD, "b": {**B, "data_offsets": [22, 30]}}).encode(),
            "LG603",
            "2 bytes before the end of 'a'",
        ),
        (
            json.dumps({**GOOD, "b": {**B, "data_offsets": [0, 8]}}).encode(),
            "LG603",
            "before the end",
        ),
        (
            json.dumps({**GOOD, "b": {**B, "data_offsets": [26, 34]}}).encode(),
            "LG603",
            "2 bytes between 'a' and 'b'",
        ),
        (json.dumps({"b": B}).encode(), "LG603", "between the header and 'b'"),
        (json.dumps({"a": A}).encode(), "LG603", "8 bytes after 'a'"),
    ],
)
def test_refused(tmp_path: Path, header: bytes, expected: str, words: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(header, DATA))
    with pytest.raises(LlamagenError) as failure:
        read_header(path)
    (found,) = failure.value.diagnostics
    text = found.message.replace(str(tmp_path), "")  # the folder is named after the test
    assert found.code == expected and words in text and "m.safetensors" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"\x10\0\0\0", "4 bytes"),
        ((HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}", "allows"),
        ((3).to_bytes(8, "little") + b"{}", "3 bytes but has 10"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    ],
)
def test_bad_length(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(content)
    with pytest.raises(LlamagenError) as failure:
        read_header(path)
    (found,) = failure.value.diagnostics
    assert found.code == "LG602" and words in found.message.replace(str(tmp_path), "")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = raw(json.dumps(GOOD).encode(), DATA)
    path = tmp_path / "m"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert code(path) in ("LG602", "LG603")


def test_places_that_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert code(tmp_path / "absent") == "LG601"
    assert code(tmp_path) == "LG601"
    assert code(tmp_path / "pipe") == "LG601"  # and does not wait for a writer
    assert code(tmp_path / "dangling") == "LG601"


def test_control_characters_are_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(raw(json.dumps({"\x1b[31m\n": {**A, "dtype": "no"}}).encode(), DATA))
    with pytest.raises(LlamagenError) as failure:
        read_header(path)
    assert failure.value.diagnostics[0].message.isprintable()


@settings(max_examples=150)
@given(data=st.data())
def test_a_mutated_header_is_refused_or_means_what_the_library_says(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever we accept the library accepts too, with the same dtypes, shapes and bytes."""
    table: Any = json.loads(json.dumps(GOOD))
    name = data.draw(st.sampled_from(["a", "b"]))
    match data.draw(st.sampled_from(["dtype", "shape", "offsets", "byte"])):
        case "dtype":
            table[name]["dtype"] = data.draw(st.sampled_from(["F32", "I32", "F16", "U8", "X"]))
        case "shape":
            table[name]["shape"] = data.draw(st.lists(st.integers(-1, 9), max_size=3))
        case "offsets":
            table[name]["data_offsets"] = data.draw(st.lists(st.integers(-1, 40), max_size=3))
        case _:
            pass
    content = bytearray(raw(json.dumps(table).encode(), bytes(range(32))))
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(content) - 33))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except LlamagenError:
        return
    with safe_open(path, framework="numpy") as reference:
        assert set(reference.keys()) == {entry.name for entry in header}
        for entry in header:
            view = reference.get_slice(entry.name)
            assert (view.get_dtype(), tuple(view.get_shape())) == (entry.dtype, entry.shape)
    spans = sorted((entry.offset, entry.offset + entry.nbytes) for entry in header)
    assert sum(stop - start for start, stop in spans) == 32
    assert spans[-1][1] == len(content)
