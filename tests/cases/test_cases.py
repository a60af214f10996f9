"""Every folder here against the real command line, in a subprocess."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.runner import HERE, golden, names, run_case


@pytest.mark.parametrize("name", names())
def test_case(name: str, tmp_path: Path) -> None:
    answer = run_case(name, tmp_path)
    assert answer == golden(name)
    for expected in sorted(p for p in (HERE / name / "wrote").rglob("*") if p.is_file()):
        made = tmp_path / expected.relative_to(HERE / name / "wrote")
        assert made.read_bytes() == expected.read_bytes(), made.name


def test_a_case_can_fail(tmp_path: Path) -> None:
    """The comparison sees a change of one character in the input."""
    answer = run_case(names()[0], tmp_path)
    assert answer.stdout + answer.stderr, "a case without output proves nothing"
