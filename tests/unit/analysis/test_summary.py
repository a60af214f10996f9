"""Pairs that an expert knows, and what must stand in the first ten lines of their diff, by the published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llamagen.analysis.diff.features import Kind
from llamagen.analysis.diff.judge import Diff, Surface, Verdict, diff
from llamagen.analysis.diff.render import LINES, text
from llamagen.analysis.targets import Model, built
from llamagen.spec.registry import Registry

FOREIGN = Path(__file__).parents[2] / "specs" / "foreign"

MISTRAL = f"""spec: 1
id: real/mistral-7b
extends: {FOREIGN}/mistral.yaml
hyperparameters:
  {{vocab_size: 32000, hidden_size: 4096, intermediate_size: 14336, num_layers: 32, num_heads: 32, num_kv_heads: 8,
   head_dim: 128, sliding_window: 4096, max_positions: 32768, norm_eps: 1.0e-5}}
"""
QWEN = f"""spec: 1
id: real/qwen3-0.6b
extends: {FOREIGN}/qwen3.yaml
hyperparameters:
  {{vocab_size: 151936, hidden_size: 1024, intermediate_size: 3072, num_layers: 28, num_heads: 16, num_kv_heads: 8,
   head_dim: 128, max_positions: 40960, tie_embeddings: true, norm_eps: 1.0e-6,
   rope: {{kind: default, theta: 1000000.0}}}}
"""
EQUATION = """spec: 1
id: mine/relu
extends: llama/3.2/1b
blocks:
  SwiGLU:
    forward: |
      return down_proj(relu(gate_proj(x)) * up_proj(x))
"""
SCALED = """spec: 1
id: mine/scaled
extends: llama/3.2/1b
blocks:
  DecoderLayer:
    forward: |
      h = x + self_attn(input_layernorm(x)) * 0.5
      return h + mlp(post_attention_layernorm(h))
"""
RENAMED = """spec: 1
id: mine/w3
extends: llama/3.2/1b
blocks:
  SwiGLU:
    parts:
      up_proj: none
      w3: linear(hidden_size, intermediate_size)
    forward: |
      return down_proj(w3(x) * silu(gate_proj(x)))
