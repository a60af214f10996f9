"""The sampler against distributions that are known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.runtime.generation import Sampler, Sampling

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.4, 0.05]))


def _drawn(sampling: Sampling, count: int = 4000) -> Counter[int]:
    sampler = Sampler(sampling)
    return Counter(sampler.next(LOGITS) for _ in range(count))


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert set(_drawn(Sampling(), 10)) == {1}


def test_temperature_one_is_the_distribution() -> None:
    found = _drawn(Sampling(temperature=1.0, seed=1))
    for token, share in enumerate([0.05, 0.4, 0.1, 0.4, 0.05]):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)


def test_temperature_flattens() -> None:
    cold, hot = (_drawn(Sampling(temperature=t, seed=2))[0] for t in (0.5, 4.0))
    assert cold < 100 < 500 < hot


def test_top_k_keeps_k() -> None:
    assert set(_drawn(Sampling(temperature=1.0, top_k=3, seed=3))) == {1, 2, 3}


def test_top_p_keeps_the_token_that_crosses() -> None:
    assert set(_drawn(Sampling(temperature=1.0, top_p=0.79, seed=4))) == {1, 3}
    assert set(_drawn(Sampling(temperature=1.0, top_p=0.81, seed=4))) == {1, 2, 3}
    assert set(_drawn(Sampling(temperature=1.0, top_p=0.01, seed=4))) == {1}


def test_same_seed_same_tokens() -> None:
    one, two, other = (Sampler(Sampling(temperature=1.0, seed=s)) for s in (7, 7, 8))
    drawn = [[s.next(LOGITS) for _ in range(30)] for s in (one, two, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LlamagenError) as failure:
        Sampling(**wrong)  # type: ignore[arg-type]
    assert failure.value.diagnostics[0].code == "LG901"
