"""Every lint rule has a case that fires and one that does not; the table itself is checked by running them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen import api
from llamagen.analysis.check import lint, lint_rules
from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry
from tests.parity.models import SPECS
from tests.unit.analysis import models

BASE = models.text(
    "t/lint", vocab=512, hidden=256, layers=2, heads=8, kv=8, head_dim=32, ffn=512, positions=2048,
    rope=models.ROPE_10K,
)  # fmt: skip


def codes(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("lint")
    (folder / "base.yaml").write_text(
        f"{BASE}release: {{status: released, repo: the/base}}\n", encoding="utf-8"
    )
    path = folder / "case.yaml"
    path.write_text(f"spec: 1\nid: t/case\nextends: base.yaml\n{overlay}\n", encoding="utf-8")
    resolved = Registry().load(path)
    return {found.code for found in lint(resolved, build(resolved))}


@pytest.mark.parametrize("rule_id", list(lint_rules()))
def test_rule_fires(rule_id: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert rule_id in codes(lint_rules()[rule_id].case.fires, tmp_path_factory)


@pytest.mark.parametrize("rule_id", list(lint_rules()))
def test_rule_is_silent(rule_id: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert rule_id not in codes(lint_rules()[rule_id].case.silent, tmp_path_factory)


def test_findings_have_a_place_a_reason_and_a_next_step() -> None:
    resolved = models.spec(models.LLAMA_2_7B)
    found = lint(resolved, build(resolved))
    assert {f.code for f in found} == {"LG510"}
    assert all(f.span is not None and f.help for f in found)
    assert "`hyperparameters.rope.theta` has no source" in {f.message for f in found}


@pytest.mark.parametrize("name", ["gpt2", "mpt"])
def test_learned_and_biased_positions_are_positions(name: str) -> None:
    """No false LG532: a table of positions, a bias of the scores by distance."""
    report = api.check([SPECS / "foreign" / f"{name}.yaml"])
    assert [one.code for one in report.findings] == []


SHARED = """
spec: 1
id: t/shared
extends: foreign/_decoder
blocks:
  Decoder:
    parts:
      layers: none
      first: First
      second: Second
    forward: |
      x, k, v = first(embed_tokens(input_ids))
      return norm(second(x, k, v))
  First:
    parts: {self_attn: Attention}
    forward: |
      h, k, v = self_attn(x)
      return x + h, k, v
  Second:
    inputs: [x, k, v]
    parts: {self_attn: Sharing}
    forward: return x + self_attn(x, k, v)
  Attention:
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal'))), k, v
  Sharing:
    inputs: [x, k, v]
    parts:
      q_proj: linear(hidden_size, num_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      return o_proj(merge_heads(attention(q, k, v, mask='causal')))
"""


def test_keys_of_another_layer_are_keys(tmp_path: Path) -> None:
    """No false LG530 and LG533 where keys come in from elsewhere."""
    path = tmp_path / "shared.yaml"
    path.write_text(SHARED, encoding="utf-8")
    report = api.check([path], [SPECS])
    assert [one.code for one in report.findings] == []
    path.write_text(SHARED.replace("second(x, k, v))", "second(x, x_keys, v))"), encoding="utf-8")
    assert [one.code for one in api.check([path], [SPECS]).findings] == ["LG412"]


def test_an_encoder_is_no_decoder_that_was_written_wrongly() -> None:
    """No false LG530 and LG531: it gives no logits, and is run on whole texts."""
    report = api.check([SPECS / "outputs"])
    assert report.specs == 3
    assert [one.code for one in report.findings] == []


def test_a_section_that_is_taken_away_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        f"{BASE}constants: {{gain: 2.0}}\ninvariants: {{g: gain > 1}}\n"
    )
    (tmp_path / "own.yaml").write_text(
        "spec: 1\nid: t/own\nextends: base.yaml\nconstants: null\ninvariants: null\n"
    )
    report = api.check([tmp_path / "own.yaml"])
    assert {one.code for one in report.findings} <= {"LG510"}


def test_no_shipped_spec_restates_what_it_inherits() -> None:
    assert [one for one in api.check(notes=True).findings if one.code == "LG501"] == []
