"""spec/schema.json is the language: an editor underlines no file that loads, and no ``null`` that unsets something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from llamagen.diagnostics import LlamagenError
from llamagen.resources import data_folder
from llamagen.spec.registry import Registry
from llamagen.spec.resolved import Branch, Tree
from llamagen.spec.source import load_source, to_plain

ROOT = Path(__file__).parents[2]
SHIPPED = [
    *sorted((ROOT / "spec/llama").rglob("*.yaml")),
    *sorted((ROOT / "spec/sketch").rglob("*.yaml")),
]
OTHERS = sorted((ROOT / "tests").rglob("*.yaml"))


@cache
def validator() -> Draft7Validator:
    schema = json.loads((data_folder("spec") / "schema.json").read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def errors(plain: object) -> list[str]:
    return [f"{list(error.path)}: {error.message}" for error in validator().iter_errors(plain)]


def loads(path: Path) -> bool:
    """As a spec, alone; other YAML files and those of cases about errors do not."""
    try:
        Registry((ROOT / "tests/specs",)).load(path)
    except LlamagenError:
        return False
    return True


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT / "spec")))
def test_a_shipped_spec_passes(path: Path) -> None:
    assert errors(to_plain(load_source(path).root)) == []


def test_whatever_loads_passes() -> None:
    good = [path for path in OTHERS if loads(path)]
    assert len(good) > 35
    found = {path: errors(to_plain(load_source(path).root)) for path in good}
    assert {str(path): said for path, said in found.items() if said} == {}


def paths(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Everything that an heir may name; values of patterns and options have null as one of theirs."""
    if path and path not in (("spec",), ("id",)):
        yield path
    if isinstance(tree, Branch):
        for name, below in tree.entries.items():
            yield from paths(below, (*path, name))


@pytest.mark.parametrize("spec_id", ["llama/1/7b", "llama/4/scout", "llama/3.2/11b-vision"])
def test_null_unsets_everything_that_is_inherited(spec_id: str) -> None:
    every = list(paths(Registry().load(spec_id).tree))
    assert len(every) > 100
    for path in every:
        unset: object = None
        for name in reversed(path):
            unset = {name: unset}
        assert isinstance(unset, dict)
        assert errors({"spec": 1, "id": "mine/heir", "extends": spec_id, **unset}) == [], path


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": None},
        {"id": None},
        {"hyperparameter": {}},
        {"hyperparameters": {"hidden_sise": 4}},
        {"hyperparameters": {"hidden_size": "4"}},
        {"hyperparameters": {"tie_embeddings": "false"}},
        {"hyperparameters": {"rope": {"kind": "spiral"}}},
        {"patterns": {"p": {"cycle": []}}},
        {"patterns": {"p": {"at": {"x": [None]}}}},
        {"invariants": {"x": 3}},
        {"blocks": {"x": None}},
        {"blocks": {"X": {"parts": {"q": 3}}}},
        {"conflicts": [None]},
    ],
    ids=json.dumps,
)
def test_mistakes_are_underlined(wrong: dict[str, object]) -> None:
    assert errors({"spec": 1, "id": "mine/model", "extends": "llama/1/7b"}) == []
    assert errors({"spec": 1, "id": "mine/model", "extends": "llama/1/7b", **wrong})
