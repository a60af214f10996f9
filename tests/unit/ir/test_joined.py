"""Graphs that cannot be one class are said so, at their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamagen.analysis.check import check
from llamagen.diagnostics import LlamagenError
from llamagen.emit.generate import files_of
from llamagen.emit.options import Target
from llamagen.ir.elaborate import build_all
from llamagen.ir.joined import joined
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from tests.parity.models import SPECS

TILED, PATCH = "reduced/llama-3.2-11b-vision", "reduced/llama-4-scout"

LOOKS_UP, ANOTHER = "return embed_tokens(input_ids)", "language_model: LanguageModelEmbedding"
WRONG = [
    (TILED, "CrossLayerKeys", "cross_attn(x)", "cross_attn(2 * x)", "do not come of"),
    (TILED, "Decoder", "SkippedLayer", "DecoderLayer", "is not skipped"),
    (PATCH, "DecoderEmbedding", LOOKS_UP, LOOKS_UP.replace("n ", "n 2 * "), "does not just look"),
    (PATCH, "FusedEmbedding", ANOTHER, "other: LanguageModelEmbedding", "the text model has no"),
]


@pytest.mark.parametrize(("name", "block", "right", "wrong", "reason"), WRONG)
def test_what_cannot_be_joined_is_said(
    name: str, block: str, right: str, wrong: str, reason: str
) -> None:
    registry = Registry((SPECS,))
    text = resolved_text(registry.load(name))
    before, after = text.split(f"\n  {block}:\n")
    assert right in after
    after = after.replace(right, wrong, 1).replace(
        "language_model(input_ids)", "other(input_ids)", wrong.startswith("other")
    )
    graphs = build_all(registry.load_text(f"{before}\n  {block}:\n{after}"))
    with pytest.raises(LlamagenError, match=reason) as error:
        joined(graphs)
    (finding,) = error.value.diagnostics
    assert finding.code == "LG741" and finding.span is not None


def test_a_model_of_text_has_nothing_to_join() -> None:
    assert joined(build_all(Registry((SPECS,)).load("reduced/llama-3.2-1b"))) is None


BESIDE = """
graphs: {enc: {root: Enc, inputs: {pixel_values: "[I, 3]"}, outputs: [features]}}
blocks:
  Enc:
    inputs: [pixel_values]
    parts: {project: "linear(3, hidden_size)"}
    forward: |
      return project(pixel_values)
"""
POOLED = """
blocks:
  CausalLM:
    forward: |
      return lm_head(reshape(model(input_ids), [B * S, hidden_size]))
"""


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [(BESIDE, "LG407", "gives `logits`"), (POOLED, "LG420", r"logits are numbers \[B, S, n\]")],
)
def test_check_and_generate_agree_on_what_is_a_model(
    more: str, code: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"spec: 1\nid: t/odd\nextends: llama/3.2/1b\n{more}")
    (finding,) = [f for f in check([str(path)]).findings if f.severity == "error"]
    assert finding.code == code and finding.span is not None and re.search(reason, finding.message)
    with pytest.raises(LlamagenError, match=reason):
        files_of(Registry().load(str(path)), [Target.TORCH])
