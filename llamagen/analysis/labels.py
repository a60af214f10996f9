"""Words and sizes that the table of models and the questions about them share."""

from __future__ import annotations

from typing import Literal, TypeAlias

AttentionKind: TypeAlias = Literal["MHA", "MQA", "GQA"]

BYTES_16 = 2
"""Bytes of a bfloat16 or float16 value."""

MAINLINE = "status == 'released' and generation not in ['code', 'guard']"
"""The main releases: without Code Llama and the guard models, which reuse older architectures later."""


def collapse(path: str) -> tuple[str, tuple[int, ...]]:
    """``model.layers.3.mlp`` -> ``model.layers.*.mlp``, ``(3,)``."""
    words = path.split(".")
    index = tuple(int(w) for w in words if w.isdigit())
    return (".".join("*" if w.isdigit() else w for w in words), index) if index else (path, index)


def attention_kind(heads: int, kv_heads: int | None) -> AttentionKind:
    """Multi-head, multi-query or grouped-query. Without ``kv_heads`` every head has its own keys and values."""
    if kv_heads is None or kv_heads == heads:
        return "MHA"
    return "MQA" if kv_heads == 1 else "GQA"
