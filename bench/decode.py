"""Rows of bench/README.md: the generated PyTorch module beside transformers, eager and compiled.

    python -m bench.decode [--layers 16] [--dtype bfloat16] [--past 256 4096] [--prompt 512] [--steps 8] [--rounds 5]

One process, llama/3.2/1b with random weights that both read, two threads; ours compiles one graph for every past, a
StaticCache one for each. In a round every contender in turn, the order reversed each time, gets a cache with `past`
random keys and values and decodes `steps` tokens; its time is their median. Ratios are medians of the rounds' ratios
to ours of the same kind, with the least and the greatest. The tokens of the round that warms up are compared.
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

    def __init__(self, layers: int, dtype: torch.dtype) -> None:
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
        self.cache = made.KVCache
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

    def filled(self, name: str, pairs: Pairs, room: int = 0) -> object:
        """A cache that has `pairs` in it and room for `room` tokens more."""
        capacity = room + (pairs[0][0].shape[2] if pairs else 0)
        if "transformers" in name:
            config = self.peer.config
            cache = DynamicCache(config=config)
            if "Static" in name:
                cache = StaticCache(config=config, max_cache_len=capacity)
            for i, (k, v) in enumerate(pairs):
                cache.update(k, v, i)
            return cache
        cache = self.cache(capacity)
        if pairs:
            cache.start(pairs[0][0].shape[2])
        for k, v in pairs:
            cache.append(k, v)
        cache.finish()
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
    cache, token = bench.filled(name, pairs, steps), torch.tensor([[1]])
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
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    dtype = getattr(torch, options.dtype)
    result: dict[str, object] = {"machine": machine(), "dtype": options.dtype}
    bench = Bench(options.layers, dtype)
    for past in options.past:
        pairs = bench.pairs(past, dtype)
        tokens = {n: decoded(bench, n, pairs, options.steps)[1] for n in bench.steps}  # compiles
        print(past, tokens, file=sys.stderr)
        taken: dict[str, list[float]] = {name: [] for name in bench.steps}
        speed: list[float] = []
        for n in range(options.rounds):
            speed.append(bandwidth())
            for name in list(bench.steps)[:: -1 if n % 2 else 1]:
                taken[name].append(decoded(bench, name, pairs, options.steps)[0])
        read = bench.weights + sum(k.nbytes + v.nbytes for k, v in pairs)
        result[f"decode behind {past}"] = (
            rows(taken)
            | {
                f"{name}, of probed bandwidth": share(read, taken[name], speed)
                for name in (OURS, COMPILED)
            }
            | {"equal tokens": tokens[OURS] == tokens[EAGER] and tokens[COMPILED] == tokens[STATIC]}
        )
    taken = {OURS: [], EAGER: []}
    for attempt in range(options.rounds + 1):
        for name, times in taken.items():
            seconds = prefilled(bench, name, options.prompt)
            times += [seconds] * (attempt > 0)
    result[f"prefill of {options.prompt}"] = rows(taken)
    print(json.dumps(result, indent=2))


def rows(taken: Mapping[str, list[float]]) -> dict[str, object]:
    """Median milliseconds, and how many times as fast ours is."""
    said: dict[str, object] = {n: f"{1000 * median(times):.1f} ms" for n, times in taken.items()}
    for ours, peer in ((OURS, EAGER), (COMPILED, STATIC)):
        if ours in taken:
            ratios = [b / a for a, b in zip(taken[ours], taken[peer], strict=True)]
            spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            said[f"{ours}, times {peer}"] = spread
    return said


def share(read: int, times: list[float], speed: list[float]) -> float:
    """Bytes that a token must read, in its time, of what the probe of the same round read."""
    return round(median(read / t / s for t, s in zip(times, speed, strict=True)), 2)


if __name__ == "__main__":
    main()
