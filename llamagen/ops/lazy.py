"""numpy and onnx_ir as formulas and lowerings see them: imported when the first is evaluated, for readers never do."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> object:
            value = getattr(import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    np, ir = _Lazy("numpy"), _Lazy("onnx_ir")

__all__ = ["ir", "np"]
