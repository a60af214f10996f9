"""Every named transform, run: A's weights converted for B give A's logits, in numpy float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagen.analysis.diff.features import Feature, Kind, fused_group
from llamagen.analysis.diff.judge import diff
from llamagen.analysis.diff.render import text
from llamagen.analysis.diff.weights import (
    ZERO_ROWS,
    Plan,
    Setting,
    Transform,
    candidate,
    conversion,
)
from llamagen.analysis.targets import Model, built
from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import MAIN, Graph
from llamagen.ir.reference import evaluate
from tests.unit.analysis import models

Weights = dict[str, NDArray[np.float64]]

FUSED_MLP = (
    "blocks: {SwiGLU: {parts: {gate_proj: none, up_proj: none,"
    " gate_up_proj: 'linear(hidden_size, 2 * intermediate_size)'},"
    ' forward: "g, u = split(gate_up_proj(x), sizes=[intermediate_size, intermediate_size])\\n'
    'return down_proj(silu(g) * u)\\n"}}'
)
SMALL = models.text(
    "t/base", vocab=24, hidden=16, layers=2, heads=4, kv=2, head_dim=8, ffn=12, positions=64,
    rope=models.ROPE_10K,
)  # fmt: skip
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def random_weights(graph: Graph) -> Weights:
    """Unit scale: embeddings of std 1, gains about 1, matrices that keep the size of their operand."""
    random = np.random.default_rng(7)
    weights: Weights = {}
    for path, p in graph.parameters.items():
        values = random.standard_normal(p.shape)
        if p.kind == "norm":
            values = 1 + 0.3 * values
        elif p.kind == "matrix":
            values = values * 2 / np.sqrt(p.shape[-1])
        weights[path] = values
    return weights


def convert(weights: Weights, plans: tuple[Plan, ...], after: Graph) -> Weights:
    made = {path: weights[path] for path in after.parameters if path in weights}
    for plan in plans:
        shape = after.parameters[plan.target].shape
        pieces = [
            np.zeros((len(piece.rows), *shape[1:]))
            if piece.source == ZERO_ROWS
            else weights[piece.source][list(piece.rows)]
            for piece in plan.pieces
        ]
        made[plan.target] = np.concatenate(pieces)
    return made


def logits(graph: Graph, weights: Weights) -> NDArray[np.float64]:
    return evaluate(flatten(graph), weights, IDS).logits


def graph_of(model: Model) -> Graph:
    return model.graphs[MAIN]


def both(before: str, after: str, folder: Path) -> tuple[Model, ...]:
    sides = []
    for name, overlay in (("one", before), ("two", after)):
        resolved = models.overlaid(overlay, folder, base=SMALL, name=name)
        sides.append(built(resolved))
    return tuple(sides)


CASES = [
    ("title: a", "hyperparameters: {rope: {layout: interleaved}}", {Transform.PERMUTE_QK}),
    ("hyperparameters: {rope: {layout: interleaved}}", "title: b", {Transform.PERMUTE_QK}),
    ("hyperparameters: {tie_embeddings: true}", "title: b", {Transform.UNTIE_HEAD}),
    ("title: a", "hyperparameters: {num_kv_heads: 4}", {Transform.REPEAT_KV_HEADS}),
    ("title: a", "hyperparameters: {vocab_size: 40}", {Transform.PAD_VOCAB}),
    ("title: a", FUSED_MLP, {Transform.FUSE}),
    (FUSED_MLP, "title: b", {Transform.SPLIT_FUSED}),
    (
        "title: a",
        "hyperparameters: {num_kv_heads: 4, rope: {layout: interleaved}}",
        {Transform.REPEAT_KV_HEADS, Transform.PERMUTE_QK},
    ),
]


@pytest.mark.parametrize(("before", "after", "transforms"), CASES)
def test_converted_weights_give_the_same_logits(
    before: str, after: str, transforms: set[Transform], tmp_path: Path
) -> None:
    a, b = both(before, after, tmp_path)
    plans = conversion(a, b)
    assert {p.transform for p in plans} == transforms
    first, second = graph_of(a), graph_of(b)
    weights = random_weights(first)
    wanted = logits(first, weights)
    converted = convert(weights, plans, second)
    assert set(converted) == set(second.parameters)
    found = logits(second, converted)
    vocab = wanted.shape[-1]
    np.testing.assert_allclose(found[..., :vocab], wanted, rtol=0, atol=1e-12 * wanted.std())
    assert not found[..., vocab:].any()


@pytest.mark.parametrize(("before", "after", "transforms"), CASES[:2])
def test_without_the_conversion_logits_differ(
    before: str, after: str, transforms: set[Transform], tmp_path: Path
) -> None:
    a, b = both(before, after, tmp_path)
    first, second = graph_of(a), graph_of(b)
    weights = random_weights(first)
    assert np.abs(logits(second, weights) - logits(first, weights)).max() > 0.1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("title: a", "hyperparameters: {num_kv_heads: 1}"),
        ("title: a", "hyperparameters: {vocab_size: 16}"),
        ("title: a", "hyperparameters: {intermediate_size: 16}"),
        ("title: a", "hyperparameters: {num_layers: 1}"),
        ("title: a", "hyperparameters: {tie_embeddings: true}"),
    ],
)
def test_what_cannot_be_converted_is_refused(before: str, after: str, tmp_path: Path) -> None:
    a, b = both(before, after, tmp_path)
    with pytest.raises(LlamagenError) as caught:
        conversion(a, b)
    assert caught.value.diagnostics[0].code == "LG902"


def test_rows_of_heads_that_the_spec_does_not_state_are_not_reordered(tmp_path: Path) -> None:
    base = SMALL.replace("  head_dim: 8\n", "").replace("head_dim", "size")
    base += "constants: {size: 8}\n"
    layout = "hyperparameters: {rope: {layout: interleaved}}"
    a, b = (
        built(models.overlaid(overlay, tmp_path, base=base, name=name))
        for overlay, name in (("title: a", "one"), (layout, "two"))
    )
    with pytest.raises(LlamagenError) as caught:
        conversion(a, b)
    assert {d.code for d in caught.value.diagnostics} == {"LG902"}
    assert "`model.layers.0.self_attn.q_proj.weight`" in str(caught.value)


def test_equal_architectures_need_nothing(tmp_path: Path) -> None:
    a, b = both("title: a", "hyperparameters: {rope: {theta: 500000.0}}", tmp_path)
    assert conversion(a, b) == ()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        ((6, 6), (2, 6), Transform.REPEAT_KV_HEADS),
        ((6, 6), (2, 3), None),
        ((6, 6), (3, 2), None),
        ((6, 8), (2, 4), None),
    ],
)
def test_heads_are_repeated_where_their_number_is_a_multiple(
    heads: tuple[int, int], kv_heads: tuple[int, int], expected: Transform | None
) -> None:
    before, after = ((kv * 8, 16) for kv in kv_heads)
    setting = Setting(heads, kv_heads, (8, 8), (False, False))
    assert candidate("key", before, after, setting) is expected


def test_pieces_of_a_fused_matrix_have_its_order() -> None:
    def weight(path: str, rows: int, splits: tuple[tuple[int, ...], ...] = ()) -> Feature:
        return Feature(Kind.PARAMETER, path, (), (rows, 16), "", None, parts=splits)

    fused = weight("a.qkv.weight", 16, ((8, 4, 4),))
    apart = {p: weight(p, rows) for p, rows in (("q", 8), ("k", 4), ("v", 4))}
    assert fused_group(fused, apart) == ("q", "k", "v")
    assert fused_group(fused, {p: apart[p] for p in "kqv"}) == ()
    assert fused_group(weight("a.qk.weight", 16, ((8, 8),)), apart) == ()


def test_rows_are_not_appended_for_the_ids_of_another_tokenizer(tmp_path: Path) -> None:
    """Its id 5 is another text than that of A's row 5."""
    overlay = (
        "tokenizer: {{kind: {}, bos_id: 1, eos_ids: [2]}}\nhyperparameters: {{vocab_size: {}}}"
    )
    before, same, other = (
        built(models.overlaid(overlay.format(*one), tmp_path, base=SMALL, name=f"m{i}.yaml"))
        for i, one in enumerate([("tiktoken", 24), ("tiktoken", 32), ("sentencepiece", 32)])
    )
    assert {plan.transform for plan in conversion(before, same)} == {Transform.PAD_VOCAB}
    assert diff(before, same).transforms() == (Transform.PAD_VOCAB,)
    with pytest.raises(LlamagenError, match="cannot be made from"):
        conversion(before, other)
    assert diff(before, other).transforms() == ()


def test_a_text_says_which_weights_no_conversion_gives(tmp_path: Path) -> None:
    overlays = ("title: same", "hyperparameters: {num_kv_heads: 4, intermediate_size: 16}")
    before, after = both(*overlays, tmp_path)
    assert "some weights are converted by repeat_kv_heads, others cannot be" in text(
        diff(before, after)
    )
