"""``python -m tests.mutants [PATTERN ...] [--jobs N]``: apply every mutant (or those whose id matches), write TABLE.md.

The test that killed a mutant last time is tried first. With patterns only those rows are run, and TABLE.md keeps the
others. Exit 1 if a mutant is not killed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from tests.mutants.runner import Result, Runner, copied_tree, preload
from tests.mutants.table import Mutant, Table, read_table

REPORT = Path(__file__).with_name("TABLE.md")
HEAD = """\
# Mutants and what kills them

Written by `python -m tests.mutants` from `mutants.yaml`. Each row is one wrong variant of a formula, a lowering or a
block equation, applied to a copy of the tree; the test named failed with it and passes without it. Seconds are those
of the tests that were run, imports excluded.

"""


def report(table: Table, rows: dict[str, str]) -> str:
    kept = [rows[m.id] for m in table.mutants if m.id in rows]
    killed = sum("| survived |" not in r and "| timeout |" not in r for r in kept)
    lines = [f"{len(table.mutants)} mutants, {killed} killed.", ""]
    lines += ["| mutant | what it simulates | killed by | seconds |", "| --- | --- | --- | --- |"]
    return HEAD + "\n".join([*lines, *kept]) + "\n"


def row(result: Result) -> str:
    killer = f"`{result.killer}`" if result.verdict == "killed" else result.verdict
    killer = killer.replace("|", "\\|")
    return f"| {result.mutant.id} | {result.mutant.simulates} | {killer} | {result.seconds:.1f} |"


def earlier() -> dict[str, str]:
    """Rows of the last report by id."""
    if not REPORT.exists():
        return {}
    lines = [r for r in REPORT.read_text().splitlines() if r.startswith("| ") and "---" not in r]
    return {r.split(" | ")[0].removeprefix("| "): r for r in lines}


def killers() -> dict[str, str]:
    """The test that killed each mutant when the report was written."""
    found = {i: re.search(r"\| `(tests/[^`]+)` \|", line) for i, line in earlier().items()}
    return {i: match[1].replace("\\|", "|") for i, match in found.items() if match}


def work(table: Table, mutants: Sequence[Mutant], answers: SimpleQueue[Result | None]) -> None:
    """One worker, with a copy of the tree of its own."""
    try:
        with copied_tree() as copy:
            runner = Runner(table, copy, killers())
            for mutant in mutants:
                answers.put(runner.run(mutant))
    finally:
        answers.put(None)


def results(table: Table, wanted: Sequence[Mutant], jobs: int) -> Iterator[Result]:
    """From ``jobs`` processes, forked here: they share the libraries that are loaded already."""
    context = multiprocessing.get_context("fork")
    answers: SimpleQueue[Result | None] = context.SimpleQueue()
    workers = [
        context.Process(target=work, args=(table, wanted[n::jobs], answers)) for n in range(jobs)
    ]
    for worker in workers:
        worker.start()
    ended = 0
    while ended < jobs:
        answer = answers.get()
        ended += answer is None
        if answer is not None:
            yield answer
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError("a worker ended before its mutants were tried")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("patterns", nargs="*", help="of ids, such as 'ref-*'")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(arguments)
    table = read_table()
    wanted = [
        m
        for m in table.mutants
        if not given.patterns or any(fnmatch(m.id, p) for p in given.patterns)
    ]
    known = {m.id for m in table.mutants}
    rows = {k: v for k, v in earlier().items() if given.patterns and k in known}
    preload()
    alive = 0
    began = time.monotonic()
    jobs = max(1, min(given.jobs, len(wanted)))
    for n, result in enumerate(results(table, wanted, jobs), 1):
        rows[result.mutant.id] = row(result)
        alive += result.verdict != "killed"
        left = (len(wanted) - n) * (time.monotonic() - began) / n
        print(
            f"[{n}/{len(wanted)}, {left:.0f} s left] {result.verdict:8} {result.seconds:6.1f} s"
            f"  {result.mutant.id}  {result.killer}",
            flush=True,
        )
    if rows:
        REPORT.write_text(report(table, rows))
    killed = len(wanted) - alive
    print(f"{killed} of {len(wanted)} killed in {time.monotonic() - began:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
