"""``python -m tests.fuzz [TARGET ...] [--seconds N] [--seed N] [--atheris]``: fuzz for as long as you like.

Inputs that break something are written to tests/fuzz/corpus/TARGET/, which the suite replays. With ``--atheris``
(``pip install atheris``) one target runs under coverage guidance until it is stopped. Exit 1 if something was found.
"""

from __future__ import annotations

import argparse
import hashlib
import sys

from tests.fuzz.engine import Finding, fuzz
from tests.fuzz.targets import CORPUS, TARGETS, Target


def keep(target: Target, finding: Finding) -> str:
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(finding.data).hexdigest()[:16]
    path.write_bytes(finding.data)
    return str(path)


def guided(target: Target, seconds: float) -> None:
    """Never returns: libFuzzer ends the process, with status 0 after ``seconds`` without a finding."""
    import atheris

    atheris.instrument_all()
    folder = CORPUS.parent / ".atheris" / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds():
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def once(data: bytes) -> None:
        target.run(data)

    prefix = f"-artifact_prefix={CORPUS / target.name}/"
    (CORPUS / target.name).mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={int(seconds)}", "-rss_limit_mb=2048", "-timeout=10"]
    atheris.Setup([sys.argv[0], str(folder), prefix, *limits], once)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    given = parser.parse_args(arguments)
    found = 0
    for name in given.targets or TARGETS:
        target = TARGETS[name]
        if given.atheris:
            guided(target, given.seconds)
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
