"""The table of mutants cannot rot: each still applies, each has suites, each has been killed."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.mutants.__main__ import REPORT, earlier
from tests.mutants.table import ROOT, Mutant, change_of, read_table, suites_of

TABLE = read_table()


@pytest.mark.parametrize("mutant", TABLE.mutants, ids=lambda m: m.id)
def test_a_mutant_applies(mutant: Mutant) -> None:
    """Its ``before`` stands exactly once, and what it makes is still Python where it was Python."""
    change = change_of(mutant, ROOT)
    assert change.text != change.original
    if change.path.suffix == ".py":
        ast.parse(change.text)


def test_ids_are_unique() -> None:
    assert [i for i, n in Counter(m.id for m in TABLE.mutants).items() if n > 1] == []
    changes = Counter((m.file, m.before, m.after) for m in TABLE.mutants)
    assert [c for c, n in changes.items() if n > 1] == []


def test_the_suites_exist() -> None:
    for mutant in TABLE.mutants:
        for arguments in suites_of(TABLE, mutant):
            files = [a.partition("::")[0] for a in arguments if a.startswith("tests/")]
            assert files, arguments
            assert all((ROOT / f).exists() for f in files), files


def test_every_mutant_is_killed_in_the_report() -> None:
    """TABLE.md has a row for every mutant and every row names a killer: run ``python -m tests.mutants``."""
    rows = earlier()
    assert [m.id for m in TABLE.mutants if m.id not in rows] == []
    alive = [r for i, r in rows.items() if i != "mutant" and "| `tests/" not in r]
    assert alive == []
    assert {i for i in rows if i != "mutant"} == {m.id for m in TABLE.mutants}
    assert f"{len(TABLE.mutants)} mutants, {len(TABLE.mutants)} killed." in REPORT.read_text()
