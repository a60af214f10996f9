"""Rows of bench/README.md: the experts of one Scout layer as codes against float32, in ONNX Runtime.

    python -m bench.experts --work DIR [--experts 2] [--tokens 128] [--runs 9]

The block of bench.moe, one expert a token: float32, int4 and int8 of the profile ort-cpu (MoE and QMoE), and int4 of
portable (a Scan of MatMulNBits). Two experts, because all sessions are in memory at once and float32 takes 503 MB an
expert twice; a token costs the same whatever their number. All get the same input in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

from bench.measure import machine
from bench.moe import SPEC
from llamagen import api
from llamagen.emit.options import ExportOptions, QuantizeOptions

KINDS = {
    "float32": ("ort-cpu", QuantizeOptions()),
    "int4": ("ort-cpu", QuantizeOptions("int4")),
    "int4 block 128": ("ort-cpu", QuantizeOptions("int4", 128)),
    "int8": ("ort-cpu", QuantizeOptions("int8")),
    "int4 portable": ("portable", QuantizeOptions("int4")),
}
THREADS = 2


def sessions(work: Path, experts: int) -> dict[str, ort.InferenceSession]:
    """Each kind, exported once."""
    work.mkdir(parents=True, exist_ok=True)
    spec = work / f"codes-{experts}.yaml"
    spec.write_text(SPEC.format(experts=experts).lstrip())
    found: dict[str, ort.InferenceSession] = {}
    for kind, (profile, quantize) in KINDS.items():
        out = work / f"codes-{experts}-{kind.replace(' ', '-')}"
        if not out.exists():
            api.load(spec).export(
                out,
                ExportOptions(profile=profile, quantize=quantize, logits="all"),
                random_weights=0,
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        found[kind] = ort.InferenceSession(
            str(out / "experts.onnx"), options, ["CPUExecutionProvider"]
        )
    return found


def paired(found: Mapping[str, ort.InferenceSession], tokens: int, runs: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turn; results are near float32's, as near as their codes are."""
    random = np.random.default_rng(tokens)
    times: dict[str, list[float]] = {kind: [] for kind in found}
    for attempt in range(runs + 1):
        x = random.standard_normal((1, tokens, 5120)).astype(np.float32)
        results: dict[str, np.ndarray] = {}
        for kind, session in found.items():
            start = time.perf_counter()
            (results[kind],) = session.run(None, {"x": x})
            if attempt:
                times[kind].append(1000 * (time.perf_counter() - start))
        for kind, result in results.items():
            alike = float(np.corrcoef(result.ravel(), results["float32"].ravel())[0, 1])
            assert alike > (0.999 if kind == "int8" else 0.97), (kind, alike)
    return {kind: round(median(taken), 1) for kind, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    found = sessions(options.work, options.experts)
    result: dict[str, object] = {"machine": machine(), "experts": options.experts}
    for what, tokens in (("decode_ms", 1), ("prefill_ms", options.tokens)):
        result[what] = paired(found, tokens, options.runs if tokens > 1 else 3 * options.runs)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
