"""The folder that we exported in our own session, as ``llamagen run`` opens it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.engines.protocol import Engine, serve
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions
from llamagen.runtime.session import Batch, Session


class Ours(Engine):
    def __init__(self, folder: Path, threads: int) -> None:
        self.session = Session(folder, OpenOptions(threads, settings=read_manifest(folder).session))

    def reset(self, rows: int, total: int) -> None:
        self.batch = Batch(self.session, rows, total)

    def step(self, ids: Sequence[Sequence[int]]) -> list[int]:
        return [int(token) for token in self.batch.step(ids).argmax(axis=1)]


if __name__ == "__main__":
    serve(lambda: Ours(Path(sys.argv[1]), int(sys.argv[2])))
