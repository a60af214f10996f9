"""Checkpoint files in another folder without a copy: hard links, and a look at every byte if one is wanted.

A hard link is the file itself under a second name: nothing is copied, the folder stays whole when the checkpoint's
own name is removed, and ONNX Runtime, which refuses symbolic links that leave the folder, takes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from llamagen.weights.binding import Binding
from llamagen.weights.dtypes import ITEM_SIZES, TargetDType
from llamagen.weights.nodes import Leaf, Region, Scaled, blocks
from llamagen.weights.pieces import Bytes, Piece, in_parallel
from llamagen.weights.problems import problem, quoted
from llamagen.weights.reading import OpenFiles
from llamagen.weights.safetensors_file import TensorEntry, read_header
from llamagen.weights.stream import BLOCK_ELEMENTS, checked

_COPY = "copy the weights with --weights copy"
_BLOCK = 16 << 20


def as_stored(bindings: Iterable[Binding]) -> dict[str, TensorEntry]:
    """Role path -> the stored tensor that is the parameter. Raises LG640 for what has to be rearranged."""
    found: dict[str, TensorEntry] = {}
    for binding in bindings:
        match binding.source:
            case Leaf(entry) if entry.file.suffix == ".safetensors":
                found[binding.name] = entry
            case Scaled():
                raise problem(
                    "LG640",
                    f"{quoted(binding.name)} cannot be read in place: it is float8, and each value is a product with "
                    "a scale",
                    help=_COPY,
                )
            case _:
                sources = ", ".join(map(quoted, binding.sources[:2]))
                raise problem(
                    "LG640",
                    f"{quoted(binding.name)} cannot be read in place: it is made of {sources}",
                    help=_COPY,
                )
    return found


def link(entries: Sequence[TensorEntry], folder: Path) -> dict[str, Path]:
    """Hard-link the safetensors files of ``entries`` into ``folder`` under their own names; name -> path there.

    Symbolic links (the Hub cache is made of them) are followed first. Raises LG641 where the system cannot link, LG622
    if a file is not any more what ``entries`` say.
    """
    linked: dict[str, Path] = {}
    for file in dict.fromkeys(entry.file for entry in entries):
        target = folder / file.name
        _require_utf8(file)
        try:
            os.link(file.resolve(strict=True), target)
        except OSError as error:
            raise _no_link(file, folder, error) from error
        linked[file.name] = target
        _compare(target, [entry for entry in entries if entry.file == file])
    return linked


def _require_utf8(file: Path) -> None:
    """A graph holds the names of its files as UTF-8."""
    try:
        file.name.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"the name of {quoted(str(file))} is not UTF-8, so a graph cannot hold it"
        raise problem("LG641", message, help=f"rename it, or {_COPY}") from error


def _no_link(file: Path, folder: Path, error: OSError) -> Exception:
    match error.errno:
        case errno.EXDEV:
            reason = "it is on another file system than the output"
        case errno.EPERM | errno.EACCES:
            reason = (
                "the system lets you link only files that you own, on file systems that have links"
            )
        case _:
            reason = error.strerror or str(error)
    return problem(
        "LG641",
        f"{quoted(str(file))} cannot be linked into {quoted(str(folder.parent))}: {reason}",
        help=f"choose an output beside the checkpoint, or {_COPY}",
    )


def _compare(target: Path, entries: Sequence[TensorEntry]) -> None:
    """The linked file has the tensors that were found under its first name."""
    now = {(t.name, t.dtype, t.shape, t.offset) for t in read_header(target).tensors}
    for entry in entries:
        if (entry.name, entry.dtype, entry.shape, entry.offset) not in now:
            raise problem("LG622", f"{quoted(str(entry.file))} was changed while it was read")


def scan(
    file: Path,
    bindings: Iterable[Binding],
    dtype: TargetDType,
    report: Callable[[int], None],
) -> str:
    """Read every byte of a safetensors file once: its sha256; ``report`` gets the bytes of each block.

    Raises LG620 for NaN and infinity and LG621 for what ``dtype`` cannot hold, in the tensors of ``bindings``.
    """
    digest = hashlib.sha256()
    bound = {entry.name: b for b in bindings for entry in b.entries if entry.file.name == file.name}
    with OpenFiles() as files:
        contents = _contents(file, bound, dtype, files)
        for length, made in in_parallel(contents, lambda piece: piece.make()):
            for _, data in made:
                digest.update(data.data)
            report(length)
    return digest.hexdigest()


def _contents(
    file: Path, bound: Mapping[str, Binding], dtype: TargetDType, files: OpenFiles
) -> Iterator[Piece]:
    entries = read_header(file).tensors
    start = entries[0].offset if entries else file.stat().st_size
    yield from _raw(TensorEntry("header", "U8", (start,), file, 0, start), files)
    for entry in entries:
        if entry.name not in bound:
            yield from _raw(entry, files)
            continue
        binding = bound[entry.name]
        item = ITEM_SIZES[entry.dtype]
        for region in blocks(binding.shape, BLOCK_ELEMENTS):
            length = prod(stop - start for start, stop in region) * item
            yield Piece(length, partial(_looked_at, binding, region, dtype, files))


def _looked_at(
    binding: Binding, region: Region, dtype: TargetDType, files: OpenFiles
) -> Sequence[tuple[int, Bytes]]:
    return [(0, checked(binding, region, files, dtype).view(np.uint8))]


def _raw(entry: TensorEntry, files: OpenFiles) -> Iterator[Piece]:
    for start in range(0, entry.nbytes, _BLOCK):
        length = min(_BLOCK, entry.nbytes - start)
        yield Piece(length, partial(_read, entry, start, length, files))


def _read(
    entry: TensorEntry, start: int, length: int, files: OpenFiles
) -> Sequence[tuple[int, Bytes]]:
    data = np.empty(length, np.uint8)
    files.read_into(entry, start, data.data)
    return [(0, data)]
