"""Llama 4 at its real size, without weights: every graph in seconds and little memory, to the parameter."""

from __future__ import annotations

import sys
from collections import Counter
from math import prod
from pathlib import Path

import pytest
import torch

from bench.measure import run
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.bounded import CacheKind, with_caches
from llamagen.ir.elaborate import build_all
from llamagen.spec.registry import Registry

SIZES = {
    "llama/4/scout": 108_641_793_536,
    "llama/4/maverick": 401_583_781_376,
    "llama/guard/4-12b": 12_001_097_216,
}
EXPERTS = {"llama/4/scout": 48, "llama/4/maverick": 24, "llama/guard/4-12b": 0}
CASES: list[tuple[str, CacheKind]] = [
    ("llama/4/scout", "full"),
    ("llama/4/scout", "bounded"),
    ("llama/4/maverick", "full"),
    ("llama/4/maverick", "bounded"),
    ("llama/guard/4-12b", "full"),
]


@pytest.mark.parametrize(("spec_id", "cache"), CASES)
def test_the_graphs_hold_every_parameter_once(spec_id: str, cache: CacheKind) -> None:
    graphs = with_caches(build_all(Registry().load(spec_id)), cache)
    sizes: dict[str, int] = {}
    for name, graph in graphs.items():
        made = emit_onnx(graph)
        sizes |= {entry.name: prod(entry.shape) for entry in made.initializers}
        assert all(made.values[e.name].const_value is None for e in made.initializers)
        kinds = Counter(node.op_type for node in made.model.graph)
        decodes = name in ("model", "decoder")
        assert kinds["Scan"] == EXPERTS[spec_id] * decodes
        assert kinds["Attention"] == (48 if decodes else 34 if name == "vision_encoder" else 0)
        pasts = [v for v in made.model.graph.inputs if str(v.name).startswith("past_key_values.")]
        short = [v for v in pasts if v.shape is not None and str(v.shape[2]).endswith("_8191")]
        assert len(pasts) == 96 * decodes
        assert len(short) == 72 * (decodes and cache == "bounded")
    assert sum(sizes.values()) == SIZES[spec_id]


@pytest.mark.parametrize("spec_id", ["llama/4/scout", "llama/4/maverick"])
def test_bounded_modules_on_the_meta_device(spec_id: str) -> None:
    """The other kind is counted by test_manifests.py."""
    graphs = with_caches(build_all(Registry().load(spec_id)), "bounded")
    sizes: dict[str, int] = {}
    for graph in graphs.values():
        module = load_module(emit_torch(graph))
        with torch.device("meta"):
            model = getattr(module, graph.root)()
        sizes |= {name: p.numel() for name, p in model.named_parameters()}
    assert sum(sizes.values()) == SIZES[spec_id]


@pytest.mark.slow
@pytest.mark.parametrize("spec_id", SIZES)
def test_seconds_and_little_memory(spec_id: str, tmp_path: Path) -> None:
    """A whole process, imports included. The bound on time leaves room for a machine that is busy."""
    command = ["-m", "llamagen", "generate", spec_id, "--target", "onnx", "--to", str(tmp_path)]
    found = run([sys.executable, *command])
    assert found.returncode == 0, found.output
    assert found.peak_rss < 250e6
    assert found.wall_s < 60
    assert {p.name for p in (tmp_path / spec_id).iterdir()} == {
        f"{name}.onnx.txt" for name in ("model", "vision_encoder", "embedding", "decoder")
    }
