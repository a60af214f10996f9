"""Row of bench/README.md: the experts of one Scout layer against transformers' dense evaluation of all of them.

    python -m bench.moe --work DIR [--experts 4] [--tokens 128] [--runs 5]

One feed-forward block at Scout's real width (hidden 5120, experts of 8192, a shared expert, one expert a token) in
float32: 503 MB an expert, so that four fit where sixteen would want 8 GB. All read the same file of weights, mapped
once. Ours computes a token's chosen expert only; transformers computes every expert for every token, so its cost grows
with their number and ours does not: for sixteen experts its part of experts is four times what four show.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import torch
from transformers import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from bench.measure import machine
from llamagen import api
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.elaborate import build_all
from llamagen.verify.stored import stored_weights

SPEC = """
spec: 1
id: bench/experts
extends: llama/4/scout
hyperparameters: {{vocab_size: 5120, num_layers: 1, num_experts: {experts}}}
constants: {{patch_token: null}}
graphs:
  vision_encoder: null
  embedding: null
  decoder: null
  experts:
    root: ExpertsOfOneLayer
    inputs: {{x: "[B, S, hidden_size]"}}
    outputs: [logits]
blocks:
  ExpertsOfOneLayer:
    inputs: [x]
    parts: {{language_model: ExpertsModel}}
    forward: |
      return language_model(x)
  ExpertsModel:
    parts: {{model: ExpertsDecoder}}
    forward: |
      return model(x)
  ExpertsDecoder:
    parts: {{layers: "stack(num_layers, ExpertsLayer)"}}
    forward: |
      return layers(x)
  ExpertsLayer:
    parts: {{feed_forward: Experts}}
    forward: |
      return feed_forward(x)
"""
"""A graph beside the text model gives `logits`, in the shape of the model's: the vocabulary is the hidden size."""
PREFIX = "language_model.model.layers.0.feed_forward."

Step = Callable[[torch.Tensor], torch.Tensor]


def folder(work: Path, experts: int) -> tuple[Path, Path]:
    """The spec, and the folder that is made of it once."""
    spec, out = work / f"experts-{experts}.yaml", work / f"experts-{experts}"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(SPEC.format(experts=experts).lstrip())
    if not out.exists():
        api.load(spec).export(out, random_weights=0)
    return spec, out


def contestants(spec: Path, out: Path) -> dict[str, Step]:
    stored = stored_weights(out)
    graph = build_all(api.load(spec).resolved)["experts"]
    names = [f"{PREFIX}{name}" for name in (
        "router.weight", "experts.gate_up_proj", "experts.down_proj",
        "shared_expert.gate_proj.weight", "shared_expert.up_proj.weight", "shared_expert.down_proj.weight",
    )]  # fmt: skip
    state = {name: torch.from_numpy(np.asarray(stored.read(name))) for name in names}
    with torch.device("meta"):
        ours = getattr(load_module(emit_torch(graph)), graph.root)()
        h = api.load(spec).spec.hyperparameters
        config = Llama4TextConfig(
            hidden_size=h.hidden_size,
            intermediate_size=h.expert_intermediate_size,
            num_local_experts=h.num_experts,
            num_experts_per_tok=h.num_experts_per_token,
        )
        peer = Llama4TextMoe(config)
    ours.load_state_dict(state, assign=True)
    peer.load_state_dict({n.removeprefix(PREFIX): t for n, t in state.items()}, assign=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(str(out / "experts.onnx"), options, ["CPUExecutionProvider"])
    return {
        "torch": ours,
        "onnx": lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]),
        "transformers": lambda x: peer(x)[0].view_as(x),
    }


def paired(steps: dict[str, Step], tokens: int, runs: int) -> dict[str, float]:
    """Median seconds of each, taken in turn on the same input."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    generator = torch.Generator().manual_seed(0)
    for attempt in range(runs + 1):
        x = torch.randn(1, tokens, 5120, generator=generator)
        results = {}
        for name, step in steps.items():
            start = time.perf_counter()
            results[name] = step(x)
            if attempt:
                times[name].append(time.perf_counter() - start)
        expected = results.pop("transformers")
        for name, found in results.items():
            assert (found - expected).abs().max() < 1e-4 * expected.std(), name
    return {name: median(found) for name, found in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    steps = contestants(*folder(options.work, options.experts))
    result: dict[str, object] = {"machine": machine(), "experts": options.experts}
    for what, tokens in (("decode", 1), ("prefill", options.tokens)):
        found = paired(steps, tokens, options.runs * (4 if tokens == 1 else 1))
        result[f"{what}_ms"] = {name: round(1000 * s, 1) for name, s in found.items()}
        for name in ("torch", "onnx"):
            ratio = found["transformers"] / found[name]
            result[f"{what}_{name}_over_transformers"] = round(ratio, 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
