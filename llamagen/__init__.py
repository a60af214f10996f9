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
    "imported",
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

_HOMES = (
    "llamagen.diagnostics",
    "llamagen.emit.options",
    "llamagen.api",
    "llamagen.api_analysis",
    "llamagen.api_verify",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        from importlib import import_module

        for home in map(import_module, _HOMES):
            if hasattr(home, name):
                globals()[name] = value = getattr(home, name)
                return value
    raise AttributeError(f"module 'llamagen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
