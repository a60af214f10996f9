"""Damage of an exported folder is found and named, whatever it is."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from llamagen.api import load, random_checkpoint
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify.integrity import Integrity, check_integrity
from tests.parity.models import SPECS
from tests.unit.verify.test_folder import exported


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("mistral", tmp_path_factory.mktemp("integrity") / "out")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "out")


def silent(done: int, total: int) -> None:
    """Reports nothing."""


def damage(folder: Path) -> list[tuple[str, str]]:
    return [(one.file, one.damage) for one in check_integrity(folder, silent).findings]


def test_a_folder_as_it_was_written(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = check_integrity(folder, lambda done, total: steps.append((done, total)))
    assert found.whole and found.unread == ()
    files = [p for p in folder.iterdir() if p.name != "MANIFEST.json"]
    assert found.files == len(files) and found.bytes == sum(p.stat().st_size for p in files)
    assert steps[-1] == (found.bytes, found.bytes) and steps == sorted(steps)
    digest = hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()
    assert found.manifest_sha256 == digest


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit(folder: Path, seed: int) -> None:
    """In any file, anywhere."""
    generator = random.Random(seed)
    files = sorted(p for p in folder.iterdir() if p.name != "MANIFEST.json")
    file = files[seed % len(files)]
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)
    assert damage(folder) == [(file.name, "content")]


def tensors(folder: Path) -> list[tuple[str, int, int]]:
    """Name, begin and end of what model.onnx says lies in its data file."""
    found = []
    for tensor in onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            begin = int(place["offset"])
            found.append((tensor.name, begin, begin + int(place["length"])))
    return sorted(found, key=lambda one: one[1])


@pytest.mark.parametrize("seed", range(8))
def test_the_first_damaged_tensor_is_named(folder: Path, seed: int) -> None:
    """By the bytes that the model itself says are its own; damage behind it changes nothing."""
    generator = random.Random(seed)
    data = bytearray((folder / "model.onnx_data").read_bytes())
    known = tensors(folder)
    first, *later = sorted(generator.sample(range(len(known)), 3))
    for name, begin, stop in (known[i] for i in (first, *later)):
        data[generator.choice([begin, stop - 1, generator.randrange(begin, stop)])] ^= 0x40
        assert name
    (folder / "model.onnx_data").write_bytes(data)
    (found,) = check_integrity(folder, silent).findings
    name, begin, stop = known[first]
    before = known[first - 1][2] if first else 0
    assert found.detail.endswith(f"; first in {name!r}, bytes {before:,} to {stop:,}")
    assert before <= begin


def test_tensors_of_a_quantised_folder(tmp_path: Path) -> None:
    """Codes and scales are made together and lie apart."""
    out = tmp_path / "out"
    load("foreign/mistral", roots=(SPECS,)).export(
        out, ExportOptions(quantize=QuantizeOptions("int4", block_size=16)), random_weights=5
    )
    assert check_integrity(out, silent).whole
    known = tensors(out)
    assert [(n, s) for n, _, s in known] == [
        (one.name, one.stop) for one in read_manifest(out).files["model.onnx_data"].tensors
    ]
    data = bytearray((out / "model.onnx_data").read_bytes())
    data[known[3][2] - 1] ^= 1
    (out / "model.onnx_data").write_bytes(data)
    (found,) = check_integrity(out, silent).findings
    assert repr(known[3][0]) in found.detail


def test_a_cut_file_says_where_it_ends(folder: Path) -> None:
    known = tensors(folder)
    with (folder / "model.onnx_data").open("r+b") as file:
        file.truncate(known[-2][1] + 1)
    (found,) = check_integrity(folder, silent).findings
    assert found.detail.endswith(f": it ends in {known[-2][0]!r}, and 1 after it are missing")


def _cut(folder: Path) -> None:
    with (folder / "model.onnx_data").open("r+b") as file:
        file.truncate(5000)


def _special(folder: Path) -> None:
    (folder / "spec.yaml").unlink()
    os.mkfifo(folder / "spec.yaml")


def _linked(folder: Path) -> None:
    (folder / "spec.yaml").rename(folder.parent / "elsewhere.yaml")
    (folder / "spec.yaml").symlink_to(folder.parent / "elsewhere.yaml")


def _linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent, target_is_directory=True)


def _in_a_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "evil.py").write_text("x")


CASES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "missing": (lambda f: (f / "model.onnx").unlink(), [("model.onnx", "missing")]),
    "extra": (lambda f: (f / "x").write_text("x"), [("x", "extra")]),
    "extra below": (_in_a_folder, [("sub/evil.py", "extra")]),
    "link to a folder": (_linked_folder, [("more", "extra")]),
    "cut": (_cut, [("model.onnx_data", "size")]),
    "grown": (
        lambda f: (f / "model.onnx_data").open("ab").write(b"x"),
        [("model.onnx_data", "size")],
    ),
    "a pipe": (_special, [("spec.yaml", "not a file")]),
    "a link": (_linked, [("spec.yaml", "not a file")]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_damage_is_named(folder: Path, name: str) -> None:
    harm, expected = CASES[name]
    harm(folder)
    assert damage(folder) == expected


def test_all_damage_at_once(folder: Path) -> None:
    _cut(folder)
    (folder / "model.onnx").unlink()
    (folder / "x").write_text("x")
    found = check_integrity(folder, silent)
    assert [one.damage for one in found.findings] == ["missing", "size", "extra"]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[" * 5000, '{"files": {"../x": 1}}'])
def test_a_manifest_that_cannot_be_used(folder: Path, text: str) -> None:
    (folder / "MANIFEST.json").write_text(text)
    with pytest.raises(LlamagenError, match="LG775"):
        check_integrity(folder, silent)


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--integrity"]) == 0
    assert "as they were written" in capsys.readouterr().out
    (folder / "spec.yaml").write_text("spec: 2\n")
    assert main(["verify", str(folder), "--integrity"]) == 1
    out = capsys.readouterr().out
    assert "spec.yaml  size" in out and "1 findings" in out
    assert main(["verify", str(folder.parent), "--integrity"]) == 3


def test_the_hash_of_the_manifest_tells_who_wrote_it(folder: Path) -> None:
    """A folder whose manifest was changed with its files is whole, and another one."""
    before: Integrity = check_integrity(folder, silent)
    text = (folder / "MANIFEST.json").read_text()
    (folder / "MANIFEST.json").write_text(text.replace('"seed": 5', '"seed": 6'))
    after = check_integrity(folder, silent)
    assert after.whole and after.manifest_sha256 != before.manifest_sha256


KILLED = """
import os, signal, sys
from pathlib import Path
import filelock
from llamagen.writing import write_changed

