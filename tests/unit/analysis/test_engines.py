"""What engines are told of a model and what they refuse: every row of spec/rules/engines.yaml has a case that fires."""

from __future__ import annotations

from pathlib import Path

import pytest

import llamagen
from llamagen.analysis.engines import (
    ENGINES,
    Engines,
    cutting_of,
    decoder_of,
    engine_text,
    facts_of,
    refusals,
    require_decoder,
)
from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError

SPECS = Path(__file__).parents[2] / "specs"
FOREIGN = SPECS / "foreign"

KINDS = """
patterns: {kinds: {cycle: [a, b]}}
blocks:
  Decoder: {parts: {layers: "stack(num_layers, DecoderLayer(kind=kinds[layer]))"}}
  DecoderLayer: {options: {kind: a}, parts: {self_attn: Attention(kind=kind)}}
  Attention:
    options: {kind: a}
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal', %s)))
"""

CASES: dict[str, tuple[str, str]] = {
    "windows of several sizes": ("_decoder", KINDS % "window=4 if kind == 'a' else 9"),
    "chunks of several sizes": ("_decoder", KINDS % "chunk=4 if kind == 'a' else 9"),
    "windows and chunks in one model": (
        "_decoder",
        KINDS % "window=4 if kind == 'a' else none, chunk=9 if kind == 'b' else none",
    ),
    "attention in chunks": ("llama4_text", ""),
    "alibi": ("mpt", ""),
    "experts whose input is weighted": ("llama4_text", ""),
    "experts stored [E, in, out]": ("llama4_text", ""),
    "experts with another activation": (
        "mixtral",
        """
blocks:
  Experts:
    parts:
      experts: experts(num_experts, hidden_size, expert_intermediate_size, act='gelu')
""",
    ),
    "values wider than keys": (
        "_decoder",
        """
blocks:
  Attention:
    parts:
      v_proj: linear(hidden_size, num_kv_heads * 8)
      o_proj: linear(num_heads * 8, hidden_size)
""",
    ),
    "what differs from layer to layer": (
        "_decoder",
        KINDS % "softcap=2.0 if kind == 'a' else none",
    ),
    "a head that is not called": ("gpt_neox", ""),
    "what is computed with the logits": (
        "_decoder",
        "blocks: {CausalLM: {forward: 'return lm_head(model(input_ids)) + 1.0'}}",
    ),
    "a norm whose gain is neither": (
        "_decoder",
        'blocks: {Decoder: {parts: {norm: "rms_norm(hidden_size, eps=norm_eps, offset=0.5)"}}}',
    ),
    "rotary frequencies that follow": (
        "_decoder",
        "hyperparameters: {rope: {kind: dynamic, theta: 10000.0, factor: 2.0}}",
    ),
}


def model_of(base: str, more: str, folder: Path) -> llamagen.Model:
    path = folder / "case.yaml"
    text = f"spec: 1\nid: test/case\nextends: {FOREIGN}/{base}.yaml\nabstract: false\n{more}\n"
    path.write_text(text, encoding="utf-8")
    return llamagen.load(path)


def test_the_table_has_these_engines() -> None:
    assert tuple(load_table("rules/engines.yaml", Engines).engines) == ENGINES


@pytest.mark.parametrize("why", CASES)
def test_a_row_fires_where_it_is_meant(why: str, tmp_path: Path) -> None:
    model = model_of(*CASES[why], tmp_path)
    said = [one for engine in ENGINES for one in refusals(engine, model.spec, model.graph)]
    assert any(f"cannot express {why}" in one for one in said), said


def test_every_row_has_a_case_and_is_silent_elsewhere() -> None:
    table = load_table("rules/engines.yaml", Engines)
    for engine in table.engines.values():
        for row in engine.refuses:
            assert any(row.why.startswith(why) for why in CASES), row.why
    for name in ("mistral", "gemma2", "mixtral", "qwen3", "cohere2"):
        model = llamagen.load(FOREIGN / f"{name}.yaml")
        assert not [one for e in ENGINES for one in refusals(e, model.spec, model.graph)]


def test_facts_are_those_of_the_graph() -> None:
    model = llamagen.load(FOREIGN / "gemma2.yaml")
    facts = facts_of(model.spec, model.graph, require_decoder(model.graph))
    assert facts == {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 20,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "sliding_window": 4,
        "attn_logit_softcapping": 2.5,
        "final_logit_softcapping": 1.5,
    }


