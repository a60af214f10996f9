"""Parameters by component of every model that can be built, against the counts of the fact table."""

from __future__ import annotations

import pytest

from llamagen.analysis.numbers import Component, count_parameters
from llamagen.ir.graph import MAIN
from tests.unit.family.facts import BUILDABLE, graph_of, records

COMPONENTS = {
    "embed": Component.EMBEDDING,
    "attention": Component.ATTENTION,
    "mlp": Component.FEED_FORWARD,
    "dense_mlp": Component.FEED_FORWARD,
    "shared_expert": Component.FEED_FORWARD,
    "router": Component.ROUTER,
    "routed_experts": Component.EXPERTS,
    "norms": Component.NORM,
    "lm_head": Component.HEAD,
}
"""The table's words; it counts image encoders in other parts than the wiring has."""

ENCODERS = ("vision", "projector", "cross_attention")
TEXT = [name for name in BUILDABLE if "cross_attention" not in records()[name]["parts"]]


def test_all_text_models_are_here() -> None:
    assert len(TEXT) >= 43


@pytest.mark.parametrize("name", TEXT)
def test_components_are_exact(name: str) -> None:
    report = count_parameters({MAIN: graph_of(name)})
    expected = dict.fromkeys(COMPONENTS.values(), 0)
    for part, count in records()[name]["parts"].items():
        if part not in ENCODERS:
            expected[COMPONENTS[part]] += count
    assert {component: report.of(component) for component in expected} == expected
    assert report.of(Component.OTHER) == 0
