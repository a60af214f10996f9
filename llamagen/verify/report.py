"""The outcome of a verification: rows in memory, a document as JSON (version 1), a page of that document.

Nothing in the document depends on the machine but the last digits of the measured numbers: no path, no time, no host.
The page is a function of the document, so that the two cannot tell different stories: no scripts, nothing loaded from
elsewhere, every text escaped. Texts for the page are properties of the document's parts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from math import ceil, floor, log10
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import MANIFEST
from llamagen.resources import templates
from llamagen.spec.schema import Closed
from llamagen.verify.limits import (
    TELLS_NOTHING,
    BoundRule,
    Difference,
    Limit,
    LimitKind,
    Proof,
    RunDType,
    Tolerance,
    limit_text,
)
from llamagen.verify.scenarios import Scenario
from llamagen.writing import require_kin, require_writable, write_changed

WitnessName: TypeAlias = str
"""A key of ``WITNESSES``, or the name of a file or folder of the user's."""
EXACTLY = ", exactly"
"""How rows end that compare what the graph means, with no rounding, in place of what ONNX Runtime computes."""

SPEC = "spec"
"""The witness of rows that nobody asks for."""

Verdict: TypeAlias = Literal["equal", "different", "skipped", "not compared"]

WITNESSES: dict[WitnessName, str] = {
    "torch": "the PyTorch module that llamagen generates, run with the folder's weights in float32",
    "reference": "a float64 interpreter in numpy, written from the formulas; shares no code with a backend",
    "transformers": "transformers' own model of the folder's config.json, in float32 with eager attention",
    "openvino": "OpenVINO, which reads the text graph of the folder by itself; of an architecture it knows nothing",
    SPEC: "the spec in float64: tables of the graphs, relative to each number, and what nodes mean with no rounding",
}

OWN_WITNESS = "an oracle that the caller gave"

TOO_WIDE = "rounding alone moves this model so far that nothing can be told"

PACKAGES = ("llamagen", "onnxruntime", "onnx", "torch", "transformers", "openvino", "numpy")
"""Those whose versions can change a result."""

SUFFIXES = (".html", ".json")
_TITLE = re.compile(r"<!doctype html>\n.{0,1000}<title>[^<]*: (equal|different)</title>", re.DOTALL)
"""Of templates/docs/verify.html.j2."""

_FLOOR = 1e-9
"""Errors below are drawn as nothing."""


# In memory


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; without a difference it was skipped, and ``note`` says why. Else it is a remark."""

    witness: WitnessName
    case: str
    difference: Difference | None
    tolerance: Tolerance | None
    note: str = ""
    missing: bool = False
    """Something of the model was not compared at all, or its witness failed."""

    def is_of(self, case: str, exactly: bool = False) -> bool:
        """Whether it says something of a case: of what ONNX Runtime computes there, or ``exactly`` of what is meant."""
        name = self.case.partition(", ")[0]
        said = name == case and self.verdict in ("equal", "different")
        return said and self.case.endswith(EXACTLY) is exactly

    @property
    def verdict(self) -> Verdict:
        if self.missing:
            return "not compared"
        if self.difference is None or self.tolerance is None:
            return "skipped"
        if not self.difference.within(self.tolerance):
            return "different"
        return "equal" if self.tolerance.tells else "skipped"

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Witness, case, max/std, rms/std, tolerance (or the reason it was skipped), verdict."""
        if self.difference is None or self.tolerance is None:
            return self.witness, self.case, "", "", self.note, self.verdict
        most, rms = map(_cell, (self.difference.max_over_std, self.difference.rms_over_std))
        how = self.tolerance.rule if self.tolerance.tells else f"{self.tolerance.rule}; {TOO_WIDE}"
        return self.witness, self.case, most, rms, f"{self.tolerance} ({how})", self.verdict


def _cell(error: float) -> str:
    """Below 1e-12 two evaluations in float64 differ as they do on two machines."""
    return "<1e-12" if error < 1e-12 else f"{error:.1e}"


@dataclass(frozen=True, slots=True)
class LayerRow:
    """How far the residual stream after one layer is from that of ``basis``; None where it was not looked at."""

    case: str
    graph: str
    path: str
    basis: Literal["reference", "torch"]
    onnx: Difference | None
    torch: Difference | None


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
        """Nothing is different or missing, something was compared, and no limit of the model is without a proof."""
        verdicts = {row.verdict for row in self.rows}
        proven = all(limit.proof != "none" for limit in self.facts.limits)
        compared = any(row.verdict == "equal" for row in self.rows if row.witness != SPEC)
        return not verdicts & {"different", "not compared"} and compared and proven


