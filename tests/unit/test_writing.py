"""Small texts appear whole, whoever is killed, whatever the disk says."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.writing import write_changed


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    assert write_changed(tmp_path / "a", {"x": "1", "sub/y": "2"}) == (("x", "sub/y"), ())
    assert write_changed(tmp_path / "a", {"x": "1", "sub/y": "3"}) == (("sub/y",), ("x",))
    assert (tmp_path / "a" / "sub" / "y").read_text() == "3"
    assert names(tmp_path / "a") == ["sub", "x"] and names(tmp_path / "a" / "sub") == ["y"]


def test_the_mode_of_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "x").chmod(0o640)
    write_changed(tmp_path, {"x": "new"})
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_leftovers_of_the_dead_are_removed_and_nothing_else(tmp_path: Path) -> None:
    ours = ".x.llamagen-0123456789ab.tmp"
    for name in (ours, ".x.llamagen-012.tmp", ".x.tmp", "x.llamagen-0123456789ab.tmp"):
        (tmp_path / name).write_text("half")
    write_changed(tmp_path, {"x": "1"})
    (tmp_path / ours).write_text("half")
    write_changed(tmp_path, {"x": "1"})  # also where nothing is left to write
    assert names(tmp_path) == [".x.llamagen-012.tmp", ".x.tmp", "x", "x.llamagen-0123456789ab.tmp"]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "LG632"), (errno.EROFS, "LG633"), (errno.EACCES, "LG633")]
)
def test_no_file_changes_unless_all_are_on_the_disk(
    number: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_changed(tmp_path, {"a": "old", "b": "old"})
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number), str(tmp_path / "b"))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LlamagenError, match=code):
        write_changed(tmp_path, {"a": "new", "b": "new"})
    assert {(tmp_path / n).read_text() for n in "ab"} == {"old"} and names(tmp_path) == ["a", "b"]


def test_a_file_too_large_for_the_limit(tmp_path: Path) -> None:
    write_changed(tmp_path, {"a": "old"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(LlamagenError, match="LG632"):
            write_changed(tmp_path, {"a": "x" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(LlamagenError, match="LG634"):
        write_changed(tmp_path / "f", {"a": "x"})


def test_writers_of_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    """Twenty at a time: all files are whole, all of one writer, and nothing is left over."""
    texts = [f"{i}\n" * 2000 for i in range(20)]
    jobs = [
        threading.Thread(target=write_changed, args=(tmp_path, {"a": text, "b": text}))
        for text in texts
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert (tmp_path / "a").read_text() in texts and names(tmp_path) == ["a", "b"]
