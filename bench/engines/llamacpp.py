"""A GGUF file in llama.cpp, flash attention on; rows are sequences of one context, each with keys of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as cpp
import numpy as np

from bench.engines.protocol import Engine, serve

AT_ONCE = 512


class LlamaCpp(Engine):
    def __init__(self, model: Path, threads: int) -> None:
        self.threads = threads
        self.model = cpp.llama_model_load_from_file(
            str(model).encode(), cpp.llama_model_default_params()
        )
        self.vocab_size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self.model))
        self.context: Any = None

    def reset(self, rows: int, total: int) -> None:
        if self.context is not None:
            cpp.llama_free(self.context)
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = rows * (total + 256), rows, False
        params.n_batch = params.n_ubatch = AT_ONCE
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = 1
        self.context = cpp.llama_init_from_model(self.model, params)
        self.batch = cpp.llama_batch_init(AT_ONCE, 0, 1)
        self.length = 0

    def step(self, ids: Sequence[Sequence[int]]) -> list[int]:
        count, chosen = len(ids[0]), [0] * len(ids)
        each = max(1, AT_ONCE // len(ids))
        for start in range(0, count, each):
            end = min(start + each, count)
            self.batch.n_tokens = 0
            for row, tokens in enumerate(ids):
                for place in range(start, end):
                    self._add(tokens[place], self.length + place, row, place == count - 1)
            if status := cpp.llama_decode(self.context, self.batch):
                raise RuntimeError(f"llama_decode gave {status}")
            if end == count:
                for row in range(len(ids)):
                    at = (row + 1) * (end - start) - 1
                    logits = cpp.llama_get_logits_ith(self.context, at)
                    array = np.ctypeslib.as_array(logits, (self.vocab_size,))
                    chosen[row] = int(array.argmax())
        self.length += count
        return chosen

    def _add(self, token: int, position: int, row: int, last: bool) -> None:
        batch, n = self.batch, self.batch.n_tokens
        batch.token[n], batch.pos[n], batch.logits[n] = token, position, last
        batch.n_seq_id[n], batch.seq_id[n][0] = 1, row
        batch.n_tokens = n + 1


if __name__ == "__main__":
    cpp.llama_backend_init()
    serve(lambda: LlamaCpp(Path(sys.argv[1]), int(sys.argv[2])))
