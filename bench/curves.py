"""Rows of bench/README.md: decode and prefill over the length of the text and the number of texts, beside the peers.

    python -m bench.curves --work DIR [--only NAME,NAME] [--past 256 1024 4096 16384] [--batch 1 4 16] [--rounds 3]

DIR is that of bench.peers, whose `export` built the models. At each point every contender reads the same tokens (in
chunks of ``--chunk``), then all decode in turn, the order reversed each time. Up to 4,096 tokens a second prefill is
what counts: it finds memory that the first one touched, and says what that cost. Ratios are of rates: above 1 the
first contender is faster than the named one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.contenders import CONTENDERS, Running
from bench.measure import machine

NAMES = "llamagen int4 block 64", "genai builder int4 in genai", "llama.cpp q4_0"
TWICE = 4096
"""Tokens in all rows of a point up to which they are read twice."""
MOST = 20_000
"""More are left out."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/bench"))
    parser.add_argument("--only", default=",".join(NAMES), help="contenders; the first is compared")
    parser.add_argument("--past", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=2048)
    options = parser.parse_args()
    names = options.only.split(",")
    threads = os.cpu_count() or 1
    result: dict[str, object] = {"machine": machine(), "date": datetime.date.today().isoformat()}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Running(CONTENDERS[name], options.work, threads))
            for name in names
        }
        for rows in options.batch:
            for past in options.past:
                if rows * past <= MOST:
                    point = f"{rows} x {past}"
                    result[point] = measured(running, rows, past, options)
                    print(json.dumps({point: result[point]}), file=sys.stderr, flush=True)
    print(json.dumps(result, indent=2))


def measured(
    running: dict[str, Running], rows: int, past: int, options: argparse.Namespace
) -> dict[str, object]:
    asked = {"do": "prefill", "tokens": past, "rows": rows, "chunk": options.chunk}
    first = {name: one.seconds(**asked) for name, one in running.items()}
    again = rows * past <= TWICE
    prefill = {name: one.seconds(**asked) for name, one in running.items()} if again else first
    decode: dict[str, list[float]] = {name: [] for name in running}
    for number in range(options.rounds):
        for name in list(running)[:: -1 if number % 2 else 1]:
            decode[name].append(running[name].seconds(do="decode", steps=options.steps))
    tokens = rows * options.steps
    found: dict[str, object] = {
        name: {
            "prefill tokens/s": round(rows * past / prefill[name], 1),
            **(
                {"first prefill, times the second": round(first[name] / prefill[name], 2)}
                if again
                else {}
            ),
            "decode tokens/s": round(tokens / median(decode[name]), 1),
        }
        for name in running
    }
    ours, *peers = running
    for peer in peers:
        ratios = [b / a for a, b in zip(decode[ours], decode[peer], strict=True)]
        found[f"times {peer}"] = {
            "prefill": round(prefill[peer] / prefill[ours], 2),
            "decode": f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        }
    return found


if __name__ == "__main__":
    main()
