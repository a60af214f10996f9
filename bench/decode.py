"""Rows of bench/README.md: the generated PyTorch module beside transformers, eager and compiled.

    python -m bench.decode [--layers 16] [--dtype bfloat16] [--past 256 4096] [--prompt 512] [--steps 12] [--rounds 3]

One process, llama/3.2/1b with random weights that both read, two threads. Before every round a cache is filled with
`past` random keys and values, then tokens are decoded one by one; contenders take turns, ratios are medians of the
rounds' ratios to ours of the same kind. What they decode first is compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from bench.measure import bandwidth, machine
from llamagen.emit.config.table import config_files
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry

SPEC = (
    "spec: 1\nid: bench/decode\nextends: llama/3.2/1b\nhyperparameters: {{num_layers: {layers}}}\n"
)
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
Step = Callable[[torch.Tensor, object], torch.Tensor]
OURS, COMPILED = "llamagen", "llamagen, compiled"
EAGER, STATIC = "transformers, DynamicCache", "transformers, StaticCache, compiled"


class Bench:
    """The two modules, with the same weights."""

    def __init__(self, layers: int, dtype: torch.dtype, capacity: int) -> None:
        resolved = Registry().load_text(SPEC.format(layers=layers))
        graph = build(resolved)
        made = load_module(emit_torch(graph))
        torch.manual_seed(0)
        ours = made.CausalLM().to(dtype).eval()
        config = json.loads(config_files(resolved)["config.json"])
        with torch.device("meta"):
            self.peer = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**config), attn_implementation="sdpa"
            )
        self.peer.load_state_dict(ours.state_dict(), assign=True)
        self.peer.tie_weights()
        # frequencies are no weights, and still on the meta device
        rotary = self.peer.model.rotary_emb
        self.peer.model.rotary_emb = type(rotary)(self.peer.config)
        self.peer.eval()
        self.capacity, self.cache = capacity, made.KVCache
        self.weights = sum(p.nbytes for p in ours.parameters())
        compiled = torch.compile(ours, fullgraph=True, dynamic=True)
        static: Any = torch.compile(self.peer, dynamic=False)
        self.steps: Mapping[str, Step] = {
            OURS: lambda ids, cache: ours(ids, cache=cache, logits_to_keep=1),
            EAGER: lambda ids, cache: self.theirs(self.peer, ids, cache),
            COMPILED: lambda ids, cache: compiled(ids, cache=cache, logits_to_keep=1),
            STATIC: lambda ids, cache: self.theirs(static, ids, cache),
        }

    @staticmethod
    def theirs(model: torch.nn.Module, ids: torch.Tensor, cache: object) -> torch.Tensor:
        found = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = found.logits
        return logits

    def filled(self, name: str, pairs: Pairs) -> object:
        if "transformers" in name:
            config = self.peer.config
            cache = DynamicCache(config=config)
            if "Static" in name:
                cache = StaticCache(config=config, max_cache_len=self.capacity)
            for i, (k, v) in enumerate(pairs):
                cache.update(k, v, i)
            return cache
        cache = self.cache(self.capacity)
        if pairs:
            cache.start(pairs[0][0].shape[2])
        for k, v in pairs:
            cache.append(k, v)
        return cache

    def pairs(self, past: int, dtype: torch.dtype) -> Pairs:
        config = self.peer.config
        shape = (1, config.num_key_value_heads, past, config.head_dim)
        return [
            (torch.randn(shape).to(dtype), torch.randn(shape).to(dtype))
            for _ in range(config.num_hidden_layers)
        ]


def decoded(bench: Bench, name: str, pairs: Pairs, steps: int) -> tuple[float, list[int]]:
    """Median seconds of a token, and the tokens."""
    cache, token = bench.filled(name, pairs), torch.tensor([[1]])
    times, tokens = [], []
    for _ in range(steps):
        start = time.perf_counter()
        token = bench.steps[name](token, cache)[:, -1:].argmax(-1)
        times.append(time.perf_counter() - start)
        tokens.append(int(token))
    return median(times), tokens


def prefilled(bench: Bench, name: str, prompt: int) -> float:
    ids = torch.arange(prompt)[None] * 7 % 256
    cache = bench.filled(name, [])
    start = time.perf_counter()
    bench.steps[name](ids, cache)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--past", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    dtype = getattr(torch, options.dtype)
    result: dict[str, object] = {"machine": machine(), "dtype": options.dtype}
    for past in options.past:
        torch._dynamo.reset()
        bench = Bench(options.layers, dtype, past + max(options.steps, 3))
        pairs, taken = bench.pairs(past, dtype), {name: list[float]() for name in bench.steps}
        for name in bench.steps:  # warms up, and compiles
            print(past, name, decoded(bench, name, pairs, 3), file=sys.stderr)
        speed: list[float] = []
        for _ in range(options.rounds):
            speed.append(bandwidth())
            for name in bench.steps:
                taken[name].append(decoded(bench, name, pairs, options.steps)[0])
        read = bench.weights + sum(k.nbytes + v.nbytes for k, v in pairs)
        result[f"decode behind {past}"] = rows(taken) | {
            "of probed bandwidth": round(read / median(taken[OURS]) / median(speed), 2)
        }
    taken = {OURS: [], EAGER: []}
    for attempt in range(options.rounds + 1):
        for name, times in taken.items():
            seconds = prefilled(bench, name, options.prompt)
            times += [seconds] * (attempt > 0)
    result[f"prefill of {options.prompt}"] = rows(taken)
    print(json.dumps(result, indent=2))


def rows(taken: Mapping[str, list[float]]) -> dict[str, object]:
    """Median milliseconds, and how many times as fast ours is."""
    found: dict[str, object] = {n: f"{1000 * median(times):.1f} ms" for n, times in taken.items()}
    for ours, peer in ((OURS, EAGER), (COMPILED, STATIC)):
        if ours in taken:
            ratios = [b / a for a, b in zip(taken[ours], taken[peer], strict=True)]
            found[f"{ours}, times {peer}"] = round(median(ratios), 2)
    return found


if __name__ == "__main__":
    main()
