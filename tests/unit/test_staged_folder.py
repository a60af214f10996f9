"""A folder appears whole or not at all, whatever happens meanwhile; what others put there stays."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamagen import files, writing
from llamagen.diagnostics import LlamagenError
from llamagen.writing import Listing, staged_folder

MANIFEST = "files.json"


def listed(folder: Path) -> list[str]:
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise LlamagenError.of("LG775", "it is no list") from error
    if not isinstance(found, list):
        raise LlamagenError.of("LG775", "it is no list")
    return found


LISTING = Listing(MANIFEST, listed)


def write(
    target: Path,
    text: str,
    overwrite: bool = False,
    reads: tuple[Path, ...] = (),
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    with staged_folder(target, LISTING, overwrite, reads) as staging:
        (staging / "sub").mkdir()
        for name in ("a", "sub/b"):
            (staging / name).write_text(text)
        meanwhile()
        (staging / MANIFEST).write_text('["a", "sub/b"]')


def contents(target: Path) -> set[str]:
    return {(target / name).read_text() for name in ("a", "sub/b")}


def refusal(target: Path, overwrite: bool = False, reads: tuple[Path, ...] = ()) -> str:
    with pytest.raises(LlamagenError) as failure:
        write(target, "x", overwrite, reads)
    (found,) = failure.value.diagnostics
    return f"{found.code} {found.message} ({found.help})"


def code(target: Path, overwrite: bool = False) -> str:
    return refusal(target, overwrite)[:5]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publish(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    write(target, "hello")
    assert contents(target) == {"hello"} and names(target.parent) == ["out"]
    assert json.loads((target / MANIFEST).read_text()) == ["a", "sub/b"]


def test_a_body_that_forgets_its_manifest_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out", LISTING) as into:
        (into / "a").write_text("x")
    assert names(tmp_path) == []


def test_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    assert "--overwrite" in refusal(target) and code(target) == "LG630"
    assert contents(target) == {"old"}
    write(target, "new", overwrite=True)
    assert contents(target) == {"new"} and names(tmp_path) == ["out"]


def test_what_is_no_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("work")
    (tmp_path / "file").write_text("work")
    (tmp_path / "link").symlink_to("home")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("home", "file", "link", "link/", "dangling"):
        assert code(tmp_path / name, overwrite=True) == "LG634"
    assert "--overwrite" not in refusal(tmp_path / "home")
    assert names(tmp_path) == ["dangling", "file", "home", "link"]
    assert names(tmp_path / "home") == ["thesis"]
    assert code(tmp_path / "file" / "out") == "LG634"
    for place in (Path("/"), Path(), Path(".."), Path("a\0b"), Path("a\0b/c")):
        assert code(place, overwrite=True) == "LG634"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new", overwrite=True)


STRANGERS: dict[str, Callable[[Path], object]] = {
    "thesis.tex": lambda out: (out / "thesis.tex").write_text("work"),
    ".hidden": lambda out: (out / ".hidden").write_text("work"),
    "A": lambda out: (out / "A").write_text("not a"),
    "sub/c": lambda out: (out / "sub" / "c").write_text("work"),
    "notes/": lambda out: (out / "notes").mkdir(),
    "sub/more/": lambda out: (out / "sub" / "more").mkdir(),
    "a": lambda out: ((out / "a").unlink(), (out / "a").symlink_to("../secret")),
    "sub": lambda out: (
        (out / "sub").rename(out / "sub2"),
        (out / "sub").symlink_to("sub2"),
        (out / "sub2" / "b").unlink(),
        (out / "sub2").rmdir(),
    ),
    "sub/b/": lambda out: (
        (out / "sub" / "b").unlink(),
        (out / "sub" / "b" / "c").mkdir(parents=True),
    ),
    "pipe": lambda out: os.mkfifo(out / "pipe"),
    "inner/": lambda out: write(out / "inner", "an export of its own"),
    ".llamagen/": lambda out: (
        (out / ".llamagen").mkdir(),
        (out / ".llamagen" / "x").write_text("work"),
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_folder_with_a_file_of_others_is_not_replaced(tmp_path: Path, stranger: str) -> None:
    target = tmp_path / "out"
    write(target, "old")
    STRANGERS[stranger](target)
    before = sorted(target.rglob("*"))
    assert f"'{stranger}'" in (said := refusal(target, overwrite=True)) and said[:5] == "LG634"
    assert sorted(target.rglob("*")) == before and names(tmp_path) == ["out"]


def test_three_strangers_are_named(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    for number in range(5):
        (tmp_path / "out" / f"n{number}").write_text("work")
    assert "'n0', 'n1', 'n2' and 2 more" in refusal(tmp_path / "out", overwrite=True)


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "of others": lambda file: file.write_text('{"name": "web extension"}'),
    "a link": lambda file: (file.rename(file.parent.parent / "m"), file.symlink_to("../m")),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "huge": lambda file: os.truncate(file, (files.MANIFEST.limit or 0) + 1),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_is_not_ours(tmp_path: Path, what: str) -> None:
    target = tmp_path / "out"
    write(target, "old")
    MANIFESTS[what](target / MANIFEST)
    said = refusal(target, overwrite=True)
    assert said.startswith("LG634") and MANIFEST in said and contents(target) == {"old"}


def test_some_folders_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    write(target, "old")
    monkeypatch.setenv("HOME", str(target))
    assert "is or holds your home" in refusal(target, overwrite=True)
    monkeypatch.setenv("HOME", str(target / "sub"))
    assert "is or holds your home" in refusal(target, overwrite=True)
    monkeypatch.undo()
    monkeypatch.chdir(target / "sub")
    for path in (target, Path(".."), Path("../../out/")):
        assert "working folder" in refusal(path, overwrite=True)
    monkeypatch.chdir(tmp_path)
    for name in (".git", ".GIT"):
        (target / name).write_text("gitdir: elsewhere")
        (target / MANIFEST).write_text(f'["a", "sub/b", "{name}"]')
        assert "is a git repository" in refusal(target, overwrite=True)
        (target / name).unlink()
    assert contents(target) == {"old"}


def test_what_holds_an_input_is_not_replaced(tmp_path: Path) -> None:
    """By its own name and where its links lead; a folder below an input is not in the way."""
    target = tmp_path / "par" / "out"
    write(target, "old")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "file").symlink_to(target / "a")
    inputs = ("par/out", "par/out/a", "par/out/sub/gone", "link/a", "file", "par/./x/../out/a")
    for name in inputs:
        assert "which this command reads" in refusal(
            target, overwrite=True, reads=(tmp_path / name,)
        )
    assert "which this command reads" in refusal(tmp_path / "par", True, (target,))
    assert contents(target) == {"old"}
    write(target, "new", True, reads=(tmp_path / "par", tmp_path / "par" / "model"))
    assert contents(target) == {"new"}


def test_a_mount_point_names_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "o ut"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    for overwrite in (False, True):
        said = refusal(target, overwrite)
        assert said.startswith("LG634") and f"{target}/NAME" in said
    monkeypatch.undo()
    table = f"22 1 0:21 / {str(target).replace(' ', chr(92) + '040')} rw - tmpfs none rw\n".encode()
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: table if self.name == "mountinfo" else read(self)
    )
    assert "mount point" in refusal(target)
    write(target / "NAME", "x")


def test_what_comes_while_the_body_runs_counts(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for overwrite in (False, True):
        with pytest.raises(LlamagenError, match="LG63"):
            write(target, "new", overwrite, meanwhile=lambda: (target / "mine").mkdir(parents=True))
        assert names(target) == ["mine"] and names(tmp_path) == ["out"]
        (target / "mine").rmdir()
        target.rmdir()
    write(target, "old")
    with pytest.raises(LlamagenError, match=r"LG634.*thesis"):
        write(target, "new", True, meanwhile=lambda: (target / "thesis").write_text("work"))
    assert contents(target) == {"old"} and (target / "thesis").read_text() == "work"
    assert names(tmp_path) == ["out"]


def test_what_comes_after_the_last_look_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    write(target, "old")
    rename = os.rename

    def late(source: Path, to: Path) -> None:
        if Path(source) == target:
            (target / "thesis").write_text("work")
        rename(source, to)

    monkeypatch.setattr(os, "rename", late)
    assert "thesis" in refusal(target, overwrite=True)
    assert contents(target) == {"old"} and (target / "thesis").read_text() == "work"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_nothing(
    tmp_path: Path, existing: bool, error: type[BaseException]
) -> None:
    target = tmp_path / "new" / "out"
    if existing:
        write(target, "old")

    def fail() -> None:
        with staged_folder(target, LISTING, overwrite=True) as staging:
            (staging / "a").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["new"] if existing else [])
    if existing:
        assert contents(target) == {"old"} and names(target.parent) == ["out"]


@pytest.mark.parametrize("late", [False, True])
def test_failed_replacement_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Also if the error comes when the new folder has its place: then it stays."""
    target = tmp_path / "out"
    write(target, "old")
    rename = os.rename

    def failing(source: Path, to: Path) -> None:
        if Path(to) == target and Path(source).name == "new":
            if late:
                rename(source, to)
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing)
    assert code(target, overwrite=True) == "LG632"
    assert contents(target) == {"x" if late else "old"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "LG632"),
        (errno.EDQUOT, "LG632"),
        (errno.EACCES, "LG633"),
        (errno.EROFS, "LG633"),
        (errno.EBUSY, "LG634"),
        (errno.EXDEV, "LG634"),
        (errno.ENOLCK, "LG634"),
    ],
)
def test_system_errors_become_findings(tmp_path: Path, number: int, expected: str) -> None:
    target = tmp_path / "out"

    def fail() -> None:
        with staged_folder(target, LISTING) as staging:
            raise OSError(number, os.strerror(number), str(staging / "weights"))

    with pytest.raises(LlamagenError) as failure:
        fail()
    (found,) = failure.value.diagnostics
    assert found.code == expected and str(target) in found.message and names(tmp_path) == []


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "deep" / "out", LISTING):
            raise PermissionError(errno.EACCES, "no", "/elsewhere/checkpoint")

    with pytest.raises(PermissionError):
        fail()


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """`/dev/full` answers ENOSPC to every write."""

    def fail() -> None:
        with staged_folder(tmp_path / "out", LISTING) as staging:
            (staging / "a").symlink_to("/dev/full")
            (staging / "a").write_text("x" * 100_000)

    with pytest.raises(LlamagenError) as failure:
        fail()
    assert failure.value.diagnostics[0].code == "LG632" and names(tmp_path) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(
        target, "first", meanwhile=lambda: (code_is_631(target), write(tmp_path / "other", "free"))
    )
    assert contents(target) == {"first"} and names(tmp_path) == ["other", "out"]


