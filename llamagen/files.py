"""The one door for files of others: regular ones only, of a size that their kind can have.

A pipe waits for a writer, a device has no end, and a link in a stranger's folder points at whatever he likes: none of
them is opened. A library gets the handle, the bytes or a path that was looked at, never one as a user typed it. What
is refused is a finding under the code of the file's kind, so that nobody who reads has to think of OSError.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from llamagen.diagnostics import LlamagenError, quoted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Opening a pipe must not wait, a terminal must not become ours, a link must not have been put there since it was looked
# at, and Windows, which has none of these, must not translate line ends.
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOCTTY", "O_NOFOLLOW", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)

_CHUNK = 1 << 20
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""The names of the Hub's blobs: a SHA-1 of git, or a SHA-256."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is for: the code of one that cannot be read, and how many bytes it may have (None: any number)."""

    code: str
    limit: int | None
    help: str
    too_large: str | None = None
    """The code of one that is too large, if it is another."""


_DOWNLOAD = "check the path, and that the download is complete"
_AGAIN = "copy the file again"

SPEC = Kind("LG001", 1 << 20, "check the path and its permissions", "LG002")
CONFIG = Kind("LG106", 1 << 20, "give the config.json of a model")
WEIGHTS = Kind("LG601", None, _DOWNLOAD)
COMPANION = Kind("LG601", 256 << 20, _DOWNLOAD)
"""A small file beside the weights."""
INDEX = Kind("LG601", 256 << 20, _DOWNLOAD, "LG604")
TOKENIZER = Kind("LG762", 256 << 20, _AGAIN)
SETTINGS = Kind("LG765", 16 << 20, _AGAIN)
EXPORTED = Kind("LG770", 16 << 20, "export the model again")
"""Texts that an export wrote."""
DATA = Kind(
    "LG773", None, "is the file whole and unchanged? `llamagen verify DIR --integrity` tells"
)
GRAPH = Kind("LG713", 2 << 30, "export the model again")
"""An ONNX file; protobuf holds no more."""
MANIFEST = Kind(
    "LG775", 64 << 20, "`llamagen export` writes one into every folder; is this such a folder?"
)
BASELINE = Kind("LG001", 64 << 20, "write it with `llamagen diff A B --format json`", "LG002")
ORACLE = Kind("LG774", None, "check the path")
IMAGE = Kind("LG780", 512 << 20, "give a PNG, JPEG, WebP, GIF, BMP or TIFF file", "LG781")
TEXT = Kind("LG718", 64 << 20, "give a text in UTF-8")
QUALITY_TEXT = Kind("LG778", 64 << 20, "give a text in UTF-8")
PROMPTS = Kind("LG769", 64 << 20, "give a text in UTF-8")
PACKAGE = Kind("LG722", 1 << 30, "try again")
TEMPLATE = Kind("LG784", 1 << 20, "leave out --chat, or copy the model's template there")


class Elsewhere(Protocol):
    """A file that a server has: its address, its size, and any part of its bytes."""

    address: str
    size: int

    def read(self, start: int, stop: int) -> bytes: ...


_elsewhere: dict[Path, Elsewhere] = {}


def stand_for(path: Path, there: Elsewhere) -> None:
    """Put an empty file at ``path``; from now on who opens it reads what is ``there``."""
    path.touch(exist_ok=False)
    _elsewhere[path] = there


def is_here(path: Path) -> bool:
    """Whether the bytes of a file are on this machine."""
    return path not in _elsewhere


