"""``python -m tests.hardness [--minutes N] [--seed N]``: what the tool withstands, in figures.

Kills commands that write at every file operation and at random moments, interrupts them, fills their disk and runs
several into one output; gives every reader inputs that break one rule and nothing else, which it must refuse with the
code of the rule, and sound ones, which it must accept; and feeds every parser damaged input, which must not crash it.
Prints what was tried and what was found; exit 1 for a finding.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS
from tests.hardness import attacks
from tests.hardness.attacks import Arena, Tally
from tests.hardness.classes import CLASSES, OF_ENGINES
from tests.hardness.jobs import JOBS
from tests.hardness.oracles import Score, score

EVERY = {**CLASSES, **OF_ENGINES}


def for_seconds(seconds: float, least: int) -> Iterator[int]:
    """At least so many runs."""
    end = time.monotonic() + seconds
    count = 0
    while count < least or time.monotonic() < end:
        yield count
        count += 1


def attacked(root: Path, seed: int, seconds: float) -> Iterator[Tally]:
    """Each job under each attack, ``seconds`` in all beside the attacks that have an end."""
    generator = random.Random(seed)
    share = seconds / (len(JOBS) * 5)
    few = 3 if seconds == 0 else 10
    disks = attacks.can_mount(root / "disk")
    if not disks:
        print(
            "no disk can be mounted here: full and read-only disks are not tried", file=sys.stderr
        )
    for job in JOBS.values():
        arena = Arena(job, root)
        yield attacks.at_every_step(arena, fresh=False, limit=2000)
        if job.whole:
            yield attacks.at_every_step(arena, fresh=True, limit=2000)
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            yield attacks.signalled(arena, generator, how, for_seconds(share, few))
        yield attacks.limited(arena, generator, for_seconds(share, few))
        yield attacks.together(arena, generator, for_seconds(share, 3))
        if disks:
            yield attacks.full_disk(job, root, generator, for_seconds(share, 3))
            yield attacks.read_only(job, root)


def broken(name: str, seed: int, seconds: float) -> Score:
    """Inputs of a class that break one rule, and sound ones."""
    return score(EVERY[name][0], (seed + i for i in for_seconds(seconds, 1)))


def damaged(name: str, seed: int, seconds: float) -> Score:
    """Random changes, of which nobody knows what they break."""
    found = fuzz(TARGETS[name], seed, None, seconds)
    crashed = len(found.findings)
    what = {f.place: f.what for f in found.findings}
    return Score(found.tried - found.accepted - crashed, found.accepted, crashed, what)


def apart(run: Callable[[str, int, float], Score], name: str, seed: int, seconds: float) -> Score:
    """In a process of its own: what an input does to a reader may be anything."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(run, name, seed, seconds).result()
        except BrokenProcessPool:
            return Score(crashed=1, findings={"": "the process died"})


def read(seed: int, seconds: float) -> Iterator[tuple[str, Score]]:
    share = seconds / (len(EVERY) + len(TARGETS))
    for name in EVERY:
        yield f"{name}: sound, or with one rule broken", apart(broken, name, seed, share)
    for name in TARGETS:
        yield f"{name}: damaged", apart(damaged, name, seed, share)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hardness")
    parser.add_argument("--minutes", type=float, default=2.0, help="0: everything once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["writers", "readers"])
    given = parser.parse_args(arguments)
    seconds = given.minutes * 60 / (1 if given.only else 2)
    problems: list[str] = []
    if given.only != "readers":
        problems += show_writers(given.seed, seconds)
    if given.only != "writers":
        problems += show_readers(given.seed, seconds)
    for text in dict.fromkeys(problems):
        print(f"\n{text}")
    return 1 if problems else 0


def show_writers(seed: int, seconds: float) -> list[str]:
    """The findings."""
    found: list[Tally] = []
    print(f"{'tried':>9}  {'hit':>9}  what")
    with tempfile.TemporaryDirectory(prefix="hardness-") as folder:
        for tally in attacked(Path(folder), seed, seconds):
            found.append(tally)
            print(f"{tally.tried:>9,}  {tally.hit:>9,}  {tally.what}", flush=True)
    tried, hit = sum(t.tried for t in found), sum(t.hit for t in found)
    problems = [text for tally in found for text in tally.findings]
    killed = sum(t.hit for t in found if "SIG" in t.what)
    print(f"{tried:>9,}  {hit:>9,}  in all; {killed:,} kills survived; {len(problems)} findings")
    return problems


def show_readers(seed: int, seconds: float) -> list[str]:
    """The findings."""
    found: list[tuple[str, Score]] = []
    print(f"{'refused':>9}  {'accepted':>9}  {'crashed':>9}  what")
    for what, one in read(seed, seconds):
        found.append((what, one))
        print(f"{one.refused:>9,}  {one.accepted:>9,}  {one.crashed:>9,}  {what}", flush=True)
    refused, accepted = sum(s.refused for _, s in found), sum(s.accepted for _, s in found)
    crashed = sum(s.crashed for _, s in found)
    problems = [f"{what}: {text}" for what, one in found for text in one.findings.values()]
    print(f"{refused:>9,}  {accepted:>9,}  {crashed:>9,}  in all; {len(problems)} findings")
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