def test_the_logits_factor_comes_after_the_bound(tmp_path: Path) -> None:
    text = "blocks: {CausalLM: {forward: 'return softcap(lm_head(model(input_ids)), 3.0) / 4.0'}}"
    model = model_of("_decoder", text, tmp_path)
    facts = facts_of(model.spec, model.graph, require_decoder(model.graph))
    assert (facts["final_logit_softcapping"], facts["logit_scale"]) == (3.0, 0.25)
    other = "blocks: {CausalLM: {forward: 'return softcap(lm_head(model(input_ids)) / 4.0, 3.0)'}}"
    model = model_of("_decoder", other, tmp_path)
    assert refusals("vllm", model.spec, model.graph)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "llama/3.2/11b-vision",
            "is not one block of layers and a linear head behind it alone, in `CausalLM`",
        ),
        (
            "llama/4/scout",
            "is not one block of layers and a linear head behind it alone, in `CausalLM`",
        ),
    ],
)
def test_what_is_no_decoder_of_text_says_why(spec: str, reason: str) -> None:
    graph = llamagen.load(spec).graph
    found = decoder_of(graph)
    assert isinstance(found, tuple) and reason in found
    with pytest.raises(LlamagenError) as caught:
        require_decoder(graph)
    assert caught.value.diagnostics[0].code == "LG743"


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        ("return norm(layers(embed_tokens(input_ids)) + embed_tokens(input_ids))", "reads the token ids elsewhere"),
        ("y = embed_tokens(input_ids)\nreturn norm(layers(y) + y)", "what was computed before"),
    ],
)  # fmt: skip
def test_what_stages_could_not_hand_on_is_no_decoder(
    forward: str, reason: str, tmp_path: Path
) -> None:
    lines = forward.replace("\n", "\n      ")
    text = f"blocks:\n  Decoder:\n    forward: |\n      {lines}\n"
    found = decoder_of(model_of("_decoder", text, tmp_path).graph)
    assert isinstance(found, tuple) and any(reason in one for one in found), found


def cutting(path: Path):  # type: ignore[no-untyped-def]
    graph = llamagen.load(path).graph
    return cutting_of(graph, require_decoder(graph))


def test_how_layers_are_cut_is_said_in_the_words_of_the_engines() -> None:
    odd = cutting(SPECS / "odd.yaml")
    assert odd.degrees == {"transformers": (1, 2), "vllm": (1, 2)}
    assert odd.reasons["vllm"].startswith(
        "Attention.k_proj has 2 heads, Attention.q_proj has 4 heads"
    )
    assert odd.styles["layers.*.self_attn.q_norm"] == "replicated_with_grad_allreduce"
    assert odd.styles["layers.*.self_attn.gate_proj"] == "colwise"
    assert odd.styles["layers.*.mlp.down_proj"] == "rowwise"
    assert "layers.*.mixer_norm" not in odd.styles
    experts = cutting(FOREIGN / "mixtral.yaml").styles
    assert experts["layers.*.mlp.experts"] == "moe_tp_experts"
    assert experts["layers.*.mlp.experts.gate_up_proj"] == "packed_colwise"
    assert "layers.*.mlp.gate" not in experts


@pytest.mark.parametrize(
    ("name", "transformers", "vllm"),
    [
        ("glm4", (1, 2), (1, 2)),  # its fused gate and up are whole, attention is cut
        ("phi3", (1,), (1,)),  # three heads, and a fused product of queries, keys and values
        ("olmo2", (1,), (1, 2)),  # a norm over heads that are on several devices
        ("cohere", (1,), (1,)),  # a parameter a head
        ("gpt_oss_attention", (1,), (1, 2)),  # sinks a head, which vLLM cuts itself
    ],
)
def test_an_engine_without_a_word_for_it_does_not_cut(
    name: str, transformers: tuple[int, ...], vllm: tuple[int, ...]
) -> None:
    assert cutting(FOREIGN / f"{name}.yaml").degrees == {"transformers": transformers, "vllm": vllm}


def test_explain_prints_the_table() -> None:
    text = engine_text("vllm")
    assert "sliding_window" in text and "It cannot express as custom code:" in text
    assert "alibi; it has a class of its own, MPTForCausalLM, BloomForCausalLM" in text
    assert llamagen.api.explain("vllm") == text
