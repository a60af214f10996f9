"""Wirings that no released model has, against the float64 interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llamagen.emit.torch.stages import cuts
from llamagen.ir.flatten import flatten
from llamagen.ir.reference import evaluate
from tests.unit.torch.models import ids, module, padded, scatter
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
    logits, past = model(ids(2, 9))
    close(logits, expected.logits)
    new = ids(2, 1)
    after = evaluate(flat, state.__getitem__, new.numpy(), past=expected.present)
    close(model(new, past=past)[0], after.logits)
    mask = padded(2, 9, 3)
    seen = mask.bool().numpy()
    expected = evaluate(flat, state.__getitem__, ids(2, 9).numpy(), mask.numpy())
    logits, _ = model(ids(2, 9), attention_mask=mask)
    close(logits[mask.bool()], expected.logits[seen])
    kept, _ = model(ids(2, 9), logits_to_keep=3)
    torch.testing.assert_close(kept, model(ids(2, 9))[0][:, -3:], rtol=0, atol=1e-5)


def test_what_can_be_cut_into_stages() -> None:
    cannot = {name for name in WIRINGS if not cuts(wiring(name))}
    assert cannot == {"an extra operand", "no stack", "two stacks"}