# As a document


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

    @property
    def padding_text(self) -> str:
        return ", ".join(map(str, self.padding)) if any(self.padding) else "none"

    @property
    def calls_text(self) -> str:
        """``12 + 16 × 1``."""
        runs = [(slots, len(list(calls))) for slots, calls in groupby(self.calls)]
        return " + ".join(f"{n} × {slots}" if n > 1 else f"{slots}" for slots, n in runs)

    @property
    def expected_text(self) -> str:
        return f"the logits of “{self.same_as}”" if self.same_as else "its own"

    @property
    def positions_text(self) -> str:
        return f"{self.first_position:,} … {self.last_position:,}"


class LimitDocument(Closed):
    """A length at which the model changes what it does."""

    kind: LimitKind
    size: int
    reached: int = Field(description="Tokens, or positions, that cases went up to.")
    proof: Proof = Field(
        description="How it is known that the folder has it where the spec has it."
    )

    @property
    def text(self) -> str:
        return limit_text(self.kind, self.size, self.proof)


class ToleranceDocument(Closed):
    """Both in standard deviations of the reference."""

    max_over_std: float | None
    rms_over_std: float
    rule: BoundRule

    @property
    def text(self) -> str:
        return str(Tolerance(self.max_over_std, self.rms_over_std))


class ErrorDocument(Closed):
    """Both in standard deviations of the reference, to three digits."""

    max_over_std: float
    rms_over_std: float

    @property
    def max_text(self) -> str:
        return f"{self.max_over_std:.1e}"

    @property
    def rms_text(self) -> str:
        return f"{self.rms_over_std:.1e}"


class ComparisonDocument(Closed):
    witness: WitnessName
    case: str
    verdict: Verdict
    error: ErrorDocument | None
    tolerance: ToleranceDocument | None
    logits: int = Field(description="Numbers compared.")
    note: str

    @property
    def tolerance_text(self) -> str:
        """Or the reason it was skipped."""
        bound = self.tolerance
        if bound is None:
            return self.note
        return f"{bound.text} ({'; '.join(filter(None, (bound.rule, self.note)))})"

    @property
    def used(self) -> float | None:
        """The larger of the two errors, each over its tolerance."""
        error, bound = self.error, self.tolerance
        if error is None or bound is None:
            return None
        rms, most = error.rms_over_std / bound.rms_over_std, bound.max_over_std
        return rms if most is None else max(rms, error.max_over_std / most)

    @property
    def used_text(self) -> str:
        return "" if self.used is None else f"{self.used:.0%}"

    @property
    def used_percent(self) -> int:
        """Of a bar."""
        return min(100, round(100 * (self.used or 0)))


class LayerDocument(Closed):
    """The residual stream after a layer, compared with ``LayersDocument.basis``."""

    graph: str = Field(description="Its name in the folder, without `.onnx`.")
    path: str
    onnx: ErrorDocument | None
    torch: ErrorDocument | None

    @property
    def name(self) -> str:
        return self.path if self.graph == "model" else f"{self.graph}: {self.path}"


class LayersDocument(Closed):
    case: str
    basis: Literal["reference", "torch"]
    layers: tuple[LayerDocument, ...]

    def has(self, backend: Literal["onnx", "torch"]) -> bool:
        return any(getattr(row, backend) for row in self.layers)

    @property
    def axis(self) -> tuple[int, int]:
        """Decades that hold all errors."""
        errors = [e.rms_over_std for row in self.layers for e in (row.onnx, row.torch) if e]
        logs = [log10(e) for e in errors if e > _FLOOR] or [-8.5]
        return floor(min(logs)), max(ceil(max(logs)), floor(min(logs)) + 1)

    @property
    def axis_text(self) -> str:
        low, high = self.axis
        return f"1e{low:+03d} to 1e{high:+03d}"

    def filled(self, error: ErrorDocument) -> int:
        """How much of a bar is filled, in percent of the logarithmic axis."""
        (low, high), rms = self.axis, error.rms_over_std
        share = (log10(rms) - low) / (high - low) if rms > _FLOOR else 0.0
        return round(100 * min(max(share, 0.02), 1.0))


class ReportDocument(Closed):
    report: Literal[2] = Field(description="Version of this format.")
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

    @property
    def verdict(self) -> str:
        different = any(c.verdict == "different" for c in self.comparisons)
        return "equal" if self.passed else "different" if different else "not compared"

    @property
    def sentence(self) -> str:
        verdicts = [c.verdict for c in self.comparisons]
        different = verdicts.count("different")
        compared = verdicts.count("equal") + different
        if compared == 0:
            return "Nothing could be compared."
        more = "".join(
            f" {count} more {'was' if count == 1 else 'were'} {what}."
            for what in ("skipped", "not compared")
            if (count := verdicts.count(what))
        )
        if different:
            return f"{different} of {compared} comparisons are beyond their tolerances.{more}"
        if compared == 1:
            return f"The comparison is within its tolerance.{more}"
        return f"All {compared} comparisons are within their tolerances.{more}"

    @property
    def witnesses(self) -> dict[WitnessName, str]:
        """Those that were asked, and what they are."""
        return {c.witness: WITNESSES.get(c.witness, OWN_WITNESS) for c in self.comparisons}

    @property
    def measured(self) -> bool:
        """Whether a tolerance is wider than that of its dtype."""
        return any(c.tolerance and c.tolerance.rule == "measured" for c in self.comparisons)


