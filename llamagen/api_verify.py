"""Verifying exported folders from a program: against independent witnesses, and against their manifest.

Importing this module is cheap: PyTorch, ONNX and ONNX Runtime are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamagen.emit.manifest import QualityRecord
    from llamagen.emit.written import Progress
    from llamagen.verify.folder import CaseProgress
    from llamagen.verify.integrity import Integrity
    from llamagen.verify.mutants import Mutation
    from llamagen.verify.report import VerifyReport

VERIFY_COLUMNS = ("against", "case", "max/std", "rms/std", "tolerance", "result")
MUTATION_COLUMNS = ("caught by", "mutants")
INTEGRITY_COLUMNS = ("file", "damage", "detail")


def _silent(done: int, total: int, what: str = "") -> None:
    """Reports nothing."""


def verify_folder(
    folder: str | Path,
    against: Sequence[str] = ("torch", "reference"),
    steps: int = 16,
    *,
    prompt_tokens: int = 12,
    seed: int = 0,
    layers: bool = False,
    provider: str = "cpu",
    progress: CaseProgress = _silent,
) -> VerifyReport:
    """Compare an exported folder with independent witnesses: prefill, ``steps`` decode steps, padded batches ...

    ``provider`` is where ONNX Runtime computes: ``cpu``, or ``cuda``.
    """
    from llamagen.verify import folder as verification

    return verification.verify_folder(
        Path(folder),
        against,
        steps,
        prompt_tokens=prompt_tokens,
        seed=seed,
        layers=layers,
        provider=provider,
        progress=progress,
    )


def mutate(
    folder: str | Path, *, most: int = 200, seed: int = 0, progress: CaseProgress = _silent
) -> Mutation:
    """Make the text graph of a folder wrong in up to ``most`` places, one at a time, and see what is caught."""
    from llamagen.verify import mutants

    return mutants.mutate(Path(folder), most=most, seed=seed, progress=progress)


def measure_quality(folder: str | Path, checkpoint: str | Path | None = None) -> QualityRecord:
    """KL divergence and top-1 agreement of an exported folder with the float32 model; written into its manifest.

    The float32 weights are those of ``checkpoint``, or of the folder's own seed.
    """
    from llamagen.verify import quality

    return quality.measure_quality(Path(folder), None if checkpoint is None else Path(checkpoint))


def check_integrity(folder: str | Path, progress: Progress = _silent) -> Integrity:
    """Compare every file of an exported folder with its MANIFEST.json; ``progress`` gets (bytes read, in all)."""
    from llamagen.verify import integrity

    return integrity.check_integrity(Path(folder), progress)


def check_report_names(files: Sequence[Path]) -> None:
    """Raises LG776 unless each is a .html or a .json, LG634 where something else is there."""
    from llamagen.verify.report import check_names

    check_names(files)


def write_verify_report(report: VerifyReport, file: str | Path) -> None:
    """Write a verification as .html or .json. Raises LG776 for another name, LG632 to LG634 for the place."""
    from llamagen.verify.report import write_report

    write_report(report, Path(file))
