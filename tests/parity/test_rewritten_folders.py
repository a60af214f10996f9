"""Folders in a rewritten profile, with chunks, experts, images and cross-attention, equal to the float64 reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen import api, verify_folder
from llamagen.emit.options import ExportOptions
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from tests.parity.mllama import WIDE, shrunk
from tests.parity.models import SPECS


@pytest.mark.parametrize("name", ["reduced/llama-3.2-1b", "reduced/llama-4-scout", WIDE])
def test_a_rewritten_folder_verifies(name: str, tmp_path: Path) -> None:
    resolved = shrunk(name).resolved if name == WIDE else Registry((SPECS,)).load(name)
    spec = tmp_path / "spec.yaml"
    spec.write_text(resolved_text(resolved), encoding="utf-8")
    api.load(spec).export(
        tmp_path / "out", ExportOptions(profile="ort-cpu", max_context=64), random_weights=5
    )
    report = verify_folder(tmp_path / "out", ("reference",), steps=3)
    skipped = [(row.case, row.note) for row in report.rows if row.verdict == "skipped"]
    assert report.passed, report.rows
    assert all(case == "far apart" for case, _ in skipped)
