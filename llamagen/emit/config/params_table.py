"""spec/params_keys.yaml: the keys of Meta's params.json."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llamagen.analysis.tables import load_table
from llamagen.spec.schema import Closed

Keys = Annotated[tuple[str, ...], Field(min_length=1)]


class Interval(Closed):
    """Every n-th layer, which config.json writes as a list of flags; empty for the ``usual`` n."""

    key: str
    usual: int = Field(gt=0)


class ThetaRule(Closed):
    """Base of the rotation that Meta's code takes where the file has none."""

    plain: float
    with_use_scaled_rope: float


class ParamsKind(Closed):
    """Keys of one kind of params.json; ``rules`` are those that a formula of the reader uses."""

    marker: str | None = None
    fields: dict[str, Keys]
    squares: dict[str, str] = {}
    intervals: dict[str, Interval] = {}
    rules: tuple[str, ...]

    def known(self) -> tuple[str, ...]:
        return (*self.fields, *self.squares, *self.intervals, *self.rules)


class ParamsTable(Closed):
    version: Literal[1]
    rope_theta: ThetaRule
    ignored: dict[str, str]
    kinds: dict[str, ParamsKind]


def params_table() -> ParamsTable:
    return load_table("params_keys.yaml", ParamsTable)
