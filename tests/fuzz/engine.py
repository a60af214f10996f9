"""Runs mutated inputs of one target for a count or a time, and says what was found."""

from __future__ import annotations

import random
import resource
import time
import traceback
from dataclasses import dataclass, field

from tests.counting import count
from tests.fuzz.targets import Target, corpus, mutated

SLOW = 3.0
"""CPU seconds that one input may take."""

GROWTH = 700
"""MiB by which all inputs of a target may raise the peak of the process."""


@dataclass
class Finding:
    data: bytes
    what: str

    @property
    def place(self) -> str:
        """Equal for findings that are one error: the last frame and the kind of exception."""
        lines = self.what.splitlines()
        frames = [line for line in lines if line.startswith("  File ")]
        return " ".join([*frames[-1:], lines[-1].partition(":")[0]])


@dataclass
class Outcome:
    """``accepted`` of ``tried`` inputs ended in a result, the others in an error of the contract."""

    tried: int = 0
    accepted: int = 0
    slowest: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_one(target: Target, data: bytes, outcome: Outcome) -> None:
    began, before = time.process_time(), peak()
    try:
        outcome.accepted += target.run(data)
    except Exception:
        outcome.findings.append(Finding(data, traceback.format_exc(limit=-6)))
    took = time.process_time() - began
    outcome.tried += 1
    count("damaged inputs")
    outcome.slowest = max(outcome.slowest, took)
    if took > SLOW:
        outcome.findings.append(Finding(data, f"took {took:.1f} s"))
    if peak() - before > GROWTH:
        outcome.findings.append(Finding(data, f"took {peak() - before:.0f} MiB"))


def fuzz(target: Target, seed: int, count: int | None, seconds: float) -> Outcome:
    """Every seed as it is, then mutants of them, until ``count`` inputs or ``seconds``.

    Inputs that are accepted join the pool, so that mutations add up.
    """
    generator, outcome = random.Random(seed), Outcome()
    pool = corpus(target)
    end = time.monotonic() + seconds
    for data in pool:
        try_one(target, data, outcome)
    while (count is None or outcome.tried < count) and time.monotonic() < end:
        data = mutated(generator, pool, target.words)
        accepted = outcome.accepted
        try_one(target, data, outcome)
        if outcome.accepted > accepted and len(data) < 1 << 17 and len(pool) < 2000:
            pool.append(data)
    return outcome
