"""llamagen: one YAML spec of a LLaMA architecture becomes PyTorch, ONNX, configs, numbers and words.

The public names are those of ``llamagen.api``; they are imported when first used, so that ``import llamagen`` is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamagen.api import (
        Model,
        check,
        check_checkpoint,
        explain,
        fmt,
        generate,
        generate_check,
        list_models,
        load,
        random_checkpoint,
        run,
        schema_text,
        show,
        verify_folder,
    )
    from llamagen.diagnostics import Diagnostic, LlamagenError

__all__ = [
    "Diagnostic",
    "LlamagenError",
    "Model",
    "check",
    "check_checkpoint",
    "explain",
    "fmt",
    "generate",
    "generate_check",
    "list_models",
    "load",
    "random_checkpoint",
    "run",
    "schema_text",
    "show",
    "verify_folder",
]

_DIAGNOSTICS = frozenset({"Diagnostic", "LlamagenError"})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'llamagen' has no attribute {name!r}")
    from importlib import import_module

    home = "llamagen.diagnostics" if name in _DIAGNOSTICS else "llamagen.api"
    found: object = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
