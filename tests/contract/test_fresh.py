"""What is generated and shipped is what the sources give now."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen import api
from llamagen.emit.options import Target
from llamagen.resources import data_text

REPOSITORY = Path(__file__).resolve().parents[2]
GENERATED = REPOSITORY / "generated"


def test_schema_is_fresh() -> None:
    assert data_text("spec", "schema.json") == api.schema_text(), (
        "run `llamagen schema --to spec/schema.json`"
    )


def test_saved_numbers_are_those_of_the_graphs() -> None:
    saved = (REPOSITORY / "spec/numbers.json").read_text(encoding="utf-8")
    assert saved == api.numbers_text(), "run `llamagen list --save-numbers`"


def test_schema_knows_every_key_with_a_hover() -> None:
    import json

    schema = json.loads(api.schema_text())
    assert set(schema["properties"]) >= {
        "spec",
        "id",
        "extends",
        "hyperparameters",
        "blocks",
        "root",
    }
    hovers = schema["$defs"]["Hyperparameters"]["properties"]
    assert all(entry.get("description") for entry in hovers.values())


def owners() -> list[str]:
    """Models with files of their own: the first released of each wiring."""
    lines = (GENERATED / "index.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" -> ") for line in lines)
    return [spec_id for spec_id, owner in pairs if spec_id == owner]


@pytest.mark.parametrize("spec_id", owners())
def test_generated_is_fresh(spec_id: str) -> None:
    """One model a test: together they take minutes."""
    wanted = api.load(spec_id).files()
    found = {
        path.name: path.read_text(encoding="utf-8") for path in (GENERATED / spec_id).iterdir()
    }
    stale = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    assert stale == [], "run `llamagen generate`"


def test_generated_has_every_model_and_nothing_else() -> None:
    """The index too, which the cheapest target checks as well as all."""
    stale = api.generate_check((), (Target.CONFIG,), GENERATED)
    assert [text.split("\n", 1)[0] for text in stale] == [], "run `llamagen generate`"
    folders = {
        path.parent.relative_to(GENERATED).as_posix()
        for path in GENERATED.rglob("*")
        if path.is_file()
    }
    assert folders == {*owners(), ".", "reports"}


def test_every_shipped_spec_is_clean() -> None:
    assert [str(one) for one in api.check().findings] == []


def test_models_that_differ_in_numbers_alone_have_one_folder() -> None:
    """A new eps or size rewrites few files; keys that queries share, a tied head and scaled angles are no numbers."""
    lines = (GENERATED / "index.txt").read_text(encoding="utf-8").splitlines()
    owner = dict(line.split(" -> ") for line in lines)
    assert owner["llama/1/65b"] == owner["llama/2/7b-chat"] == "llama/1/7b"
    assert owner["llama/3/8b"] == owner["llama/code/70b"] == "llama/2/70b"
    assert owner["llama/3.3/70b-instruct"] == owner["llama/guard/3-1b"] == "llama/3.1/8b"
    assert owner["llama/3.2/3b"] == "llama/3.2/1b"
    assert len(set(owner.values())) == 9


def test_named_models_have_their_own_files(tmp_path: Path) -> None:
    named = ("llama/3.1/70b", "llama/3.3/70b-instruct")
    assert [one.shares for one in api.generate(named, (Target.CONFIG,), tmp_path)] == [None, None]
    assert {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")} == {*named}
