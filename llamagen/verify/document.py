"""The report of a verification as closed models: the JSON that goes with a folder. Version 1.

Nothing in it depends on the machine but the last digits of the measured numbers: no path, no time, no host.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import Field

from llamagen.spec.schema import Closed
from llamagen.verify.numerics import BoundRule, Difference, RunDType, Tolerance
from llamagen.verify.report import (
    TOO_WIDE,
    LayerRow,
    LimitKind,
    Row,
    Verdict,
    VerifyReport,
    WitnessName,
)
from llamagen.verify.scenario import Scenario

PACKAGES = ("llamagen", "onnxruntime", "onnx", "torch", "transformers", "numpy")
"""Those whose versions can change a result."""


class VersionDocument(Closed):
    package: str
    version: str


class CaseDocument(Closed):
    name: str
    rows: int
    tokens: int = Field(description="Real tokens of all rows; each gives one row of logits.")
    padding: tuple[int, ...] = Field(description="Padded slots of each row.")
    calls: tuple[int, ...] = Field(description="Slots of each call, past ones not repeated.")
    first_position: int
    last_position: int
    same_as: str | None = Field(description="The case whose logits these must be.")


class LimitDocument(Closed):
    """A length at which the model changes what it does."""

    kind: LimitKind
    size: int
    reached: int = Field(description="Slots of the longest case; for rope, positions.")
    crossed: bool


class ToleranceDocument(Closed):
    """Both in standard deviations of the reference."""

    max_over_std: float | None
    rms_over_std: float
    rule: BoundRule


class ErrorDocument(Closed):
    """Both in standard deviations of the reference, to three digits."""

    max_over_std: float
    rms_over_std: float


class ComparisonDocument(Closed):
    witness: WitnessName
    case: str
    verdict: Verdict
    error: ErrorDocument | None
    tolerance: ToleranceDocument | None
    logits: int = Field(description="Numbers compared.")
    note: str


class LayerDocument(Closed):
    """The residual stream after a layer, compared with ``LayersDocument.basis``."""

    graph: str = Field(description="Its name in the folder, without `.onnx`.")
    path: str
    onnx: ErrorDocument | None
    torch: ErrorDocument | None


class LayersDocument(Closed):
    case: str
    basis: Literal["reference", "torch"]
    layers: tuple[LayerDocument, ...]


class ReportDocument(Closed):
    report: Literal[1] = Field(description="Version of this format.")
    model: str
    spec_digest: str = Field(description="SHA-256 of the graph that the spec means.")
    parameters: int
    dtype: RunDType
    profile: str
    tied: tuple[str, ...] = Field(description="Parts that use another part's weight.")
    seed: int = Field(description="Of the token ids.")
    versions: tuple[VersionDocument, ...]
    cases: tuple[CaseDocument, ...]
    limits: tuple[LimitDocument, ...]
    comparisons: tuple[ComparisonDocument, ...]
    layers: tuple[LayersDocument, ...]
    tokens: int = Field(description="Real tokens whose logits were compared, over all cases.")
    passed: bool


def document(report: VerifyReport) -> ReportDocument:
    """The report without anything that another machine would write differently, digits aside."""
    facts = report.facts
    return ReportDocument(
        report=1,
        model=report.spec_id,
        spec_digest=facts.digest,
        parameters=facts.parameters,
        dtype=facts.dtype,
        profile=facts.profile,
        tied=facts.tied,
        seed=facts.seed,
        versions=_versions(report),
        cases=tuple(map(_case, facts.cases)),
        limits=tuple(
            LimitDocument(kind=one.kind, size=one.size, reached=one.reached, crossed=one.crossed)
            for one in facts.limits
        ),
        comparisons=tuple(map(_comparison, report.rows)),
        layers=_layers(report),
        tokens=sum(case.tokens for case in facts.cases),
        passed=report.passed,
    )


def json_text(found: ReportDocument) -> str:
    return found.model_dump_json(indent=2) + "\n"


def _versions(report: VerifyReport) -> tuple[VersionDocument, ...]:
    used = {row.witness for row in report.rows}
    found = []
    for package in PACKAGES:
        if package in ("torch", "transformers") and package not in used:
            continue
        try:
            found.append(VersionDocument(package=package, version=version(package)))
        except PackageNotFoundError:
            found.append(VersionDocument(package=package, version="not installed"))
    return tuple(found)


def _case(case: Scenario) -> CaseDocument:
    positions = [call[2] for call in case.calls()]
    return CaseDocument(
        name=case.name,
        rows=len(case.mask),
        tokens=case.tokens,
        padding=tuple(int(n) for n in (case.mask == 0).sum(axis=1)),
        calls=case.splits,
        first_position=int(min(p.min() for p in positions)),
        last_position=int(max(p.max() for p in positions)),
        same_as=case.same_as,
    )


def _comparison(row: Row) -> ComparisonDocument:
    return ComparisonDocument(
        witness=row.witness,
        case=row.case,
        verdict=row.verdict,
        error=_error(row.difference),
        tolerance=_tolerance(row.tolerance),
        logits=0 if row.difference is None else row.difference.count,
        note=row.note if row.tolerance is None or row.tolerance.tells else TOO_WIDE,
    )


def _tolerance(found: Tolerance | None) -> ToleranceDocument | None:
    if found is None:
        return None
    most = found.max_over_std
    return ToleranceDocument(
        max_over_std=None if most is None else _rounded(most),
        rms_over_std=_rounded(found.rms_over_std),
        rule=found.rule,
    )


def _error(found: Difference | None) -> ErrorDocument | None:
    if found is None:
        return None
    return ErrorDocument(
        max_over_std=_rounded(found.max_over_std), rms_over_std=_rounded(found.rms_over_std)
    )


def _rounded(number: float) -> float:
    return float(f"{number:.2e}")


def _layers(report: VerifyReport) -> tuple[LayersDocument, ...]:
    made: list[LayersDocument] = []
    for case in dict.fromkeys(row.case for row in report.layers):
        rows = [row for row in report.layers if row.case == case]
        (basis,) = {row.basis for row in rows}
        made.append(LayersDocument(case=case, basis=basis, layers=tuple(map(_layer, rows))))
    return tuple(made)


def _layer(row: LayerRow) -> LayerDocument:
    return LayerDocument(
        graph=row.graph, path=row.path, onnx=_error(row.onnx), torch=_error(row.torch)
    )
