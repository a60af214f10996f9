"""A checkpoint in transformers, eager, in float32 or bfloat16."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.engines.protocol import Engine, serve


class Transformers(Engine):
    def __init__(self, checkpoint: Path, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()
        self.past = None

    def reset(self, rows: int, total: int) -> None:
        self.past = None

    @torch.inference_mode()
    def step(self, ids: Sequence[Sequence[int]]) -> list[int]:
        found = self.model(
            torch.tensor(ids), past_key_values=self.past, use_cache=True, logits_to_keep=1
        )
        self.past = found.past_key_values
        return [int(token) for token in found.logits[:, -1].argmax(dim=1)]


if __name__ == "__main__":
    serve(lambda: Transformers(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
