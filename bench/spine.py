"""First rows of bench/README.md: export of a checkpoint, and decode and prefill of the folder it gives.

    python -m bench.spine --work DIR [--spec llama/3.2/1b] [--runs 3]

DIR holds the random checkpoint (2.5 GB for Llama-3.2-1B) and the exported folder (5 GB in float32). Every ratio is
taken within this run: `cp` of the checkpoint for the export, `transformers` eager on the same weights for speed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.checkpoint import checkpoint
from bench.measure import Measured, bandwidth, machine, run

PAST = 512
STEPS = 12


def export(spec: str, source: Path, out: Path, runs: int) -> list[Measured]:
    found: list[Measured] = []
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        command = ["export", spec, "--checkpoint", str(source), "--out", str(out)]
        done = run([sys.executable, "-m", "llamagen", *command])
        if done.returncode:
            raise SystemExit(done.output)
        found.append(done)
    return found


def copy(source: Path, out: Path, runs: int) -> list[float]:
    """Seconds of `cp` and `sync` of the checkpoint's bytes."""
    times: list[float] = []
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        times.append(run(["sh", "-c", f"cp -r '{source}' '{out}' && sync '{out}'/*"]).wall_s)
        shutil.rmtree(out)
    return times


Step = Callable[[int], float]
"""Seconds of one pass over so many new tokens: prefill from nothing, decode behind PAST tokens."""


def ort_steps(folder: Path) -> tuple[Step, Step]:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(str(folder / "model.onnx"), options, ["CPUExecutionProvider"])
    shapes = {i.name: i.shape for i in session.get_inputs()}

    def feed(new: int, past: int) -> dict[str, object]:
        ids = np.arange(new, dtype=np.int64)[None] % 1000
        inputs: dict[str, object] = {
            "input_ids": ids,
            "attention_mask": np.ones((1, past + new), np.int64),
            "position_ids": np.arange(past, past + new, dtype=np.int64)[None],
        }
        for name, shape in shapes.items():
            if name.startswith("past_key_values"):
                inputs[name] = np.zeros((1, shape[1], past, shape[3]), np.float32)
        return {k: v for k, v in inputs.items() if k in shapes}

    def timed(new: int, past: int) -> float:
        inputs = feed(new, past)
        start = time.perf_counter()
        session.run(None, inputs)
        return time.perf_counter() - start

    return (lambda n: timed(n, 0)), (lambda n: timed(n, PAST))


def transformers_steps(source: Path) -> tuple[Step, Step]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    @torch.inference_mode()
    def prefill(new: int) -> float:
        ids = torch.arange(new)[None] % 1000
        start = time.perf_counter()
        model(ids, use_cache=True)
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(new: int) -> float:
        past = model(torch.arange(PAST)[None] % 1000, use_cache=True).past_key_values
        ids = torch.zeros((1, new), dtype=torch.long)
        start = time.perf_counter()
        model(ids, past_key_values=past, use_cache=True)
        return time.perf_counter() - start

    return prefill, decode


def paired(ours: Step, theirs: Step, new: int, runs: int) -> tuple[float, float]:
    """Medians of seconds, the two taken in turn after a warm-up each."""
    ours(new), theirs(new)
    a, b = [], []
    for _ in range(runs):
        a.append(ours(new))
        b.append(theirs(new))
    return median(a), median(b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--spec", default="llama/3.2/1b")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = checkpoint(options.spec, options.work / "checkpoint")
    out = options.work / "folder"
    copies = copy(source, options.work / "copy", options.runs)
    exports = export(options.spec, source, out, options.runs)
    size = sum(f.stat().st_size for f in out.iterdir())
    read = sum(f.stat().st_size for f in source.iterdir())
    limit = bandwidth()
    ours, theirs = ort_steps(out), transformers_steps(source)
    prefill = paired(ours[0], theirs[0], PAST, options.runs)
    decode = paired(ours[1], theirs[1], 1, options.runs * 4)
    weights = sum(f.stat().st_size for f in out.glob("*.data"))
    result = {
        "machine": machine(),
        "spec": options.spec,
        "checkpoint_bytes": read,
        "output_bytes": size,
        "export_s": round(median(e.wall_s for e in exports), 2),
        "export_peak_rss_bytes": max(e.peak_rss for e in exports),
        "export_peak_anonymous_bytes": max(e.peak_anonymous for e in exports),
        "cp_of_checkpoint_s": round(median(copies), 2),
        "export_over_cp": round(median(e.wall_s for e in exports) / median(copies), 2),
        "prefill_tokens_per_s": [round(PAST / t, 1) for t in prefill],
        "prefill_over_transformers": round(prefill[1] / prefill[0], 2),
        "decode_tokens_per_s": [round(1 / t, 2) for t in decode],
        "decode_over_transformers": round(decode[1] / decode[0], 2),
        "bandwidth_bytes_per_s": round(limit),
        "decode_of_bandwidth_limit": round(weights / decode[0] / limit, 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
