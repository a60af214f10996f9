"""Rows of bench/README.md: llama/3.2/1b as it is released, trained for a step, compiled, exported and run.

    python -m bench.full [ROW ...] [--dtype bfloat16] [--tokens 256] [--new 8]

Random weights, two threads. Every row has wall and process seconds, and the peak of the resident memory while it ran.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from bench.measure import machine, memory
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry

Row = dict[str, object]


def row(work: Callable[[], Row]) -> Row:
    """What ``work`` says of itself, with what it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    wall, cpu = time.perf_counter(), time.process_time()
    said = work()
    took = {"wall s": time.perf_counter() - wall, "process s": time.process_time() - cpu}
    peak = memory(os.getpid())[0] / 2**30
    return said | {n: round(t, 1) for n, t in took.items()} | {"peak GiB": round(peak, 2)}


def gradients(model: Any, ids: torch.Tensor) -> Row:
    loss = model.loss(ids, labels=ids)
    loss.backward()
    return {"loss": round(loss.item(), 3)}


def checkpointed(model: Any, ids: torch.Tensor) -> Row:
    """The same gradients, by torch's own wrapper around every layer."""
    before = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(map(checkpoint_wrapper, layers))
    said = gradients(model, ids)
    model.model.layers = layers
    same = all(torch.equal(before[name], p.grad) for name, p in model.named_parameters())
    return said | {"same gradients": same}


def updated(model: Any, ids: torch.Tensor) -> Row:
    torch.optim.AdamW(model.parameters(), lr=1e-4).step()
    model.zero_grad()
    with torch.no_grad():
        return {"loss after": round(model.loss(ids, labels=ids).item(), 3)}


@torch.no_grad()
def exported(model: Any, ids: torch.Tensor) -> Row:
    dims = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (ids.view(2, -1),), dynamic_shapes=dims, strict=False)
    other = ids[:, : ids.shape[1] // 2].repeat(3, 1)
    return {"same logits": torch.equal(program.module()(other), model(other))}


@torch.no_grad()
def compiled(model: Any, ids: torch.Tensor, new: int) -> Row:
    """Compiling is in its seconds; a second text is not compiled for."""
    logits, text = model(ids), model.generate(ids[:, :8], max_new_tokens=new)
    torch._dynamo.reset()
    model.compile(fullgraph=True, dynamic=True)
    other = model.generate(ids[:, :8], max_new_tokens=new)
    apart = (model(ids) - logits).float().abs().max() / logits.float().std()
    start = time.perf_counter()
    model.generate(ids[:, :12], max_new_tokens=new)
    again = round(time.perf_counter() - start, 1)
    same = int((other == text)[0, 8:].long().cumprod(0).sum())
    return {
        "equal tokens": f"{same} of {new}",
        "largest difference / std": float(apart),
        "again s": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--new", type=int, default=8)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="of those below; else all")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, options.dtype))
    resolved = Registry().load("llama/3.2/1b")
    module = load_module(emit_torch(build(resolved)))
    vocabulary: int = module.VOCAB_SIZE
    model: Any = None

    def made() -> Row:
        nonlocal model
        model = module.CausalLM()
        return {"parameters": sum(p.numel() for p in model.parameters())}

    ids = torch.randint(0, vocabulary, (1, options.tokens))
    rows: dict[str, Row] = {"made": row(made)}
    work: dict[str, Callable[[], Row]] = {
        "loss, gradients": partial(gradients, model, ids),
        "the same, checkpointing": partial(checkpointed, model, ids),
        "step of AdamW, loss": partial(updated, model, ids),
        "export": partial(exported, model, ids),
        "compile, generate": partial(compiled, model, ids, options.new),
    }
    for name in options.rows or work:
        rows[name] = row(work[name])
        print(name, rows[name], file=sys.stderr)
    result = {"machine": machine(), "dtype": options.dtype, "tokens": options.tokens}
    print(json.dumps(result | {"ln V": round(math.log(vocabulary), 3)} | rows, indent=2))


if __name__ == "__main__":
    main()
