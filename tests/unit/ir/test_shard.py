"""The shard plan: what is cut, why not, by how much, and what a rank must add in training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamagen.analysis.parallel import plan_text
from llamagen.ir.elaborate import build
from llamagen.ir.graph import Graph
from llamagen.ir.shard import Entry, ShardPlan, Style, plan
from llamagen.ir.text import render
from llamagen.ops.table import NODES
from llamagen.spec.registry import Registry
from tests.graph_text import parse
from tests.parity.models import FOREIGN, SPECS


def plan_of(name: str) -> ShardPlan:
    return plan(build(Registry((SPECS,)).load(name)))


def styles(found: ShardPlan) -> dict[str, Style]:
    return {".".join(key): share.style for key, share in found.shares.items()}


def other(folder: Path, blocks: str, base: str = "foreign/_decoder", **sizes: int) -> Graph:
    """The decoder that most have, with other blocks."""
    numbers = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    text = (
        f"spec: 1\nid: t/other\nextends: {base}\nhyperparameters: {{{numbers}}}\nblocks:\n{blocks}"
    )
    return build(Registry((SPECS, folder)).load_text(text))


def test_a_plain_decoder_is_cut_as_megatron_does() -> None:
    found = plan_of("foreign/mistral")
    assert styles(found) == {
        "Decoder.embed_tokens": Style.VOCABULARY,
        **{f"Attention.{n}_proj": Style.COLUMN for n in "qkv"},
        "Attention.o_proj": Style.ROW,
        "SwiGLU.gate_proj": Style.COLUMN,
        "SwiGLU.up_proj": Style.COLUMN,
        "SwiGLU.down_proj": Style.ROW,
        "CausalLM.lm_head": Style.HEAD,
    }
    assert found.reductions["Attention"] == found.reductions["SwiGLU"] == (24,)
    assert found.at["model.layers.1.self_attn.o_proj"].style is Style.ROW
    (stack,) = found.stacks
    assert (stack.path, stack.layers, str(stack.carried)) == ("model.layers", 2, "model[B, S, 24]")


def test_degrees_divide_the_key_value_heads() -> None:
    found = plan_of("foreign/mistral")
    least, *_ = found.limits
    assert (least.size, least.what) == (2, "heads") and "Attention.k_proj" in least.parts
    assert found.degrees == (1, 2) and found.stopped_by(4) == least and not found.stopped_by(2)


@pytest.mark.parametrize("name", ["foreign/phi3", "foreign/gpt2", "foreign/mpt"])
def test_what_is_computed_at_once_is_cut_piece_by_piece(name: str) -> None:
    found = plan_of(name)
    (pieces,) = (s.pieces for (b, _), s in found.shares.items() if b == "Attention" and s.pieces)
    assert pieces == (24, 24, 24)


def test_heads_that_stand_one_after_the_other_are_no_pieces() -> None:
    share = plan_of("foreign/gpt_neox").shares["SelfAttention", "query_key_value"]
    assert (share.style, share.units, share.pieces) == (Style.COLUMN, 3, ())


def test_a_router_is_whole_and_says_why() -> None:
    found = plan_of("foreign/llama4_text")
    router = found.shares["Experts", "router"]
    assert (router.style, router.reason) == (Style.WHOLE, "topk needs whole values")
    assert found.shares["Experts", "experts"].units == 12 and found.expert_degrees == (1, 2, 4)


def test_a_norm_over_all_heads_asks_the_other_ranks() -> None:
    found = plan_of("foreign/olmo2")
    assert found.shares["Attention", "q_norm"].style is Style.NORM
    assert found.statistics["Attention"] == 2 and found.degrees == (1, 2)


def test_a_norm_of_each_head_is_shared_and_gains_of_a_head_are_cut() -> None:
    assert plan_of("foreign/qwen3").shares["Attention", "q_norm"].style is Style.SHARED
    found = styles(plan_of("foreign/cohere"))
    assert found["Heads2HeadNorm.weight"] is Style.PARAMETER


def test_sinks_are_cut_with_their_heads() -> None:
    share = plan_of("foreign/gpt_oss_attention").shares["FullAttention", "sinks"]
    assert (share.style, share.axis, share.units) == (Style.PARAMETER, 0, 4)


def test_small_projections_are_whole_where_more_is_cut_behind_them() -> None:
    """And the rotated key that all heads share gets a summed gradient: those features alone."""
    found = plan_of("foreign/deepseek_v3")
    assert found.shares["Attention", "q_a_proj"].reason == "more is cut behind it"
    assert found.shares["Attention", "q_b_proj"].style is Style.COLUMN
    assert found.entries == {"Attention": (Entry("kv_a_proj_with_mqa", 10, 6, 16),)}


def test_one_key_for_all_heads_is_whole_and_its_gradient_summed(tmp_path: Path) -> None:
    found = plan(other(tmp_path, "  Attention: {}", num_kv_heads=1))
    assert {found.shares["Attention", n].style for n in ("k_proj", "v_proj")} == {Style.WHOLE}
    entries = found.entries["Attention"]
    assert {(e.part, e.start, e.size) for e in entries} == {("k_proj", 0, 6), ("v_proj", 0, 6)}
    assert found.degrees == (1, 2, 4)


WIRINGS = {
    "a result that joins the residual stream as it is": (
        (
            "  FeedForward:\n    parts: {gate_proj: none, down_proj: none, up_proj: 'linear(hidden_size, hidden_size)'}"
            "\n    forward: |\n      return x * sigmoid(up_proj(x))"
        ),
        {"FeedForward.up_proj": Style.WHOLE},
    ),
    "a block that returns heads": (
        (
            "  DecoderLayer:\n    parts: {o_proj: 'linear(num_heads * head_dim, hidden_size)'}\n    forward: |\n"
            "      h = x + o_proj(self_attn(input_layernorm(x)))\n"
            "      return h + mlp(post_attention_layernorm(h))\n"
            "  Attention:\n    parts: {o_proj: none}\n    forward: |\n"
            "      q = rope(split_heads(q_proj(x), num_heads), positions, rope)\n"
            "      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)\n"
            "      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))\n"
            "      return merge_heads(attention(q, k, v, mask='causal'))"
        ),
        {"Attention.v_proj": Style.COLUMN, "DecoderLayer.o_proj": Style.ROW},
    ),
    "a gate for all heads": (
        (
            "  Attention:\n    parts: {gate_proj: 'linear(hidden_size, 1)'}\n    forward: |\n"
            "      q = rope(split_heads(q_proj(x), num_heads), positions, rope)\n"
            "      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)\n"
            "      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))\n"
            "      return o_proj(merge_heads(attention(q, k, v, mask='causal')) * sigmoid(gate_proj(x)))"
        ),
        {"Attention.gate_proj": Style.WHOLE, "Attention.o_proj": Style.ROW},
    ),
    "a gate that other values need too": (
        (
            "  FeedForward:\n    parts: {up_proj: none}\n    forward: |\n"
            "      m = sigmoid(mean(x))\n      return down_proj(silu(gate_proj(x)) * m) * m"
        ),
        {"FeedForward.gate_proj": Style.WHOLE, "FeedForward.down_proj": Style.WHOLE},
    ),
    "a linear part for each head": (
        (
            "  Attention:\n    parts: {mix: 'linear(head_dim, head_dim)'}\n    forward: |\n"
            "      q = rope(mix(split_heads(q_proj(x), num_heads)), positions, rope)\n"
            "      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)\n"
            "      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))\n"
            "      return o_proj(merge_heads(attention(q, k, v, mask='causal')))"
        ),
        {"Attention.mix": Style.SHARED, "Attention.q_proj": Style.COLUMN},
    ),
    "pieces that are read as one": (
        (
            "  FeedForward:\n    parts: {gate_proj: none, up_proj: 'linear(hidden_size, 2 * intermediate_size)', "
            "down_proj: 'linear(2 * intermediate_size, hidden_size)'}\n    forward: |\n"
            "      y = up_proj(x)\n      a, b = split(y, [intermediate_size, intermediate_size])\n"
            "      return down_proj(y * concat(silu(a), silu(b)))"
        ),
        {"FeedForward.up_proj": Style.WHOLE, "FeedForward.down_proj": Style.WHOLE},
    ),
    "several heads of whole keys": (
        (
            "  Attention:\n    forward: |\n"
            "      q = rope(split_heads(q_proj(x), num_heads), positions, rope)\n"
            "      k = rope(split_heads(softmax(k_proj(x)), num_kv_heads), positions, rope)\n"
            "      k, v = cache(k, split_heads(softmax(v_proj(x)), num_kv_heads))\n"
            "      return o_proj(merge_heads(attention(q, k, v, mask='causal')))"
        ),
        {f"Attention.{n}_proj": Style.WHOLE for n in "qkvo"},
    ),
    "a norm between gate and down": (
        (
            "  FeedForward:\n    parts: {norm: 'rms_norm(intermediate_size, eps=norm_eps)'}\n    forward: |\n"
            "      return down_proj(norm(silu(gate_proj(x)) * up_proj(x)))"
        ),
        {"FeedForward.norm": Style.NORM, "FeedForward.down_proj": Style.ROW},
    ),
}


@pytest.mark.parametrize("what", WIRINGS)
def test_wirings_that_nobody_published(what: str, tmp_path: Path) -> None:
    blocks, expected = WIRINGS[what]
    found = styles(plan(other(tmp_path, blocks)))
    assert {name: found.get(name) for name in expected} == expected


GOLDEN = Path(__file__).with_name("plans.txt")
"""The plan of every spec of tests/specs/foreign; of the family they are in generated/. After a change that is meant:
``python -m tests.unit.ir.test_shard``."""


def golden() -> str:
    texts = (f"== {name}\n{plan_text(plan_of(f'foreign/{name}'))}\n" for name in FOREIGN)
    return "".join(texts)


def test_plans_are_those_of_the_golden_file() -> None:
    assert golden() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FOREIGN)
def test_every_spec_has_a_plan_and_its_degrees_divide_all(name: str) -> None:
    found = plan_of(f"foreign/{name}")
    for degree in found.degrees:
        assert all(share.units % degree == 0 for share in found.shares.values())
    assert [*found.degrees] == [d for d in range(1, 257) if not found.stopped_by(d)][
        : len(found.degrees)
    ]


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "cohere"])
def test_it_knows_no_names(name: str) -> None:
    """The same graph whose parts and blocks are called otherwise has the same plan."""
    graph = build(Registry((SPECS,)).load(f"foreign/{name}"))
    parts = {part for block in graph.blocks.values() for part in block.parts}
    new = {
        old: f"n{i}x"
        for i, old in enumerate(
            sorted((parts | set(graph.blocks)) - {*NODES, "model", "norm", "weight"})
        )
    }
    words = re.compile(r"\b(" + "|".join(new) + r")\b")
    renamed = plan(parse(words.sub(lambda m: new[m[1]], render(graph))))
    expected = {tuple(new.get(n, n) for n in k): v for k, v in plan(graph).shares.items()}
    assert {k: v.style for k, v in renamed.shares.items()} == {
        k: v.style for k, v in expected.items()
    }


if __name__ == "__main__":
    GOLDEN.write_text(golden(), encoding="utf-8")
