"""Code in torch made to take the experts that it is told: every call of ``topk`` asks a script."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from llamagen.verify.routing import Script


def directed(script: Script) -> AbstractContextManager[object]:
    """Inside, ``torch.topk`` takes the places of ``script`` and gives the values that are there."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Directed(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func not in (torch.topk, torch.Tensor.topk):
                return func(*args, **(kwargs or {}))
            scores: torch.Tensor = args[0] if args else kwargs["input"]
            chosen = script.choose(np.asarray(scores.detach().double().numpy(), np.float64))
            indices = torch.from_numpy(np.ascontiguousarray(chosen))
            return torch.return_types.topk((scores.gather(-1, indices), indices))

    return Directed()
