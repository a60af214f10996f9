"""Where transformers 5.23 departs from the code a model was trained with, and how to compare with it all the same.

A difference that is known is no reason for a wider tolerance: each has a name here, what both sides do, and a
correction of exactly that in a loaded transformers model. Tests show that the corrected model is equal, and by how
much the plain one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Correction:
    """One difference. ``apply`` changes a model of transformers in place, for good."""

    name: str
    reference: str
    """What the authors' code does, and where."""
    library: str
    """What transformers does instead, and since when."""
    apply: Callable[[torch.nn.Module], None]


def _states_before_layers(model: torch.nn.Module) -> None:
    """Entry i of its list is what comes out of layer i: the state before layer i is entry i - 1."""
    for module in model.modules():
        if type(module).__name__ == "MllamaVisionModel":
            late: list[int] = module.intermediate_layers_indices  # type: ignore[assignment]
            module.intermediate_layers_indices = [i - 1 for i in late]  # type: ignore[assignment]


def _unseen_rows_are_zero(model: torch.nn.Module) -> None:
    """The layer's row mask, which it keeps for the feed-forward, also on what ``o_proj`` reads."""
    import torch

    for module in model.modules():
        if type(module).__name__ != "MllamaCrossAttentionDecoderLayer":
            continue
        rows: list[torch.Tensor | None] = [None]

        def remember(
            _: torch.nn.Module,
            args: tuple[object, ...],
            given: dict[str, object],
            rows: list[torch.Tensor | None] = rows,
        ) -> None:
            mask = given["full_text_row_masked_out_mask"]
            assert mask is None or isinstance(mask, torch.Tensor)
            rows[0] = mask

        def multiply(
            _: torch.nn.Module,
            args: tuple[torch.Tensor, ...],
            rows: list[torch.Tensor | None] = rows,
        ) -> tuple[torch.Tensor, ...] | None:
            return None if rows[0] is None else (args[0] * rows[0][:, 0],)

        module.register_forward_pre_hook(remember, with_kwargs=True)
        module.cross_attn.o_proj.register_forward_pre_hook(multiply)  # type: ignore[union-attr]


LATE_STATES = Correction(
    "late intermediate states",
    "intermediate state i is what layer i of the vision encoder reads (image_transformer.py, return_intermediate)",
    "what layer i returns, since 4.56: every intermediate state is one layer late",
    _states_before_layers,
)
UNMASKED_ROWS = Correction(
    "unmasked text rows",
    "text that sees no image gets nothing from cross-attention: its rows are multiplied by 0 before wo",
    "a uniform mix of all image tokens: the row mask is missing before o_proj (issue 39379)",
    _unseen_rows_are_zero,
)

CORRECTIONS: Mapping[str, tuple[Correction, ...]] = {"mllama": (LATE_STATES, UNMASKED_ROWS)}
"""By ``model_type`` of transformers."""
