"""The table of mutants cannot rot: each still applies, each has suites, each has been killed."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import REPORT, earlier
from tests.mutants.table import ROOT, Mutant, change_of, read_table

TABLE = read_table()


@pytest.mark.parametrize("mutant", TABLE.mutants, ids=lambda m: m.id)
def test_a_mutant_applies(mutant: Mutant) -> None:
    """Its ``before`` stands exactly once, and what it makes is still Python, and another, where it was Python."""
    change = change_of(mutant, ROOT)
    assert change.text != change.original
    if change.path.suffix == ".py":
        ast.parse(change.text)
        assert ast.dump(ast.parse(mutant.before)) != ast.dump(ast.parse(mutant.after))


EXPRESSION = {"before": "x / (y + eps)", "after": "x / y + eps"}
STATEMENTS = {"before": "x = a\nreturn x", "after": "return a"}
DELETED = {"before": "f(x)", "after": "", "within": "h"}


@pytest.mark.parametrize(
    ("mutant", "code", "changed"),
    [
        (EXPRESSION, "z = 2 * (x / (y + eps))", "z = 2 * (x / y + eps)"),
        (EXPRESSION, "z = 2 * (\n    x  # not: é\n    / (y + eps)\n)", "z = 2 * (x / y + eps)"),
        (STATEMENTS, "def f():\n    x = a\n    return x", "def f():\n    return a"),
        (
            STATEMENTS,
            "if b:\n  def f():\n    x = (a)\n\n    return x",
            "if b:\n\n    def f():\n        return a",
        ),
        (
            DELETED,
            "def g():\n    f(x)\ndef h():\n    f(x)",
            "def g():\n    f(x)\n\ndef h():\n    pass",
        ),
        ({**DELETED, "within": "K"}, "f(x)\nclass K:\n\tf(x)", "f(x)\n\nclass K:\n    pass"),
        ({**DELETED, "within": "v"}, "f(x)\nv = [f(x)]", None),
        (EXPRESSION, "x / (y + eps) + x / (y + eps)", None),
        (EXPRESSION, "x / (y + 1)", None),
    ],
)
def test_a_mutant_follows_its_code(
    tmp_path: Path, mutant: dict[str, str], code: str, changed: str | None
) -> None:
    """Whatever the file and the format; nothing that stands twice, or not at all."""
    (tmp_path / "llamagen" / "deep").mkdir(parents=True)
    (tmp_path / "llamagen" / "deep" / "anywhere.py").write_text(code)
    one = Mutant(id="m", simulates="s", tests="t", **mutant)
    if changed is None:
        with pytest.raises(ValueError, match="must stand once"):
            change_of(one, tmp_path)
    else:
        assert ast.unparse(ast.parse(change_of(one, tmp_path).text)) == changed


def test_ids_are_unique() -> None:
    assert [i for i, n in Counter(m.id for m in TABLE.mutants).items() if n > 1] == []
    changes = Counter((m.file, m.within, m.before, m.after) for m in TABLE.mutants)
    assert [c for c, n in changes.items() if n > 1] == []


def test_the_suites_exist() -> None:
    assert {m.tests for m in TABLE.mutants} == set(TABLE.suites)
    for arguments in (a for runs in TABLE.suites.values() for a in runs):
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
