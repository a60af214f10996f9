"""Checkpoint files in another folder without a copy: hard links, and a look at every byte if one is wanted.

A hard link is the file itself under a second name: nothing is copied, the folder stays whole when the checkpoint's
own name is removed, and ONNX Runtime, which refuses symbolic links that leave the folder, takes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import WEIGHTS, is_here, open_file
from llamagen.weights.checkpoint import FLOAT8
from llamagen.weights.names import Binding
from llamagen.weights.pieces import Bytes, Piece, in_turn
from llamagen.weights.safetensors import ITEM_SIZES, TargetDType, TensorEntry, read_header
from llamagen.weights.tensors import Region, blocks, stored
from llamagen.weights.values import BLOCK_ELEMENTS, checked

_COPY = "copy the weights with --weights copy"


def as_stored(bindings: Iterable[Binding]) -> dict[str, TensorEntry]:
    """Role path -> the stored tensor that is the parameter. Raises LG640 for what has to be rearranged."""
    entries: dict[str, TensorEntry] = {}
    for binding in bindings:
        first, *others = binding.tensor.entries
        here = is_here(first.file)
        if binding.tensor.in_order and not others and first.file.suffix == ".safetensors" and here:
            entries[binding.name] = first
            continue
        reason = f"it is made of {', '.join(map(quoted, binding.sources[:2]))}"
        if binding.tensor.in_order and first.dtype == FLOAT8:
            reason = "it is float8, and each value is a product with a scale"
        elif not here:
            reason = "its file is not on this machine"
        message = f"{quoted(binding.name)} cannot be read in place: {reason}"
        raise LlamagenError.of("LG640", message, help=_COPY)
    return entries


def link(entries: Sequence[TensorEntry], folder: Path, *, or_copy: bool = False) -> dict[str, Path]:
    """Hard-link the safetensors files of ``entries`` into ``folder`` under their own names; name -> path there.

    Symbolic links (the Hub cache is made of them) are followed first. Raises LG641 where the system cannot link, unless
    it may copy, LG622 if a file is not any more what ``entries`` say.
    """
    linked: dict[str, Path] = {}
    for file in dict.fromkeys(entry.file for entry in entries):
        target = linked[file.name] = folder / file.name
        try:
            file.name.encode("utf-8")  # a graph holds the names of its files so
            os.link(file.resolve(strict=True), target)
        except UnicodeEncodeError as error:
            message = f"the name of {quoted(str(file))} is not UTF-8, so a graph cannot hold it"
            raise LlamagenError.of("LG641", message, help=f"rename it, or {_COPY}") from error
        except OSError as error:
            if not or_copy or error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES):
                raise _no_link(file, folder, error) from error
            with open_file(file, WEIGHTS) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        now = {(t.name, t.dtype, t.shape, t.offset) for t in read_header(target)}
        if any((t.name, t.dtype, t.shape, t.offset) not in now for t in entries if t.file == file):
            message = f"{quoted(str(file))} was changed while it was read"
            raise LlamagenError.of("LG622", message)
    return linked


def _no_link(file: Path, folder: Path, error: OSError) -> LlamagenError:
    match error.errno:
        case errno.EXDEV:
            reason = "it is on another file system than the output"
        case errno.EPERM | errno.EACCES:
            reason = (
                "the system lets you link only files that you own, on file systems that have links"
            )
        case _:
            reason = error.strerror or str(error)
    return LlamagenError.of(
        "LG641",
        f"{quoted(str(file))} cannot be linked into {quoted(str(folder.parent))}: {reason}",
        help=f"choose an output beside the checkpoint, or {_COPY}",
    )


def scan(
    file: Path,
    bindings: Iterable[Binding],
    dtype: TargetDType,
    report: Callable[[int], None],
) -> str:
    """Read every byte of a safetensors file once: its sha256; ``report`` gets the bytes of each block.

    Raises LG620 for NaN and infinity and LG621 for what ``dtype`` cannot hold, in the tensors of ``bindings``.
    """
    bound = {e.name: b for b in bindings for e in b.tensor.entries if e.file.name == file.name}

    def looked_at(binding: Binding, region: Region) -> list[tuple[int, Bytes]]:
        return [(0, checked(binding, region, dtype).view(np.uint8))]

    def as_it_is(entry: TensorEntry, region: Region) -> list[tuple[int, Bytes]]:
        return [(0, stored(entry).read(region).reshape(-1).view(np.uint8))]

    def contents() -> Iterator[Piece]:
        entries = read_header(file)
        start = entries[0].offset if entries else file.stat().st_size
        for entry in (TensorEntry("header", "U8", (start,), file, 0, start), *entries):
            make = partial(as_it_is, entry)
            if entry.name in bound and entry.offset:
                make = partial(looked_at, bound[entry.name])
            for region in blocks(entry.shape, BLOCK_ELEMENTS):
                length = prod(stop - start for start, stop in region) * ITEM_SIZES[entry.dtype]
                yield Piece(length, partial(make, region))

    digest = hashlib.sha256()
    for block in in_turn(contents()):
        digest.update(block)
        report(block.nbytes)
    return digest.hexdigest()
