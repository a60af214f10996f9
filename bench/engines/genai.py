"""A folder with a genai_config.json in onnxruntime-genai."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from bench.engines.protocol import Engine, serve

LENGTH = 1024


class Genai(Engine):
    def __init__(self, folder: Path, threads: int) -> None:
        config = og.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        context = json.loads((folder / "genai_config.json").read_text())["model"]["context_length"]
        self.length = min(LENGTH, context)
        self.reset()

    def reset(self) -> None:
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=self.length, do_sample=False)
        self.generator = og.Generator(self.model, params)

    def step(self, ids: Sequence[int]) -> int:
        # of a single token that this generator chose itself, the cache knows already
        if self.generator.token_count() == 0 or list(ids) != [self.last]:
            self.generator.append_tokens(np.array([ids], np.int32))
        self.generator.generate_next_token()
        self.last: int = int(self.generator.get_sequence(0)[-1])
        return self.last


if __name__ == "__main__":
    serve(lambda: Genai(Path(sys.argv[1]), int(sys.argv[2])))
