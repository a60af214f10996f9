"""Frequencies in float32 steps against the formulas in float64, and bit for bit against transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.ops.op import AttrValue, Operands
from llamagen.ops.rope import ROPE_KINDS, frequencies, inverse_frequencies
from llamagen.ops.table import OPS

LLAMA3: Mapping[str, AttrValue] = {
    "scaling": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN: Mapping[str, AttrValue] = {
    "scaling": "yarn",
    "theta": 10000.0,
    "original_max_positions": 4096,
}
LONGROPE: Mapping[str, AttrValue] = {
    "scaling": "longrope",
    "short_factor": tuple(1 + i / 100 for i in range(32)),
    "long_factor": tuple(1.0 + i for i in range(32)),
}
CASES: tuple[Mapping[str, AttrValue], ...] = (
    {"dim": 64},
    {"dim": 128, "theta": 10000.0},
    {"dim": 128, "scaling": "linear", "factor": 8.0},
    {"dim": 64, **LLAMA3, "factor": 32.0},
    {"dim": 128, **LLAMA3, "factor": 8.0},
    {"dim": 128, **LLAMA3, "factor": 16.0, "high_freq_factor": 1.0},
    {"dim": 128, **YARN, "factor": 16.0},
    {"dim": 96, **YARN, "factor": 4.0, "beta_fast": 24.0, "beta_slow": 2.0},
    {"dim": 64, **YARN, "factor": 4.0, "truncate": False},
    {"dim": 64, "scaling": "dynamic", "factor": 2.5, "original_max_positions": 4096},
    {"dim": 64, **LONGROPE, "original_max_positions": 4096},
)


def attributes(case: Mapping[str, AttrValue]) -> dict[str, AttrValue]:
    return {a.name: a.default for a in OPS["rope_table"].attrs} | {"theta": 500000.0} | dict(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_close_to_the_formulas(case: Mapping[str, AttrValue]) -> None:
    attrs = attributes(case)
    want = frequencies(Operands((np.arange(9)[None],), attrs, {}, lambda name: np.zeros(0)))
    with np.errstate(all="raise"):  # a division by zero must not be computed and then discarded
        got = inverse_frequencies(attrs).astype(np.float64)
    assert got.shape == want.shape
    assert np.abs(got / want - 1).max() <= 5e-7


@pytest.mark.parametrize(
    "kind", [{"scaling": "dynamic", "factor": 2.0}, LONGROPE], ids=["dynamic", "longrope"]
)
def test_a_call_of_one_token_more_than_the_context_turns_otherwise(
    kind: Mapping[str, AttrValue],
) -> None:
    attrs = attributes({"dim": 64, **kind, "original_max_positions": 8})
    plain = frequencies(Operands((np.zeros((1, 1), np.int64),), attrs, {}, lambda _: np.zeros(0)))
    for tokens, same in ((8, True), (9, False)):
        positions = np.arange(tokens)[None]
        found = frequencies(Operands((positions,), attrs, {}, lambda _: np.zeros(0)))
        assert np.array_equal(found, plain) == same


def test_llama3_keeps_blends_and_divides() -> None:
    """For head_dim 128 and theta 5e5: 29 frequencies unchanged, 6 blended, 29 divided (facts 4.3)."""
    scaled = inverse_frequencies(attributes({"dim": 128, **LLAMA3, "factor": 8.0}))
    plain = inverse_frequencies(attributes({"dim": 128}))
    kept, divided = scaled == plain, scaled == plain / np.float32(8)
    assert (kept.sum(), divided.sum(), (~kept & ~divided).sum()) == (29, 29, 6)


CONTEXT = {"original_max_position_embeddings": 4096}
TRANSFORMERS: tuple[tuple[Mapping[str, object], Mapping[str, AttrValue]], ...] = (
    ({"rope_type": "linear", "factor": 8.0}, {"scaling": "linear", "factor": 8.0}),
    (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 8192},
        {**LLAMA3, "factor": 8.0},
    ),
    (
        {"rope_type": "yarn", "factor": 16.0, **CONTEXT},
        {"scaling": "yarn", "factor": 16.0, "original_max_positions": 4096},
    ),
    (
        {"rope_type": "yarn", "factor": 32.0, "truncate": False, **CONTEXT},
        {"scaling": "yarn", "factor": 32.0, "original_max_positions": 4096, "truncate": False},
    ),
    ({"rope_type": "dynamic", "factor": 2.5}, {"scaling": "dynamic", "factor": 2.5}),
    (
        {
            "rope_type": "longrope",
            "short_factor": [1 + i / 100 for i in range(64)],
            "long_factor": [1.0] * 64,
            **CONTEXT,
        },
        {"scaling": "longrope", "short_factor": tuple(1 + i / 100 for i in range(64))},
    ),
)


@pytest.mark.parametrize(("theirs", "ours"), TRANSFORMERS, ids=lambda p: str(p))
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_scaled_frequencies_are_those_of_transformers(
    theirs: Mapping[str, object], ours: Mapping[str, AttrValue], theta: float
) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        max_position_embeddings=65536,
        rope_parameters={"rope_theta": theta, **theirs},
    )
    want, _ = ROPE_INIT_FUNCTIONS[str(theirs["rope_type"])](config, "cpu")
    got = inverse_frequencies(attributes({"dim": 128, "theta": theta, **ours}))
    assert np.array_equal(got, want.numpy())


@pytest.mark.parametrize("dim", [64, 80, 128])
def test_plain_frequencies_are_those_of_torch(dim: int) -> None:
    import torch

    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    want = 1.0 / (500000.0**exponents)
    assert np.array_equal(inverse_frequencies(attributes({"dim": dim})), want.numpy())


def test_frequencies_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula of a new kind that divides by dim - 2 gives 0 / 0 for one pair; a file with NaN would blame weights."""
    nan = replace(ROPE_KINDS["default"], float32=lambda attrs, plain, _: plain * np.float32("nan"))
    monkeypatch.setitem(ROPE_KINDS, "default", nan)
    with pytest.raises(LlamagenError, match="are no numbers"):
        inverse_frequencies(attributes({"dim": 2}))
