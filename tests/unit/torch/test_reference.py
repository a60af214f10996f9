"""Wirings that no released model has, against the float64 interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llamagen.api import load
from llamagen.ir.elaborate import build_all
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph
from llamagen.ir.reference import evaluate
from llamagen.ops.table import OPS
from tests import reports
from tests.parity.models import FOREIGN
from tests.unit.torch.models import cache_of, changed, graph, ids, module, padded, scatter
from tests.unit.torch.wirings import WIRINGS, wiring


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    deviation = np.abs(found.double().numpy() - expected).max() / expected.std()
    assert expected.std() > 0.1
    assert deviation <= 1e-5, deviation


@pytest.mark.parametrize("name", WIRINGS)
@torch.no_grad()
def test_wiring(name: str) -> None:
    made = wiring(name)
    model = scatter(module(made).CausalLM())
    state = {path: value.numpy() for path, value in model.state_dict().items()}
    flat = flatten(made)
    expected = evaluate(flat, state.__getitem__, ids(2, 9).numpy())
    cache = cache_of(model)
    logits = model(ids(2, 9), cache=cache)
    close(logits, expected.logits)
    new = ids(2, 1)
    after = evaluate(flat, state.__getitem__, new.numpy(), past=expected.present)
    close(model(new, cache=cache), after.logits)
    mask = padded(2, 9, 3)
    seen = mask.bool().numpy()
    expected = evaluate(flat, state.__getitem__, ids(2, 9).numpy(), mask.numpy())
    logits = model(ids(2, 9), attention_mask=mask)
    close(logits[mask.bool()], expected.logits[seen])
    kept = model(ids(2, 9), logits_to_keep=3)
    torch.testing.assert_close(kept, model(ids(2, 9))[:, -3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("cast", ["before_weight", "after_weight"])
@torch.no_grad()
def test_a_norm_rounds_where_its_row_says(cast: str, offset: float) -> None:
    """bfloat16, value by value: the gain meets the rounded result, or the result is rounded after the gain."""
    norm = f"rms_norm(hidden_size, eps=norm_eps, offset={offset}, cast='{cast}')"
    block = f'  Decoder:\n    parts: {{norm: "{norm}"}}\n'
    for part in ("input_layernorm", "post_attention_layernorm"):
        block += "  DecoderLayer:\n    parts:\n" if part == "input_layernorm" else ""
        block += f"      {part}: {norm}\n"
    rms = scatter(module(changed(blocks=block)).RMSNorm(512, 1e-6)).bfloat16()
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(3)).bfloat16()
    y = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    gain = rms.weight.double() + offset
    orders = {
        "before_weight": (gain.bfloat16() * y.bfloat16()).double(),
        "after_weight": (gain * y).bfloat16().double(),
    }
    same = {name: (rms(x).double() == want).double().mean() for name, want in orders.items()}
    assert same.pop(cast) > 0.995
    assert all(share < 0.9 for share in same.values())


WIDE = """
  FeedForward:
    parts: {up_proj: none}
    forward: return down_proj(model_dtype(float32(gate_proj(x)) + 4096 - 4096))
"""
PLAIN = """
  FeedForward:
    parts: {up_proj: none}
    forward: return down_proj(gate_proj(x))
