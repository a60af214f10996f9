"""``python -m tests.fuzz [TARGET ...] [--seconds N] [--seed N] [--atheris]``: fuzz for as long as you like.

Inputs that break something are written to tests/fuzz/corpus/TARGET/, which the suite replays. With ``--atheris``
(``pip install -e '.[fuzz]'``) each target runs under coverage guidance, in a process of its own; the inputs that reach
new code stay in tests/fuzz/.atheris/ for the next session. Exit 1 if something was found.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys

from tests.fuzz.engine import Finding, fuzz
from tests.fuzz.targets import CORPUS, TARGETS, Target


def keep(target: Target, finding: Finding) -> str:
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(finding.data).hexdigest()[:16]
    path.write_bytes(finding.data)
    return str(path)


def guided(names: list[str], seconds: float) -> int:
    """Each target after the other under coverage guidance; the number of those with a finding."""
    words = [sys.executable, "-m", "tests.fuzz.guided"]
    done = (subprocess.run([*words, name, str(int(seconds))], check=False) for name in names)
    return sum(one.returncode != 0 for one in done)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    given = parser.parse_args(arguments)
    if given.atheris:
        return 1 if guided(given.targets or list(TARGETS), given.seconds) else 0
    found = 0
    for name in given.targets or TARGETS:
        target = TARGETS[name]
        outcome = fuzz(target, given.seed, None, given.seconds)
        print(
            f"{name}: {outcome.tried} inputs, {outcome.accepted} accepted, slowest"
            f" {outcome.slowest:.2f} s, {len(outcome.findings)} findings"
        )
        for finding in {f.place: f for f in reversed(outcome.findings)}.values():
            print(f"\n{keep(target, finding)}\n{finding.what}")
        found += len(outcome.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
