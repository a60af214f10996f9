"""Is a folder still what ``export`` wrote? Every file against MANIFEST.json, byte for byte.

This is about damage: a flipped bit, a cut copy, a file too many. Whoever can change a file can change the manifest
as well; keep a copy of the manifest, or its hash, elsewhere to know who wrote the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import MANIFEST, FileRecord, recorded_files
from llamagen.emit.written import ByteCounter, Progress, silent
from llamagen.files import DATA, open_file, read_bytes
from llamagen.files import MANIFEST as MANIFEST_KIND
from llamagen.writing import workspace_of

Damage: TypeAlias = Literal["missing", "extra", "not a file", "size", "content", "unreadable"]

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class FileFinding:
    """What is wrong with one file."""

    file: str
    damage: Damage
    detail: str

    def cells(self) -> tuple[str, str, str]:
        return self.file, self.damage, self.detail


@dataclass(frozen=True, slots=True)
class Integrity:
    """``manifest_sha256`` is what to keep elsewhere.

    Of ``unread`` files, ``unread_bytes`` in all, only size and header are known: no one has read their values, neither
    an export nor this.
    """

    findings: tuple[FileFinding, ...]
    files: int
    bytes: int
    manifest_sha256: str
    unread: tuple[str, ...]
    unread_bytes: int

    @property
    def whole(self) -> bool:
        return not self.findings


def check_integrity(folder: str | Path, progress: Progress = silent) -> Integrity:
    """Read every file of ``folder`` once; ``progress`` gets (bytes read, bytes in all).

    Raises LG775 for a folder without a manifest, or with one that cannot be read.
    """
    folder = Path(folder)
    recorded = recorded_files(folder)
    present = {p.relative_to(folder).as_posix(): p for p in _entries(folder)}
    total = sum(record.size for record in recorded.values())
    counter = ByteCounter(progress, total)
    found: list[FileFinding] = []
    for name, record in sorted(recorded.items()):
        path = present.pop(name, None)
        if path is None:
            found.append(FileFinding(name, "missing", f"{record.size:,} bytes were written"))
            counter.add(record.size)
            continue
        found += _damage(name, path, record, counter)
    present.pop(MANIFEST, None)
    found += [FileFinding(name, "extra", "`export` did not write it") for name in sorted(present)]
    data = read_bytes(folder / MANIFEST, MANIFEST_KIND, within=folder)
    unread = {n: r.size for n, r in sorted(recorded.items()) if r.sha256 is None}
    return Integrity(
        tuple(found),
        len(recorded),
        total,
        hashlib.sha256(data).hexdigest(),
        tuple(unread),
        sum(unread.values()),
    )


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below that is not a folder, links included, but for what a writer that was killed left there."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(where, name) != workspace_of(folder)]
        place = Path(where)
        yield from (place / name for name in files)
        yield from (place / name for name in folders if (place / name).is_symlink())


def _damage(
    name: str, path: Path, record: FileRecord, counter: ByteCounter
) -> Iterator[FileFinding]:
    """At most one finding; the content is read only where the size is right."""
    if path.is_symlink() or not path.is_file():
        counter.add(record.size)
        yield FileFinding(name, "not a file", "a link or a special file stands in its place")
        return
    size = path.stat().st_size
    if size != record.size:
        counter.add(record.size)
        yield FileFinding(
            name, "size", f"{size:,} bytes, {record.size:,} were written{_cut(record, size)}"
        )
        return
    try:
        digest, header, place = _digests(path, record, counter)
    except OSError as error:
        yield FileFinding(name, "unreadable", error.strerror or str(error))
        return
    except LlamagenError as error:
        yield FileFinding(name, "unreadable", error.diagnostics[0].message)
        return
    if record.sha256 is not None and digest != record.sha256:
        detail = f"sha256 {digest[:16]}…, {record.sha256[:16]}… was written{place}"
        yield FileFinding(name, "content", detail)
    elif record.header_sha256 is not None and header != record.header_sha256:
        yield FileFinding(name, "content", "the header of the safetensors file has changed")


def _cut(record: FileRecord, size: int) -> str:
    """Which tensor a data file ends in."""
    lost = [one.name for one in record.tensors if one.stop > size]
    if not lost:
        return ""
    more = f", and {len(lost) - 1:,} after it are missing" if len(lost) > 1 else ""
    return f": it ends in {lost[0]!r}{more}"


def _digests(path: Path, record: FileRecord, counter: ByteCounter) -> tuple[str, str, str]:
    """sha256 of the content (empty where none was recorded) and of a safetensors header (likewise).

    Then the first tensor with damage: what comes after it cannot be told from these hashes.
    """
    whole, header = hashlib.sha256(), hashlib.sha256()
    place = ""
    with open_file(path, DATA) as file:
        if record.header_sha256 is not None:
            start = file.read(8)
            length = min(int.from_bytes(start, "little"), record.size)
            header.update(start + file.read(length))
            file.seek(0)
        if record.sha256 is None:
            counter.add(record.size)
            return "", header.hexdigest(), ""
        position = 0
        for tensor in record.tensors:
            begin = position
            position += _read(file, tensor.stop - position, whole, counter)
            if not place and whole.copy().hexdigest()[: len(tensor.until)] != tensor.until:
                place = f"; first in {tensor.name!r}, bytes {begin:,} to {position:,}"
        _read(file, record.size - position, whole, counter)
    return whole.hexdigest(), header.hexdigest(), place


def _read(file: BinaryIO, count: int, into: hashlib._Hash, counter: ByteCounter) -> int:
    """The next ``count`` bytes, or fewer at the end of the file."""
    left = count
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        into.update(chunk)
        counter.add(len(chunk))
        left -= len(chunk)
    return count - left
