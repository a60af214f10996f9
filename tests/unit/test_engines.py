"""Hostile files for the engines of others: each input ends as its oracle says, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen.diagnostics import LlamagenError
from tests.counting import count
from tests.hardness.inputs_engines import ENGINES, Case


def cases() -> list[object]:
    return [
        pytest.param(engine, case, id=f"{engine}: {case.name}")
        for engine, one in ENGINES.items()
        for case in one.cases()
    ]


@pytest.mark.parametrize(("engine", "case"), cases())
def test_as_the_oracle_says(engine: str, case: Case, tmp_path: Path) -> None:
    count("hostile files")
    if case.oracle is None:
        ENGINES[engine].run(case.data, tmp_path)
        return
    with pytest.raises(LlamagenError) as caught:
        ENGINES[engine].run(case.data, tmp_path)
    assert [found.code for found in caught.value.diagnostics] == [case.oracle]
    assert all(len(found.message) < 2000 for found in caught.value.diagnostics)
