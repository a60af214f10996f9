"""A resolved spec as text loads to the same architecture and the same record."""

from __future__ import annotations

import pytest

from llamagen.spec.fmt import origin_rows, resolved_text
from llamagen.spec.registry import Registry

REGISTRY = Registry()


@pytest.mark.parametrize("spec_id", REGISTRY.ids())
def test_resolved_text_loads_to_the_same(spec_id: str) -> None:
    resolved = REGISTRY.load(spec_id)
    text = resolved_text(resolved)
    again = Registry().load_text(text)
    assert again.digest == resolved.digest
    assert again.spec.model_copy(update={"extends": resolved.spec.extends}) == resolved.spec
    assert resolved_text(again) == text


def test_origins_name_the_last_writer_and_those_before() -> None:
    rows = {row.path: row for row in origin_rows(REGISTRY.load("llama/3.2/1b"))}
    theta = rows["hyperparameters.rope.theta"]
    assert theta.text == "500000.0"
    assert theta.spec_id == "llama/3.1/_base" and theta.span.file.endswith("3.1/_base.yaml")
    width = rows["hyperparameters.hidden_size"]
    assert width.spec_id == "llama/3.2/1b" and width.span.line > 1
    norm = rows["hyperparameters.norm_eps"]
    assert [origin.spec_id for origin in norm.origins][-1] == norm.spec_id
