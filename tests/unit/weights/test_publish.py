"""A folder appears whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.weights import publish
from llamagen.weights.publish import staged_folder

MANIFEST = "files.json"


def write(target: Path, text: str, overwrite: bool = False) -> None:
    with staged_folder(target, overwrite, MANIFEST) as staging:
        (staging / "sub").mkdir()
        for name in ("a", "sub/b"):
            (staging / name).write_text(text)
        (staging / MANIFEST).write_text('["a", "sub/b"]')


def contents(target: Path) -> set[str]:
    return {(target / name).read_text() for name in ("a", "sub/b")}


def code(target: Path, overwrite: bool = False) -> str:
    with pytest.raises(LlamagenError) as failure:
        write(target, "x", overwrite)
    return failure.value.diagnostics[0].code


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways of replacing: in one step, and where the system cannot do that."""
    if request.param == "aside":
        monkeypatch.setattr(publish, "_exchanged", lambda staging, place: False)
    return


def test_publish(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    write(target, "hello")
    assert contents(target) == {"hello"} and names(target.parent) == ["out"]
    assert json.loads((target / MANIFEST).read_text()) == ["a", "sub/b"]


def test_the_manifest_reaches_the_disk_after_what_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(publish, "_sync", synced.append)
    write(tmp_path / "out", "hello")
    files = [path.name for path in synced if path.suffix or path.name in ("a", "b")]
    assert files[:3] == ["a", "b", MANIFEST]


def test_a_body_that_forgets_its_manifest_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out", False, MANIFEST) as into:
        (into / "a").write_text("x")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("way")
def test_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    assert code(target) == "LG630" and contents(target) == {"old"}
    write(target, "new", overwrite=True)
    assert contents(target) == {"new"} and names(tmp_path) == ["out"]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("work")
    (tmp_path / "file").write_text("work")
    (tmp_path / "link").symlink_to("home")
    for name in ("home", "file", "link"):
        assert code(tmp_path / name, overwrite=True) == "LG634"
    assert names(tmp_path) == ["file", "home", "link"] and names(tmp_path / "home") == ["thesis"]
    assert code(tmp_path / "file" / "out") == "LG634"
    assert code(Path("/")) == "LG634"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new", overwrite=True)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_nothing(
    tmp_path: Path, existing: bool, error: type[BaseException]
) -> None:
    target = tmp_path / "new" / "out"
    if existing:
        write(target, "old")

    def fail() -> None:
        with staged_folder(target, overwrite=True) as staging:
            (staging / "a").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["new"] if existing else [])
    if existing:
        assert contents(target) == {"old"} and names(target.parent) == ["out"]


def test_failed_replacement_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    write(target, "old")
    monkeypatch.setattr(publish, "_exchanged", lambda staging, place: False)
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and not self.name.endswith("-old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    assert code(target, overwrite=True) == "LG632"
    assert contents(target) == {"old"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "LG632"),
        (errno.EDQUOT, "LG632"),
        (errno.EACCES, "LG633"),
        (errno.EROFS, "LG633"),
    ],
)
def test_system_errors_become_findings(tmp_path: Path, number: int, expected: str) -> None:
    target = tmp_path / "out"

    def fail() -> None:
        with staged_folder(target) as staging:
            raise OSError(number, os.strerror(number), str(staging / "weights"))

    with pytest.raises(LlamagenError) as failure:
        fail()
    (found,) = failure.value.diagnostics
    assert found.code == expected and str(target) in found.message and names(tmp_path) == []


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "deep" / "out"):
            raise PermissionError(errno.EACCES, "no", "/elsewhere/checkpoint")

    with pytest.raises(PermissionError):
        fail()


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """`/dev/full` answers ENOSPC to every write."""

    def fail() -> None:
        with staged_folder(tmp_path / "out") as staging:
            (staging / "a").symlink_to("/dev/full")
            (staging / "a").write_text("x" * 100_000)

    with pytest.raises(LlamagenError) as failure:
        fail()
    assert failure.value.diagnostics[0].code == "LG632" and names(tmp_path) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged_folder(target) as staging:
        (staging / "a").write_text("first")
        assert code(target) == "LG631"
        write(tmp_path / "other", "free")  # another target is another lock
        assert staging.exists()
    assert names(target) == ["a"]


def test_a_lock_file_that_its_owner_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our open and our flock the former owner may finish and remove the file."""
    target, lock, flock = tmp_path / "out", tmp_path / ".out.llamagen.lock", fcntl.flock
    calls: list[int] = []

    def after_the_owner(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            lock.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(publish.fcntl, "flock", after_the_owner)
    with staged_folder(target):
        assert code(target) == "LG631"


KILLED = """
import sys, time
from pathlib import Path
from llamagen.weights.publish import staged_folder
for text in ("1", "2", "3") * 1000:
    with staged_folder(sys.argv[1], True, "files.json") as staging:
        (staging / "sub").mkdir()
        (staging / "a").write_text(text)
        print(text, flush=True)
        (staging / "sub" / "b").write_text(text)
        (staging / "files.json").write_text('["a", "sub/b"]')
"""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "0")
    for attempt in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.0007 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert len(contents(target)) == 1, "old or new, never both"
        assert json.loads((target / MANIFEST).read_text()) == ["a", "sub/b"]
    write(target, "end", overwrite=True)
    assert contents(target) == {"end"} and names(tmp_path) == ["out"], "leftovers are gone"


def test_death_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    """Only where folders cannot be exchanged: the old folder waits under its staging name."""
    target = tmp_path / "out"
    write(target, "old")
    target.rename(tmp_path / ".out.llamagen-012345-old")
    (tmp_path / ".out.llamagen-012345").mkdir()
    assert code(target) == "LG630"
    assert contents(target) == {"old"} and names(tmp_path) == ["out"]