def size_of(file: BinaryIO) -> int:
    """Of an open file, in bytes; its position is then the beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


class _Stream(RawIOBase):
    """A file that is elsewhere, as one that is open."""

    def __init__(self, there: Elsewhere) -> None:
        self.there = there
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.there.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = base + offset
        return self.position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        into = memoryview(buffer).cast("B")
        data = self.there.read(self.position, min(self.position + len(into), self.there.size))
        into[: len(data)] = data
        self.position += len(data)
        return len(data)


def open_file(
    path: Path, kind: Kind, *, within: Path | None = None, name: str | None = None
) -> BufferedReader:
    """A regular file for reading; findings call it ``name``.

    Links that a user names himself are followed. With ``within``, the folder of others in which the file was looked up,
    they are followed inside of it, and from a snapshot of the Hub's cache to the blobs of the same model. Raises the
    codes of ``kind``, and of a file that is elsewhere what reading it there raises.
    """
    if (there := _elsewhere.get(path)) is not None:
        return BufferedReader(_Stream(there))
    return os.fdopen(_Asked(path, kind, within, name or str(path)).opened(), "rb")


def read_bytes(
    path: Path, kind: Kind, *, within: Path | None = None, name: str | None = None
) -> bytes:
    """All of a file that ``open_file`` opens, and no more than its kind allows were it to grow meanwhile."""
    asked = _Asked(path, kind, within, name or str(path))
    parts: list[bytes] = []
    length = 0
    descriptor = asked.opened()
    try:
        with asked.refusing():
            while part := os.read(descriptor, _CHUNK):
                parts.append(part)
                length += len(part)
                asked.require_size(length)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def read_text(path: Path, kind: Kind, *, within: Path | None = None) -> str:
    """The same as text, which must be UTF-8 and begin with no byte-order mark: whoever else reads it may fail on one,
    or take it for a character."""
    asked = _Asked(path, kind, within, str(path))
    try:
        text = read_bytes(path, kind, within=within).decode("utf-8")
    except UnicodeDecodeError as error:
        raise asked.refusal(f"it is not UTF-8 text: byte {error.start:,} is wrong") from None
    if text.startswith("\ufeff"):
        help = "save it as UTF-8 without a byte-order mark (BOM)"
        raise asked.refusal("it begins with a byte-order mark", help)
    return text


def checked(path: Path, kind: Kind, *, within: Path | None = None) -> Path:
    """The path of a file that ``open_file`` opens, for a library that takes nothing else."""
    os.close(_Asked(path, kind, within, str(path)).opened())
    return path


def exists(path: Path) -> bool:
    """Whether something has this name, be it a link to nothing or a pipe: reading it says what is wrong with it."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether it is a folder that can be looked up; `Path.is_dir` raises for a name that is too long."""
    return os.path.isdir(path)


def names_in(folder: Path, kind: Kind) -> list[str]:
    """What a folder holds, sorted. Raises the code of ``kind`` for one that cannot be listed."""
    with _Asked(folder, kind, None, str(folder)).refusing():
        return sorted(os.listdir(folder))


@dataclass(frozen=True, slots=True)
class _Asked:
    path: Path
    kind: Kind
    within: Path | None
    name: str

    def opened(self) -> int:
        """A descriptor of the file, whatever was put in its place meanwhile."""
        with self.refusing():
            self.require_regular(os.stat(self.path))  # opening a device may already do something
            real = _real(self.path)
            if self.within is not None and not _inside(real, self.within):
                reason = f"it is a link out of its folder, to {quoted(str(real))}"
                help = "if you trust it, put the file itself there"
                raise self.refusal(reason, help)
            descriptor = os.open(real, _FLAGS)
        try:
            status = os.fstat(descriptor)
            self.require_regular(status)
            self.require_size(status.st_size)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def require_regular(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self.refusal(f"it is {_kind_of(status.st_mode)}, not a regular file")

    def require_size(self, size: int) -> None:
        if self.kind.limit is not None and size > self.kind.limit:
            code = self.kind.too_large or self.kind.code
            message = f"{quoted(self.name)} is larger than {self.kind.limit:,} bytes, which no such file is"
            raise LlamagenError.of(code, message, help=self.kind.help)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """What the system refuses is a finding: ValueError too, which is about names that it cannot have."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ENOENT and os.path.islink(self.path):
                there = quoted(os.readlink(self.path))
                reason = f"the link points to {there}, which does not exist"
            raise self.refusal(reason) from error
        except ValueError as error:
            raise self.refusal(f"no file can have this name ({error})") from error

    def refusal(self, reason: str, help: str | None = None) -> LlamagenError:
        message = f"cannot read {quoted(self.name)}: {reason}"
        return LlamagenError.of(self.kind.code, message, help=help or self.kind.help)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path, strict=True))


def _inside(real: Path, folder: Path) -> bool:
    """Whether it is in ``folder``, or a blob of the model whose snapshot that is in the Hub's cache.

    The cache has models--OWNER--NAME/snapshots/REVISION/.../FILE -> models--OWNER--NAME/blobs/HASH.
    """
    home = _real(folder)
    if real.is_relative_to(home):
        return True
    snapshots = (above.parent for above in (home, *home.parents))
    models = [above.parent for above in snapshots if above.name == "snapshots"]
    return _BLOB.fullmatch(real.name) is not None and any(
        real.parent == model / "blobs" for model in models
    )


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
