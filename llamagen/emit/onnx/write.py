"""Writing the files of an ONNX model: weights streamed into data files, then the graph, then its text.

The folder is the caller's, usually a staging folder that is published as a whole; the weights come from a function, so
that this file knows no checkpoint formats. Memory is what that function needs plus the graph.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.data import (
    MAX_DATA_FILE_BYTES,
    Placement,
    attach_external,
    plan,
    serialize,
)
from llamagen.emit.onnx.emit import Initializer, OnnxModel
from llamagen.emit.onnx.text import render

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

CopyWeight: TypeAlias = Callable[[Initializer, BinaryIO], None]
"""Appends the sources of an initializer to a file, in order: row-major, little-endian, in its dtype."""


def write_model(
    emitted: OnnxModel,
    folder: Path,
    copy: CopyWeight,
    limit: int = MAX_DATA_FILE_BYTES,
) -> tuple[Path, ...]:
    """Write ``model.onnx``, its data file or files and ``model.onnx.txt`` into ``folder``; returns their paths.

    The same model and weights give the same bytes. Space for the data is claimed before the first weight is read, so
    that a disk too small is found at once. OSErrors and what ``copy`` raises pass through. Raises LG710 when ``copy``
    writes another number of bytes than the tensor has.
    """
    return write_models({MODEL_FILE.partition(".")[0]: emitted}, folder, copy, limit)


def write_models(
    models: Mapping[str, OnnxModel],
    folder: Path,
    copy: CopyWeight,
    limit: int = MAX_DATA_FILE_BYTES,
) -> tuple[Path, ...]:
    """The same for several graphs of one model, ``NAME.onnx`` each: a weight that two of them read is stored once."""
    together = together_initializers(models.values())
    placements = plan(together, DATA_FILE, limit)
    written: list[Path] = []
    for location, group in groupby(placements, key=lambda spot: spot.location):
        written.append(folder / location)
        _write_data(folder / location, list(group), copy)
    for stem, emitted in models.items():
        own = {entry.name for entry in emitted.initializers}
        attach_external(emitted, [spot for spot in placements if spot.initializer.name in own])
        for suffix, data in (
            (".onnx", serialize(emitted)),
            (".onnx.txt", render(emitted).encode()),
        ):
            (folder / f"{stem}{suffix}").write_bytes(data)
            written.append(folder / f"{stem}{suffix}")
    return tuple(written)


def together_initializers(models: Iterable[OnnxModel]) -> tuple[Initializer, ...]:
    """The weights of all models, each once, in the order they are first read."""
    return tuple({entry.name: entry for m in models for entry in m.initializers}.values())


def _write_data(path: Path, placements: Sequence[Placement], copy: CopyWeight) -> None:
    with path.open("xb") as file:
        _claim(file, placements[-1].offset + placements[-1].length)
        for spot in placements:
            file.seek(spot.offset)
            copy(spot.initializer, file)
            length = file.tell() - spot.offset
            if length != spot.length:
                raise LlamagenError.of(
                    "LG710",
                    f"{spot.initializer.name} came as {length:,} bytes, "
                    f"{spot.length:,} were expected",
                )


def _claim(file: BinaryIO, size: int) -> None:
    """Reserve ``size`` bytes on the disk where the file system can; gaps read as zeros either way."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        file.truncate(size)
