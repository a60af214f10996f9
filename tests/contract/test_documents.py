"""What every reader prints as JSON is what its published schema says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from llamagen import api
from llamagen.analysis.documents import DOCUMENTS
from llamagen.cli import main
from llamagen.resources import data_folder

CONFIG = Path(__file__).parents[2] / "generated/llama/3.2/1b/config.json"
LINES = {
    "list": ["list --family all", "list --status sketch"],
    "show": ["show llama/4/scout", "show llama/4/behemoth"],
    "check": ["check llama/3.2/1b", "check {broken}"],
    "resolve": ["resolve llama/3.2/11b-vision", "resolve qwen/3/8b --origins"],
    "explain": [
        "explain llama/3.2/1b rope.factor",
        "explain llama/3.2/1b rope",
        "explain llama/3.2/11b-vision vision",
        "explain LG404",
        "explain silu",
    ],
    "diff": ["diff llama/3/8b llama/3.1/8b", "diff llama/4/scout llama/4/behemoth"],
    "compat": ["compat llama/3/8b llama/3/8b-instruct", "compat llama/3/8b llama/2/7b"],
    "cost": [
        "cost llama/3.1/405b --device h100-sxm --tp 8 --pp 2 --cache-dtype int8",
        "cost llama/4/scout --cache bounded",
        "cost llama/3.2/1b --device cpu-2core",
    ],
    "query": ["query --family all --select id,rope,patterns,ops", "query --share attention"],
    "timeline": ["timeline", "timeline rope --family all", "timeline --releases --family all"],
    "sql": ["sql 'select * from models'", "sql"],
    "import": ["import {config}"],
    "fmt": ["fmt --check {file}", "fmt --check {broken}"],
}


def test_every_document_has_lines_here() -> None:
    assert list(LINES) == list(DOCUMENTS)


@pytest.mark.parametrize("command", DOCUMENTS)
def test_the_published_schema_is_the_one_that_is_printed(command: str) -> None:
    shipped = (data_folder("spec") / f"{command}.schema.json").read_text(encoding="utf-8")
    assert shipped == api.schema_text(command), (
        f"run `llamagen schema {command} --to spec/{command}.schema.json`"
    )
    Draft202012Validator.check_schema(json.loads(shipped))


@pytest.mark.parametrize("line", [one for lines in LINES.values() for one in lines])
def test_what_is_printed_fits_the_schema(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    broken, file = tmp_path / "broken.yaml", tmp_path / "file.yaml"
    broken.write_text(
        "spec: 1\nid: mine/broken\nextends: llama/3.2/1b\nhyperparameters: {hidden: 1}\n"
    )
    file.write_text("id:   mine/file\nspec: 1\n")
    words = shlex.split(line.format(config=CONFIG, broken=broken, file=file))
    main([*words, "--format", "json"])
    printed = json.loads(capsys.readouterr().out)
    schema = json.loads(api.schema_text(words[0]))
    assert [e.message for e in Draft202012Validator(schema).iter_errors(printed)] == []
    assert isinstance(printed, list) or printed["version"] == 1


def test_what_a_schema_does_not_name_is_refused() -> None:
    schema = json.loads(api.schema_text("show"))
    extra = {"version": 1, "sections": {}, "more": 1}
    assert list(Draft202012Validator(schema).iter_errors(extra))
