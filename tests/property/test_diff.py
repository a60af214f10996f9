"""Overlays and leaf changes are inverse to comparing, over random specs."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamagen.analysis.diff import Model, diff
from llamagen.analysis.overlay import apply, leaf_changes, overlay, plain_of
from llamagen.ir.build import build
from llamagen.spec.registry import Registry
from tests.unit.analysis import models

sizes = st.integers(1, 6)
ropes = st.sampled_from(
    [models.ROPE_10K, models.ROPE_500K, models.ROPE_31, "{kind: linear, theta: 10000.0, factor: 2.0}",
     "{kind: default, theta: 10000.0, layout: interleaved, partial: 0.5}"]
)  # fmt: skip
PLAIN = ""
SCALED_MLP = """constants: {beta: 0.5}
blocks:
  SwiGLU:
    forward: |
      return down_proj(silu(gate_proj(x)) * beta)
"""
PATTERN = "patterns: {kinds: {cycle: [a, b]}}\ninvariants: {kinds_fit: len(kinds) == num_layers}\n"
forwards = st.sampled_from([PLAIN, SCALED_MLP, PATTERN])

TWO_PARTS = """    parts:
      gate_proj: linear(hidden_size, intermediate_size)
      down_proj: linear(intermediate_size, hidden_size)
"""


@st.composite
def specs(draw: st.DrawFn) -> str:
    kv = draw(sizes)
    source = models.text(
        draw(st.sampled_from(["t/one", "t/two"])),
        vocab=draw(sizes) * 64,
        hidden=draw(sizes) * 16,
        layers=draw(sizes),
        heads=kv * draw(sizes),
        kv=kv,
        head_dim=draw(sizes) * 8,
        ffn=draw(sizes) * 32,
        positions=draw(st.sampled_from([128, 2048])),
        rope=draw(ropes),
        eps=draw(st.sampled_from(["1.0e-5", "1.0e-6"])),
        tied=draw(st.booleans()),
    )
    extra = draw(forwards)
    if extra.startswith("constants"):
        head, _, body = extra.partition("blocks:\n")
        start = source.index("  SwiGLU:")
        return source[:start] + body.replace("  SwiGLU:\n", f"  SwiGLU:\n{TWO_PARTS}") + head
    return source + extra


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(specs(), specs())
def test_overlay_of_a_is_b(tmp_path: Path, one: str, two: str) -> None:
    a, b = Registry().load_text(one), Registry().load_text(two)
    base = tmp_path / "a.yaml"
    base.write_text(one, encoding="utf-8")
    text = overlay(a, b).replace(f'extends: "{a.spec.id}"', f'extends: "{base}"')
    again = Registry().load_text(text)
    assert again.spec.model_copy(update={"extends": b.spec.extends}) == b.spec
    assert again.digest == b.digest
    assert not again.warnings, "an overlay repeats nothing"


@settings(max_examples=60, deadline=None)
@given(specs(), specs())
def test_changes_applied_to_a_give_b(one: str, two: str) -> None:
    a, b = plain_of(Registry().load_text(one)), plain_of(Registry().load_text(two))
    assert apply(a, leaf_changes(a, b)) == b
    assert leaf_changes(a, a) == ()


@settings(max_examples=25, deadline=None)
@given(specs(), specs())
def test_no_difference_means_equal_graphs(one: str, two: str) -> None:
    models_ = [Registry().load_text(t) for t in (one, two)]
    sides = [Model(m, build(m)) for m in models_]
    changes = diff(*sides).changes
    back = diff(sides[1], sides[0]).changes
    assert len(changes) == len(back)
    a, b = ({k: v for k, v in plain_of(m).items() if k != "invariants"} for m in models_)
    assert bool(changes) == (a != b)
