"""``python -m tests.hardness [--minutes N] [--seed N]``: what the tool withstands, in figures.

Kills commands that write at every file operation and at random moments, interrupts them, fills their disk, runs several
into one output, and feeds every parser damaged input. Prints what was tried and what was found; exit 1 for a finding.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS
from tests.hardness import attacks
from tests.hardness.attacks import Arena, Tally
from tests.hardness.jobs import JOBS


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


def fuzzed(seed: int, seconds: float) -> Iterator[Tally]:
    for target in TARGETS.values():
        outcome = fuzz(target, seed, None, seconds / len(TARGETS))
        what = f"{target.name}: damaged input"
        refused = outcome.tried - outcome.accepted
        yield Tally(what, outcome.tried, refused, [f.what for f in outcome.findings])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hardness")
    parser.add_argument("--minutes", type=float, default=2.0, help="0: everything once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["writers", "parsers"])
    given = parser.parse_args(arguments)
    seconds = given.minutes * 60 / (1 if given.only else 2)
    found: list[Tally] = []
    print(f"{'tried':>9}  {'hit':>9}  what")
    with tempfile.TemporaryDirectory(prefix="hardness-") as folder:
        if given.only != "parsers":
            for tally in attacked(Path(folder), given.seed, seconds):
                found.append(tally)
                show(tally)
        if given.only != "writers":
            for tally in fuzzed(given.seed, seconds):
                found.append(tally)
                show(tally)
    tried, hit = sum(t.tried for t in found), sum(t.hit for t in found)
    problems = [text for tally in found for text in tally.findings]
    killed = sum(t.hit for t in found if "SIG" in t.what)
    print(f"{tried:>9,}  {hit:>9,}  in all; {killed:,} kills survived; {len(problems)} findings")
    for text in dict.fromkeys(problems):
        print(f"\n{text}")
    return 1 if problems else 0


def show(tally: Tally) -> None:
    print(f"{tally.tried:>9,}  {tally.hit:>9,}  {tally.what}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