def code_is_631(target: Path) -> None:
    """Asked by another process, as it would be."""
    asking = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.unit.test_staged_folder import code
print(code(Path({str(target)!r})))
"""
    done = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True)
    assert done.stdout == "LG631\n", done.stderr


def test_a_lock_file_that_its_owner_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our open and our lock the former owner may finish and remove the file."""
    import filelock

    target, home = tmp_path / "out", tmp_path / ".out.llamagen"
    acquire = filelock.FileLock.acquire
    calls: list[float] = []

    def after_the_owner(self: filelock.FileLock, timeout: float) -> object:
        calls.append(timeout)
        proxy = acquire(self, timeout=timeout)
        if len(calls) == 1:
            (home / "lock").unlink()
            (home / "lock").touch()
        return proxy

    monkeypatch.setattr(filelock.FileLock, "acquire", after_the_owner)
    write(target, "x", meanwhile=lambda: code_is_631(target))
    assert calls == [0, 0]


@pytest.mark.parametrize("what", ["a file", "a link", "a folder of others", "a half-made one"])
def test_only_what_carries_our_mark_is_swept(tmp_path: Path, what: str) -> None:
    target, home = tmp_path / "out", tmp_path / ".out.llamagen"
    for name in (".out.llamagen-0123456789ab", ".out.llamagen-old", "out.llamagen"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("work")
    match what:
        case "a file":
            home.write_text("work")
        case "a link":
            home.symlink_to("out.llamagen")
        case "a folder of others":
            home.mkdir()
            (home / "new").mkdir()
            (home / "new" / "thesis").write_text("work")
        case "a half-made one":
            home.mkdir()
            (home / "mark").touch()
            (home / "lock").touch()
            write(target, "x")
            assert not home.exists()
            return
    said = refusal(target)
    assert "LG634" in said and str(home) in said and os.path.lexists(home)
    assert len(list(tmp_path.rglob("thesis"))) == 3 + (what == "a folder of others")
    assert not target.exists()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.test_staged_folder import LISTING, staged_folder
for text in ("1", "2", "3") * 1000:
    with staged_folder(sys.argv[1], LISTING, True) as staging:
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
            [sys.executable, "-c", KILLED, str(target), str(Path(__file__).parents[2])],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.0007 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        there = target if target.exists() else tmp_path / ".out.llamagen" / "old"
        assert len(contents(there)) == 1, "old or new, never both"
        assert json.loads((there / MANIFEST).read_text()) == ["a", "sub/b"]
    write(target, "end", overwrite=True)
    assert contents(target) == {"end"} and names(tmp_path) == ["out"], "leftovers are gone"


def left_behind(tmp_path: Path) -> Path:
    """The workspace of a writer that died between the two renames."""
    home = tmp_path / ".out.llamagen"
    write(tmp_path / "out", "old")
    home.mkdir()
    (home / "mark").write_text(writing._MARK_TEXT)
    (home / "lock").touch()
    (tmp_path / "out").rename(home / "old")
    (home / "new").mkdir()
    (home / "new" / "a").write_text("half")
    return home


def test_death_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    left_behind(tmp_path)
    assert code(tmp_path / "out") == "LG630"
    assert contents(tmp_path / "out") == {"old"} and names(tmp_path) == ["out"]


def test_death_after_them_is_swept_but_for_what_others_put_there(tmp_path: Path) -> None:
    home = left_behind(tmp_path)
    (home / "old" / "thesis").write_text("work")
    (tmp_path / "out").mkdir()
    said = refusal(tmp_path / "out", overwrite=True)
    assert "thesis" in said and str(home / "old") in said
    (home / "old" / "thesis").rename(tmp_path / "thesis")
    (home / "old" / "sub" / "b").unlink()  # as if the death had come while it was removed
    write(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path / "out") == {"new"} and names(tmp_path) == ["out", "thesis"]


@pytest.mark.parametrize("inside", ["old", "new"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_link_in_a_workspace_is_not_followed(tmp_path: Path, inside: str, existing: bool) -> None:
    target, victim = tmp_path / "out", tmp_path / "victim"
    write(victim, "mine")
    if existing:
        write(target, "there")
    home = tmp_path / ".out.llamagen"
    home.mkdir()
    (home / "mark").write_text(writing._MARK_TEXT)
    (home / inside).symlink_to("../victim")
    assert "is not ours" in refusal(target, overwrite=True)
    assert contents(victim) == {"mine"} and target.exists() == existing


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a folder")
def test_a_folder_that_takes_no_new_names() -> None:
    assert refusal(Path("/proc/self/out")).startswith("LG634")


def test_windows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("llamagen.writing.os.name", "nt")
        with pytest.raises(LlamagenError, match="LG635"), staged_folder(tmp_path, LISTING):
            pass
