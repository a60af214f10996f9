"""llamagen: one YAML spec of a LLaMA architecture becomes PyTorch, ONNX, configs, numbers and words.

The public names are those of ``llamagen.api``, ``llamagen.api_analysis`` and ``llamagen.api_verify``.
They are imported when first used, so that ``import llamagen`` is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamagen.api import (
        Model,
        check,
        check_checkpoint,
        convert,
        fmt,
        generate,
        generate_check,
        load,
        random_checkpoint,
        run,
        schema_text,
    )
    from llamagen.api_analysis import (
        compat,
        cost,
        diff,
        explain,
        graph_explorer,
        graph_svg,
        graph_tower,
        history,
        import_config,
        list_models,
        overlay,
        plot,
        query,
        share,
        show,
        sql,
        timeline,
    )
    from llamagen.api_verify import check_integrity, verify_folder, write_verify_report
    from llamagen.diagnostics import Diagnostic, LlamagenError
    from llamagen.emit.options import ExportOptions, QuantizeOptions

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
    "list_models",
    "load",
    "overlay",
    "plot",
    "query",
    "random_checkpoint",
    "run",
    "schema_text",
    "share",
    "show",
    "sql",
    "timeline",
    "verify_folder",
    "write_verify_report",
]

_DIAGNOSTICS = frozenset({"Diagnostic", "LlamagenError"})
_OPTIONS = frozenset({"ExportOptions", "QuantizeOptions"})
_QUESTIONS = frozenset(
    {
        "compat",
        "cost",
        "diff",
        "explain",
        "graph_explorer",
        "graph_svg",
        "graph_tower",
        "history",
        "import_config",
        "list_models",
        "overlay",
        "plot",
        "query",
        "share",
        "show",
        "sql",
        "timeline",
    }
)
_FOLDERS = frozenset({"check_integrity", "verify_folder", "write_verify_report"})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'llamagen' has no attribute {name!r}")
    from importlib import import_module

    home = "llamagen.api_analysis" if name in _QUESTIONS else "llamagen.api"
    home = "llamagen.api_verify" if name in _FOLDERS else home
    home = "llamagen.diagnostics" if name in _DIAGNOSTICS else home
    home = "llamagen.emit.options" if name in _OPTIONS else home
    found: object = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
