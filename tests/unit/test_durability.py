"""What survives a power cut: nothing takes its place before all of it is on the disk, nothing goes before it has.

Every fsync, rename and removal of a command is recorded, and what the disk is sure to have at each rename is compared
with what the files say then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llamagen import api
from llamagen.cli import main

TINY = Path(__file__).parents[1] / "cases" / "common" / "tiny.yaml"
MANIFESTS = ("MANIFEST.json", "llamagen.json")


def identity(path: str | Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def content(path: Path) -> object:
    return sorted(os.listdir(path)) if path.is_dir() else hashlib.sha256(path.read_bytes()).digest()


class Disk:
    """What it is sure to have: the content of files and folders when they were last synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sure: dict[tuple[int, int], object] = {}
        self.order: list[Path] = []
        """Everything that was synced."""
        self.placed: list[Path] = []
        self.pending: set[Path] = set()
        """Folders in which a new name is not sure yet."""
        fsync = os.fsync
        renames = {name: getattr(os, name) for name in ("rename", "replace")}
        removals = {name: getattr(os, name) for name in ("unlink", "remove", "rmdir")}

        def recorded_fsync(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.sure[identity(path)] = content(path)
            self.order.append(path)
            self.pending.discard(path)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        for name, rename in renames.items():
            monkeypatch.setattr(os, name, self._recorded_rename(rename))
        for name, remove in removals.items():
            monkeypatch.setattr(os, name, self._recorded_removal(remove))

    def _recorded_rename(self, rename: Callable[..., None]) -> Callable[..., None]:
        def recorded(source: str | Path, to: str | Path) -> None:
            source, to = Path(os.path.abspath(source)), Path(os.path.abspath(to))
            if to.name != "old":  # a folder that waits there is on the disk already
                self._require_sure(source)
                self.placed.append(to)
                self.pending.add(to.parent)
            rename(source, to)

        return recorded

    def _recorded_removal(self, remove: Callable[..., None]) -> Callable[..., None]:
        def recorded(path: str | Path, **more: int | None) -> None:
            assert not (self.pending and "old" in Path(path).parts), f"{path} went too early"
            remove(path, **more)

        return recorded

    def _require_sure(self, source: Path) -> None:
        every = [source, *source.rglob("*")]
        for path in every:
            if path.is_dir() or path.stat().st_nlink == 1:
                assert self.sure.get(identity(path)) == content(path), f"{path} is not on the disk"
        if source.is_dir():
            last = [path for path in self.order if path.is_file()][-1]
            assert last.name in MANIFESTS and last.parent == source, "the manifest comes last"
            assert self.order[-1] == source, "the folder comes after all that is in it"


FOLDERS = {
    "export": ["export", str(TINY), "--random-weights", "1"],
    "reference": [
        *("export", str(TINY), "--checkpoint", "checkpoint", "--dtype", "bfloat16"),
        *("--weights", "reference"),
    ],
    "random-checkpoint": ["random-checkpoint", str(TINY), "--shards", "20 kB"],
    "convert": ["convert", "checkpoint", "--from", str(TINY)],
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("existing", [False, True])
def test_folders(
    name: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    api.random_checkpoint(TINY, "checkpoint")
    out = tmp_path / "deep" / "er" / "out"
    words = [*FOLDERS[name], "--out", str(out), "--overwrite"]
    if existing:
        assert main(words) == 0
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        assert main(words) == 0
    assert disk.placed == [out] and not disk.pending
    if not existing:
        assert {tmp_path, tmp_path / "deep", out.parent} <= set(disk.order)


TEXTS = {
    "generate": (["generate", "tiny.yaml", "--to", "gen"], 9),
    "fmt": (["fmt", "tiny.yaml"], 1),
    "schema": (["schema", "--to", "schema.json"], 1),
    "import": (["import", "checkpoint", "--to", "new.yaml"], 1),
    "report": (
        [*("verify", "out", "--against", "torch", "--steps", "1"), *("--report", "report.html")],
        1,
    ),
    "quality": (["verify", "out", "--quality", "random"], 1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY.read_text().replace("vocab_size: ", "vocab_size:    "))
    if name == "import":
        _config(Path("checkpoint"))
    if name in ("report", "quality"):
        api.load(TINY).export("out", random_weights=1)
    words, count = TEXTS[name]
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        assert main(words) == 0
    assert len(disk.placed) == count and not disk.pending
    if name == "quality":
        assert api.check_integrity("out").whole


def _config(folder: Path) -> None:
    folder.mkdir()
    published = api.load("llama/3.2/1b").files()["config.json"]
    (folder / "config.json").write_text(published)
