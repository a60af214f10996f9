"""Everyone who turns a checkpoint into something that runs: ours and the peers', each as a command line.

``{checkpoint}``, ``{out}`` and ``{spec}`` are filled in. A command runs in the repository's root with the Python of
its environment (ours without one).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.environments import environment

Bits = str


@dataclass(frozen=True, slots=True)
class Builder:
    """``bits`` names what the weights are stored in, so that like is compared with like."""

    bits: Bits
    command: tuple[str, ...]
    environment: str | None = None
    model: str = "."
    """What an engine opens, within the output."""

    def arguments(self, spec: str, checkpoint: Path, out: Path) -> list[str]:
        python = sys.executable if self.environment is None else str(environment(self.environment))
        places = {"spec": spec, "checkpoint": str(checkpoint), "out": str(out)}
        return [python, "-m", *(word.format(**places) for word in self.command)]


def _ours(*options: str) -> tuple[str, ...]:
    return (
        "llamagen",
        "export",
        "{spec}",
        "--checkpoint",
        "{checkpoint}",
        "--out",
        "{out}",
        *options,
    )


def _fused(*options: str) -> tuple[str, ...]:
    return _ours("--profile", "ort-cpu", *options)


def _int4(block: str) -> tuple[str, ...]:
    """All weights in four bits, as the peers have them; the default has the head and what suffers most in eight."""
    plain = ("--quantize-head", "int4", "--quantize-sensitive", "int4", "--method", "rtn")
    return _fused("--quantize", "int4", "--block-size", block, *plain)


def _genai(precision: str) -> tuple[str, ...]:
    module = "onnxruntime_genai.models.builder"
    places = ("-i", "{checkpoint}", "-o", "{out}", "-c", "{out}-cache")
    return (module, "-m", "none", *places, "-p", precision, "-e", "cpu")


def _mobius(*options: str) -> tuple[str, ...]:
    return ("mobius", "build", "--config", "{checkpoint}", *options, "{out}")


def _optimum(*options: str) -> tuple[str, ...]:
    task = ("--task", "text-generation-with-past")
    model = ("--model", "{checkpoint}")
    return ("optimum.commands.optimum_cli", "export", "onnx", *model, *task, *options, "{out}")


BUILDERS: Mapping[str, Builder] = {
    "llamagen portable f32": Builder("f32", _ours()),
    "llamagen ort-cpu f32": Builder("f32", _fused()),
    "llamagen ort-cpu f32 by reference": Builder("f32", _fused("--weights", "reference")),
    "llamagen ort-cuda f16": Builder("f16", _ours("--profile", "ort-cuda", "--dtype", "float16")),
    "llamagen int8 block 32": Builder("int8", _fused("--quantize", "int8")),
    "llamagen int4": Builder("int4", _fused("--quantize", "int4")),
    "llamagen int4 block 32": Builder("int4", _int4("32")),
    "llamagen int4 block 64": Builder("int4", _int4("64")),
    "llamagen int4 block 128": Builder("int4", _int4("128")),
    "llamagen w8a8": Builder("int8", _fused("--quantize", "w8a8")),
    "genai f32": Builder("f32", _genai("fp32"), "genai"),
    "genai int4": Builder("int4", _genai("int4"), "genai"),
    "mobius f32": Builder("f32", _mobius("--dtype", "f32"), "mobius"),
    "mobius f32 cpu": Builder("f32", _mobius("--dtype", "f32", "--ep", "cpu"), "mobius"),
    "mobius f16": Builder("f16", _mobius("--dtype", "f16"), "mobius"),
    "transformers exporter f32": Builder(
        "f32", ("bench.export_transformers", "{checkpoint}", "{out}"), "transformers"
    ),
    "transformers exporter f32 fused": Builder(
        "f32",
        ("bench.export_transformers", "{checkpoint}", "{out}", "--ort-fusions", "cpu"),
        "transformers",
    ),
    "optimum f32": Builder("f32", _optimum("--no-post-process"), "optimum"),
    "llama.cpp f32": Builder(
        "f32", ("bench.export_gguf", "{checkpoint}", "{out}", "f32"), "llama.cpp", "model.gguf"
    ),
    "llama.cpp q8_0": Builder(
        "int8", ("bench.export_gguf", "{checkpoint}", "{out}", "q8_0"), "llama.cpp", "model.gguf"
    ),
    "llama.cpp q4_0": Builder(
        "int4", ("bench.export_gguf", "{checkpoint}", "{out}", "q4_0"), "llama.cpp", "model.gguf"
    ),
}
