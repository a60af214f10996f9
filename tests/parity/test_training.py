"""Generated files train: where they start, gradients of transformers, checkpointing, the loop of docs/training.md."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from llamagen.cli import main
from llamagen.emit.generate import files_of
from llamagen.emit.options import Target
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.joined import joined
from llamagen.spec.registry import Registry
from llamagen.verify.witnesses import TorchWitness
from tests.parity.models import RandomModel
from tests.parity.peers import everything_float64, peer_model
from tests.unit.torch.models import ids, module

ROOT = Path(__file__).resolve().parents[2]
REDUCED = ("llama-3-8b", "llama-3.2-1b", "llama-4-scout", "llama-4-maverick")


def fresh(name: str, images: bool = False) -> Any:
    model = RandomModel.named(name)
    torch.manual_seed(0)
    if images:
        return load_module(emit_torch(joined(model.graphs))).VisionLanguageModel()  # type: ignore[arg-type]
    return getattr(module(model.graph), model.graph.root)()


FOREIGN = ("mistral", "gemma3", "mixtral", "qwen3_moe", "olmoe", "llama4_text")
GRADIENTS = ["reduced/llama-3.2-1b", *(f"foreign/{name}" for name in FOREIGN)]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_transformers(name: str) -> None:
    """In float64, with labels that leave some tokens out; tied heads, windows and chunks, experts."""
    model = RandomModel.named(name)
    paths, spec = list(model.parameters), model.resolved.spec
    batch, labels = ids(2, 12) % model.vocab_size, ids(2, 12, seed=2) % model.vocab_size
    labels[:, :3] = -100
    with everything_float64():
        theirs = peer_model(
            spec, model.weight, paths, "llama" if name.startswith("reduced") else ""
        )
        ours: Any = TorchWitness.of_graph(model.graph, model.weight).model.double()
        if hasattr(ours, "tie"):
            ours.tie()
        expected = theirs(batch, labels=labels, use_cache=False).loss
        found = ours.loss(batch, labels)
        expected.backward()
        found.backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    for path, parameter in ours.named_parameters():
        want = wanted[path]
        assert parameter.grad is not None and want is not None, path
        assert want.abs().max() > 0, path
        assert (parameter.grad - want).abs().max() <= 1e-6 * want.abs().max(), path


@pytest.mark.parametrize(
    "name", [*(f"reduced/{n}" for n in REDUCED), "foreign/mixtral", "foreign/cohere"]
)
def test_a_fresh_model_starts_near_ln_v_and_every_parameter_learns(name: str) -> None:
    """Tied heads and experts too, which started far off and at zero."""
    model, vocab = fresh(name), RandomModel.named(name).vocab_size
    batch = torch.randint(0, vocab, (8, 48), generator=torch.Generator().manual_seed(3))
    loss = model.loss(batch, labels=batch)
    assert abs(loss.item() - math.log(vocab)) < 0.15
    loss.backward()
    for path, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in path:
            assert 0.018 < parameter.std() < 0.022 or parameter.numel() < 1000, path
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, path


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("reduced/llama-3.2-1b", False),
        ("reduced/llama-4-scout", False),
        ("reduced/llama-4-scout", True),
        ("reduced/llama-3.2-11b-vision", True),
    ],
)
def test_what_is_made_on_meta_starts_the_same(name: str, images: bool) -> None:
    """As in docs/training.md; memory of nobody knows what is in no weight, of norms and experts neither."""
    expected = fresh(name, images)
    with torch.device("meta"):
        model = fresh(name, images)
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    model.apply(sys.modules[type(model).__module__].init_weights)
    if hasattr(model, "tie"):
        model.tie()
    found = dict(model.named_parameters())
    assert list(found) == [path for path, _ in expected.named_parameters()]
    for path, want in expected.named_parameters():
        one, spread = found[path], want.std(correction=0)
        room = 5 * spread * (2 / want.numel()) ** 0.5  # five times what another draw would differ
        assert abs(one.mean() - want.mean()) <= room, path
        assert abs(one.std(correction=0) - spread) <= room, path


def test_weights_start_as_the_spec_says() -> None:
    spec = (
        "spec: 1\nid: t/x\nextends: llama/3.2/1b\nconfig: {literals: {initializer_range: 0.04}}\n"
    )
    for text, stated in ((spec, "0.04"), (spec.replace("0.04", "null"), "0.02")):
        source = files_of(Registry().load_text(text), [Target.TORCH])["modeling.py"]
        assert re.findall(r"^INITIALIZER_RANGE = (.*)$", source, re.M) == [stated]


@pytest.mark.parametrize("name", ["reduced/llama-3.2-1b", "reduced/llama-4-scout"])
def test_checkpointed_layers_give_the_same_gradients_and_keep_less(name: str) -> None:
    """They compute again in the backward pass, and nothing is appended anywhere: there is no cache."""
    batch, gradients, kept = ids(2, 24) % 61, [], []
    for wrapped in (False, True):
        model = fresh(name)
        owner = model.language_model.model if "scout" in name else model.model
        names = set(model.state_dict())
        if wrapped:
            owner.layers = torch.nn.ModuleList(map(checkpoint_wrapper, owner.layers))
        assert set(model.state_dict()) == names
        kept.append(0)

        def keep(t: torch.Tensor) -> torch.Tensor:
            kept[-1] += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = model.loss(batch, labels=batch)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_the_loop_of_the_docs_learns_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/training.md").read_text()
    spec, command, loop, *_ = re.findall(r"```(?:yaml|bash|python)\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(spec)
    assert main(command.split()[1:]) == 0
    made = next(tmp_path.rglob("modeling.py"))
    monkeypatch.syspath_prepend(str(made.parent))
    assert len([line for line in loop.splitlines() if line]) <= 20
    space: dict[str, object] = {}
    exec(compile(loop, "docs/training.md", "exec"), space)
    del sys.modules["modeling"]
    text, losses = str(space["text"]), space["losses"]
    assert isinstance(losses, list) and abs(losses[0] - math.log(256)) < 0.1 and losses[-1] < 0.1
    assert capsys.readouterr().out.endswith(f"{text}\n")


@pytest.mark.slow
def test_a_mixture_of_experts_learns_a_language() -> None:
    """Scout, reduced: the next token is looked up by the last one and a part of the one before it."""
    model = fresh("reduced/llama-4-scout")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    table = torch.randint(0, 50, (2, 50), generator=generator)
    losses = []
    for _ in range(500):
        tokens = [torch.randint(0, 50, (16,), generator=generator) for _ in range(2)]
        while len(tokens) < 24:
            tokens.append(table[tokens[-2] % 2, tokens[-1]])
        batch = torch.stack(tokens, dim=1)
        loss = model.loss(batch, labels=batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 4.0 and sum(losses[-20:]) / 20 < 1.0


@pytest.mark.parametrize("name", [*(f"reduced/{n}" for n in REDUCED), "foreign/mixtral"])
def test_a_step_under_autocast_is_that_of_float32_but_for_rounding(name: str) -> None:
    """What trainers call bf16: weights in float32, products in bfloat16."""
    model, vocab = fresh(name), RandomModel.named(name).vocab_size
    batch = torch.randint(0, vocab, (2, 16), generator=torch.Generator().manual_seed(3))
    expected = model.loss(batch, labels=batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.loss(batch, labels=batch)
    found.backward()
    assert abs(found.item() - expected.item()) < 0.01
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
