"""What a bench and an engine say to each other: one line of JSON each way.

An engine opens its model, says ``{"load_seconds", "anonymous", "peak_resident"}``, and then answers requests:

    {"do": "prefill", "tokens": n, "rows": r, "chunk": c} -> {"seconds": s}
        n tokens into the empty caches of r rows, c at once (all by default)
    {"do": "decode", "steps": n}     -> {"seconds": s}    n greedy tokens a row, one by one, behind what the cache holds
    {"do": "tokens", "prompt": [...], "steps": n} -> {"tokens": [...]}    greedy, for a comparison of engines

Standard library only: it is imported in the peers' environments.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

ROOM = 64
"""Tokens that are decoded behind a prompt at most."""


class Engine(ABC):
    """A model with rows of tokens in its cache, as many of each."""

    @abstractmethod
    def reset(self, rows: int, total: int) -> None:
        """Empty caches for that many rows, each with room for ``total`` tokens."""

    @abstractmethod
    def step(self, ids: Sequence[Sequence[int]]) -> list[int]:
        """Append tokens to every row; the likeliest next one of each."""


def serve(opened: Callable[[], Engine], vocab_size: int = 256) -> None:
    """Open an engine and answer until the input ends. Ids of timed prompts stay below ``vocab_size``."""
    started = time.perf_counter()
    engine = opened()
    load = time.perf_counter() - started
    status = _status()
    _say(load_seconds=load, anonymous=status["RssAnon"], peak_resident=status["VmHWM"])
    last = [1]
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["do"]:
            case "prefill":
                count, rows = asked["tokens"], asked.get("rows", 1)
                engine.reset(rows, count + ROOM)
                ids = [[(i * 7 + row) % vocab_size for i in range(count)] for row in range(rows)]
                chunk = asked.get("chunk", count)
                started = time.perf_counter()
                for start in range(0, count, chunk):
                    last = engine.step([row[start : start + chunk] for row in ids])
                _say(seconds=time.perf_counter() - started)
            case "decode":
                started = time.perf_counter()
                for _ in range(asked["steps"]):
                    last = engine.step([[token] for token in last])
                _say(seconds=time.perf_counter() - started)
            case "tokens":
                engine.reset(1, len(asked["prompt"]) + asked["steps"])
                tokens = engine.step([asked["prompt"]])
                while len(tokens) < asked["steps"]:
                    tokens += engine.step([tokens[-1:]])
                _say(tokens=tokens)


def _status() -> dict[str, int]:
    """Memory of this process, bytes."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "VmHWM"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)
