"""Folders for the CUDA provider, checked against PyTorch on the GPU and timed against its limits.

    python -m bench.gpu --work DIR [--spec llama/3.2/1b] [--variants float16,bfloat16,int4] [--results bench/gpu.json]

Each variant is exported from one random checkpoint. Its logits (a left-padded batch, then decode steps) are compared
with the generated PyTorch module: both in the variant's dtype, measured against the module in float32 with the folder's
own weights. Then prefill and decode of ONNX Runtime, the module, the compiled module and transformers are timed in
turn, beside a probe of memory bandwidth and of FLOP/s. The last results of every device stay in ``--results``.

Exit code 1 when a check fails, 3 when there is no such device or ONNX Runtime has no provider for it.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import torch

from bench.checkpoint import checkpoint, parameter_counts
from bench.contenders import onnx_bytes
from bench.gpu_runners import Compiled, Module, Onnx, Runner, Transformers, synchronised
from bench.measure import run

UNAVAILABLE = 3
FINDINGS = 1

SLACK = 1.25
"""Error of one half-precision evaluation over that of another, both against float32 (docs/proof.md, tolerances)."""
FLOOR = 2e-6
"""Standard deviations by which two float32 evaluations differ (docs/proof.md)."""


@dataclass(frozen=True, slots=True)
class Variant:
    """``dtype`` is that of the computation."""

    dtype: str
    options: tuple[str, ...]


VARIANTS: Mapping[str, Variant] = {
    "float32": Variant("float32", ("--dtype", "float32")),
    "float16": Variant("float16", ("--dtype", "float16")),
    "bfloat16": Variant("bfloat16", ("--dtype", "bfloat16")),
    # level 1: the check wants products of floats, as a GPU computes them whatever the level
    "int4": Variant(
        "float16", ("--dtype", "float16", "--quantize", "int4", "--accuracy-level", "1")
    ),
}
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
PROFILES = {"cuda": "ort-cuda", "cpu": "ort-cpu"}


@dataclass(frozen=True, slots=True)
class Errors:
    """rms differences from the module in float32, in standard deviations of its logits."""

    onnx: float
    module: float

    @property
    def passed(self) -> bool:
        return self.onnx <= SLACK * max(self.module, FLOOR)


def unavailable(device: str) -> str | None:
    """Why nothing can run on ``device``; None when it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here, so nothing was measured"
    if PROVIDERS[device] not in ort.get_available_providers():
        has = ", ".join(ort.get_available_providers())
        return (
            f"this ONNX Runtime has no {PROVIDERS[device]} (it has {has}), so nothing was measured"
        )
    return None


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def export(spec: str, source: Path, out: Path, variant: Variant, device: str) -> None:
    if out.exists():
        return
    places = ("--checkpoint", str(source), "--out", str(out), "--profile", PROFILES[device])
    command = [sys.executable, "-m", "llamagen", "export", spec, *places, *variant.options]
    done = run(command)
    if done.returncode:
        raise SystemExit(done.output)


def check(folder: Path, dtype: str, device: str, steps: int = 8) -> Errors:
    """Logits after a left-padded batch of prompts and after each of ``steps`` further tokens, by three evaluations."""
    found: list[np.ndarray] = []
    for make in (
        lambda: Module.of_folder(folder, "float32", device),
        lambda: Module.of_folder(folder, dtype, device),
        lambda: Onnx(folder, device),
    ):
        found.append(_scenario(make(), steps))
        gc.collect()  # one model at a time
    exact, module, onnx = (f.astype(np.float64) for f in found)
    scale = exact.std()
    errors = [float(np.sqrt(np.mean((f - exact) ** 2)) / scale) for f in (onnx, module)]
    return Errors(*errors)


def _scenario(runner: Runner, steps: int) -> np.ndarray:
    """[1 + steps, B, V]"""
    random = np.random.default_rng(11)
    ids = random.integers(0, 256, (2, 12))
    mask = np.ones((2, 12), np.int64)
    mask[1, :5] = 0
    runner.reset()
    logits = [runner.step(ids, mask)]
    for _ in range(steps):
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        logits.append(runner.step(random.integers(0, 256, (2, 1)), mask))
    return np.stack(logits)


@dataclass(frozen=True, slots=True)
class Rates:
    """Medians of tokens per second, batch 1."""

    prefill: float
    decode: float


