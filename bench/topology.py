"""Rows of bench/README.md: every graph of a model of full size, without weights.

    python -m bench.topology [--runs 3] [ID ...]

Each row is a process of its own, so its peak memory is that of the whole command. The peer in the same run is what a
tracer needs before it can begin: `transformers` with the model on the meta device. It exports no Llama 4 at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.measure import Measured, machine, run

DEFAULT = ("llama/4/scout", "llama/4/maverick", "llama/guard/4-12b", "llama/3.1/405b")

PEER = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
config = AutoConfig.for_model(**json.load(open(sys.argv[1])))
auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
with torch.device("meta"):
    auto.from_config(config)
"""


def measured(command: list[str], runs: int) -> Measured:
    """The run of median time."""
    found = [run([sys.executable, *command]) for _ in range(runs)]
    for one in found:
        if one.returncode:
            raise SystemExit(one.output)
    middle = median(one.wall_s for one in found)
    return min(found, key=lambda one: abs(one.wall_s - middle))


def row(spec: str, runs: int, work: Path) -> dict[str, object]:
    out = work / spec.replace("/", "-")
    make = ["-m", "llamagen", "generate", spec, "--to", str(out), "--target"]
    run([sys.executable, *make, "config"])
    ours = measured([*make, "onnx"], runs)
    torch = measured([*make, "torch"], runs)
    peer = measured(["-c", PEER, str(out / spec / "config.json")], runs)
    return {
        "spec": spec,
        "onnx_s": round(ours.wall_s, 2),
        "onnx_peak_rss_mb": round(ours.peak_rss / 1e6),
        "torch_source_s": round(torch.wall_s, 2),
        "torch_source_peak_rss_mb": round(torch.peak_rss / 1e6),
        "transformers_on_meta_s": round(peer.wall_s, 2),
        "transformers_on_meta_peak_rss_mb": round(peer.peak_rss / 1e6),
        "time_over_transformers": round(ours.wall_s / peer.wall_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", default=DEFAULT)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [row(spec, options.runs, Path(work)) for spec in options.ids]
    print(json.dumps({"machine": machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
