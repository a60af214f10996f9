"""`torch.save` files, read without torch."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from llamagen.diagnostics import LlamagenError
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.meta_pth import read_pth


def message(path: Path) -> str:
    with pytest.raises(LlamagenError) as failure:
        Checkpoint.open(path)
    text = "\n".join(map(str, failure.value.diagnostics))
    return text.replace(str(path), "")  # the folder is named after the test


def test_equals_torch_load(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    base = torch.randn(6, 4)
    state = {
        "a": torch.randn(3, 5).bfloat16(),
        "half": torch.randn(7).half(),
        "view": base[2:4],  # contiguous, but not at the start of its storage
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "scalar": torch.tensor(3.5),
        "numbers": torch.arange(5),
    }
    torch.save(OrderedDict(state), path)
    expected = torch.load(path, weights_only=True, mmap=True)
    content = path.read_bytes()
    entries = read_pth(path)
    assert [entry.name for entry in entries] == list(expected)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
    for entry in entries:
        found = torch.frombuffer(
            bytearray(content[entry.offset : entry.offset + entry.nbytes]), dtype=kinds[entry.dtype]
        ).reshape(entry.shape)
        assert torch.equal(found, expected[entry.name]), entry.name


def test_state_dict_of_a_module(tmp_path: Path) -> None:
    """A real state dict carries `_metadata`; it is set on the OrderedDict while unpickling."""
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "consolidated.pth")
    found = Checkpoint.open(tmp_path)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }
    assert found.kind == "meta"


def test_nothing_in_the_file_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"a": Bomb()}, tmp_path / "consolidated.00.pth")
    text = message(tmp_path)
    assert "LG605" in text and "system" in text and not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "consolidated.00.pth")
    assert "torch.nn.modules.linear.Linear" in message(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.randn(4, 4).t(), "strided view"),
        ({"inner": torch.randn(2)}, "'a' is no tensor"),
        (3, "'a' is no tensor"),
        (torch.randn(2).to_sparse(), "not a plain tensor"),
    ],
)
def test_refused_values(tmp_path: Path, value: object, words: str) -> None:
    torch.save({"a": value}, tmp_path / "consolidated.00.pth")
    assert words in message(tmp_path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "not a torch zip file" in message(tmp_path)
    torch.save({"a": torch.randn(200)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a torch zip file" in message(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02garbage")
    assert "damaged" in message(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other", b"")
    assert "no usable data.pkl" in message(tmp_path)


def test_compressed_tensors(tmp_path: Path) -> None:
    path, packed = tmp_path / "plain", tmp_path / "consolidated.00.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info), zipfile.ZIP_DEFLATED)
    assert "is compressed" in message(tmp_path)


def test_shards_must_agree(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "consolidated.00.pth")
    torch.save({"a": torch.zeros(3), "c": torch.zeros(2)}, tmp_path / "consolidated.01.pth")
    text = message(tmp_path)
    assert text.count("LG606") == 3 and "[2]" in text and "consolidated.01.pth: absent" in text


def test_a_missing_rank(tmp_path: Path) -> None:
    for rank in (0, 2):
        torch.save({"a": torch.zeros(2)}, tmp_path / f"consolidated.{rank:02d}.pth")
    assert "consolidated.01.pth" in message(tmp_path)


def _with_pickle(folder: Path, text: bytes) -> Path:
    path = folder / "consolidated.00.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "a memo entry 2147483647"),
        (b"\x80\x02}q\x05.", "a memo entry 5 where 0 is next"),
        (b"\x80\x02}.and more", "8 bytes after the end"),
        (b"\x80\x02\x82\x01.", "operation EXT1"),
        (b"(dp0\n.", "operation DICT"),
        (b"\x80\x02c__builtin__\neval\n(tR.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged"),
    ],
)
def test_pickles_that_no_state_dict_needs(tmp_path: Path, text: bytes, reason: str) -> None:
    """The first one would have the unpickler of CPython allocate 34 GB."""
    found = message(_with_pickle(tmp_path, text))
    assert "LG605" in found and reason in found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_torch_save(tmp_path: Path, protocol: int) -> None:
    state = {"a": torch.randn(3, 5), "b": torch.nn.Parameter(torch.randn(300).bfloat16())}
    path = tmp_path / "consolidated.00.pth"
    torch.save(OrderedDict(state), path, pickle_protocol=protocol)
    assert [(entry.name, entry.shape) for entry in read_pth(path)] == [("a", (3, 5)), ("b", (300,))]


def test_two_records_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"other")
    assert "two records of one name" in message(path)


def test_a_record_before_the_file(tmp_path: Path) -> None:
    """What the fuzzer found: a directory that begins late puts records at negative places."""
    path = tmp_path / "consolidated.00.pth"
    torch.save({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes()[200:])
    assert "LG605" in message(path)
