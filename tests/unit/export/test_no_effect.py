"""Options that change nothing are named; those that do something are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen.api import load, random_checkpoint
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, QuantizeOptions
from llamagen.emit.written import Written
from tests.parity.models import SPECS

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"
WIDE = ("num_heads: 8", "num_heads: 4"), ("head_dim: 8", "head_dim: 16")
"""Heads that the fused attention rotates itself, from a table."""


def said(written: Written) -> list[str]:
    return [note.message.split()[0] for note in written.notes if note.code == "LG647"]


@pytest.mark.parametrize(
    ("profile", "wide", "expected"),
    [
        ("portable", True, ["--max-context"]),
        ("ort-cpu", False, ["--max-context"]),
        ("ort-cpu", True, []),
    ],
)
def test_a_context_without_tables(
    profile: str, wide: bool, expected: list[str], tmp_path: Path
) -> None:
    text = DENSE.read_text()
    for before, after in WIDE if wide else ():
        text = text.replace(before, after)
    spec = tmp_path / "m.yaml"
    spec.write_text(text)
    written = load(spec).export(
        tmp_path / "out", ExportOptions(profile=profile, max_context=64), random_weights=1
    )
    assert said(written) == expected


@pytest.mark.parametrize(
    ("quantize", "expected"),
    [
        (NOT_QUANTIZED, []),
        (QuantizeOptions(block_size=64), ["the"]),
        (QuantizeOptions(asymmetric=True, accuracy_level=1), ["the"]),
        (QuantizeOptions(experts="int4"), ["nothing"]),
        (QuantizeOptions(head="int8", block_size=64), []),
        (QuantizeOptions("int4"), []),
    ],
)
def test_a_quantisation_of_nothing(
    quantize: QuantizeOptions, expected: list[str], tmp_path: Path
) -> None:
    written = load(DENSE).export(
        tmp_path / "out", ExportOptions(quantize=quantize), random_weights=1
    )
    assert said(written) == expected
    quality = [note for note in written.notes if note.code == "LG644"]
    assert bool(quality) == (quantize != NOT_QUANTIZED and not expected)


def test_references_too(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    random_checkpoint(DENSE, checkpoint)
    written = load(DENSE).export(
        out, ExportOptions(weights="reference", max_context=64), checkpoint=checkpoint
    )
    assert said(written) == ["--max-context"]
    assert read_manifest(out).max_context is None
