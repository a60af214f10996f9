"""The rules of diff.yaml by their cases, both ways; the comparison 2-7B to 3-8B by the published numbers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from llamagen.analysis.cost import device
from llamagen.analysis.diff import render as render_diff
from llamagen.analysis.diff.document import DiffDocument, document, json_text
from llamagen.analysis.diff.judge import Diff, Surface, Verdict, diff, diff_rules
from llamagen.analysis.targets import Model
from llamagen.ir.elaborate import build
from llamagen.ir.graph import MAIN
from llamagen.spec.resolve import ResolvedSpec
from tests.unit.analysis import models

RULES = list(diff_rules())


def side(resolved: ResolvedSpec) -> Model:
    return Model(resolved, {MAIN: build(resolved)})


def fired(before: str, after: str, folder: Path, on: str | None = None) -> set[str]:
    a = side(models.overlaid(before, folder, name="one"))
    b = side(models.overlaid(after, folder, name="two"))
    chosen = (on, device(on)) if on is not None else None
    return {c.rule for c in diff(a, b, device=chosen).changes}


@pytest.mark.parametrize("rule_id", RULES)
def test_rule_fires(rule_id: str, tmp_path: Path) -> None:
    case = diff_rules()[rule_id].case
    assert rule_id in fired(case.before, case.after, tmp_path, case.device)


@pytest.mark.parametrize("rule_id", RULES)
def test_mirror_fires_the_other_way(rule_id: str, tmp_path: Path) -> None:
    rule = diff_rules()[rule_id]
    assert rule.mirror in fired(rule.case.after, rule.case.before, tmp_path, rule.case.device)


@pytest.mark.parametrize("source", [models.LLAMA_3_8B, models.SCOUT])
def test_a_model_does_not_differ_from_itself(source: str) -> None:
    one = side(models.spec(source))
    result = diff(one, one)
    assert result.changes == ()
    assert {result.verdict(s) for s in Surface} == {Verdict.SAME}


@pytest.fixture(scope="module")
def seven_to_eight() -> Diff:
    return diff(side(models.spec(models.LLAMA_2_7B)), side(models.spec(models.LLAMA_3_8B)))


def test_weights_of_2_7b_to_3_8b(seven_to_eight: Diff) -> None:
    shapes = {
        c.path: (c.times, c.before.text, c.after.text, c.verdict(Surface.WEIGHTS).value)
        for c in seven_to_eight.on(Surface.WEIGHTS)
        if c.kind == "parameter"
    }
    assert shapes == {
        "lm_head.weight": (1, "32000×4096", "128256×4096", "convertible"),
        "model.embed_tokens.weight": (1, "32000×4096", "128256×4096", "convertible"),
        "model.layers.*.self_attn.k_proj.weight": (32, "4096×4096", "1024×4096", "breaking"),
        "model.layers.*.self_attn.v_proj.weight": (32, "4096×4096", "1024×4096", "breaking"),
        "model.layers.*.mlp.gate_proj.weight": (32, "11008×4096", "14336×4096", "breaking"),
        "model.layers.*.mlp.up_proj.weight": (32, "11008×4096", "14336×4096", "breaking"),
        "model.layers.*.mlp.down_proj.weight": (32, "4096×11008", "4096×14336", "breaking"),
    }


def test_numbers_of_2_7b_to_3_8b(seven_to_eight: Diff) -> None:
    numbers = {
        c.path: (c.before.text, c.after.text) for c in seven_to_eight.changes if c.kind == "number"
    }
    assert numbers["parameters"] == ("6,738,415,616", "8,030,261,248")
    assert numbers["kv_bytes_per_token"] == ("524,288", "131,072")
    assert seven_to_eight.verdict(Surface.OPERATORS) is Verdict.SAME


def test_causes_of_2_7b_to_3_8b(seven_to_eight: Diff) -> None:
    causes = {c.path: [x.path for x in c.causes] for c in seven_to_eight.changes}
    assert causes["model.layers.*.self_attn.k_proj.weight"] == ["hyperparameters.num_kv_heads"]
    assert causes["model.layers.*.self_attn.rope:theta"] == ["hyperparameters.rope.theta"]
    heads = next(c for c in seven_to_eight.changes if c.path == "hyperparameters.num_kv_heads")
    assert {e.surface for e in heads.effects} == {Surface.WEIGHTS, Surface.INTERFACE}


def test_text_says_what_facts_say(seven_to_eight: Diff) -> None:
    shown = render_diff.text(seven_to_eight, full=True)
    for piece in (
        "k_proj.weight ×32 (layers 0-31)  4096×4096 → 1024×4096",
        "kv_bytes_per_token  524,288 B (512 KiB) → 131,072 B (128 KiB)",
        "parameters  6,738,415,616 (6.74 B) → 8,030,261,248 (8.03 B)",
        "because num_kv_heads 32 → 8",
        "operators  same",
    ):
        assert piece in shown


def test_a_renamed_value_is_no_difference(tmp_path: Path) -> None:
    forward = "hidden = silu(gate_proj(x)) * up_proj(x)\\nreturn down_proj(hidden)\\n"
    renamed = f'blocks: {{SwiGLU: {{forward: "{forward}"}}}}'
    assert fired("title: same", renamed, tmp_path) <= {"D902"}


def test_layers_that_differ_in_part_are_shown_apart() -> None:
    result = diff(side(models.spec(models.LLAMA_3_8B)), side(models.spec(models.SCOUT)))
    layers = {
        (c.layers, c.times)
        for c in result.changes
        if c.kind == "setting" and c.path.endswith(":chunk")
    }
    assert layers == {("0-2,4-6,...,28-30", 24)}


def test_json_fits_its_schema(seven_to_eight: Diff) -> None:
    text = json_text(seven_to_eight)
    assert DiffDocument.model_validate_json(text) == document(seven_to_eight)


def test_machine_forms(seven_to_eight: Diff) -> None:
    written = json.loads(json_text(seven_to_eight))
    assert written["version"] == 1
    assert written["surfaces"]["weights"] == "breaking"
    assert len(written["changes"]) == len(seven_to_eight.changes)
    annotations = render_diff.github(seven_to_eight, [Surface.NUMERICS]).splitlines()
    assert annotations
    assert all(a.startswith("::error file=<text>,line=") for a in annotations)
    assert "theta: 10000.0 → 500000.0" in "".join(annotations)
    page = render_diff.html_page(seven_to_eight)
    assert "<text>" not in page
    assert page.count("<table>") == 6
    assert "| weights | breaking | 10 |" in render_diff.markdown(seven_to_eight)


def test_every_form_says_what_a_change_means(seven_to_eight: Diff) -> None:
    full = partial(render_diff.text, full=True)
    for form in (full, render_diff.markdown, render_diff.html_page, render_diff.github):
        shown = form(seven_to_eight).replace("&#x27;", "'")
        assert "the checkpoint's tensor does not fit" in shown, form
        assert "4096 to 8192 positions: every request for A fits B" in shown, form
    text = render_diff.text(seven_to_eight, full=True)
    assert "\n       every rotated layer computes other scores\n" in text


def test_a_chosen_surface_shows_the_values_that_act_on_it(seven_to_eight: Diff) -> None:
    shown = render_diff.text(seven_to_eight, [Surface.WEIGHTS])
    assert "hyperparameters.num_kv_heads" in shown
    assert "hyperparameters.rope.theta" not in shown
    assert "hyperparameters.rope.theta" in render_diff.text(seven_to_eight, [Surface.NUMERICS])


def test_every_list_of_changes_says_what_proves_a_value(seven_to_eight: Diff) -> None:
    code = diff(models.model_of("llama/2/7b"), models.model_of("llama/code/7b"))
    for form in (render_diff.text, render_diff.markdown, render_diff.html_page):
        assert "[litgpt; clhf]" in form(code, [Surface.TOKENS]).replace("\\", ""), form
    assert 'title="' in render_diff.html_page(seven_to_eight)


def test_json_has_the_chosen_surfaces(seven_to_eight: Diff) -> None:
    found = json.loads(json_text(seven_to_eight, [Surface.NUMERICS]))
    assert found["surfaces"] == {"numerics": "breaking"}
    paths = [c["path"] for c in found["changes"]]
    assert paths == ["hyperparameters.rope.theta", "model.layers.*.self_attn.rope:theta"]


def test_another_config_table_is_counted_in_the_text() -> None:
    vision = diff(models.model_of("llama/3.1/8b"), models.model_of("llama/3.2/11b-vision"))
    shown = render_diff.text(vision, [Surface.RECORD])
    assert shown.count("D903") == 1
    assert "entries of checkpoint and config" in shown
    few = render_diff.text(
        diff(models.model_of("llama/2/7b"), models.model_of("llama/3/8b")), full=True
    )
    assert "D903 compatible  config.literals.torch_dtype  float16 → bfloat16" in few


def test_what_is_not_published_is_not_another_value() -> None:
    record = diff(models.model_of("llama/2/7b"), models.model_of("llama/4/behemoth"))
    assert {c.kind.value for c in record.changes} == {"record"}
    assert not record.compared(Surface.WEIGHTS)
    shown = render_diff.text(record, full=True)
    assert "weights    not compared" in shown
    assert "llama/4/behemoth has no wiring recorded" in shown
    assert json.loads(json_text(record))["surfaces"] == {"record": "compatible"}
    same = diff(models.model_of("llama/2/7b"), models.model_of("llama/2/7b-chat"))
    assert same.compared(Surface.WEIGHTS)


FUSED = (
    "blocks: {{SwiGLU: {{parts: {{gate_proj: none, up_proj: none, gate_up_proj: 'linear(hidden_size, 2 *"
    " intermediate_size)'}}, forward: \"a, b = split(gate_up_proj(x), sizes=[intermediate_size,"
    ' intermediate_size])\\n{}\\n"}}}}'
)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("return down_proj(silu(a) * b)", "D304"),
        ("return down_proj(a * silu(b))", "D303"),
        ("return down_proj(gelu(a) * b)", "D303"),
    ],
)
def test_only_the_same_product_of_fused_weights_is_compatible(
    line: str, rule: str, tmp_path: Path
) -> None:
    assert fired("title: same", FUSED.format(line), tmp_path) & {"D303", "D304"} == {rule}


def test_fused_weights_are_converted_and_compute_the_same(tmp_path: Path) -> None:
    apart = side(models.overlaid("title: same", tmp_path, name="one"))
    fused = side(
        models.overlaid(FUSED.format("return down_proj(silu(a) * b)"), tmp_path, name="two")
    )
    for a, b in ((apart, fused), (fused, apart)):
        result = diff(a, b)
        assert result.verdict(Surface.WEIGHTS) is Verdict.CONVERTIBLE
        assert result.verdict(Surface.NUMERICS) is Verdict.COMPATIBLE


def test_layers_that_are_gone_are_due_to_their_number(tmp_path: Path) -> None:
    a = side(models.overlaid("title: same", tmp_path, name="one"))
    b = side(
        models.overlaid("hyperparameters: {num_layers: 1, norm_eps: 1.0e-6}", tmp_path, name="two")
    )
    gone = [c for c in diff(a, b).on(Surface.WEIGHTS) if c.kind == "parameter"]
    assert len(gone) == 9
    assert {x.path for c in gone for x in c.causes} == {"hyperparameters.num_layers"}


def test_a_cause_is_what_changes_it_alone_not_what_has_its_name() -> None:
    """What takes Scout's chunks away is that it has no size for them, and the pattern of its layers."""
    result = diff(models.model_of("llama/4/scout"), models.model_of("llama/guard/4-12b"))
    chunks = [c for c in result.changes if c.path.endswith("attention:chunk")]
    causes = [(x.path, x.source) for c in chunks for x in c.causes]
    pattern = "patterns.layer_kinds"
    assert causes == [
        ("hyperparameters.attention_chunk_size", "l4code"),
        (f"{pattern}.value", "conv-4"),
        (f"{pattern}.otherwise", "conv-4"),
    ]


