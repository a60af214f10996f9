"""Types and names: what everybody else raises and suggests."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from llamagen.diagnostics import (
    NAME_ALIASES,
    Diagnostic,
    LlamagenError,
    Related,
    Span,
    did_you_mean,
    nearest,
)
from llamagen.spec.schema import Hyperparameters, RopeBase


def test_span_defaults_to_one_character() -> None:
    assert Span("a.yaml", 3, 5) == Span("a.yaml", 3, 5, 3, 6)
    assert str(Span("a.yaml", 3, 5, 4, 1)) == "a.yaml:3:5"


def test_spans_order_by_file_line_col() -> None:
    spans = [Span("b", 1, 1), Span("a", 10, 1), Span("a", 9, 7), Span("a", 9, 2)]
    assert sorted(spans) == [Span("a", 9, 2), Span("a", 9, 7), Span("a", 10, 1), Span("b", 1, 1)]


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Span("a", 1, 1).line = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Diagnostic("LG001", "error", "m").code = "LG002"  # type: ignore[misc]


def test_error_carries_its_findings() -> None:
    span = Span("a.yaml", 1, 2)
    error = LlamagenError.of("LG015", "twice", span, "drop one", [Related("first", span)])
    (found,) = error.diagnostics
    assert found == Diagnostic(
        "LG015", "error", "twice", span, (Related("first", span),), "drop one"
    )
    assert str(error) == "a.yaml:1:2: error[LG015]: twice"
    assert pickle.loads(pickle.dumps(error)).diagnostics == error.diagnostics


def test_error_needs_a_finding() -> None:
    with pytest.raises(ValueError, match="at least one"):
        LlamagenError([])


def test_subclasses_keep_their_type() -> None:
    class Special(LlamagenError):
        pass

    assert type(Special.of("LG001", "m")) is Special


@pytest.mark.parametrize(
    ("word", "candidates", "expected"),
    [
        ("num_hidden_layers", ["num_layers", "hidden_size"], "num_layers"),
        ("n_heads", ["num_heads", "num_kv_heads"], "num_heads"),
        ("dim", ["hidden_size"], "hidden_size"),
        ("rope_theta", ["rope"], "rope.theta"),
        ("rope_scaling", ["rope"], "rope"),
        ("max_position_embeddings", ["max_positions"], "max_positions"),
        ("hiden_size", ["hidden_size", "head_dim"], "hidden_size"),
        ("Hidden-Size", ["hidden_size"], "hidden_size"),
        ("attention", ["Attention", "SwiGLU"], "Attention"),
        ("dim", ["num_layers"], None),  # an alias whose target is not on offer
        ("zebra", ["hidden_size", "num_layers"], None),
        ("", ["a"], None),
        ("x" * 5000, ["x" * 4999], None),
    ],
)
def test_did_you_mean(word: str, candidates: list[str], expected: str | None) -> None:
    assert nearest(word, candidates) == expected
    sentence = f"did you mean `{expected}`?" if expected else "ask"
    assert did_you_mean(word, candidates, "ask") == sentence


def test_import_stays_light() -> None:
    code = (
        "import sys, llamagen.diagnostics;"
        "print(sorted({'rich', 'pydantic', 'yaml', 'difflib', 'json', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_another_dialect_leads_to_one_of_ours() -> None:
    leaves = {**Hyperparameters.model_fields, **RopeBase.model_fields, "kind": None}
    for target in NAME_ALIASES.values():
        assert all(step in leaves for step in target.split(".")), target
