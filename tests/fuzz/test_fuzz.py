"""Damaged input ends in a result or in a finding of ours, in bounded time and memory.

The same inputs in every run; `python -m tests.fuzz` goes on from other seeds, and keeps what it finds in corpus/.
"""

from __future__ import annotations

import pytest

from tests.fuzz.engine import GROWTH, Outcome, fuzz, peak, try_one
from tests.fuzz.targets import TARGETS, Target, kept

COUNTS = {
    "yaml": 250,
    "expression": 900,
    "spec": 400,
    "safetensors": 2500,
    "config": 400,
    "index": 800,
    "manifest": 800,
    "pth": 800,
    "pth_pickle": 1200,
    "gguf": 800,
    "packed": 800,
}
"""Inputs, seeds included: a few seconds a target."""


def report(outcome: Outcome) -> str:
    return "\n".join(f"{f.data[:300]!r}\n{f.what}" for f in outcome.findings[:3])


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name: str) -> None:
    before = peak()
    outcome = fuzz(TARGETS[name], seed=8, count=COUNTS[name], seconds=240)
    assert not outcome.findings, report(outcome)
    assert peak() - before < GROWTH
    assert outcome.tried == COUNTS[name]
    refused = outcome.tried - outcome.accepted
    assert outcome.accepted > outcome.tried / 50, "nearly all inputs were refused early"
    assert refused > outcome.tried / 10, "nearly no input was damaged"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_for_minutes(name: str) -> None:
    outcome = fuzz(TARGETS[name], seed=1001, count=None, seconds=120)
    assert not outcome.findings, report(outcome)


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_broke_something(name: str) -> None:
    outcome = Outcome()
    for data in kept(TARGETS[name]):
        try_one(TARGETS[name], data, outcome)
    assert not outcome.findings, report(outcome)


def test_the_engine_sees_errors_that_are_not_ours() -> None:
    def run(data: bytes) -> bool:
        return bool(1 // (len(data) % 3))

    outcome = fuzz(Target("broken", run, lambda: [b"ab", b"abc"], ("x",)), 0, 50, 10)
    assert outcome.tried == 50
    assert any("ZeroDivisionError" in f.what for f in outcome.findings)
