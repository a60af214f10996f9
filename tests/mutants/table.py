"""The table of mutants: wrong variants of formulas, lowerings and block equations, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.yaml")

Text = Annotated[str, Field(min_length=1)]


class Mutant(BaseModel):
    """One wrong variant: ``before``, which stands exactly once in ``file``, becomes ``after``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    id: Text
    file: Text
    simulates: Text
    before: Text
    after: str
    tests: Text | None = None
    """Name of the suites to run, if not those of the file."""


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    suites: dict[str, list[list[str]]]
    """Name -> runs of pytest (its arguments), the quickest first."""
    files: dict[str, str]
    """Path prefix -> name of the suites that can see a change there; the longest prefix counts."""
    mutants: list[Mutant]


@dataclass(frozen=True)
class Change:
    """``text`` is the whole file with one mutant in it."""

    path: Path
    original: str
    text: str


def read_table(path: Path = TABLE) -> Table:
    return Table.model_validate(yaml.safe_load(path.read_text()))


def suites_of(table: Table, mutant: Mutant) -> list[list[str]]:
    """Raises KeyError for a file that no prefix covers."""
    if mutant.tests is not None:
        return table.suites[mutant.tests]
    return table.suites[longest_prefix(table.files, mutant.file)]


def longest_prefix(files: Mapping[str, str], file: str) -> str:
    prefixes = [p for p in files if file.startswith(p)]
    if not prefixes:
        raise KeyError(f"no suites for {file}")
    return files[max(prefixes, key=len)]


def change_of(mutant: Mutant, root: Path) -> Change:
    """Raises ValueError where ``before`` is not there exactly once."""
    path = root / mutant.file
    original = path.read_text()
    count = original.count(mutant.before)
    if count != 1:
        raise ValueError(f"{mutant.id}: `before` stands {count} times in {mutant.file}, not once")
    return Change(path, original, original.replace(mutant.before, mutant.after))
