"""What the graphs of one architecture add up to: all that questions about the family ask of graphs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamagen.analysis.numbers.memory import CacheReport


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot of the text model's cache. ``window`` and ``chunk`` are tokens that a query can look back to."""

    path: str
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    chunk: int | None
    rope: bool | None
    """Whether its attention rotates queries and keys; none for a slot that no attention stands beside."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Weights of one shape at the same place of ``times`` layers. ``path`` has ``*`` for the layers' numbers."""

    path: str
    times: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Parameters of one of them."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers of all graphs of a spec together; those of attention, cache and FLOPs are of the text model."""

    params: int
    active_params: int
    """But for experts that a token did not choose."""
    kv_bytes_per_token: int
    flops_per_token: int
    local_layers: int
    nope_layers: int
    moe_layers: int
    biases: int
    vision_params: int
    image_flops: int | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that questions about the family ask of graphs."""

    totals: Totals
    ops: tuple[str, ...]
    graphs: tuple[str, ...]
    layers: tuple[Slot, ...]
    weights: tuple[Weight, ...]

    @property
    def cache(self) -> CacheReport:
        """The cache of the text model."""
        from llamagen.analysis.numbers.memory import CacheLayer, CacheReport

        return CacheReport(
            tuple(
                CacheLayer(s.path, s.kv_heads, s.key_dim, s.value_dim, s.window, s.chunk)
                for s in self.layers
            )
        )