def test_experts_that_vanish_are_due_to_their_pattern_others_to_their_number() -> None:
    result = diff(models.model_of("llama/4/scout"), models.model_of("llama/4/maverick"))
    routers = {
        c.after.text: [x.path for x in c.causes]
        for c in result.changes
        if c.path.endswith("router.weight")
    }
    assert routers == {
        None: ["patterns.feeds.every"],
        "128×5120": ["hyperparameters.num_experts"],
    }
    lost = [c for c in result.changes if c.kind == "block"]
    assert [[x.path for x in c.causes] for c in lost] == [["patterns.feeds.every"]]


def test_a_family_proves_no_value_of_a_spec_outside_it(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "spec: 1\nid: mine/wide\nextends: llama/3.2/1b\nhyperparameters: {intermediate_size: 4096}\n"
        "invariants: {swiglu_width: null}\n"
    )
    result = diff(models.model_of("llama/3.2/1b"), models.model_of(str(mine)))
    width = next(c for c in result.changes if c.path == "hyperparameters.intermediate_size")
    assert (width.before.source, width.after.source) == ("sku", None)
    back = diff(models.model_of(str(mine)), models.model_of("llama/3.2/1b"))
    gate = next(c for c in back.changes if c.path.endswith("gate_proj.weight"))
    assert [x.source for x in gate.causes] == ["sku"]


def test_other_ends_of_a_generation_are_no_other_tokens() -> None:
    result = diff(models.model_of("llama/3.1/70b"), models.model_of("llama/3.3/70b-instruct"))
    assert result.verdict(Surface.TOKENS) is Verdict.COMPATIBLE
    code = diff(models.model_of("llama/2/7b"), models.model_of("llama/code/7b"))
    assert {c.path for c in code.on(Surface.TOKENS)} == {"hyperparameters.vocab_size"}
