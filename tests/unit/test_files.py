"""The door: what passes it, what does not, and that nothing waits or grows in front of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamagen import api, files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.checkpoint import import_path
from llamagen.emit.config.settings import Settings
from llamagen.emit.manifest import read_manifest
from llamagen.emit.supply import companions_of
from llamagen.images.decode import read_image
from llamagen.runtime.text import Text, chat_text
from llamagen.spec.registry import Registry
from llamagen.spec.source import load_source
from llamagen.verify.folder import spec_text
from llamagen.verify.report import check_report_names
from llamagen.verify.stored import graph_of, stored_weights
from llamagen.weights.checkpoint import Checkpoint

SMALL = files.Kind("LG001", 10, "help", "LG002")
TINY = Path(__file__).resolve().parents[1] / "cases/common/tiny.yaml"
HASH = "0123456789abcdef" * 4


def refusal(path: Path, kind: files.Kind = SMALL, within: Path | None = None) -> str:
    """What the three ways in say, which is the same."""
    said = set()
    for way in (files.open_file, files.read_bytes, files.checked):
        with pytest.raises(LlamagenError) as caught:
            way(path, kind, within=within)
        (found,) = caught.value.diagnostics
        said.add(f"{found.code}: {found.message}")
    (one,) = said
    return one


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    words = {"pipe": "a named pipe", "folder": "a folder", "socket": "a socket", "zero": "a device"}
    words |= {"gone": "which does not exist", "loop": "symbolic links", "none": "No such file"}
    words |= {"a" * 300: "too long", "null\0": "no file can have this name", "\ud800": "no file"}
    for name, said in words.items():
        found = refusal(tmp_path / name)
        assert found.startswith("LG001: cannot read '") and said in found, found


def test_a_file_that_a_user_names_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert files.read_text(tmp_path / "c", SMALL) == "text"
    assert files.read_text(tmp_path / "c", SMALL, within=tmp_path) == "text"
    with files.open_file(tmp_path / "c", SMALL) as file:
        assert file.read() == b"text"


def test_too_large_and_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert files.read_bytes(path, SMALL) == b"0123456789"
    path.write_bytes(b"0123456789a")
    assert refusal(path) == f"LG002: {str(path)!r} is larger than 10 bytes, which no such file is"
    path.write_bytes(b"\xff")
    with pytest.raises(LlamagenError, match="not UTF-8"):
        files.read_text(path, SMALL)


def test_a_file_that_grows_or_has_no_size_is_read_up_to_its_limit() -> None:
    """Files of the system state no size: what counts is what comes."""
    assert os.stat("/proc/self/status").st_size == 0
    with pytest.raises(LlamagenError, match="LG002"):
        files.read_bytes(Path("/proc/self/status"), SMALL)


def test_a_link_of_others_that_leaves_the_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    (folder / "below").mkdir(parents=True)
    secret.write_text("secret")
    (folder / "relative").symlink_to("../secret")
    (folder / "absolute").symlink_to(secret)
    (folder / "out").symlink_to("..", target_is_directory=True)
    (folder / "over").symlink_to("relative")
    (folder / "below/up").symlink_to("../inside")
    (folder / "inside").write_text("inside")
    for name in ("relative", "absolute", "out/secret", "over", "../secret"):
        assert "a link out of its folder" in refusal(folder / name, within=folder), name
    assert files.read_text(folder / "below/up", SMALL, within=folder) == "inside"
    (tmp_path / "named").symlink_to(folder)
    assert (
        files.read_text(tmp_path / "named/below/up", SMALL, within=tmp_path / "named") == "inside"
    )


def test_the_cache_of_the_hub(tmp_path: Path) -> None:
    model = tmp_path / "models--a--b"
    snapshot = model / "snapshots" / "main"
    (snapshot / "original").mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / HASH).write_text("blob")
    (model / "blobs" / HASH[:40]).symlink_to(tmp_path / "secret")
    (model / "blobs" / "id_rsa").write_text("key")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "good").symlink_to(f"../../blobs/{HASH}")
    (snapshot / "original" / "good").symlink_to(f"../../../blobs/{HASH}")
    (snapshot / "key").symlink_to("../../blobs/id_rsa")
    (snapshot / "through").symlink_to(f"../../blobs/{HASH[:40]}")
    other = tmp_path / "models--c--d" / "snapshots" / "main"
    other.mkdir(parents=True)
    (other / "blob").symlink_to(model / "blobs" / HASH)
    plain = model / "elsewhere" / "main"
    plain.mkdir(parents=True)
    (plain / "blob").symlink_to(f"../../blobs/{HASH}")
    for folder in (snapshot, snapshot / "original"):
        assert files.read_text(folder / "good", SMALL, within=folder) == "blob"
    for folder, name in (
        (snapshot, "key"),
        (snapshot, "through"),
        (other, "blob"),
        (plain, "blob"),
    ):
        assert "a link out of its folder" in refusal(folder / name, within=folder), name


def test_what_takes_the_place_of_a_file_meanwhile_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_text("text")
    opened = os.open

    def swapped(name: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(name, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(LlamagenError, match="a named pipe"):
        files.read_bytes(path, SMALL)


def test_the_door_needs_no_flag_that_windows_lacks(tmp_path: Path) -> None:
    """Without them a pipe is refused all the same, before it is opened."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    code = (
        "import os, sys, pathlib\n"
        "for name in ('O_NONBLOCK', 'O_NOFOLLOW', 'O_NOCTTY', 'O_CLOEXEC'): delattr(os, name)\n"
        "from llamagen import files\n"
        "from llamagen.diagnostics import LlamagenError\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "assert files.read_text(folder / 'file', files.SPEC) == 'text'\n"
        "try: files.read_text(folder / 'pipe', files.SPEC)\n"
        "except LlamagenError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a named pipe" in done.stdout


