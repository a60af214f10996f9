"""llamagen: one YAML spec of a LLaMA architecture becomes PyTorch, ONNX, configs, numbers and words.

The public names are those of ``llamagen.api``, imported when first used, so that ``import llamagen`` is cheap.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamagen.api import *

__all__ = [
    "Diagnostic",
    "ExportOptions",
    "LlamagenError",
    "Model",
    "QuantizeOptions",
    "check",
    "check_checkpoint",
    "check_integrity",
    "compat",
    "convert",
    "cost",
    "diff",
    "explain",
    "fmt",
    "generate",
    "generate_check",
    "graph_explorer",
    "graph_svg",
    "graph_tower",
    "history",
    "import_config",
    "imported",
    "list_models",
    "load",
    "new",
    "overlay",
    "parallel",
    "plot",
    "query",
    "random_checkpoint",
    "releases",
    "run",
    "schema_text",
    "share",
    "show",
    "site",
    "sql",
    "timeline",
    "verify_folder",
    "write_verify_report",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from llamagen import api

        return getattr(api, name)
    raise AttributeError(f"module 'llamagen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
