"""A GGUF file in llama.cpp, flash attention on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from bench.engines.protocol import Engine, serve

LENGTH = 1024


class LlamaCpp(Engine):
    def __init__(self, model: Path, threads: int) -> None:
        self.model = llama_cpp.Llama(
            str(model),
            n_ctx=LENGTH,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )
        self.vocab_size = self.model.n_vocab()

    def reset(self) -> None:
        self.model.reset()

    def step(self, ids: Sequence[int]) -> int:
        self.model.eval(list(ids))
        logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


if __name__ == "__main__":
    serve(lambda: LlamaCpp(Path(sys.argv[1]), int(sys.argv[2])))
