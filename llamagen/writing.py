"""Writing: every file and every folder appears whole or not at all, and nothing of others is lost on the way.

There is one way, for small texts and for folders with hundreds of gigabytes. A writer makes a hidden folder, its
workspace, on the file system of the output: `.NAME.llamagen` beside a folder NAME, `.llamagen` in a folder that gets
texts. It has a mark, by which it is known, a lock, which goes away with the process, and `new`, where the output is
made. What is in `new` is brought to the disk, takes its place by rename, and the workspace goes. Whoever finds a
workspace and gets its lock has found that of a writer that died: nothing in it is anybody's, and it is used again.

A folder is replaced only if llamagen wrote all of it: its manifest (`Listing`) parses, and lists every file that is
there. It waits as `old` in the workspace until the new one has its place. Whoever is killed between these two renames
leaves no folder, but both beside its place; the next writer puts the old one back first.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.units import bytes_text

if TYPE_CHECKING:
    from filelock import BaseFileLock

_MARK, _LOCK, _NEW, _OLD = "mark", "lock", "new", "old"
_MARK_TEXT = "llamagen writes here; what a run that was killed left is removed by the next one\n"
_TEXTS = ".llamagen"

_MAX_TEXT = 64 << 20
_NAMED = 3
"""So many files that are in the way are named."""

_LOOKS = 5

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Listing:
    """How a folder says that llamagen wrote it, and which files."""

    manifest: str
    """Name of the file that lists all others; it is written last."""
    files: Callable[[Path], Collection[str]]
    """The names in the manifest of a folder, relative, with slashes. Raises LlamagenError for one that is not ours."""


# Folders


@contextmanager
def staged_folder(
    target: str | Path, listing: Listing, overwrite: bool = False, reads: Sequence[Path] = ()
) -> Iterator[Path]:
    """An empty folder to write into; it becomes ``target`` when the body ends without an error.

    The body writes the manifest of ``listing`` last. On any exception, KeyboardInterrupt included, what was written is
    removed and ``target`` is what it was. ``reads`` are the files and folders that the body reads: what holds one of
    them is never replaced.

    Raises LG630 (target exists), LG631 (another process writes it), LG632 (disk full), LG633 (permission), LG634
    (target cannot be a folder, or is not ours to replace), LG635 (Windows).
    """
    if os.name == "nt":
        raise LlamagenError.of(
            "LG635",
            "folders with weights are not written on Windows",
            help="run the command in WSL; reading, `generate` and `fmt` work here",
        )
    place = _resolved(Path(target))
    home, new, old = _homes(place)
    with translated(place):
        _require_replaceable(place, listing, overwrite, reads)  # before anything is made
        with _made([place.parent]) as created, _workspace(home, place, wait=False):
            _settle(old, place, listing)
            _require_replaceable(place, listing, overwrite, reads)
            new.mkdir()
            try:
                yield new
                _seal(new, listing.manifest)
                if os.path.lexists(place):  # what came while the body ran counts as well
                    _require_replaceable(place, listing, overwrite, reads)
                    _replace(new, old, place, listing)
                else:
                    os.rename(new, place)
                for folder in (place.parent, *(one.parent for one in created)):
                    _sync_folder(folder)
            finally:
                _settle(old, place, listing)


def _homes(place: Path) -> tuple[Path, Path, Path]:
    """The workspace of a folder, and in it the places of the new one and the old one."""
    home = place.parent / f".{place.name}{_TEXTS}"
    return home, home / _NEW, home / _OLD


def _resolved(target: Path) -> Path:
    """Links on the way are followed; if the folder itself is one, that is a finding later."""
    if "\0" not in str(target):
        if target.name in ("", ".."):
            place = Path(os.path.realpath(target))
        else:
            place = Path(os.path.realpath(target.parent)) / target.name
        if place.name:
            return place
    raise LlamagenError.of("LG634", f"{quoted(str(target))} cannot be an output folder")


def _require_replaceable(
    place: Path, listing: Listing, overwrite: bool, reads: Sequence[Path]
) -> None:
    """Nothing is there, or with ``overwrite`` a folder that is empty or ours. Raises LG630, LG634."""
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        kind = "a symbolic link" if place.is_symlink() else "not a folder"
        raise _in_the_way(f"{quoted(str(place))} exists and is {kind}")
    if _is_mount(place):
        raise LlamagenError.of(
            "LG634",
            f"{quoted(str(place))} is a mount point, which cannot be replaced",
            help=f"write to a folder in it: {place / 'NAME'}",
        )
    if why := _never(place, reads):
        raise _in_the_way(f"{quoted(str(place))} {why}: it is never replaced")
    if not overwrite:
        more = (
            ", or pass --overwrite to replace the whole folder" if _is_ours(place, listing) else ""
        )
        raise LlamagenError.of(
            "LG630", f"{quoted(str(place))} exists", help=f"choose another name{more}"
        )
    _require_ours(place, place, listing)


def _in_the_way(message: str, help: str = "choose another name") -> LlamagenError:
    return LlamagenError.of("LG634", message, help=help)


def _never(place: Path, reads: Sequence[Path]) -> str | None:
    """Why a folder is never replaced, whatever is in it."""
    with suppress(RuntimeError):  # no home is known
        if _holds(place, Path.home()):
            return "is or holds your home"
    with suppress(FileNotFoundError):  # no working folder
        if _holds(place, Path.cwd()):
            return "is or holds the working folder"
    if any(name.lower() == ".git" for name in os.listdir(place)):
        return "is a git repository"
    for path in reads:
        if _holds(place, path):
            return f"holds {quoted(str(path))}, which this command reads"
    return None


def _holds(folder: Path, path: Path) -> bool:
    """Whether ``path`` is the folder or below it, by its own name or where its links lead; case and mounts aside."""
    here = os.stat(folder)
    for one in {Path(os.path.abspath(path)), Path(os.path.realpath(path))}:
        for above in (one, *one.parents):
            with suppress(OSError):
                if os.path.samestat(os.stat(above), here):
                    return True
    return False


def _is_mount(place: Path) -> bool:
    """Also one of the same file system (`mount --bind`), which only Linux's own table knows."""
    if os.path.ismount(place):
        return True
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return False
    mounts = (line.split(b" ")[4] for line in table.splitlines())
    escaped = re.compile(rb"\\([0-7]{3})")
    return os.fsencode(place) in {
        escaped.sub(lambda escape: bytes([int(escape[1], 8)]), mount) for mount in mounts
    }


