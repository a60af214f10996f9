"""Words for findings about weight files; the codes are rows of spec/rules/diagnostics.yaml."""

from __future__ import annotations

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.diagnostics import quoted as quoted


def problem(code: str, message: str, help: str | None = None) -> LlamagenError:
    return LlamagenError(Diagnostic(code, "error", message, help=help))


def shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
