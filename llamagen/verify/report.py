"""The outcome of a verification, a row for each witness and case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from llamagen.verify.numerics import Difference, Tolerance

WitnessName: TypeAlias = Literal["torch", "reference", "transformers"]
Verdict: TypeAlias = Literal["equal", "different", "skipped"]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; without a difference it was skipped, and ``note`` says why."""

    witness: WitnessName
    case: str
    difference: Difference | None
    tolerance: Tolerance | None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.difference is None or self.tolerance is None:
            return "skipped"
        return "equal" if self.difference.within(self.tolerance) else "different"

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Witness, case, max/std, rms/std, tolerance (or the reason it was skipped), verdict."""
        if self.difference is None or self.tolerance is None:
            return self.witness, self.case, "", "", self.note, self.verdict
        d = self.difference
        numbers = f"{d.max_over_std:.1e}", f"{d.rms_over_std:.1e}"
        return (
            self.witness,
            self.case,
            *numbers,
            f"{self.tolerance} ({self.tolerance.rule})",
            self.verdict,
        )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Rows in the order of witnesses, then cases."""

    spec_id: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Nothing is different, and something was compared."""
        verdicts = {row.verdict for row in self.rows}
        return "different" not in verdicts and "equal" in verdicts