"""

EXPECTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("llama/2/7b", "llama/3/8b"): (
        "32 → 8 heads for keys and values (MHA → GQA)",
        "RoPE theta 10,000 → 500,000",
        "feed-forward 11,008 → 14,336 wide",
        "vocabulary 32,000 → 128,256, another tokenizer (sentencepiece → tiktoken)",
        "context 4,096 → 8,192",
        "6.74 B → 8.03 B parameters; cache 512 KiB → 128 KiB a token",
    ),
    ("llama/3/8b", "llama/3.1/8b"): (
        "RoPE unscaled → llama3 (factor 8, low_freq_factor 1, high_freq_factor 4, original_max_positions 8,192)",
        "context 8,192 → 131,072",
    ),
    ("llama/3.1/70b", "llama/3.3/70b-instruct"): (
        "the same architecture",
        "released 2024-07-23 → 2024-12-06",
    ),
    ("llama/3.1/8b", "llama/3.2/11b-vision"): (
        "the same 32 layers, as `language_model.model`",
        "8 new cross-attention layers (3,8,...,38)",
        "8 more embedding rows (128,264)",
        "images: a vision tower of",
    ),
    ("llama/3.1/405b", "llama/4/maverick"): (
        "126 layers → 48",
        "mixture of experts in 24 layers (1,3,...,47): 128 experts of 8,192, a token uses 1",
        "beside a shared one of 8,192",
        "128 heads (8 for keys and values) → 40 heads (8 for keys and values)",
        "attention within chunks of 8,192 in 36 layers",
        "no rotary positions (NoPE) and queries that grow with the log of their position in 12 layers (3,7,...,47)",
        "(temperature: scale 0.1, floor 8,192)",
        "hidden size 16,384 → 5,120; vocabulary 128,256 → 202,048",
        "images: a vision tower of",
    ),
    ("llama/4/scout", "llama/4/maverick"): (
        "16 → 128 experts in 24 layers (1,3,...,47)",
        "no experts, a dense feed-forward of 16,384 in 24 layers (0,2,...,46)",
        "queries and keys are no longer normalised in 36 layers",
        "RoPE llama3 (factor 16,",
    ),
    ("llama/4/scout", "llama/guard/4-12b"): (
        "no experts, a dense feed-forward of 8,192",
        "layers.*.feed_forward.shared_expert` is now `language_model.model.layers.*.feed_forward` in 48 layers",
        "attention no longer within chunks of 8,192",
        "rotary positions in 12 layers (3,7,...,47) and no temperature of queries any more: unscaled (theta 500,000)",
        "made from it: dense, pruned: shared expert kept as the MLP",
    ),
    ("llama/3.1/8b", "llama/3.2/1b"): (
        "32 layers → 16",
        "head_dim 128 → 64",
        "RoPE factor 8 → 32",
        "feed-forward 14,336 → 8,192 wide",
        "hidden size 4,096 → 2,048",
        "the head is tied to the embedding",
    ),
    ("llama/3.2/1b", QWEN): (
        "16 layers → 28",
        "32 heads (8 for keys and values) → 16 heads (8 for keys and values)",
        "head_dim 64 → 128",
        "queries and keys are normalised (rms_norm)",
        "feed-forward 8,192 → 3,072 wide",
        "→ unscaled (theta 1,000,000)",
        "hidden size 2,048 → 1,024; vocabulary 128,256 → 151,936",
    ),
    ("llama/2/7b", MISTRAL): (
        "32 → 8 heads for keys and values (MHA → GQA)",
        "attention within a window of 4,096",
        "feed-forward 11,008 → 14,336 wide",
        "context 4,096 → 32,768",
    ),
    ("mistral/0.1/7b", "llama/3/8b"): (
        "attention no longer within a window of 4,096",
        "RoPE theta 10,000 → 500,000",
        "vocabulary 32,000 → 128,256, another tokenizer (sentencepiece → tiktoken); context 32,768 → 8,192",
    ),
    ("mixtral/0.1/8x7b", "llama/4/scout"): (
        "8 experts of 14,336, 2 a token → 16 experts of 8,192, 1 a token beside a shared one of 8,192",
        "attention within chunks of 8,192 in 36 layers",
        "no rotary positions (NoPE)",
        "images: a vision tower of",
    ),
    ("llama/3.2/3b", "llama/3.2/3b-instruct-qlora"): (
        "the same architecture",
        "in fewer bits: quantisation-aware training with LoRA adapters (QLoRA)",
        "promised context 131,072 → 8,192",
    ),
    ("deepseek/3/671b", "gpt-oss/1/120b"): (
        "(MLA → GQA)",
        "RoPE theta 10,000 → 150,000, factor 40 → 32, truncate true → false, attention_factor 1 → 1.34657",
    ),
    ("llama/3.1/405b", "deepseek/3/671b"): (
        "126 layers → 61",
        "mixture of experts in 58 layers (3-60): 256 experts of 2,048, a token uses 8 beside a shared one of 2,048",
        "latent attention: 128 heads (8 for keys and values) → 128 heads over one vector of 512 and a rotated key of",
        "405.85 B → 671.03 B (37.55 B active) parameters; cache 504 KiB → 68.6 KiB a token",
    ),
    ("llama/4/maverick", "gpt-oss/1/120b"): (
        "128 experts of 8,192, 1 a token → 128 experts of 2,880, 4 a token, no shared one any more in 18 layers",
        "attention within a window of 128 in 18 layers (0,2,...,34)",
        "401.58 B (17.18 B active) → 116.83 B (5.71 B active) parameters; cache 192 KiB → 72 KiB a token",
    ),
    ("gemma/2/9b", "gemma/3/4b-it"): (
        "attention within a window of 1,024 instead of 4,096 in 17 layers (0,2,...,32)",
        "RoPE unscaled (theta 10,000) → linear (theta 1,000,000, factor 8) in 5 layers (5,11,...,29)",
        "attention's softcap 50 → none",
    ),
    ("gemma/2/9b", "gemma/2/27b"): (
        "42 layers → 46",
        "attention's scale 1/√head_dim → 0.0833333",
        "model: 59.8665 → 67.8823 in `return norm(",
    ),
    ("gemma/2/9b", "llama/3.1/8b"): (
        "attention no longer within a window of 4,096 in 16 layers (0,2,...,30)",
        "attention's softcap 50 → none",
        "activation gelu → silu",
        "the head is no longer tied to the embedding",
    ),
    ("qwen/2/7b", "qwen/3/8b"): (
        "28 layers → 36",
        "queries and keys are normalised (rms_norm)",
        "biases: k_proj, q_proj, v_proj → none",
    ),
    ("llama/2/7b", "olmo/2/7b"): (
        "norms behind attention and feed-forward, no longer before them",
        "queries and keys are normalised (rms_norm)",
    ),
    ("llama/3.2/11b-vision", "llama/guard/3-11b-vision"): (
        "images: image_size 448 → 560",
        "made from it",
    ),
    ("llama/3.2/90b-vision", "llama/4/scout"): (
        "images among the text (early fusion), no longer by cross-attention",
    ),
    ("llama/3.2/1b", EQUATION): (
        "activation silu → relu",
        "model.layers.*.mlp in 16 layers: `return down_proj(silu(gate_proj(x)) * up_proj(x))` → ",
        " → `return down_proj(relu(gate_proj(x)) * up_proj(x))`",
    ),
    ("llama/3.2/1b", SCALED): (
        "model.layers.* in 16 layers: `h = x + self_attn(input_layernorm(x))` → ",
        " → `h = x + self_attn(input_layernorm(x)) * 0.5`",
    ),
    ("llama/3.2/1b", RENAMED): (
        "`model.layers.*.mlp.up_proj` is now `model.layers.*.mlp.w3` in 16 layers, the same weights",
    ),
}


def side(source: str) -> Model:
    registry = Registry()
    return built(registry.load_text(source) if "\n" in source else registry.load(source))


def compared(pair: tuple[str, str]) -> Diff:
    return diff(side(pair[0]), side(pair[1]))


def named(pair: Sequence[str]) -> str:
    names = [p.split("\n")[1].removeprefix("id: ") if "\n" in p else p for p in pair]
    return "-".join(names).replace("/", "_")


@pytest.mark.parametrize("pair", EXPECTED, ids=named)
def test_what_an_expert_says_stands_first(pair: tuple[str, str]) -> None:
    result = compared(pair)
    said = "\n".join(result.summary)
    assert [piece for piece in EXPECTED[pair] if piece not in said] == []
    assert 0 < len(result.summary) <= 10


@pytest.mark.parametrize("pair", EXPECTED, ids=named)
def test_the_text_fits_a_screen_unless_all_is_asked_for(pair: tuple[str, str]) -> None:
    result = compared(pair)
    short, full = text(result), text(result, full=True)
    assert short.count("\n") <= LINES
    assert [line.strip() for line in short.splitlines()[1 : len(result.summary) + 1]] == list(
        result.summary
    )
    left_out = sum(int(line.split()[1]) for line in short.splitlines() if "--full" in line)
    shown = sum(line.startswith("  D") for line in short.splitlines())
    assert shown + left_out == sum(line.startswith("  D") for line in full.splitlines())


@pytest.mark.parametrize("source", ["llama/3.2/1b", "llama/4/scout", "llama/3.2/11b-vision"])
def test_of_a_model_and_itself_nothing_is_said_to_differ(source: str) -> None:
    assert compared((source, source)).summary == ("the same architecture",)


def test_a_runtime_that_knows_one_of_them_alone_is_no_difference() -> None:
    assert not [c for c in compared(("llama/3.2/1b", SCALED)).changes if c.kind is Kind.RUNTIME]


def test_where_norms_stand_is_told_with_their_number() -> None:
    text = """blocks:
  DecoderLayer:
    parts: {a: "rms_norm(hidden_size, eps=norm_eps)", b: "rms_norm(hidden_size, eps=norm_eps)"}
    forward: |
      h = x + a(self_attn(input_layernorm(x)))
      return h + b(mlp(post_attention_layernorm(h)))
