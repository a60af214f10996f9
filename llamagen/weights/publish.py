"""Publishing a folder whole or not at all.

The files are written into a staging folder beside the target, on the same file system, synced,
and renamed. Whoever holds the lock of a target is the only writer, so any staging folder found
then belongs to a process that died, and is removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamagen.weights.problems import problem, quoted
from llamagen.writing import translated

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h


@contextmanager
def staged_folder(
    target: str | Path, overwrite: bool = False, manifest: str | None = None
) -> Iterator[Path]:
    """An empty folder to write into; it becomes `target` when the body ends without an error.

    `manifest` names the file that the body writes last, about all others; it reaches the disk after
    them. With it, `overwrite` replaces only a folder that has such a file. On any exception,
    KeyboardInterrupt included, the staging folder is removed and `target` is what it was.

    Raises LG630 (target exists), LG631 (another process writes it), LG632 (disk full), LG633
    (permission), LG634 (target cannot be a folder, or is not ours to replace).
    """
    place = _resolved(Path(target))
    created = _make_parents(place.parent)
    try:
        with translated(place), _locked(place):
            _sweep(place)
            _check_target(place, overwrite, manifest)
            staging = place.parent / f"{_prefix(place)}{secrets.token_hex(6)}"
            staging.mkdir()
            try:
                yield staging
                _seal(staging, manifest)
                _swap_in(staging, place, overwrite)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()  # only if nothing was published into it


def replace_text(path: Path, text: str) -> None:
    """Write a file of a published folder anew, in one step: whoever reads it sees the old text or the new one."""
    with translated(path.parent):
        staging = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            staging.write_text(text, encoding="utf-8", newline="\n")
            _sync(staging)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
        _sync(path.parent)


def _resolved(target: Path) -> Path:
    place = Path(os.path.abspath(target))
    if place.name == "" or place.parent == place:
        raise problem("LG634", f"{quoted(str(target))} cannot be an output folder")
    return Path(os.path.realpath(place.parent)) / place.name  # a loop of links is a finding later


def _prefix(place: Path) -> str:
    return f".{place.name}.llamagen-"


def _make_parents(parent: Path) -> list[Path]:
    """Create what is missing; the created folders, innermost first."""
    missing = []
    folder = parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    with translated(parent):
        parent.mkdir(parents=True, exist_ok=True)
    return missing


def _check_target(place: Path, overwrite: bool, manifest: str | None) -> None:
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        kind = "a symbolic link" if place.is_symlink() else "not a folder"
        raise problem(
            "LG634", f"{quoted(str(place))} exists and is {kind}", help="choose another name"
        )
    if not overwrite:
        raise problem(
            "LG630",
            f"{quoted(str(place))} exists",
            help="choose another name, or pass --overwrite to replace the whole folder",
        )
    if manifest is not None and any(place.iterdir()) and not (place / manifest).is_file():
        raise problem(
            "LG634",
            f"{quoted(str(place))} has no {manifest}: llamagen did not write it and does not "
            "replace it",
            help="choose another name, or remove the folder yourself",
        )


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    lock = place.parent / f".{place.name}.llamagen.lock"
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_file(lock, descriptor):
                break
        except BlockingIOError as error:
            os.close(descriptor)
            raise problem(
                "LG631",
                f"another process is writing {quoted(str(place))}",
                help="wait for it to end, or choose another name",
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the former owner removed the file between open and flock
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sweep(place: Path) -> None:
    """Remove what dead writers of this target left, after undoing a half-done replacement."""
    left = [entry for entry in place.parent.iterdir() if entry.name.startswith(_prefix(place))]
    for entry in left:
        if entry.name.endswith("-old") and not place.exists():
            entry.rename(place)
        else:
            shutil.rmtree(entry)


def _seal(staging: Path, manifest: str | None) -> None:
    """Put every file and folder on the disk; the manifest after all others."""
    last = () if manifest is None else (staging / manifest,)
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path not in last)
    for path in (*files, *last):
        if path.stat().st_nlink == 1:  # a linked file was there before, and may be hundreds of GB
            _sync(path)
    for folder in sorted(path for path in staging.rglob("*") if path.is_dir()):
        _sync(folder)
    _sync(staging)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap_in(staging: Path, place: Path, overwrite: bool) -> None:
    if not os.path.lexists(place):
        staging.rename(place)
    elif not overwrite:
        raise problem("LG630", f"{quoted(str(place))} appeared while it was being written")
    elif not _exchanged(staging, place):
        aside = staging.with_name(staging.name + "-old")
        place.rename(aside)
        try:
            staging.rename(place)
        except BaseException:
            aside.rename(place)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(place.parent)


def _exchanged(staging: Path, place: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    arguments = (_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE)
    if rename(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(place))
