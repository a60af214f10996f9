"""numpy, torch and onnx_ir as formulas and lowerings see them: imported when one is evaluated, for readers never do."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> object:
            value = getattr(import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    np, ir, torch = _Lazy("numpy"), _Lazy("onnx_ir"), _Lazy("torch")

__all__ = ["ir", "np", "torch"]
