"""Every rule about files of others: what breaks it, and nothing else, is refused with its code; what does not, is not.

A class of input is a function that makes a random sound input in an empty folder and yields cases: the input as it is,
and broken by one rule at a time. A reader that accepts everything fails, and so does one that refuses everything.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from llamagen.diagnostics import LlamagenError
from tests.fuzz.engine import Outcome, peak, try_one
from tests.fuzz.targets import Target

LONGEST_MESSAGE = 5000
GROWTH = 64
"""MiB by which an input that is refused may raise the peak of the process."""


class Case(NamedTuple):
    name: str
    code: str | None
    """Of the finding that refuses the input; None where it must be accepted."""
    read: Callable[[], object]


Cases = Callable[[random.Random, Path], Iterator[Case]]


@dataclass
class Score:
    refused: int = 0
    accepted: int = 0
    crashed: int = 0
    findings: dict[str, str] = field(default_factory=dict)
    """The first of each case that did not go as it must."""


def score(cases: Cases, seeds: Iterable[int]) -> Score:
    """One round a seed."""
    found = Score()
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="oracles-") as folder:
            for case in cases(random.Random(seed), Path(folder)):
                if wrong := _judge(case, found):
                    found.findings.setdefault(case.name, f"{case.name} (seed {seed}): {wrong}")
    return found


def _judge(case: Case, score: Score) -> str | None:
    """What is wrong with the answer to a case."""
    answers: list[LlamagenError] = []

    def run(_: bytes) -> bool:
        try:
            case.read()
        except LlamagenError as error:
            answers.append(error)
        return not answers

    beside, before, outcome = sorted(os.listdir()), peak(), Outcome()
    try_one(Target(case.name, run, list), b"", outcome)
    if outcome.findings:
        score.crashed += 1
        return outcome.findings[0].what
    if sorted(os.listdir()) != beside:
        return "it left something in the working directory"
    if not answers:
        score.accepted += 1
        return f"accepted, must be refused with {case.code}" if case.code else None
    score.refused += 1
    found = answers[0].diagnostics
    if case.code is None:
        return f"refused, must be accepted: {found[0].code} {found[0].message}"
    if peak() - before > GROWTH:
        return f"refused after {peak() - before:.0f} MiB"
    if any(len(d.message) > LONGEST_MESSAGE for d in found):
        return "refused with a message that nobody reads"
    if case.code not in {d.code for d in found}:
        return f"refused with {found[0].code}, must be {case.code}: {found[0].message}"
    return None
