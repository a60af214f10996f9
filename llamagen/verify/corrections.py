"""Where transformers 5.23 departs from the code a model was trained with, and how to compare with it all the same.

A difference that is known is no reason for a wider tolerance: each has a name here, what both sides do, and a
correction of exactly that in a loaded transformers model. Tests show that the corrected model is equal, and by how
much the plain one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Undo = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Correction:
    """One difference. ``apply`` changes a model of transformers in place and returns what takes that back."""

    name: str
    reference: str
    """What the authors' code does, and where."""
    library: str
    """What transformers does instead, and since when."""
    apply: Callable[[torch.nn.Module], Undo]


@contextmanager
def corrected(model: torch.nn.Module, corrections: Sequence[Correction]) -> Iterator[None]:
    """In this block ``model`` is corrected."""
    with ExitStack() as stack:
        for correction in corrections:
            stack.callback(correction.apply(model))
        yield


def _states_before_layers(model: torch.nn.Module) -> Undo:
    """Entry i of its list is what comes out of layer i: the state before layer i is entry i - 1."""
    changed: list[tuple[torch.nn.Module, list[int]]] = []
    for module in model.modules():
        if type(module).__name__ == "MllamaVisionModel":
            late: list[int] = module.intermediate_layers_indices  # type: ignore[assignment]
            changed.append((module, late))
            module.intermediate_layers_indices = [i - 1 for i in late]  # type: ignore[assignment]

    def undo() -> None:
        for module, late in changed:
            module.intermediate_layers_indices = late  # type: ignore[assignment]

    return undo


class _RowMask:
    """Keeps the row mask that a cross-attention layer is called with, and multiplies what its ``o_proj`` reads."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def remember(
        self, module: torch.nn.Module, args: tuple[object, ...], given: dict[str, torch.Tensor]
    ) -> None:
        self.rows = given["full_text_row_masked_out_mask"]

    def multiply(
        self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        return None if self.rows is None else (args[0] * self.rows[:, 0],)


def _unseen_rows_are_zero(model: torch.nn.Module) -> Undo:
    """The layer's row mask, which it keeps for the feed-forward, also on what ``o_proj`` reads."""
    with ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__ == "MllamaCrossAttentionDecoderLayer":
                mask = _RowMask()
                output: torch.nn.Module = module.cross_attn.o_proj  # type: ignore[assignment, union-attr]
                kept = module.register_forward_pre_hook(mask.remember, with_kwargs=True)
                stack.callback(kept.remove)
                stack.callback(output.register_forward_pre_hook(mask.multiply).remove)
        kept_open = stack.pop_all()
    return kept_open.close


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
