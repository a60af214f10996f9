"""The outcome of a verification, a row for each witness and case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from llamagen.verify.numerics import Difference, RunDType, Tolerance
from llamagen.verify.scenario import Scenario

WitnessName: TypeAlias = Literal["torch", "reference", "transformers"]
Verdict: TypeAlias = Literal["equal", "different", "skipped"]

TOO_WIDE = "rounding alone moves this model so far that nothing can be told"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; without a difference it was skipped, and ``note`` says why. Else it is a remark."""

    witness: WitnessName
    case: str
    difference: Difference | None
    tolerance: Tolerance | None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.difference is None or self.tolerance is None:
            return "skipped"
        if not self.difference.within(self.tolerance):
            return "different"
        return "equal" if self.tolerance.tells else "skipped"

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Witness, case, max/std, rms/std, tolerance (or the reason it was skipped), verdict."""
        if self.difference is None or self.tolerance is None:
            return self.witness, self.case, "", "", self.note, self.verdict
        d = self.difference
        numbers = f"{d.max_over_std:.1e}", f"{d.rms_over_std:.1e}"
        how = self.tolerance.rule if self.tolerance.tells else f"{self.tolerance.rule}; {TOO_WIDE}"
        return self.witness, self.case, *numbers, f"{self.tolerance} ({how})", self.verdict


@dataclass(frozen=True, slots=True)
class LayerRow:
    """How far the residual stream after one layer is from that of ``basis``; None where it was not looked at."""

    case: str
    graph: str
    path: str
    basis: Literal["reference", "torch"]
    onnx: Difference | None
    torch: Difference | None


LimitKind: TypeAlias = Literal["sliding window", "chunk", "original context of rope"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A length at which a model changes what it does, and how far the inputs went."""

    kind: LimitKind
    size: int
    reached: int
    """Slots of the longest case; for rope the positions."""

    @property
    def crossed(self) -> bool:
        return self.reached > self.size


@dataclass(frozen=True, slots=True)
class Facts:
    """What was verified, and with which inputs."""

    digest: str
    """SHA-256 of the graph."""
    parameters: int
    dtype: RunDType
    profile: str
    tied: tuple[str, ...]
    """Role paths of parts that use the weight of another one."""
    seed: int
    cases: tuple[Scenario, ...]
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Rows in the order of witnesses, then cases; layers only where they were asked for."""

    spec_id: str
    rows: tuple[Row, ...]
    facts: Facts
    layers: tuple[LayerRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing is different, and something was compared."""
        verdicts = {row.verdict for row in self.rows}
        return "different" not in verdicts and "equal" in verdicts