"""


@torch.no_grad()
def test_what_is_stated_as_float32_is_computed_in_it() -> None:
    """4096 and back costs bfloat16 all digits of a number near one, float32 none that bfloat16 has."""
    wide, plain = (
        scatter(module(changed(blocks=b)).CausalLM()).bfloat16()(ids(2, 9)).double()
        for b in (WIDE, PLAIN)
    )
    assert plain.std() > 0.1
    assert (wide - plain).square().mean().sqrt() / plain.std() < 0.01


FORMS = {
    "neg": "-gate_proj(x) * up_proj(x)",
    "sub": "gate_proj(x) - up_proj(x)",
    "square": "square(gate_proj(x)) * up_proj(x)",
    "sqrt": "sqrt(square(gate_proj(x)) + 1) * up_proj(x)",
    "exp": "exp(tanh(gate_proj(x))) * up_proj(x)",
    "tanh": "tanh(gate_proj(x)) * up_proj(x)",
    "softplus": "softplus(gate_proj(x)) * up_proj(x)",
    "relu": "relu(gate_proj(x)) * up_proj(x)",
    "mean": "gate_proj(x) * mean(up_proj(x))",
    "max": "gate_proj(x) * max(up_proj(x))",
    "min": "gate_proj(x) * min(up_proj(x), axis=F)",
    "maximum": "max(gate_proj(x), up_proj(x))",
    "minimum": "min(gate_proj(x), up_proj(x))",
    "log": "gate_proj(x) * log(1 + square(up_proj(x)))",
    "log2": "gate_proj(x) * log2(1 + square(up_proj(x)))",
    "abs": "gate_proj(x) * abs(up_proj(x))",
    "sin": "gate_proj(x) * sin(up_proj(x))",
    "cos": "gate_proj(x) * cos(up_proj(x))",
    "reciprocal": "gate_proj(x) * (2 / (1 + square(up_proj(x))))",
    "floor": "gate_proj(x) + floor(3 * tanh(up_proj(x)))",
    "ceil": "gate_proj(x) + ceil(3 * tanh(up_proj(x)))",
    "round": "gate_proj(x) + round(3 * tanh(up_proj(x)))",
    "pow": "(1 + abs(gate_proj(x))) ** tanh(up_proj(x))",
    "pow_scalar": "gate_proj(x) * (1 + square(up_proj(x))) ** 0.25",
    **{
        op: f"where(gate_proj(x) {sign} up_proj(x), gate_proj(x), up_proj(x) * 0.25)"
        for op, sign in (("less", "<"), ("less_equal", "<="), ("greater", ">"))
    },
    "greater_equal": "where(gate_proj(x) >= up_proj(x), gate_proj(x), 0.5)",
    "less_scalar": "where(gate_proj(x) < 0.1, 2, up_proj(x))",
    "less_equal_scalar": "gate_proj(x) * where(up_proj(x) <= 0.1, 0.5, 2)",
    "greater_scalar": "where(0.1 < gate_proj(x), gate_proj(x), up_proj(x))",
    "greater_equal_scalar": "where(gate_proj(x) >= 0.1, gate_proj(x), up_proj(x))",
    "equal": "gate_proj(x) * where(relu(up_proj(x)) == abs(up_proj(x)), 1, 0.5)",
    "not_equal": "gate_proj(x) * where(relu(up_proj(x)) != abs(up_proj(x)), 1, 0.5)",
    "equal_scalar": "gate_proj(x) * where(relu(up_proj(x)) == 0, 1, 0.5)",
    "not_equal_scalar": "gate_proj(x) * where(relu(up_proj(x)) != 0, 1, 0.5)",
    "logical_and": "gate_proj(x) * where(up_proj(x) > 0 and gate_proj(x) < 1, 1, 0.5)",
    "logical_or": "gate_proj(x) * where(up_proj(x) > 1 or gate_proj(x) < 0, 1, 0.5)",
    "logical_not": "gate_proj(x) * where(not (up_proj(x) > 0), 1, 0.5)",
    "where": "where(gate_proj(x) > up_proj(x), gate_proj(x), up_proj(x))",
    "one_hot": "gate_proj(x) * sum(one_hot(positions, intermediate_size) * up_proj(x))",
    "matmul": "reshape(reshape(gate_proj(x), shape=[B, S, F, 1]) @ reshape(up_proj(x), shape=[B, S, 1, F]) @ "
    "reshape(up_proj(x), shape=[B, S, F, 1]), shape=[B, S, F])",
    "einsum": "einsum(gate_proj(x), einsum(gate_proj(x), up_proj(x), 'B S F, B S G -> B S F G'), "
    "'B S F, B S F G -> B S G')",
    "limit_groups": "gate_proj(x) * limit_groups(up_proj(x), groups=4, kept=2, fill=0.0)",
    **{
        op: f"gate_proj(x) * reshape({op}(up_proj(x), attention_mask), shape=[B, 1, intermediate_size])"
        for op in ("first_token", "last_token", "mean_tokens")
    },
}
"""Ops that stand in no other compared model, each where a mistake in it reaches the logits."""


def formed(op: str) -> Graph:
    return changed(blocks=f'  FeedForward:\n    forward: "return down_proj({FORMS[op]})"\n')


@pytest.mark.parametrize("op", FORMS)
@torch.no_grad()
def test_form(op: str) -> None:
    made = formed(op)
    model = scatter(module(made).CausalLM())
    state = {path: value.numpy() for path, value in model.state_dict().items()}
    expected = evaluate(flatten(made), state.__getitem__, ids(2, 9).numpy())
    close(model(ids(2, 9)), expected.logits)


def test_torch_is_compared_with_the_reference_on_every_op() -> None:
    """Here, in tests/parity (foreign and Llama 4 models), or in the reports of every generation."""
    compared = [graph(f"foreign/{name}") for name in FOREIGN]
    compared += [*map(formed, FORMS), *map(wiring, WIRINGS)]
    for name in reports.names():
        compared += build_all(load(reports.SPECS / f"{name}.yaml").resolved).values()
    ops = {node.op for one in compared for node in flatten(one).nodes}
    assert ops == OPS.keys()
    assert {op for op in FORMS if op not in {n.op for n in flatten(formed(op)).nodes}} == set()
