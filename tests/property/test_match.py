"""Blocks and weights are the same whatever they are called, wherever they stand, however a sum is written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.analysis.diff.features import Kind
from llamagen.analysis.diff.judge import Diff, Surface, Verdict, diff
from llamagen.analysis.diff.weights import Transform, conversion, same_weights
from llamagen.analysis.targets import Model, built
from llamagen.spec.registry import Registry
from tests.unit.analysis import models

PARTS = (
    "gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj", "input_layernorm",
    "post_attention_layernorm", "self_attn", "mlp", "embed_tokens", "lm_head",
)  # fmt: skip
"""Parts of the text model that a spec may call otherwise; `layers`, `norm` and `model` are words of its equations."""

SAME = {Kind.MOVED, Kind.RECORD, Kind.NAMING}


def side(source: str) -> Model:
    return built(Registry().load_text(source))


def source_of(layers: int, ffn: int, tied: bool) -> str:
    return models.text(
        "t/one", vocab=64, hidden=16, layers=layers, heads=4, kv=2, head_dim=8, ffn=ffn, positions=128,
        rope=models.ROPE_10K, eps="1.0e-5", tied=tied,
    )  # fmt: skip


sources = st.builds(source_of, st.integers(1, 5), st.sampled_from([32, 48]), st.booleans())


def renamed(source: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        source = source.replace(old, new)
    return source


def wrapped(source: str) -> str:
    """The same model inside of another block."""
    inside = source.replace("root: CausalLM", "root: Outer").replace(
        "tied_to='model.", "tied_to='language_model.model."
    )
    outer = """  Outer:
    inputs: [input_ids]
    parts:
      language_model: CausalLM
    forward: |
      return language_model(input_ids)
"""
    return inside.replace("blocks:\n", f"blocks:\n{outer}", 1)


def means_the_same(result: Diff) -> bool:
    return {c.kind for c in result.changes} <= SAME and (
        result.verdict(Surface.NUMERICS) is Verdict.SAME
    )


@settings(max_examples=60)
@given(sources, st.sets(st.sampled_from(PARTS), min_size=1), st.booleans())
def test_renames_and_wrappers_are_told_as_that(source: str, which: set[str], wrap: bool) -> None:
    names = {name: f"x{i}_{name[::-1]}" for i, name in enumerate(sorted(which))}
    other = renamed(wrapped(source) if wrap else source, names)
    before, after = side(source), side(other)
    result = diff(before, after)
    assert means_the_same(result)
    plans = conversion(before, after)
    # a tied head that is called otherwise has no weight to move
    told = {c.rule for c in result.changes if c.kind is Kind.MOVED}
    assert told == ({"D211"} if plans else set())
    assert {plan.transform for plan in plans} <= {Transform.RENAME}
    assert all(len(p.pieces) == 1 for p in plans)
    moved = {plan.target: plan.pieces[0].source for plan in plans}
    back = {v: k for k, v in names.items()}
    expected = {
        path: renamed(path, back).removeprefix("language_model." if wrap else "")
        for path in after.graphs["model"].parameters
    }
    assert moved == {k: v for k, v in expected.items() if k != v}


@settings(max_examples=20)
@given(sources)
def test_commuted_operands_and_other_names_of_values_are_no_difference(source: str) -> None:
    other = source.replace(
        "return down_proj(silu(gate_proj(x)) * up_proj(x))",
        "both = up_proj(x) * silu(gate_proj(x))\n      return down_proj(both)",
    ).replace(
        "h = x + self_attn(input_layernorm(x))\n      return h + mlp(post_attention_layernorm(h))",
        "y = self_attn(input_layernorm(x)) + x\n      return mlp(post_attention_layernorm(y)) + y",
    )
    assert other.count("both") == 2
    assert " + y" in other
    assert diff(side(source), side(other)).changes == ()


@settings(max_examples=20)
@given(sources, st.booleans())
def test_another_order_of_a_sum_is_the_same_up_to_rounding(source: str, product: bool) -> None:
    sign = "*" if product else "+"
    line = "return down_proj(silu(gate_proj(x)) * up_proj(x))"
    one, two = (
        source.replace(line, f"return down_proj({text.replace('@', sign)})")
        for text in (
            "(silu(gate_proj(x)) @ up_proj(x)) @ x0",
            "silu(gate_proj(x)) @ (x0 @ up_proj(x))",
        )
    )
    one, two = (t.replace("x0", "silu(up_proj(x))") for t in (one, two))
    result = diff(side(one), side(two))
    assert {c.rule for c in result.changes} == {"D305"}
    assert result.verdict(Surface.NUMERICS) is Verdict.COMPATIBLE


@settings(max_examples=30)
@given(sources, st.sampled_from(["gate_proj(x)) * up_proj(x)", "silu("]))
def test_a_real_change_is_never_told_as_a_rename(source: str, which: str) -> None:
    """Gate and up have one shape: exchanging them, or the activation, is another model."""
    changed = {
        "gate_proj(x)) * up_proj(x)": "up_proj(x)) * gate_proj(x)",
        "silu(": "gelu(",
    }[which]
    result = diff(side(source), side(source.replace(which, changed)))
    assert result.verdict(Surface.NUMERICS) is Verdict.BREAKING
    assert {c.kind for c in result.changes} <= {Kind.EQUATION, Kind.OPERATOR, Kind.RUNTIME}


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(1, 4), st.data())
def test_inserted_layers_move_those_behind_them(
    layers: int, more: int, data: st.DataObject
) -> None:
    """Layers of another kind between those of A: A's layers are found, in order, and the others are new."""
    at = sorted(data.draw(st.sets(st.integers(0, layers + more - 1), min_size=more, max_size=more)))
    source = source_of(layers, 32, False)
    kinds = f"patterns: {{kinds: {{default: own, at: {{other: {at}}}}}}}\n"
    other = source.replace("root: CausalLM", kinds + "root: CausalLM")
    other = other.replace(f"num_layers: {layers}", f"num_layers: {layers + more}")
    other = other.replace(
        "layers: stack(num_layers, DecoderLayer)",
        "layers: 'stack(num_layers, DecoderLayer if kinds[layer] == ''own'' else Plain)'",
    )
    plain = """  Plain:
    parts:
      fc1: linear(hidden_size, hidden_size)
    forward: |
      return x + tanh(fc1(x))
"""
    after = side(other.replace("blocks:\n", f"blocks:\n{plain}", 1))
    result = diff(side(source), after)
    new = [c for c in result.changes if c.kind is Kind.BLOCK]
    assert [(c.before.text, c.after.text, c.times) for c in new] == [(None, "Plain", more)]
    assert not [c for c in result.changes if c.kind is Kind.EQUATION]
    kept = [i for i in range(layers + more) if i not in at]
    q_proj = "model.layers.{}.self_attn.q_proj.weight"
    same = same_weights(side(source), after)
    assert [same.get(q_proj.format(j)) for j in kept] == [q_proj.format(i) for i in range(layers)]
