"""Other people's code agrees with exports of every generation; slow, as each is installed first."""

from __future__ import annotations

import json

import pytest

from tests.field.__main__ import FILE, WITNESSES, compared, missing

ROWS = [(name, model) for name, witness in WITNESSES.items() for model in witness.models]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), ROWS, ids=lambda one: getattr(one, "id", one))
def test_agrees(name: str, model: object) -> None:
    if why := missing(name):
        pytest.skip(why)
    found = compared(name, model)  # type: ignore[arg-type]
    assert found["result"] == "equal" and found["cases"] >= 8, found


def test_what_was_recorded_is_of_these_witnesses_and_models() -> None:
    """And good news, in an order of its own."""
    text = FILE.read_text()
    found = json.loads(text)
    assert text == json.dumps(found, indent=2, sort_keys=True) + "\n"
    assert {name: list(one["models"]) for name, one in found.items()} == {
        name: sorted(model.id for model in witness.models) for name, witness in WITNESSES.items()
    }, "run `python -m tests.field`"
    for name, one in found.items():
        assert set(one["versions"]) == set(WITNESSES[name].packages)
        assert all(row["result"] == "equal" for row in one["models"].values())
