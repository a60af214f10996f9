"""``python -m tests.mutants [PATTERN ...]``: apply every mutant (or those whose id matches), write TABLE.md.

With patterns only those rows are run, and TABLE.md keeps the others. Exit 1 if a mutant is not killed.
"""

from __future__ import annotations

import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants.runner import Result, Runner, copied_tree, preload
from tests.mutants.table import Table, read_table

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


def main(patterns: list[str]) -> int:
    table = read_table()
    wanted = [m for m in table.mutants if not patterns or any(fnmatch(m.id, p) for p in patterns)]
    known = {m.id for m in table.mutants}
    rows = {k: v for k, v in earlier().items() if patterns and k in known}
    preload()
    alive = 0
    began = time.monotonic()
    with copied_tree() as copy:
        runner = Runner(table, copy)
        for n, mutant in enumerate(wanted, 1):
            result = runner.run(mutant)
            rows[mutant.id] = row(result)
            alive += result.verdict != "killed"
            print(
                f"[{n}/{len(wanted)}] {result.verdict:8} {result.seconds:6.1f} s  {mutant.id}"
                f"  {result.killer}",
                flush=True,
            )
            REPORT.write_text(report(table, rows))
    print(f"{len(wanted) - alive} of {len(wanted)} killed in {time.monotonic() - began:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
