"""The table of diff rules: what a kind of change means for each surface."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from llamagen.analysis.diff.features import Kind
from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.tables import load_table
from llamagen.spec.schema import Closed


class EffectRule(Closed):
    """``text`` is a template over the names of the change; ``transform: candidate`` takes the one that fits."""

    verdict: Verdict
    text: str
    transform: str | None = None


class RuleCase(Closed):
    """Two overlays on the test model: the rule fires from ``before`` to ``after``, ``mirror`` the other way."""

    before: str
    after: str
    device: str | None = Field(
        default=None, description="Name of spec/hardware.yaml; default: none."
    )


class DiffRule(Closed):
    title: str
    subject: Kind
    change: tuple[Literal["changed", "added", "removed"], ...]
    when: str = "true"
    effects: dict[Surface, EffectRule] = {}
    listed: bool = Field(
        default=False,
        description="The text form lists the change under each surface of its own effects too.",
    )
    mirror: str = Field(description="Id of the rule that fires for the opposite change.")
    case: RuleCase


DiffRuleId = Annotated[str, StringConstraints(pattern=r"^D[1-9][0-9]{2}$")]


class DiffRules(Closed):
    version: Literal[1]
    rules: dict[DiffRuleId, DiffRule]


def diff_rules() -> dict[str, DiffRule]:
    """Every rule by id; the first that fits a change judges it."""
    return dict(load_table("rules/diff.yaml", DiffRules).rules)