def _is_ours(folder: Path, listing: Listing) -> bool:
    try:
        _require_ours(folder, folder, listing)
    except LlamagenError:
        return False
    return True


def _require_ours(folder: Path, place: Path, listing: Listing) -> None:
    """All that is in ``folder``, which is or was at ``place``, was written by llamagen. Raises LG634."""
    strangers = _strangers(folder, place, listing)
    if strangers:
        named = ", ".join(quoted(name) for name in strangers[:_NAMED])
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        raise _in_the_way(
            f"{quoted(str(place))} has {named}{more}, which its {listing.manifest} does not list: "
            "llamagen did not write that and does not remove it",
            "move it away, or choose another name",
        )


def _strangers(folder: Path, place: Path, listing: Listing) -> list[str]:
    """What is in a folder and not in its manifest, empty folders included; folders end in a slash. Raises LG634."""
    if not os.listdir(folder):
        return []
    remove = "choose another name, or remove the folder yourself"
    path = folder / listing.manifest
    if not path.is_file() or path.is_symlink():
        raise _in_the_way(
            f"{quoted(str(place))} has no {listing.manifest}: llamagen did not write it and does "
            "not replace it",
            remove,
        )
    try:
        listed = {listing.manifest, *listing.files(folder)}
    except LlamagenError as error:
        raise _in_the_way(
            f"{quoted(str(place))} has a {listing.manifest} that llamagen did not write: "
            f"{error.diagnostics[0].message}",
            remove,
        ) from error
    holding = {str(above) for name in listed for above in Path(name).parents}
    strangers: list[str] = []
    for where, folders, files in os.walk(folder, onerror=_raised):
        inside = Path(where).relative_to(folder)
        for name in tuple(folders):
            one = inside / name
            if (folder / one).is_symlink():
                strangers.append(one.as_posix())
            elif str(one) not in holding:
                folders.remove(name)
                if folder / one != workspace_of(folder):
                    strangers.append(f"{one.as_posix()}/")
        for name in files:
            one = inside / name
            regular = stat.S_ISREG(os.lstat(folder / one).st_mode)
            if one.as_posix() not in listed or not regular:
                strangers.append(one.as_posix())
    return sorted(strangers)