def document(report: VerifyReport) -> ReportDocument:
    """The report without anything that another machine would write differently, digits aside."""
    facts = report.facts
    layers: dict[str, list[LayerRow]] = {}
    for row in report.layers:
        layers.setdefault(row.case, []).append(row)
    return ReportDocument(
        report=2,
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
            LimitDocument(kind=one.kind, size=one.size, reached=one.reached, proof=one.proof)
            for one in facts.limits
        ),
        comparisons=tuple(map(_comparison, report.rows)),
        layers=tuple(
            LayersDocument(case=case, basis=rows[0].basis, layers=tuple(map(_layer, rows)))
            for case, rows in layers.items()
        ),
        tokens=sum(case.tokens for case in facts.cases),
        passed=report.passed,
    )


def _versions(report: VerifyReport) -> tuple[VersionDocument, ...]:
    unused = {"torch", "transformers", "openvino"} - {row.witness for row in report.rows}
    versions: list[VersionDocument] = []
    for package in (one for one in PACKAGES if one not in unused):
        try:
            number = version(package)
        except PackageNotFoundError:
            number = "not installed"
        versions.append(VersionDocument(package=package, version=number))
    return tuple(versions)


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
    bound = row.tolerance
    tolerance = None
    if bound is not None:
        most = None if bound.max_over_std is None else _rounded(bound.max_over_std)
        rms = _rounded(bound.rms_over_std)
        tolerance = ToleranceDocument(max_over_std=most, rms_over_std=rms, rule=bound.rule)
    return ComparisonDocument(
        witness=row.witness,
        case=row.case,
        verdict=row.verdict,
        error=_error(row.difference),
        tolerance=tolerance,
        logits=0 if row.difference is None else row.difference.count,
        note=row.note if bound is None or bound.tells else TOO_WIDE,
    )


def _layer(row: LayerRow) -> LayerDocument:
    onnx, torch = _error(row.onnx), _error(row.torch)
    return LayerDocument(graph=row.graph, path=row.path, onnx=onnx, torch=torch)


def _error(difference: Difference | None) -> ErrorDocument | None:
    if difference is None:
        return None
    most, rms = _rounded(difference.max_over_std), _rounded(difference.rms_over_std)
    return ErrorDocument(max_over_std=most, rms_over_std=rms)


def _rounded(number: float) -> float:
    return float(f"{number:.2e}")


# In files


def json_text(report: ReportDocument) -> str:
    return report.model_dump_json(indent=2) + "\n"


def html_text(report: ReportDocument) -> str:
    """One self-contained page. Deterministic."""
    template = templates("docs", html=True).get_template("verify.html.j2")
    return template.render(report=report, tells=TELLS_NOTHING)


def check_report_names(files: Sequence[Path]) -> None:
    """Before anything is computed. Raises LG776 for a name that does not say which form is meant, LG634 for one that
    another file has, or in an exported folder, of which a report is no part, LG633 where nothing can be written."""
    for file in files:
        if file.suffix not in SUFFIXES:
            message = f"the report {str(file)!r} is neither .html nor .json"
            raise LlamagenError.of("LG776", message, help="name it FILE.html or FILE.json")
        require_writable(file.parent)
        require_kin(file, _is_page if file.suffix == ".html" else _is_document, "a report")
        if os.path.lexists(file.parent / MANIFEST):
            folder = repr(str(file.parent))
            message = f"{folder} is an exported folder, and a report is none of its files"
            raise LlamagenError.of("LG634", message, help="write it elsewhere")


def _is_page(text: str) -> bool:
    return _TITLE.match(text) is not None


def _is_document(text: str) -> bool:
    """Of this version or an older one."""
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return isinstance(read, dict) and type(read.get("report")) is int and "spec_digest" in read


def write_verify_report(report: VerifyReport, file: str | Path) -> None:
    """Write ``file`` whole, HTML or JSON by its name. Only a report takes the place of a file.

    Raises LG776 for another suffix, LG632 to LG634 where it cannot be written.
    """
    file = Path(file)
    check_report_names([file])
    found = document(report)
    text = html_text(found) if file.suffix == ".html" else json_text(found)
    write_changed(file.parent, {file.name: text})
