"""A folder with a genai_config.json in onnxruntime-genai."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from bench.engines.protocol import Engine, serve


class Genai(Engine):
    def __init__(self, folder: Path, threads: int) -> None:
        config = og.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)

    def reset(self, rows: int, total: int) -> None:
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=total, batch_size=rows, do_sample=False)
        self.generator = og.Generator(self.model, params)
        self.last: list[int] = []

    def step(self, ids: Sequence[Sequence[int]]) -> list[int]:
        # of single tokens that this generator chose itself, the cache knows already
        if [[token] for token in self.last] != [list(row) for row in ids]:
            self.generator.append_tokens(np.array(ids, np.int32))
        self.generator.generate_next_token()
        self.last = [int(self.generator.get_sequence(row)[-1]) for row in range(len(ids))]
        return self.last


if __name__ == "__main__":
    serve(lambda: Genai(Path(sys.argv[1]), int(sys.argv[2])))