def _raised(error: OSError) -> None:
    raise error


def _seal(new: Path, manifest: str) -> None:
    """Bring every file to the disk, the manifest after all others, and then every folder, inner ones first."""
    last = new / manifest
    files = sorted(path for path in new.rglob("*") if path.is_file() and path != last)
    for path in (*files, last):
        if path.stat().st_nlink == 1:  # a linked file was there before, and may be hundreds of GB
            _sync_file(path)
    for folder in sorted((path for path in new.rglob("*") if path.is_dir()), reverse=True):
        _sync_folder(folder)
    _sync_folder(new)


def _replace(new: Path, old: Path, place: Path, listing: Listing) -> None:
    os.rename(place, old)
    try:
        _require_ours(old, place, listing)  # nothing can come into it any more
        os.rename(new, place)
    finally:
        if not os.path.lexists(place):
            os.rename(old, place)


def _settle(old: Path, place: Path, listing: Listing) -> None:
    """Only one of the two folders of a replacement stays: the old one until the new one has its place."""
    if not os.path.lexists(old):
        return
    if not os.path.lexists(place):
        os.rename(old, place)
        _sync_folder(place.parent)
        return
    _require_ours(old, old, listing)
    manifest = old / listing.manifest
    for path in old.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != manifest:
            path.unlink()
    manifest.unlink(missing_ok=True)  # last: until then it says that all the rest is ours
    old.rmdir()


# Texts


def current(path: Path) -> str | None:
    """The text of a file; None if there is no regular file, or one that is not text."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_TEXT:
            return None
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError):
        return None


def write_changed(
    folder: Path, files: Mapping[str, str], reads: Sequence[Path] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the texts that differ from what is there. Returns (written, unchanged) names, which may have slashes.

    All are on the disk before the first takes its place, by rename and with the mode of the file that it replaces:
    whoever is killed leaves files that are old or new. Links below ``folder`` are not followed; ``reads`` are files
    that must not be replaced. Raises LG632 (disk full), LG633 (permission), LG634 (not a place for a file).
    """
    changed = [name for name, text in files.items() if current(folder / name) != text]
    unchanged = tuple(name for name in files if name not in changed)
    home = folder / _TEXTS
    if not changed and not os.path.lexists(home):
        return (), unchanged
    folders = sorted({(folder / name).parent for name in changed})
    with translated(Path(os.path.abspath(folder))):
        read = {
            (status.st_dev, status.st_ino) for status in map(os.stat, filter(os.path.exists, reads))
        }
        for name in changed:
            _require_place(folder, name, read)
        with _made(folders) as created, _workspace(home, folder, wait=True):
            (home / _NEW).mkdir()
            staged = [home / _NEW / str(number) for number in range(len(changed))]
            for name, path in zip(changed, staged, strict=True):
                _write_synced(path, files[name], folder / name)
            for name, path in zip(changed, staged, strict=True):
                path.replace(folder / name)
            for one in dict.fromkeys((*folders, *(new.parent for new in created))):
                _sync_folder(one)
    return tuple(changed), unchanged


