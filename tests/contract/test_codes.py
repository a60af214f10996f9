"""Every diagnostic code that the package uses is explained, and every explained code is used."""

from __future__ import annotations

import re
from pathlib import Path

from llamagen.diagnostics.codes import load_codes

REPOSITORY = Path(__file__).resolve().parents[2]
_USE = re.compile(r"""["'](LG[0-9]{3})["']""")
_RULE = re.compile(r"^  (LG[0-9]{3}):", re.M)


def used() -> dict[str, set[str]]:
    """Code -> files of the package that raise it; lint rules are raised from their table."""
    found: dict[str, set[str]] = {}
    for path in sorted((REPOSITORY / "llamagen").rglob("*.py")):
        for code in _USE.findall(path.read_text(encoding="utf-8")):
            found.setdefault(code, set()).add(path.relative_to(REPOSITORY).as_posix())
    lint = REPOSITORY / "spec/rules/lint.yaml"
    for code in _RULE.findall(lint.read_text(encoding="utf-8")):
        found.setdefault(code, set()).add("spec/rules/lint.yaml")
    # raised by the command line itself, with the text of an exception
    found.setdefault("LG999", set()).add("llamagen/cli/entry.py")
    return found


def test_used_codes_are_documented() -> None:
    assert sorted(set(used()) - set(load_codes())) == []


def test_documented_codes_are_used() -> None:
    assert sorted(set(load_codes()) - set(used())) == []


def test_codes_are_in_order() -> None:
    assert list(load_codes()) == sorted(load_codes())
