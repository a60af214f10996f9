"""Overlays and leaf changes are inverse to comparing, over random specs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamagen.analysis.diff.judge import diff
from llamagen.analysis.diff.overlay import LeafChange, leaf_changes, overlay, plain_of
from llamagen.analysis.targets import built
from llamagen.spec.fmt import format_source
from llamagen.spec.registry import Registry
from llamagen.spec.schema import Spec
from llamagen.spec.source import Plain, load_source
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


def apply(a: Mapping[str, Plain], changes: tuple[LeafChange, ...]) -> dict[str, Plain]:
    """``apply(a, leaf_changes(a, b))`` has the content of ``b``."""
    result: dict[str, Plain] = json.loads(json.dumps(dict(a)))
    for change in changes:
        here: dict[str, Plain] = result
        for name in change.path[:-1]:
            below = here[name]
            assert isinstance(below, dict)
            here = below
        if change.absent_after:
            del here[change.path[-1]]
        else:
            here[change.path[-1]] = change.after
    return result


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


LAYER_HEAD = "  DecoderLayer:\n"
PART = "      mlp: SwiGLU\n"
options = st.dictionaries(
    st.sampled_from(["kind", "width", "rotate"]),
    st.sampled_from(["none", "1", "2", "full"]),
    max_size=3,
)
forms = st.sampled_from(
    ["{cycle: [a, b]}", "{cycle: [b]}", "{every: 2, value: a, otherwise: null}", "{default: b, at: {c: [0]}}",
     "{every: 1, value: null, otherwise: b}", "{default: null, at: {kind: [0]}}",
     "{default: null, at: {c: [0]}}"]
)  # fmt: skip
names = st.sampled_from(["kind", "one", "two"])


@st.composite
def odd_specs(draw: st.DrawFn) -> str:
    """Specs that differ in what authors name: options, patterns, invariants, constants, parts, inputs, layouts."""
    source = draw(specs())
    if "SwiGLU:\n    forward" in source or "constants:" in source or "patterns:" in source:
        return source
    given = draw(options)
    inputs = draw(st.sampled_from(["", "    inputs: [x]\n"]))
    written = ", ".join(f"{n}: {v}" for n, v in given.items())
    head = f"{LAYER_HEAD}{inputs}" + (f"    options: {{{written}}}\n" if given else "")
    source = source.replace(LAYER_HEAD, head)
    patterns = draw(st.dictionaries(names, forms, max_size=2))
    used = {n for n in draw(st.sets(names)) if n not in patterns}
    rules = {f"{n}_fits": f"len({n}) == num_layers" for n in patterns}
    rules |= {f"{n}_is": f"{n} > 0" for n in used}
    for title, entries in (
        ("constants", dict.fromkeys(used, "1")),
        ("patterns", patterns),
        ("invariants", rules),
    ):
        if entries:
            source += title + ":\n" + "".join(f"  {n}: {v}\n" for n, v in entries.items())
    doubts = draw(st.lists(st.sampled_from(["p", "q"]), max_size=2, unique=True))
    if doubts:
        items = ", ".join(f"{{path: {d}, why: because}}" for d in doubts)
        source += f"uncertain: [{items}]\n"
    return source


def without(spec: Spec, *sections: str) -> dict[str, object]:
    return {n: getattr(spec, n) for n in Spec.model_fields if n not in sections}


@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(odd_specs(), odd_specs())
def test_overlay_on_a_file_is_b_as_printed(tmp_path: Path, one: str, two: str) -> None:
    base, other, saved = (tmp_path / n for n in ("a.yaml", "b.yaml", "saved.yaml"))
    base.write_text(one, encoding="utf-8")
    other.write_text(two, encoding="utf-8")
    a, b = Registry().load(base), Registry().load(other)
    with chdir(tmp_path):
        text = overlay(a, b)
    saved.write_text(text, encoding="utf-8")
    again = Registry().load(saved)
    stays = ("uncertain",) if "# uncertain of " in text else ()
    assert without(again.spec, "extends", *stays) == without(b.spec, "extends", *stays)
    assert again.digest == b.digest
    assert not again.warnings, "an overlay repeats nothing"
    assert format_source(load_source(text), tuple(Spec.model_fields)) == text


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(specs(), specs())
def test_overlay_of_a_is_b(tmp_path: Path, one: str, two: str) -> None:
    a, b = Registry().load_text(one), Registry().load_text(two)
    base = tmp_path / "a.yaml"
    base.write_text(one, encoding="utf-8")
    text = overlay(a, b).replace(f"extends: {a.spec.id}", f"extends: {base}")
    again = Registry().load_text(text)
    assert again.spec.model_copy(update={"extends": b.spec.extends}) == b.spec
    assert again.digest == b.digest
    assert not again.warnings, "an overlay repeats nothing"


@settings(max_examples=60)
@given(specs(), specs())
def test_changes_applied_to_a_give_b(one: str, two: str) -> None:
    a, b = plain_of(Registry().load_text(one)), plain_of(Registry().load_text(two))
    assert apply(a, leaf_changes(a, b)) == b
    assert leaf_changes(a, a) == ()


@settings(max_examples=25)
@given(specs(), specs())
def test_no_difference_means_equal_graphs(one: str, two: str) -> None:
    models_ = [Registry().load_text(t) for t in (one, two)]
    before, after = (built(m) for m in models_)
    changes = diff(before, after).changes
    back = diff(after, before).changes
    assert len(changes) == len(back)
    a, b = ({k: v for k, v in plain_of(m).items() if k != "invariants"} for m in models_)
    assert bool(changes) == (a != b)
