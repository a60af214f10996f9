"""From YAML to the graph: structure, canonical text, and one clear finding for each kind of mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.ir import algorithms
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import BlockPart, Graph, Value
from llamagen.ir.text import render
from llamagen.ir.verify import findings
from llamagen.spec.registry import Registry
from tests.graph_text import parse

YAML = (Path(__file__).parent / "llama.yaml").read_text()


def graph_of(yaml: str) -> Graph:
    return build(Registry().load_text(yaml, "llama.yaml"))


def findings_of(*edits: tuple[str, str]) -> tuple[Diagnostic, ...]:
    yaml = YAML
    for old, new in edits:
        assert yaml.count(old) >= 1, old
        yaml = yaml.replace(old, new, 1)
    with pytest.raises(LlamagenError) as caught:
        graph_of(yaml)
    return caught.value.diagnostics


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(YAML)


def test_role_paths_and_shapes(graph: Graph) -> None:
    found = {name: p.shape for name, p in graph.parameters.items()}
    assert found["model.embed_tokens.weight"] == (96, 32)
    assert found["model.layers.3.self_attn.k_proj.weight"] == (16, 32)
    assert found["model.layers.0.mlp.down_proj.weight"] == (32, 48)
    assert found["lm_head.weight"] == (96, 32)
    assert len(found) == 4 * 9 + 3
    dense = 2 * 96 * 32 + 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    assert sum(p.count for p in graph.parameters.values()) == dense


def test_blocks_are_specialised_and_named_for_their_options(graph: Graph) -> None:
    assert list(graph.blocks) == [
        "Window6Attention",
        "SwiGLU",
        "NearDecoderLayer",
        "Attention",
        "FarDecoderLayer",
        "Decoder",
        "CausalLM",
    ]
    assert graph.blocks["NearDecoderLayer"].context == ("cos", "sin", "mask_window")
    assert [n.op for n in graph.prelude] == ["rope_table", "causal_mask", "causal_mask"]


def test_a_graph_knows_the_names_that_it_depends_on(graph: Graph) -> None:
    assert {"hidden_size", "num_kv_heads", "rope", "reach", "norm_eps"} <= graph.names_read
    assert "max_positions" not in graph.names_read
    near = YAML.replace("reach=reach[layer]", "reach='near'").replace(
        "patterns:", "invariants: {r: len(reach) == 4}\npatterns:"
    )
    assert "reach" not in graph_of(near).names_read


def test_a_stack_of_a_block_without_inputs_is_refused() -> None:
    """It has nothing to carry: a finding, no defect."""
    found = findings_of(
        ("embed_tokens: ", "still: stack(2, Still)\n      embed_tokens: "),
        ("return norm(layers(embed_tokens(input_ids)))", "return norm(still() + layers(embed_tokens(input_ids)))"),
        ("  Wide:", "  Still:\n    inputs: []\n    parts: {gain: parameter(hidden_size)}\n    forward: return neg(gain)\n  Wide:"),
    )  # fmt: skip
    assert "turns nothing into" in found[0].message


def test_a_tied_head_has_no_weight_of_its_own() -> None:
    graph = graph_of(YAML.replace("tie_embeddings: false", "tie_embeddings: true"))
    assert "lm_head.weight" not in graph.parameters
    head = next(n for n in flatten(graph).nodes if n.path == "lm_head")
    assert head.parameters == {"weight": "model.embed_tokens.weight"}


def test_canonical_text_round_trips(graph: Graph) -> None:
    rendered = render(graph)
    assert parse(rendered) == graph
    assert render(parse(rendered)) == rendered


def test_flat_form(graph: Graph) -> None:
    flat = flatten(graph)
    assert [s.path for s in flat.slots[::2]] == [f"model.layers.{i}.self_attn" for i in range(4)]
    assert str(flat.types[flat.outputs[0]]) == "model[B, S, 96]"
    assert algorithms.unused(flat) == set()
    assert algorithms.definition_cycle(graph) == []


def test_every_node_points_to_its_equation(graph: Graph) -> None:
    lines = YAML.splitlines()
    for node in flatten(graph).nodes:
        assert node.span is not None
        source = lines[node.span.line - 1]
        written = source[node.span.col - 1 : node.span.end_col - 1]
        assert written, node
        if node.op == "cache":
            assert written == "cache(k, v)"


@pytest.mark.parametrize(
    ("edit", "code", "line_of", "says"),
    [
        (("hidden_size: 32", "hiden_size: 32"), "LG101", "hiden_size: 32", "hidden_size"),
        (("num_heads: 4", "n_heads: 4"), "LG101", "n_heads: 4", "num_heads"),
        (("num_layers: 4", "num_layers: four"), "LG103", "num_layers: four", "four"),
        (("num_layers: 4", "num_layers: -4"), "LG103", "num_layers: -4", "1"),
        (("num_layers: 4", "num_layers: 1000000000"), "LG103", "num_layers: 10", "4096"),
        (("kind: default, ", ""), "LG102", "rope: {", "kind"),
        (("kind: default", "kind: defualt"), "LG104", "kind: defualt", "default"),
        (("num_heads: 4", "num_heads: 3"), "LG411", "return o_proj(merge", "3 query heads"),
        (("num_kv_heads: 2", "num_kv_heads: 3"), "LG411", "attention(q, k, v", "not a multiple"),
        (("head_dim: 8", "head_dim: 7"), "LG411", "q = rope(", "even"),
        (("merge_heads(attention(q, k, v, mask='causal', window=window))", "q"), "LG411", "o_proj(q)", "must end in"),
        (("h = x + self_attn", "h = x + self_atn"), "LG411", "self_atn", "self_attn"),
        (("silu(gate_proj(x))", "sliu(gate_proj(x))"), "LG411", "sliu", "silu"),
        (("silu(gate_proj(x))", "reshape(gate_proj(x), shape=[B, S, 1, intermediate_size])"), "LG411", "reshape(gate", "keeps its axis with size 1"),
        (("silu(gate_proj(x))", "silu(gate_proj(y))"), "LG412", "gate_proj(y)", "y"),
        (("mlp: SwiGLU", "mlp: SwiGlu"), "LG410", "mlp: SwiGlu", "SwiGLU"),
        (("mlp: SwiGLU", "mlp: SwiGLU\n      extra: SwiGLU"), "LG413", "extra: SwiGLU", "never called"),
        (("mlp: SwiGLU", "mlp: DecoderLayer"), "LG404", "DecoderLayer:", "contains itself"),
        (("root: CausalLM", "root: CausalLm"), "LG403", "root: CausalLm", "CausalLM"),
        (("patterns:", "constants: {gain: 2.0}\npatterns:"), "LG406", "constants", "gain"),
        (("{cycle: [near, far]}", "[near, far]"), "LG103", "reach: [near", "write {list:"),
        (("{cycle: [near, far]}", "{list: [near, far]}"), "LG303", "list: [near", "4 layers"),
        (("k, v = cache(k, v)", "k, v = cache(v)"), "LG411", "cache(v)", "takes k, v"),
        (("k, v = cache(k, v)", "k = cache(k, v)"), "LG411", "k = cache", "2 names|need 2"),
        (("v = split_heads(v_proj", "head_dim = split_heads(v_proj"), "LG411", "head_dim =", "another name"),
        (("window=window))", "windw=window))"), "LG411", "windw", "did you mean `window`"),
        (("reach=reach[layer]", "raech=reach[layer]"), "LG410", "raech", "reach"),
        (("linear(hidden_size, intermediate_size)", "linear(hidden_size)"), "LG410", "linear(hidden_size)", "out_features"),
        (("return lm_head(model(input_ids))", "x = 1"), "LG411", "x = 1", "return"),
        (("mlp: SwiGLU", "mlp: stack(4096, Wide)"), "LG420", "CausalLM:", "blocks, more than"),
        (("root: CausalLM", "root: CausalLM\noutputs: [logits, hidden]"), "LG420", "CausalLM:", "returns 1 values.* logits, hidden"),
        (("root: CausalLM", "root: CausalLM\noutputs: [scores, scores]"), "LG103", "outputs: [scores", "named before"),
        (("root: CausalLM", "root: CausalLM\noutputs: [position_ids]"), "LG103", "outputs: [position", "is an input"),
        (("root: CausalLM", "root: CausalLM\noutputs: []"), "LG103", "outputs: []", "at least 1"),
        (("root: CausalLM", "root: CausalLM\ninvariants: {w: intermediate_size == 49}"), "LG302", "invariants", "does not hold"),
        (("'model.embed_tokens.weight' if tie_embeddings else none", "'model.norm.weight'"), "LG420", "lm_head:", "model.norm.weight"),
    ],
)  # fmt: skip
def test_a_mistake_gives_a_finding_at_its_line(
    edit: tuple[str, str], code: str, line_of: str, says: str
) -> None:
    import re

    found = findings_of(edit)
    first = found[0]
    assert first.code == code, [str(f) for f in found]
    assert first.span is not None
    changed = YAML.replace(*edit, 1).splitlines()
    assert line_of in changed[first.span.line - 1], (str(first), changed[first.span.line - 1])
    assert re.search(says, f"{first.message} {first.help}"), (first.message, first.help)
    assert len(found) <= 2, [str(f) for f in found]


def test_a_block_with_the_same_operands_inside_itself_is_a_circle() -> None:
    (finding,) = findings_of(
        ("      gate_proj: linear(hidden_size, intermediate_size)", "      gate_proj: linear(hidden_size, intermediate_size)\n      inner: SwiGLU"),
        ("up_proj(x))", "up_proj(inner(x)))"),
    )  # fmt: skip
    assert finding.code == "LG404"
    assert "SwiGLU -> SwiGLU" in finding.message


@pytest.mark.parametrize(
    ("returned", "type_"),
    [
        ("split_heads(lm_head(h), 2)", "model[B, 2, S, 48]"),
        ("topk(lm_head(h), k=2)", "int64[B, S, 2]"),
    ],
)
def test_an_output_is_numbers_of_a_token_or_of_a_text(returned: str, type_: str) -> None:
    several = "_, heads" if "topk" in returned else "heads"
    (finding,) = findings_of(
        ("root: CausalLM", "root: CausalLM\noutputs: [heads]"),
        ("return lm_head(model(input_ids))", f"h = model(input_ids)\n      {several} = {returned}\n      return heads"),
    )  # fmt: skip
    assert finding.code == "LG408" and f"`heads` is {type_}" in finding.message


def test_several_mistakes_are_reported_together() -> None:
    found = findings_of(
        ("silu(gate_proj(x))", "sliu(gate_proj(x))"), ("k, v = cache(k, v)", "k, v = cash(k, v)")
    )
    assert [f.message for f in found] == [
        "there is no part or op `cash`",
        "there is no part or op `sliu`",
    ]


def test_verification_sees_a_broken_graph(graph: Graph) -> None:
    assert findings(graph) == []
    block = graph.blocks["SwiGLU"]
    swapped = replace(block, nodes=(block.nodes[1], block.nodes[0], *block.nodes[2:]))
    broken = replace(graph, blocks={**graph.blocks, "SwiGLU": swapped})
    assert "before it exists" in findings(broken)[0].message
    retyped = replace(block.values["%1"], type=block.values["x"].type)
    broken = replace(
        graph,
        blocks={**graph.blocks, "SwiGLU": replace(block, values={**block.values, "%1": retyped})},
    )
    assert any("other types" in f.message for f in findings(broken))


def test_thorough_verification_sees_circles_and_idle_values(graph: Graph) -> None:
    assert findings(graph, thorough=True) == []
    block = graph.blocks["SwiGLU"]
    copy = replace(block.nodes[0], results=("idle",))
    idle = replace(
        block,
        nodes=(*block.nodes, copy),
        values={**block.values, "idle": Value("idle", block.values["%1"].type)},
    )
    found = findings(replace(graph, blocks={**graph.blocks, "SwiGLU": idle}), thorough=True)
    assert "no output depends on" in found[0].message
    parts = {**block.parts, "again": BlockPart("again", "NearDecoderLayer")}
    circle = replace(graph, blocks={**graph.blocks, "SwiGLU": replace(block, parts=parts)})
    assert algorithms.definition_cycle(circle)