def require_kin(path: Path, is_kin: Callable[[str], bool], what: str) -> None:
    """What a text that the user names takes the place of is of its kind, or empty. Raises LG634."""
    text = current(path)
    if os.path.lexists(path) and (text is None or (text and not is_kin(text))):
        raise _in_the_way(f"{quoted(str(path))} exists and is not {what}", "choose another name")


def require_writable(folder: Path) -> None:
    """A text can be written there, as far as can be told before. Raises LG633 (permission), LG634 (no folder)."""
    place = Path(os.path.abspath(folder))
    with translated(place):
        there = next(one for one in (place, *place.parents) if one.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def _require_place(folder: Path, name: str, read: Collection[tuple[int, int]]) -> None:
    """A text may stand there. Raises LG634, and PermissionError for a file that is read-only."""
    path = folder / name
    for above in list(Path(name).parents)[:-1]:
        if (folder / above).is_symlink():
            message = f"{quoted(str(folder / above))} is a symbolic link, which may lead elsewhere"
            raise _in_the_way(message, "remove the link, or choose another folder")
    if not os.path.lexists(path):
        return
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if path.is_symlink() else "not a regular file"
        raise _in_the_way(f"{quoted(str(path))} exists and is {kind}")
    if (status.st_dev, status.st_ino) in read:
        raise _in_the_way(f"{quoted(str(path))} is a file that this command reads")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _write_synced(path: Path, text: str, place: Path) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        if place.exists():
            path.chmod(place.stat().st_mode & 0o777)
        os.fsync(file.fileno())


# What both need


def workspace_of(folder: Path) -> Path | None:
    """Where a writer of texts works in ``folder``, or one that was killed did; None where no writer has been."""
    home = folder / _TEXTS
    with suppress(FileNotFoundError):
        return home if _is_workspace(home) else None
    return None


def _is_workspace(path: Path) -> bool:
    """Whether a folder is the workspace of a writer that lives or died: it has our mark, or nothing yet.

    Its writer may be making or removing it: what is ours is seen to be in one of a few looks.
    """
    return any(_looks_ours(path) for _ in range(_LOOKS))


def _looks_ours(path: Path) -> bool:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return False
    names = set(os.listdir(path))
    if not all(stat.S_ISREG(os.lstat(path / one).st_mode) for one in names & {_MARK, _LOCK}):
        return False
    if not all(stat.S_ISDIR(os.lstat(path / one).st_mode) for one in names & {_NEW, _OLD}):
        return False  # a link there leads to what is not the writer's
    mark = current(path / _MARK) or ""
    return mark == _MARK_TEXT or (names <= {_MARK, _LOCK} and _MARK_TEXT.startswith(mark))


@contextmanager
def _workspace(home: Path, place: Path, *, wait: bool) -> Iterator[None]:
    """Be the only one who has the folder ``home``, where only `old` may be from before; it is gone afterwards."""
    lock = _locked(home, place, wait=wait)
    try:
        if current(home / _MARK) != _MARK_TEXT:
            (home / _MARK).write_text(_MARK_TEXT, encoding="utf-8", newline="\n")
        shutil.rmtree(home / _NEW, ignore_errors=True)
        yield
    finally:
        shutil.rmtree(home / _NEW, ignore_errors=True)
        if os.name == "nt":  # no open file can be removed there, so nobody's lock is
            lock.release()
        with suppress(OSError):
            if not os.path.lexists(home / _OLD):
                (home / _MARK).unlink()
                (home / _LOCK).unlink()
                home.rmdir()
        lock.release()


def _locked(home: Path, place: Path, *, wait: bool) -> BaseFileLock:
    """Make the workspace, or take that of a writer that died. Raises LG631, or LG634 where a stranger has its name."""
    from filelock import FileLock, Timeout  # a tenth of a second, which readers need not spend

    while True:
        try:
            home.mkdir()
        except FileExistsError:
            pass
        except FileNotFoundError as error:  # what /proc says of a new name
            raise _in_the_way(f"cannot make {quoted(str(home))}: {error.strerror}") from error
        with suppress(FileNotFoundError):  # its writer has just ended: once more
            if not _is_workspace(home):
                message = f"{quoted(str(home))} is not ours, and its name is needed to write {quoted(str(place))}"
                raise _in_the_way(message, "move it away")
            with (home / _LOCK).open("ab") as pinned:  # while it is open no other file is the same
                lock = FileLock(home / _LOCK)
                try:
                    lock.acquire(timeout=-1 if wait else 0)
                except Timeout:
                    raise LlamagenError.of(
                        "LG631",
                        f"another process is writing {quoted(str(place))}",
                        help="wait for it to end, or choose another name",
                    ) from None
                try:
                    if os.path.samestat(os.stat(home / _LOCK), os.fstat(pinned.fileno())):
                        return lock
                except BaseException:
                    lock.release()
                    raise
                lock.release()  # the former owner removed the file between open and lock


@contextmanager
def _made(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Create what is missing of folders; it stays if something came to be in it. The created ones, outer ones first."""
    created: list[Path] = []
    try:
        for folder in folders:
            missing = [one for one in (folder, *folder.parents) if not one.exists()]
            for one in reversed(missing):
                one.mkdir(exist_ok=True)  # another writer may need it too
                created.append(one)
        yield created
    finally:
        for one in reversed(created):
            with suppress(OSError):
                one.rmdir()


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name != "nt":  # Windows opens no folders; NTFS keeps its names by itself
        _sync_file(path)


@contextmanager
def translated(place: Path) -> Iterator[None]:
    """OSErrors about ``place``, the output, become findings; those about other files pass through."""
    try:
        yield
    except OSError as error:
        problem = _as_problem(error, place)
        if problem is None:
            raise
        raise problem from error
    except NotImplementedError as error:  # filelock's word for it
        raise _without_locks(place) from error


def _without_locks(place: Path) -> LlamagenError:
    message = f"cannot write {quoted(str(place))}: its file system has no locks"
    return _in_the_way(message, "choose another disk")


def _as_problem(error: OSError, place: Path) -> LlamagenError | None:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return LlamagenError.of(
                "LG632",
                f"no space is left for {quoted(str(place))}: {_free(place.parent)}; nothing was "
                "written there",
                help="free space or choose another disk; the whole output is staged beside the "
                "target",
            )
        case errno.EFBIG:
            return LlamagenError.of(
                "LG632",
                f"a file of {quoted(str(place))} is too large for the file system or for "
                "`ulimit -f`; nothing was written there",
                help="choose another disk, or raise the limit",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS if _about(error, place):
            return LlamagenError.of(
                "LG633",
                f"cannot write {quoted(str(place))}: {error.strerror}; nothing was written there",
                help=f"is {place.parent} writable for you?",
            )
        case (
            errno.ENOTDIR
            | errno.EEXIST
            | errno.ENAMETOOLONG
            | errno.ENOTEMPTY
            | errno.EBUSY
            | errno.EXDEV  # part of a container's image, or a mount
        ) if _about(error, place):
            return LlamagenError.of("LG634", f"cannot make {quoted(str(place))}: {error.strerror}")
        case errno.ENOENT | errno.ELOOP if error.filename and _above(error.filename, place):
            return LlamagenError.of("LG634", f"cannot make {quoted(str(place))}: {error.strerror}")
        case code if code in _NO_LOCKS and _about(error, place):
            return _without_locks(place)
        case _:
            return None


def _about(error: OSError, place: Path) -> bool:
    """Whether the error names no file, or one on the way to or inside the output."""
    if error.filename is None:
        return True
    name = Path(os.path.abspath(os.fsdecode(error.filename)))
    return name.is_relative_to(place.parent) or place.is_relative_to(name)


def _above(name: str | bytes, place: Path) -> bool:
    """A folder on the way to the output, which the system cannot make: below /proc, or a link to itself."""
    return place.is_relative_to(os.path.abspath(os.fsdecode(name)))


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{bytes_text(shutil.disk_usage(folder).free)} are free"