def rates(runners: Sequence[Runner], past: int, steps: int, rounds: int) -> dict[str, Rates]:
    """Every runner in turn, ``rounds`` times after one to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {r.name: [] for r in runners}
    ids = np.arange(past)[None] % 256
    token = np.array([[7]])
    for number in range(rounds + 1):
        for runner in runners:
            runner.reset()
            with synchronised(runner.device) as prefill:
                runner.step(ids, np.ones((1, past), np.int64))
            with synchronised(runner.device) as decode:
                for i in range(steps):
                    runner.step(token, np.ones((1, past + i + 1), np.int64))
            if number:
                taken[runner.name].append((past / prefill.seconds, steps / decode.seconds))
    return {
        name: Rates(median(p for p, _ in pairs), median(d for _, d in pairs))
        for name, pairs in taken.items()
    }


def limits(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes/s of memory, read and written together, and FLOP/s of a matrix product in ``dtype``."""
    size = 1 << 28 if device == "cuda" else 1 << 22
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(6):
        with synchronised(device) as took:
            target.copy_(source)
        times.append(took.seconds)
    moved = 2 * source.numel() * source.element_size() / median(times[1:])
    del source, target
    width = 8192 if device == "cuda" else 256
    left = torch.ones(width, width, device=device, dtype=dtype)
    times = []
    for _ in range(6):
        with synchronised(device) as took:
            torch.mm(left, left)
        times.append(took.seconds)
    return moved, 2 * width**3 / median(times[1:])


def measure(
    folder: Path, source: Path, dtype: str, device: str, past: int, steps: int, rounds: int
) -> dict[str, object]:
    module = Module.of_folder(folder, dtype, device)
    runners: list[Runner] = [Onnx(folder, device), module, Transformers(source, dtype, device)]
    if device == "cuda":
        runners.append(Compiled(module))
    taken = rates(runners, past, steps, rounds)
    moved, computed = limits(device, getattr(torch, dtype))
    total, embedding = parameter_counts(source)
    ours = taken.pop("onnxruntime")
    peers = taken.values()
    return {
        "past": past,
        "tokens_per_s": {
            name: {"prefill": r.prefill, "decode": r.decode}
            for name, r in {"onnxruntime": ours, **taken}.items()
        },
        "decode_over_best_peer": ours.decode / max(r.decode for r in peers),
        "prefill_over_best_peer": ours.prefill / max(r.prefill for r in peers),
        "bandwidth": moved,
        "decode_of_bandwidth": ours.decode * onnx_bytes(folder / "model.onnx") / moved,
        "peak_flops": computed,
        "prefill_of_flops": ours.prefill * 2 * (total - embedding) / computed,
    }


def save(path: Path, row: Mapping[str, object]) -> None:
    """Keep the row in place of the last of the same device, spec and variant."""
    key = ("device", "spec", "variant")
    kept = json.loads(path.read_text()) if path.is_file() else []
    kept = [old for old in kept if any(old[k] != row[k] for k in key)]
    path.write_text(json.dumps([*kept, row], indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/gpu"))
    parser.add_argument("--spec", default="llama/3.2/1b")
    parser.add_argument("--variants", default="float16,bfloat16,int4")
    parser.add_argument("--device", choices=sorted(PROVIDERS), default="cuda")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("gpu.json"))
    parser.add_argument("--past", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    names = options.variants.split(",")
    if wrong := [name for name in names if name not in VARIANTS]:
        parser.error(f"unknown: {', '.join(wrong)}; known: {', '.join(VARIANTS)}")
    reason = unavailable(options.device)
    if reason is not None:
        print(reason, file=sys.stderr)
        return UNAVAILABLE
    torch.backends.cuda.matmul.allow_tf32 = False
    options.work.mkdir(parents=True, exist_ok=True)
    source = checkpoint(options.spec, options.work / "checkpoint")
    failed = False
    for name in names:
        variant, folder = VARIANTS[name], options.work / f"{name}-{options.device}"
        export(options.spec, source, folder, variant, options.device)
        errors = check(folder, variant.dtype, options.device)
        row = {
            "date": datetime.date.today().isoformat(),
            "device": device_name(options.device),
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
            "spec": options.spec,
            "variant": name,
            "rms_over_std": {"onnxruntime": errors.onnx, "module": errors.module},
            "passed": errors.passed,
            **measure(
                folder,
                source,
                variant.dtype,
                options.device,
                options.past,
                options.steps,
                options.rounds,
            ),
        }
        failed |= not errors.passed
        save(options.results, row)
        print(json.dumps(row, indent=2), flush=True)
        gc.collect()
    return FINDINGS if failed else 0


if __name__ == "__main__":
    sys.exit(main())
