"""Words that the table of models and the questions share."""

from __future__ import annotations

from llamagen.analysis.labels import attention_kind


def test_kinds_of_attention() -> None:
    """Without its own number of key heads a model has as many as heads."""
    found = [attention_kind(8, kv) for kv in (None, 8, 1, 2)]
    assert found == ["MHA", "MHA", "MQA", "GQA"]
