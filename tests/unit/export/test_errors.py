"""What a user gets for input that cannot be exported: one clear finding, exit code 3, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from llamagen import api
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from tests.parity.models import SPECS
from tests.unit.weights.files import raw

SPEC = SPECS / "reduced/llama-2-70b.yaml"
Header = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good checkpoints of SPEC: one file, and shards with an index."""
    folder = tmp_path_factory.mktemp("sound")
    api.random_checkpoint(SPEC, folder / "single", seed=1)
    api.random_checkpoint(SPEC, folder / "sharded", seed=1, shard_bytes=60_000)
    return folder


def edited(file: Path, change: Callable[[Header], Header]) -> None:
    """Rewrite a header; every entry keeps the bytes it pointed at unless ``change`` moves it."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    header = change(header)
    body = data[8 + length :]
    made, moved = b"", {}
    for name, entry in header.items():
        piece = body[slice(*entry["data_offsets"])]
        moved[name] = {**entry, "data_offsets": [len(made), len(made) + len(piece)]}
        made += piece
    file.write_bytes(raw(json.dumps(moved).encode(), made))


def truncated(folder: Path) -> None:
    shard = folder / "sharded/model-00002-of-00007.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def missing(folder: Path) -> None:
    gone = "model.layers.1.mlp.up_proj.weight"
    edited(folder / "single/model.safetensors", lambda h: {n: e for n, e in h.items() if n != gone})


def extra(folder: Path) -> None:
    norm = "model.norm.weight"
    edited(
        folder / "single/model.safetensors",
        lambda h: {**h, "model.layers.1.self_attn.q_proj.bias": h[norm]},
    )


def renamed(folder: Path) -> None:
    """Shapes of another layout: the transposed matrix has as many bytes."""

    def change(header: Header) -> Header:
        name = "model.layers.0.self_attn.k_proj.weight"
        return {**header, name: {**header[name], "shape": [128, 16]}}

    edited(folder / "single/model.safetensors", change)


def poisoned(bits: bytes) -> Callable[[Path], None]:
    def poison(folder: Path) -> None:
        file = folder / "single/model.safetensors"
        data = bytearray(file.read_bytes())
        data[-2:] = bits  # the last value of the file, a bfloat16
        file.write_bytes(data)

    return poison


def outside(folder: Path) -> None:
    index = folder / "sharded/model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.norm.weight"] = "../single/model.safetensors"
    index.write_text(json.dumps(table))


def stored_as(dtype: str) -> Callable[[Path], None]:
    def change(header: Header) -> Header:
        name = "model.norm.weight"
        return {**header, name: {**header[name], "dtype": dtype}}

    return lambda folder: edited(folder / "single/model.safetensors", change)


def no_shard(folder: Path) -> None:
    (folder / "sharded/model-00003-of-00007.safetensors").unlink()


def gpt2(folder: Path) -> None:
    def change(header: Header) -> Header:
        kept = {name: entry for name, entry in header.items() if name != "lm_head.weight"}
        return {name.replace("model.", "transformer."): entry for name, entry in kept.items()}

    edited(folder / "single/model.safetensors", change)


def pickled(folder: Path) -> None:
    (folder / "single/model.safetensors").unlink()
    torch.save({"layers.0.attention.wq.weight": Path("x")}, folder / "single/consolidated.00.pth")


BROKEN: Mapping[str, tuple[str, Callable[[Path], None], str, tuple[str, ...]]] = {
    "truncated shard": ("sharded", truncated, "LG603", ("model-00002-of-00007.safetensors", "truncated")),
    "absent shard": ("sharded", no_shard, "LG601", ("model-00003-of-00007.safetensors",)),
    "missing tensor": ("single", missing, "LG611", ("'model.layers.1.mlp.up_proj.weight' [96, 128]",)),
    "extra tensor": ("single", extra, "LG612", ("'model.layers.1.self_attn.q_proj.bias' [128]",)),
    "wrong shape": ("single", renamed, "LG613", ("k_proj.weight' must be [16, 128]", "[128, 16]")),
    "nan": ("single", poisoned(b"\xc0\x7f"), "LG620", ("is NaN", "model.safetensors")),
    "infinity": ("single", poisoned(b"\x80\xff"), "LG620", ("is infinite",)),
    "index outside": ("sharded", outside, "LG604", ("../single/model.safetensors",)),
    "integers": ("single", stored_as("I16"), "LG614", ("'model.norm.weight' is stored as I16",)),
    "unknown type": ("single", stored_as("Q4_K"), "LG602", ("Q4_K", "model.norm.weight")),
    "other names": ("single", gpt2, "LG610", ("transformer.embed_tokens.weight",)),
    "pickle": ("single", pickled, "LG605", ("consolidated.00.pth",)),
}  # fmt: skip


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 3) -> str:
    assert main(["export", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("error[") == 1
    return said.err


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which, break_it, code, words = BROKEN[name]
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    break_it(tmp_path)
    before = listing(tmp_path)
    out = str(tmp_path / "new/out")
    said = refused(capsys, str(SPEC), "--checkpoint", str(tmp_path / which), "--out", out)
    assert f"error[{code}]" in said
    for word in words:
        assert word in said
    assert listing(tmp_path) == before


def test_the_unbroken_ones_are_exported(sound: Path, tmp_path: Path) -> None:
    for which in ("single", "sharded"):
        out = tmp_path / which
        assert (
            main(["export", str(SPEC), "--checkpoint", str(sound / which), "--out", str(out)]) == 0
        )
    data = [(tmp_path / which / "model.onnx_data").read_bytes() for which in ("single", "sharded")]
    assert data[0] == data[1]


def test_unknown_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    said = refused(capsys, str(SPEC), "--random-weights", "1", "--dtype", "int8", "--out", out)
    assert "error[LG702]" in said and "int8" in said and listing(tmp_path) == []


def test_an_existing_folder_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep me")
    arguments = (str(SPEC), "--random-weights", "1", "--out", str(tmp_path / "out"))
    assert "error[LG630]" in refused(capsys, *arguments)
    assert "error[LG634]" in refused(capsys, *arguments, "--overwrite")
    assert listing(tmp_path) == ["out", "out/mine.txt"]


def test_a_failure_keeps_what_an_earlier_export_wrote(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sound / "single", tmp_path / "single")
    arguments = (
        str(SPEC),
        "--checkpoint",
        str(tmp_path / "single"),
        "--out",
        str(tmp_path / "out"),
    )
    assert main(["export", *arguments]) == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    poisoned(b"\xc0\x7f")(tmp_path)
    assert "error[LG620]" in refused(capsys, *arguments, "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "single"]


def test_a_write_that_fails_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pwrite = os.pwrite

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > 100_000:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    out = str(tmp_path / "out")
    said = refused(capsys, str(SPEC), "--random-weights", "1", "--out", out)
    assert "error[LG632]" in said and out in said and listing(tmp_path) == []


_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not _MOUNTS, reason="this system lets no test mount a file system")
@pytest.mark.parametrize(
    ("options", "code"), [("size=200k", "LG632"), ("ro", "LG633")], ids=["full", "read-only"]
)
def test_a_disk_that_takes_no_more(options: str, code: str, tmp_path: Path) -> None:
    """A file system of its own, in a process that alone sees it."""
    command = f"mount -t tmpfs -o {options} tmpfs {tmp_path} && "
    command += f"{sys.executable} -m llamagen export {SPEC} --random-weights 1 --out {tmp_path}/out"
    command += f"; echo exit $?; echo left $(ls -A {tmp_path})"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        cwd=SPECS.parents[1],
    )
    assert done.stdout == "exit 3\nleft\n", done.stderr
    assert done.stderr.count("error[") == 1 and f"error[{code}]" in done.stderr


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    """FAT32 ends at 4 GB; `ulimit -f` gives the same error."""
    command = (
        "ulimit -f 64; "
        f"{sys.executable} -m llamagen export {SPEC} --random-weights 1 --out {tmp_path}/out"
    )
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, cwd=SPECS.parents[1]
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("error[") == 1 and "error[LG632]" in done.stderr
    assert "too large" in done.stderr and listing(tmp_path) == []


def headers_of(spec_id: str, folder: Path, sizes: Mapping[int, int] = {}) -> Path:
    """A checkpoint of full size without its bytes: a header and a hole. ``sizes`` replaces some."""
    table: Header = {}
    end = 0
    for name, parameter in api.load(spec_id).parameters.items():
        shape = [sizes.get(size, size) for size in parameter.shape]
        start, end = end, end + 2 * prod(shape)
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = raw(json.dumps(table).encode(), b"")
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + end)
    return folder


def test_a_checkpoint_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = str(headers_of("llama/3.2/1b", tmp_path / "1b"))
    out = str(tmp_path / "out")
    said = refused(capsys, "llama/3.2/3b", "--checkpoint", stored, "--out", out)
    assert "error[LG618]" in said and "is not a checkpoint of `llama/3.2/3b`" in said
    assert "`llama/3.2/1b`" in said and "llama/2" not in said
    assert listing(tmp_path) == ["1b", "1b/model.safetensors"]
    assert main(["check", stored, "--as", "llama/3.2/3b"]) == 1
    assert "error[LG618]" in capsys.readouterr().err
    assert main(["check", stored, "--as", "llama/3.2/1b"]) == 0
    assert "146 tensors (146 BF16) in hub names fit `llama/3.2/1b`" in capsys.readouterr().err


def test_generations_of_one_shape_are_all_named(tmp_path: Path) -> None:
    stored = headers_of("llama/1/7b", tmp_path / "7b")
    report = api.check_checkpoint(stored, "llama/1/13b")
    (found,) = report.findings
    assert found.code == "LG618" and found.help is not None
    assert "`llama/1/7b`" in found.help and "`llama/2/7b`" in found.help


def test_specs_of_ones_own_are_considered(sound: Path, tmp_path: Path) -> None:
    other = api.load("reduced/llama-1-7b", roots=(SPECS,))
    with pytest.raises(LlamagenError) as failure:
        other.export(tmp_path / "out", checkpoint=sound / "single")
    (found,) = failure.value.diagnostics
    assert found.code == "LG618" and found.help is not None
    assert "`reduced/llama-2-70b` are there" in found.help


def test_a_vocabulary_that_was_extended(tmp_path: Path) -> None:
    """Fine-tunes add a token: two tensors differ, which says more than that all of them are another model's."""
    stored = headers_of("llama/2/13b", tmp_path / "13b", {32000: 32001})
    other = api.check_checkpoint(stored, "llama/1/7b").findings
    assert [one.code for one in other] == ["LG618"]
    assert "all but 2 of the 363 tensors of `llama/1/13b`" in (other[0].help or "")
    same = api.check_checkpoint(stored, "llama/2/13b").findings
    assert [one.code for one in same] == ["LG613", "LG613"]
    assert "[32000, 5120]" in same[0].message and "[32001, 5120]" in same[0].message


def test_nothing_that_we_know(tmp_path: Path) -> None:
    """A strange width: every finding, for no model is near."""
    stored = headers_of("llama/3.2/1b", tmp_path / "odd", {2048: 2056})
    found = api.check_checkpoint(stored, "llama/3.2/1b").findings
    assert {one.code for one in found} == {"LG613"} and len(found) > 5
