"""Writing small texts: every file whole or not at all, and what the system refused as a finding.

Folders that appear as a whole, with weights in them, are published by ``llamagen.weights.publish``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.units import bytes_text

_PARTIAL = re.compile(r"\..+\.llamagen-[0-9a-f]{12}\.tmp")


def current(path: Path) -> str | None:
    """The text of a file, None if there is none or it is not text."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def write_changed(
    folder: Path, files: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the texts that differ from what is there. Returns (written, unchanged) names.

    All are on the disk before the first takes its place, by rename and with the mode of the file
    that it replaces: whoever is killed leaves files that are old or new, and the next call removes
    what else is left. Raises LG632 (disk full), LG633 (permission), LG634 (not a place for a file).
    """
    changed = [name for name, text in files.items() if current(folder / name) != text]
    unchanged = tuple(name for name in files if name not in changed)
    partials: dict[Path, Path] = {}
    with ExitStack() as held, translated(Path(os.path.abspath(folder))):
        for name in changed:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for one in sorted({(folder / name).parent for name in files}):
            held.enter_context(_swept(one))
        try:
            for name in changed:
                path = folder / name
                partial = path.with_name(f".{path.name}.llamagen-{secrets.token_hex(6)}.tmp")
                partials[path] = partial
                _write_synced(partial, files[name], path)
            for path, partial in partials.items():
                partial.replace(path)
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)
    return tuple(changed), unchanged


def _write_synced(partial: Path, text: str, place: Path) -> None:
    with partial.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        if place.exists():
            os.fchmod(file.fileno(), place.stat().st_mode & 0o777)
        os.fsync(file.fileno())


@contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """The only writer of ``folder`` meanwhile; what writers that died left there is gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: another writer may live, so nothing is swept
            pass
        else:
            for entry in folder.iterdir():
                if _PARTIAL.fullmatch(entry.name):
                    entry.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def translated(place: Path) -> Iterator[None]:
    """OSErrors about ``place``, the output, become findings; those about other files pass through."""
    try:
        yield
    except OSError as error:
        found = _as_problem(error, place)
        if found is None:
            raise
        raise found from error


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
        case errno.ENOTDIR | errno.EEXIST | errno.ENAMETOOLONG | errno.ENOTEMPTY if _about(
            error, place
        ):
            return LlamagenError.of("LG634", f"cannot make {quoted(str(place))}: {error.strerror}")
        case errno.ENOENT | errno.ELOOP if error.filename and _above(error.filename, place):
            return LlamagenError.of("LG634", f"cannot make {quoted(str(place))}: {error.strerror}")
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