"""
    said = compared(("llama/3.2/1b", edited(text))).summary
    before = "before attention and feed-forward"
    assert (
        f"2 norms a layer (rms_norm, {before}) → 4 (rms_norm, before and behind attention and feed-forward)"
        in said
    )


def test_the_other_way_says_the_opposite() -> None:
    assert "32 layers → 16" in compared(("llama/3.1/8b", "llama/3.2/1b")).summary
    back = compared(("llama/3.2/1b", "llama/3.1/8b")).summary
    assert "16 layers → 32" in back
    assert "the head is no longer tied to the embedding" in back


def edited(text: str) -> str:
    """Llama 3.2 1B with blocks or values of one's own."""
    return f"spec: 1\nid: mine/edited\nextends: llama/3.2/1b\n{text}"


NORM = "blocks: {DecoderLayer: {parts: {input_layernorm: 'layer_norm(hidden_size, eps=norm_eps, bias=false)'}}}"
SAME_SHAPES = {
    "more narrower heads": "hyperparameters: {head_dim: 32, num_heads: 64, num_kv_heads: 16}\n",
    "a part of each head is turned": "hyperparameters: {rope: {partial: 0.5}}\n",
    "another norm": NORM,
}


@pytest.mark.parametrize("text", SAME_SHAPES.values(), ids=SAME_SHAPES)
def test_other_numbers_from_weights_of_the_same_shapes_are_told(text: str) -> None:
    for pair in (("llama/3.2/1b", edited(text)), (edited(text), "llama/3.2/1b")):
        result = compared(pair)
        assert result.verdict(Surface.WEIGHTS) is Verdict.SAME
        assert result.verdict(Surface.NUMERICS) is Verdict.BREAKING
        assert result.summary not in ((), ("the same architecture",))


@pytest.mark.parametrize("name", ["gpt2", "mpt"])
def test_positions_told_otherwise_are_not_called_nope(name: str) -> None:
    said = compared(("llama/3.2/1b", str(FOREIGN / f"{name}.yaml"))).summary
    how = {"gpt2": "a table of positions", "mpt": "ALiBi"}[name]
    assert f"no rotary positions, but {how}" in said