folder, text = Path(sys.argv[1]), sys.argv[2]
for step in range(1, 200):
    pid = os.fork()
    if pid == 0:
        count = 0

        def hook(event, arguments):
            global count
            if any(str(a).startswith(str(folder)) for a in arguments):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write_changed(folder, {"MANIFEST.json": text})
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code, flush=True)
    if code == 0:
        break
    sys.stdin.readline()
"""


def test_a_writer_of_the_manifest_that_was_killed(folder: Path) -> None:
    """As `verify --quality` may be, before each of its operations: nothing is left that is no part of the folder."""
    manifest = folder / "MANIFEST.json"
    before = manifest.read_text()
    left = 0
    words = [sys.executable, "-c", KILLED, str(folder), f"{before} "]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True, bufsize=1) as child:
        assert child.stdout is not None and child.stdin is not None
        while child.stdout.readline() == f"{-signal.SIGKILL}\n":
            assert damage(folder) == []
            left += (folder / ".llamagen").exists()
            manifest.write_text(before)
            child.stdin.write("\n")
    assert left > 10 and child.returncode == 0 and manifest.read_text() == f"{before} "
    assert not (folder / ".llamagen").exists()
    (folder / ".llamagen").mkdir()
    (folder / ".llamagen" / "new").write_text("of others")
    assert damage(folder) == [(".llamagen/new", "extra")]


def test_what_was_never_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NaN comes through an export by reference, which looks at no value; its integrity proves nothing about it."""
    spec = Path(__file__).resolve().parents[2] / "cases/common/tiny.yaml"
    checkpoint = random_checkpoint(spec, tmp_path / "checkpoint", dtype="float32").folder
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-4] + struct.pack("<f", float("nan")))
    load(spec).export(tmp_path / "out", ExportOptions(weights="reference"), checkpoint=checkpoint)
    found = check_integrity(tmp_path / "out", silent)
    assert found.whole and found.unread == ("model.safetensors",)
    assert found.unread_bytes == len(data)
    assert main(["verify", str(tmp_path / "out"), "--integrity"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors: its values were never read" in said
    assert "as they were written; 1 of them, " in said and "were never read" in said
    assert main(["run", str(tmp_path / "out"), "--ids", "1,2,3"]) == 3
    assert "LG768" in capsys.readouterr().err
