"""Small texts appear whole, whoever is killed, whatever the disk says."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from llamagen import writing
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
    home = tmp_path / ".llamagen"
    for left in (("mark",), ("mark", "lock"), ("mark", "lock", "new/0")):
        (home / "new").mkdir(parents=True)
        for name in left:
            (home / name).write_text(writing._MARK_TEXT if name == "mark" else "")
        write_changed(tmp_path, {"x": "1"})  # also where nothing is left to write
        assert names(tmp_path) == ["x"]
    (home / "new").mkdir(parents=True)
    (home / "new" / "0").write_text("work")
    with pytest.raises(LlamagenError, match="LG634"):
        write_changed(tmp_path, {"x": "2"})
    assert (home / "new" / "0").read_text() == "work" and (tmp_path / "x").read_text() == "1"


def test_links_below_the_folder_are_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("work")
    (root / "model").symlink_to(elsewhere)
    (root / "text").symlink_to(elsewhere / "mine")
    (root / "gone").symlink_to(elsewhere / "not there")
    (root / "sub").mkdir()
    (root / "sub" / "model").symlink_to("../model")
    os.mkfifo(root / "pipe")
    (root / "full").symlink_to("/dev/full")
    for name in (
        "model/x",
        "model/mine",
        "text",
        "gone",
        "gone/x",
        "sub/model/x",
        "pipe",
        "full",
        "sub",
    ):
        with pytest.raises(LlamagenError, match="LG634"):
            write_changed(root, {"fine": "1", name: "new"})
    assert names(elsewhere) == ["mine"] and (elsewhere / "mine").read_text() == "work"
    assert names(root) == ["full", "gone", "model", "pipe", "sub", "text"]
    (tmp_path / "link").symlink_to(root)  # what the user named himself may be one
    write_changed(tmp_path / "link", {"fine": "1"})


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("work")
    os.link(tmp_path / "in", tmp_path / "same")
    (tmp_path / "link").symlink_to("in")
    for read in ("in", "link", "./sub/../in"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        for name in ("in", "same"):
            with pytest.raises(LlamagenError, match=r"LG634.*reads"):
                write_changed(tmp_path, {name: "new"}, [tmp_path / read, tmp_path / "absent"])
    assert (tmp_path / "in").read_text() == "work"


def test_a_file_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everything
    with pytest.raises(LlamagenError, match="LG633"):
        write_changed(tmp_path, {"a": "new"})
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_what_is_no_text_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "endless").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", writing._MAX_TEXT + 1)
    for name in ("endless", "pipe", "bytes", "huge", "absent", "a\0b"):
        assert writing.current(tmp_path / name) is None


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