def test_yarn_without_its_optional_numbers_is_described() -> None:
    said = compared(("llama/3.2/1b", str(FOREIGN / "olmo3.yaml"))).summary
    assert any("→ yarn (" in sentence for sentence in said)


def test_norms_of_queries_and_keys_in_blocks_of_their_own_are_none_of_the_layer() -> None:
    said = compared(("llama/3.2/1b", str(FOREIGN / "cohere.yaml"))).summary
    assert any(s.startswith("queries and keys are normalised (layer_norm") for s in said)
    assert "2 norms a layer (rms_norm) → 1 (layer_norm)" in said


def test_new_layers_are_counted_with_those_that_became_like_them() -> None:
    said = compared(("llama/2/7b", "llama/4/scout")).summary
    assert "attention within chunks of 8,192 in 36 layers (0-2,4-6,...,44-46)" in said


def test_layers_that_are_gone_are_told_as_new_ones_are() -> None:
    said = compared(("llama/3.2/11b-vision", "llama/3.1/8b")).summary
    assert said[:2] == (
        "the same 32 layers, as `model`",
        "8 cross-attention layers are gone (3,8,...,38)",
    )


def test_layers_that_compute_something_else_are_not_the_same() -> None:
    text = "hyperparameters: {num_layers: 17}\n" + SCALED.partition("llama/3.2/1b\n")[2]
    said = compared(("llama/3.2/1b", edited(text))).summary
    assert "16 layers → 17" in said


def test_a_wrapper_that_computes_is_told() -> None:
    text = (
        "blocks: {DecoderLayer: {parts: {mlp: Outer}}, "
        "Outer: {parts: {inner: SwiGLU}, forward: 'return inner(x) * 0.5'}}"
    )
    said = compared(("llama/3.2/1b", edited(text))).summary
    assert "block `model.layers.*.mlp` (Outer) is new in 16 layers" in said


def test_layers_without_attention_have_no_positions_and_no_settings_of_it() -> None:
    text = """patterns: {kinds: {default: own, at: {other: [5]}}}
blocks:
  Decoder: {parts: {layers: "stack(num_layers, DecoderLayer if kinds[layer] == 'own' else Plain)"}}
  Plain:
    parts: {fc_norm: 'rms_norm(hidden_size, eps=norm_eps)', fc: 'linear(hidden_size, hidden_size)'}
    forward: return x + fc(fc_norm(x))
"""
    said = "; ".join(compared(("llama/3.2/1b", edited(text))).summary)
    assert "rotary" not in said
    assert "alibi" not in said


def test_parameters_that_read_the_same_are_told_by_their_difference() -> None:
    said = compared(("llama/2/7b", "llama/code/7b")).summary
    assert said[-1] == "6.74 B parameters, 131,072 more"


def test_a_model_written_otherwise_is_the_same_architecture() -> None:
    text = "blocks: {SwiGLU: {forward: 'return down_proj(up_proj(x) * silu(gate_proj(x)))'}}"
    assert compared(("llama/3.2/1b", edited(text))).summary == ("the same architecture",)


def foreign(one: str, other: str) -> tuple[str, ...]:
    return compared((str(FOREIGN / f"{one}.yaml"), str(FOREIGN / f"{other}.yaml"))).summary


def test_what_new_layers_do_not_do_is_not_said_of_all() -> None:
    assert "attention within a window of 4 in 3 layers (0-2)" in foreign("cohere", "cohere2")


def test_what_stands_around_the_layers_is_told_though_these_differ_in_kind() -> None:
    said = foreign("gemma2", "gemma3")
    assert "the model: `return softcap(lm_head(model(input_ids)), cap=1.5)`" in said[3]


def test_parts_of_one_shape_that_are_used_otherwise_are_no_rename() -> None:
    assert not any("q_a_proj" in sentence for sentence in foreign("deepseek_v3", "mixtral"))


def test_a_renamed_part_with_a_new_bias_does_not_have_the_same_weights() -> None:
    text = RENAMED.replace(
        "linear(hidden_size, intermediate_size)",
        "linear(hidden_size, intermediate_size, bias=true)",
    )
    said = compared(("llama/3.2/1b", text)).summary
    assert "`model.layers.*.mlp.up_proj` is now `model.layers.*.mlp.w3` in 16 layers" in said


def test_what_a_part_gets_beside_it_leaves_its_weights_the_same() -> None:
    said = compared(("llama/guard/4-12b", "llama/4/scout")).summary
    (moved,) = [s for s in said if " is now " in s]
    assert moved.endswith(".shared_expert` in 48 layers, the same weights")


def test_as_many_layers_elsewhere_are_no_change_of_their_number() -> None:
    assert foreign("gpt_neox", "gptj")[0] == "2 layers, as `transformer`"
