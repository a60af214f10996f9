"""What is generated and shipped is what the sources give now."""

from __future__ import annotations

from pathlib import Path

from llamagen import api, api_analysis

REPOSITORY = Path(__file__).resolve().parents[2]


def test_schema_is_fresh() -> None:
    assert api.schema_is_fresh(), "run `llamagen schema --to spec/schema.json`"


def test_saved_numbers_are_those_of_the_graphs() -> None:
    saved = (REPOSITORY / "spec/numbers.json").read_text(encoding="utf-8")
    assert saved == api_analysis.numbers_text(), "run `llamagen list --save-numbers`"


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


def test_generated_is_fresh() -> None:
    stale = api.generate_check((), (), REPOSITORY / "generated")
    assert [text.split("\n", 1)[0] for text in stale] == [], "run `llamagen generate`"


def test_every_shipped_spec_is_clean() -> None:
    assert [str(one) for one in api.check().findings] == []
