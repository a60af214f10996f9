"""``python -m tests.reports [NAME ...]``: verify one reduced model of every generation and write generated/reports/.

The models are tests/specs/reduced with the random weights of ``WEIGHTS``. Numbers are measured, so their last digits
are those of the machine; everything else is compared with the sources by tests/contract/test_reports.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llamagen import verify_folder, write_verify_report
from llamagen.api import load
from llamagen.verify.report import VerifyReport

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "tests" / "specs" / "reduced"
REPORTS = ROOT / "generated" / "reports"
WEIGHTS, TOKENS = 11, 12
"""Seeds."""
STEPS = 8
AGAINST = ("reference", "torch", "transformers")


def names() -> list[str]:
    return sorted(path.stem for path in SPECS.glob("*.yaml"))


def verified(name: str, against: Sequence[str] = AGAINST) -> VerifyReport:
    """Export the reduced model into a temporary folder and compare it with every witness."""
    with tempfile.TemporaryDirectory(prefix="reports-") as folder:
        out = Path(folder) / "out"
        load(SPECS / f"{name}.yaml").export(out, random_weights=WEIGHTS)
        return verify_folder(out, against, STEPS, seed=TOKENS, layers=True)


def main(chosen: Sequence[str]) -> int:
    failed = 0
    for name in chosen or names():
        report = verified(name)
        for suffix in (".json", ".html"):
            write_verify_report(report, REPORTS / f"{name}{suffix}")
        failed += not report.passed
        print(f"{name}: {'equal' if report.passed else 'DIFFERENT'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