WRONG = ("pipe", "zero", "out")


def put(path: Path, wrong: str) -> None:
    """In place of a file of others: a pipe, a device, a link to a file of the user."""
    path.unlink(missing_ok=True)
    if wrong == "pipe":
        os.mkfifo(path)
    else:
        secret = path.parent.parent / "secret"
        secret.write_text("{}")
        path.symlink_to("/dev/zero" if wrong == "zero" else secret)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    api.load(TINY).export(out, random_weights=0)
    return out


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A folder that an export wrote, of hard links."""
    copy = tmp_path / "folder"
    copy.mkdir()
    for file in exported.iterdir():
        os.link(file, copy / file.name)
    return copy


@pytest.mark.parametrize("wrong", WRONG)
def test_everything_of_an_exported_folder_passes_it(folder: Path, wrong: str) -> None:
    ways = {
        "MANIFEST.json": lambda: read_manifest(folder),
        "spec.yaml": lambda: spec_text(folder),
        "model.onnx": lambda: graph_of(folder / "model.onnx"),
        "model.onnx_data": lambda: stored_weights(folder),
        "config.json": lambda: Settings.of_folder(folder),
        "generation_config.json": lambda: Settings.of_folder(folder),
        "tokenizer.json": lambda: Text.of_folder(folder),
        "chat_template.jinja": lambda: chat_text(folder, "x", 0),
        "tokenizer_config.json": lambda: chat_text(folder, "x", 0),
    }
    for name in reversed(ways):
        put(folder / name, wrong)
        with pytest.raises(
            LlamagenError, match=r"cannot read '.*': it is a (named|device|link out)"
        ):
            ways[name]()
        if name == "chat_template.jinja":
            (folder / name).unlink()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_session_is_opened_on_nothing_else(folder: Path, wrong: str) -> None:
    put(folder / "model.onnx", wrong)
    (folder / "MANIFEST.json").unlink()
    with pytest.raises(LlamagenError, match=r"LG713.*cannot read"):
        list(api.run(folder, [1], max_new_tokens=1))


@pytest.mark.parametrize("wrong", WRONG)
def test_data_of_a_session_is_nothing_else(folder: Path, wrong: str) -> None:
    put(folder / "model.onnx_data", wrong)
    with pytest.raises(LlamagenError, match="LG713"):
        list(api.run(folder, [1], max_new_tokens=1))


@pytest.mark.parametrize("wrong", WRONG)
def test_everything_of_a_checkpoint_passes_it(tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "folder"
    api.random_checkpoint(TINY, folder)
    ways = {
        "config.json": lambda: import_path(folder),
        "model.safetensors": lambda: Checkpoint.open(folder),
        "model.safetensors.index.json": lambda: Checkpoint.open(folder),
        "consolidated.00.pth": lambda: Checkpoint.open(folder),
    }
    for name, way in ways.items():
        put(folder / name, wrong)
        with pytest.raises(
            LlamagenError, match=r"cannot read '.*': it is a (named|device|link out)"
        ):
            way()
        (folder / name).unlink()


@pytest.mark.parametrize("wrong", ["pipe", "zero"])
def test_what_a_user_names_passes_it(tmp_path: Path, wrong: str) -> None:
    ways: dict[str, Callable[[Path], object]] = {
        "x.yaml": lambda path: Registry().load(path),
        "y.yaml": load_source,
        "x.json": import_path,
        "x.png": read_image,
        "x.safetensors": Checkpoint.open,
        "x.pth": Checkpoint.open,
        "x.safetensors.index.json": Checkpoint.open,
        "report.html": lambda path: check_report_names([path]),
    }
    (tmp_path / "folder").mkdir()
    for name, way in ways.items():
        path = tmp_path / "folder" / name
        put(path, wrong)
        with pytest.raises(LlamagenError):
            way(path)


def test_a_folder_of_specs_that_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for wrong in ("pipe", "zero"):
        put(folder / f"{wrong}.yaml", wrong)
    report = api.check([str(folder)])
    assert report.specs == 2 and [one.code for one in report.findings] == ["LG201", "LG201"]


def test_an_image_is_what_the_help_says(tmp_path: Path) -> None:
    """A name says nothing: PostScript, for one, is a program, which Pillow would let Ghostscript run."""
    from PIL import Image

    pixels = np.zeros((4, 4, 3), np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        path = tmp_path / f"{kind}.eps"
        Image.fromarray(pixels).save(path, kind)
        assert read_image(path).shape == (4, 4, 3)
    for kind in ("EPS", "PPM", "ICO", "PCX", "TGA", "SGI", "JPEG2000", "PDF", "DDS", "ICNS"):
        path = tmp_path / f"{kind}.png"
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, kind)
        with pytest.raises(LlamagenError, match="LG780") as caught:
            read_image(path)
        help = caught.value.diagnostics[0].help
        assert help == "PNG, JPEG, WebP, GIF, BMP and TIFF can be read", kind


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["import", "{pipe}.json"], 3),
        (["diff", "llama/3/8b", "{pipe}.json"], 3),
        (["check", "{folder}", "--as", "llama/3/8b"], 3),
        (["verify", "{folder}", "--integrity"], 3),
        (["verify", "{folder}", "--report", "{full}.json"], 3),
        (["run", "{folder}", "--ids", "1"], 3),
    ],
)
def test_commands_end_with_a_finding(tmp_path: Path, words: list[str], code: int) -> None:
    for name in ("pipe.yaml", "pipe.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "full.json").symlink_to("/dev/full")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("MANIFEST.json", "model.onnx", "config.json", "model.safetensors"):
        os.mkfifo(folder / name)
    places = {"pipe": tmp_path / "pipe", "full": tmp_path / "full", "folder": folder}
    command = [sys.executable, "-m", "llamagen", *(word.format(**places) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "error[LG" in done.stderr and "LG999" not in done.stderr
    assert "a named pipe" in done.stderr or "exists and is not a report" in done.stderr


@pytest.mark.parametrize("what", ["pipe", "link to nothing", "too large"])
def test_no_small_file_of_a_checkpoint_is_left_out_without_a_word(
    tmp_path: Path, what: str
) -> None:
    path = tmp_path / "tokenizer.json"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link to nothing":
        path.symlink_to("blobs/gone")
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    (tmp_path / "LICENSE").mkdir()
    with pytest.raises(LlamagenError, match="LG601"):
        companions_of(tmp_path)
    path.unlink()
    assert companions_of(tmp_path) == ()
