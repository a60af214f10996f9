"""Dialects: every wanted tensor gets its values, and every problem is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.spec.expr import ExpressionError, Static, UnknownName
from llamagen.spec.naming import bind_layout, known_dialects, parse_layout
from llamagen.spec.registry import Registry
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.names import Resolution, dialects_for, layouts_for, resolve_names
from tests.unit.weights.files import Array, checkpoint, noise, ranks, read_tensor

D, HEADS, KV, HEAD, F, V, L = 16, 4, 2, 4, 24, 40, 2
VALUES = {"num_heads": HEADS, "num_kv_heads": KV}
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def hub_tensors() -> dict[str, Array]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(L):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (HEADS * HEAD, D),
            layer + "self_attn.k_proj.weight": (KV * HEAD, D),
            layer + "self_attn.v_proj.weight": (KV * HEAD, D),
            layer + "self_attn.o_proj.weight": (D, HEADS * HEAD),
            layer + "mlp.gate_proj.weight": (F, D),
            layer + "mlp.up_proj.weight": (F, D),
            layer + "mlp.down_proj.weight": (D, F),
            layer + "input_layernorm.weight": (D,),
            layer + "post_attention_layernorm.weight": (D,),
        }
    shapes |= {"model.norm.weight": (D,), "lm_head.weight": (V, D)}
    return {name: noise(n, *shape) for n, (name, shape) in enumerate(shapes.items())}


META_NAMES = {
    "model.embed_tokens.weight": ("tok_embeddings.weight", 0),
    "model.norm.weight": ("norm.weight", None),
    "lm_head.weight": ("output.weight", 0),
    "self_attn.q_proj.weight": ("attention.wq.weight", 0),
    "self_attn.k_proj.weight": ("attention.wk.weight", 0),
    "self_attn.v_proj.weight": ("attention.wv.weight", 0),
    "self_attn.o_proj.weight": ("attention.wo.weight", 1),
    "mlp.gate_proj.weight": ("feed_forward.w1.weight", 0),
    "mlp.up_proj.weight": ("feed_forward.w3.weight", 0),
    "mlp.down_proj.weight": ("feed_forward.w2.weight", 1),
    "input_layernorm.weight": ("attention_norm.weight", None),
    "post_attention_layernorm.weight": ("ffn_norm.weight", None),
}


def unpermute(rows: Array, heads: int) -> Array:
    """facts.md 4.10, the inverse formula: meta = hf.view(n, 2, d/2, D).transpose(1, 2)."""
    d = rows.shape[0] // heads
    return rows.reshape(heads, 2, d // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def meta_shards(hub: Mapping[str, Array], count: int, embed_dim: int) -> list[dict[str, Array]]:
    """What Meta would have saved, from Hub tensors, by the published formulas."""
    shards: list[dict[str, Array]] = [{"rope.freqs": noise(99, 2)} for _ in range(count)]
    for name, value in hub.items():
        prefix, tail = "", name
        if name.startswith("model.layers."):
            number, tail = name.removeprefix("model.layers.").split(".", 1)
            prefix = f"layers.{number}."
        stored, dim = META_NAMES[tail]
        if tail == "model.embed_tokens.weight":
            dim = embed_dim
        if "q_proj" in name:
            value = unpermute(value, HEADS)
        if "k_proj" in name:
            value = unpermute(value, KV)
        parts = [value] * count if dim is None else np.split(value, count, axis=dim)
        for shard, part in zip(shards, parts, strict=True):
            shard[prefix + stored] = part
    return shards


def shapes(tensors: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in tensors.items()}


def assert_values(found: Resolution, expected: Mapping[str, Array]) -> None:
    bindings = {binding.name: binding for binding in found.require()}
    assert set(bindings) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(read_tensor(bindings[name], "F32"), value, err_msg=name)


def codes(found: Resolution) -> list[str]:
    return [item.code for item in found.diagnostics]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("embed_dim", [0, 1])
def test_meta_pth_shards_become_hub_tensors(tmp_path: Path, count: int, embed_dim: int) -> None:
    hub = hub_tensors()
    for rank, shard in enumerate(meta_shards(hub, count, embed_dim)):
        state = {name: torch.from_numpy(value.copy()) for name, value in shard.items()}
        torch.save(state, tmp_path / f"consolidated.{rank:02d}.pth")
    found = resolve_names(shapes(hub), Checkpoint.open(tmp_path), dialects_for(VALUES))
    assert found.layout == "meta" and found.diagnostics == ()
    assert_values(found, hub)


def test_hub_names_with_persisted_frequencies(tmp_path: Path) -> None:
    hub = hub_tensors()
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": noise(i, 2) for i in range(L)}
    stored = checkpoint(tmp_path, {**hub, **frequencies})
    found = resolve_names(shapes(hub), stored, dialects_for(VALUES))
    assert found.layout == "hub" and found.diagnostics == ()
    assert_values(found, hub)


def test_wrong_heads_change_values_not_shapes(tmp_path: Path) -> None:
    """The permutation depends on the head count: the wrong one must not go unnoticed by tests."""
    hub = hub_tensors()
    stored = ranks(tmp_path, meta_shards(hub, 1, 0))
    found = resolve_names(shapes(hub), stored, dialects_for({"num_heads": 2, "num_kv_heads": 1}))
    bindings = {binding.name: binding for binding in found.require()}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(read_tensor(bindings[name], "F32"), hub[name])


def test_all_problems_at_once(tmp_path: Path) -> None:
    hub = hub_tensors()
    stored = dict(hub)
    for i in range(L):
        moved = stored.pop(f"model.layers.{i}.self_attn.q_proj.weight")
        stored[f"model.layers.{i}.self_attn.qproj.weight"] = moved
        stored[f"model.layers.{i}.mlp.up_proj.weight"] = noise(1, F, D + 1)
    stored["model.norm.weight"] = np.ones(D, np.int32)
    stored["zzz"] = noise(1, 3)
    found = resolve_names(shapes(hub), checkpoint(tmp_path, stored), dialects_for(VALUES))
    with pytest.raises(LlamagenError) as failure:
        found.require()
    by_code: dict[str, list[Diagnostic]] = {}
    for item in failure.value.diagnostics:
        by_code.setdefault(item.code, []).append(item)
    assert sorted(by_code) == ["LG611", "LG612", "LG613", "LG614"]
    (missing,) = by_code["LG611"]
    assert "model.layers.0.self_attn.q_proj.weight' [16, 16]" in missing.message
    assert "1 more" in missing.message and "model.layers.1" in missing.message
    misspelt, alien = by_code["LG612"]
    assert (
        misspelt.help == "'model.layers.0.self_attn.q_proj.weight' is missing: did you mean that?"
    )
    assert "'zzz' [3]" in alien.message and "drop" in (alien.help or "")
    (shape,) = by_code["LG613"]
    assert "[24, 16]" in shape.message and "[24, 17]" in shape.message
    (dtype,) = by_code["LG614"]
    assert "I32" in dtype.message and "model.norm.weight" in dtype.message


def test_shapes_of_shards_that_do_not_join(tmp_path: Path) -> None:
    shards = meta_shards(hub_tensors(), 2, 0)
    for shard in shards:
        shard["layers.1.attention.wo.weight"] = noise(0, D, D)
    stored = ranks(tmp_path, shards)
    found = resolve_names(shapes(hub_tensors()), stored, dialects_for(VALUES))
    (wrong,) = found.diagnostics
    assert wrong.code == "LG613"
    assert "[16, 16] in each of 2 shards (from 'layers.1.attention.wo.weight')" in wrong.message


def test_no_layout(tmp_path: Path) -> None:
    stored = checkpoint(tmp_path, {"transformer.h.0.attn.c_attn.weight": noise(0, 2)})
    found = resolve_names(shapes(hub_tensors()), stored, dialects_for(VALUES))
    assert codes(found) == ["LG610"] and found.layout is None
    assert "transformer.h.0" in found.diagnostics[0].message
    assert "layers.{i}.attention.wq.weight" in (found.diagnostics[0].help or "")


def tied_case(folder: Path, head: Array | None, compare: bool = True) -> Resolution:
    hub = hub_tensors()
    del hub["lm_head.weight"]
    stored = checkpoint(folder, {**hub, **({} if head is None else {"lm_head.weight": head})})
    return resolve_names(shapes(hub), stored, dialects_for(VALUES), TIED, compare)


def test_tied_heads(tmp_path: Path) -> None:
    embedding = hub_tensors()["model.embed_tokens.weight"]
    assert codes(tied_case(tmp_path, None)) == []
    equal = tied_case(tmp_path, embedding)
    assert codes(equal) == ["LG616"] and len(equal.require()) == 2 + 9 * L
    changed = embedding.copy()
    changed[7, 3] += np.float32(1e-3)
    different = tied_case(tmp_path, changed)
    assert codes(different) == ["LG615"] and "[7, 3]" in different.diagnostics[0].message
    assert codes(tied_case(tmp_path, changed, compare=False)) == ["LG616"]
    assert codes(tied_case(tmp_path, noise(0, V + 1, D))) == ["LG613"]
    rounded = embedding.astype("f2")
    assert codes(tied_case(tmp_path, rounded)) == ["LG615"]


def test_a_head_that_is_not_tied_is_wanted_or_extra(tmp_path: Path) -> None:
    hub = hub_tensors()
    stored = checkpoint(tmp_path, hub)
    del hub["lm_head.weight"]
    assert codes(resolve_names(shapes(hub), stored, dialects_for(VALUES))) == ["LG612"]


@pytest.mark.parametrize(("count", "odd"), [(2, 1), (4, 1), (4, 3)])
def test_ranks_that_should_repeat_a_tensor(count: int, odd: int, tmp_path: Path) -> None:
    hub = hub_tensors()
    shards = meta_shards(hub, count, 0)
    shards[odd]["norm.weight"] = shards[odd]["norm.weight"].astype("f4") + 1
    found = resolve_names(shapes(hub), ranks(tmp_path, shards), dialects_for(VALUES))
    assert codes(found) == ["LG617"] and "'norm.weight'" in found.diagnostics[0].message
    assert_values(found, hub)


EXPERTS = """
detect: ["layers.{i}.experts.{e}.w1"]
rules:
  - from: ["layers.{i}.experts.{e}.w1", "layers.{i}.experts.{e}.w3"]
    to: "layers.{i}.gate_up"
    transform: [{kind: transpose}, {kind: concat, dim: 1}, {kind: stack}]
  - {from: "layers.{i}.experts.{e}.w2", to: "layers.{i}.down", transform: {kind: stack}}
  - from: "layers.{i}.qkv"
    to: "layers.{i}.q"
    transform: {kind: slice, dim: 0, start: 0, stop: q_rows}
  - from: "layers.{i}.qkv"
    to: "layers.{i}.k"
    transform: {kind: slice, dim: 0, start: q_rows, stop: 9}
  - {from: "layers.{i}.conv", to: "layers.{i}.patch", transform: {kind: reshape}}
  - {from: "side.{j}.gate", to: "layers.{side[j]}.gate"}
lists: {side: side}
"""


def expert_case(folder: Path, drop: str | None = None) -> tuple[Resolution, dict[str, Array]]:
    stored: dict[str, Array] = {}
    for e in range(11):  # two digits: e ranges by number, not by text
        for n, name in enumerate(("w1", "w3")):
            stored[f"layers.0.experts.{e}.{name}"] = noise(10 * e + n, 3, 4)
        stored[f"layers.0.experts.{e}.w2"] = noise(10 * e + 5, 4, 3)
    stored |= {"layers.0.qkv": noise(1, 9, 2), "layers.0.conv": noise(2, 4, 6)}
    stored |= {"side.0.gate": noise(3, 1), "side.1.gate": noise(4, 1)}
    w1, w3, w2 = (
        np.stack([stored[f"layers.0.experts.{e}.{name}"] for e in range(11)])
        for name in ("w1", "w3", "w2")
    )
    expected = {
        "layers.0.gate_up": np.concatenate([w1.transpose(0, 2, 1), w3.transpose(0, 2, 1)], -1),
        "layers.0.down": w2,
        "layers.0.q": stored["layers.0.qkv"][:6],
        "layers.0.k": stored["layers.0.qkv"][6:],
        "layers.0.patch": stored["layers.0.conv"].reshape(4, 3, 2),
        "layers.3.gate": stored["side.0.gate"],
        "layers.8.gate": stored["side.1.gate"],
    }
    if drop is not None:
        del stored[drop]
    layout = bind_layout("experts", parse_layout(EXPERTS), {"q_rows": 6, "side": (3, 8)})
    return resolve_names(shapes(expected), checkpoint(folder, stored), [layout]), expected


def test_many_to_one_and_one_to_many(tmp_path: Path) -> None:
    found, expected = expert_case(tmp_path)
    assert found.diagnostics == ()
    assert_values(found, expected)


@pytest.mark.parametrize("drop", ["layers.0.experts.0.w1", "layers.0.experts.4.w3"])
def test_a_missing_expert(tmp_path: Path, drop: str) -> None:
    found, _ = expert_case(tmp_path, drop)
    missing = [item for item in found.diagnostics if item.code == "LG611"]
    assert len(missing) == 1 and drop in missing[0].message


def test_known_dialects_need_what_they_say() -> None:
    def names(**scope: Static) -> list[str]:
        return [layout.name for layout in dialects_for(scope)]

    hub = ("hub", "hub-llama4-experts")
    llama = ("gguf", *hub, "meta", "meta-llama4")
    assert list(known_dialects()) == [*llama, "meta-mllama"]
    assert names() == [*hub, "meta-llama4"]
    assert names(num_heads=2, num_kv_heads=1) == [*llama]
    kinds: Static = ("self", "cross", "self")
    assert "meta-mllama" not in names(num_heads=2, num_kv_heads=1, layer_kinds=kinds)
    tiled: Static = {"aspect_ratios": ((1, 1), (1, 2))}
    scope: dict[str, Static] = {"layer_kinds": kinds, "vision": tiled}
    assert names(num_heads=2, num_kv_heads=1, **scope) == list(known_dialects())


def test_shipped_vision_models_have_what_their_dialect_asks_for() -> None:
    layouts = {
        layout.name: layout for layout in layouts_for(Registry().load("llama/3.2/11b-vision"))
    }
    lists = layouts["meta-mllama"].lists
    assert lists["cross_layers"] == (3, 8, 13, 18, 23, 28, 33, 38)
    assert sorted((*lists["self_layers"], *lists["cross_layers"])) == list(range(40))


@pytest.mark.parametrize(
    "rule",
    [
        "{from: [a, b], to: c}",
        "{from: a, to: c, transform: {kind: concat, dim: 0}}",
        "{from: 'a.{e}', to: c}",
        "{from: a, to: c, transform: {kind: stack}}",
        "{from: a, to: c, transform: {kind: rotate}}",
        "{from: a, to: c, transform: {kind: rope_permute}}",
        "{from: a, to: c, more: 1}",
        "{from: a, to: 'c.{side[i]}'}",
    ],
)
def test_rules_that_make_no_sense(rule: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_layout(f"{{detect: [], rules: [{rule}]}}")


def test_a_layout_asks_for_its_values() -> None:
    layout = parse_layout(EXPERTS)
    with pytest.raises(UnknownName, match="q_rows"):
        bind_layout("experts", layout, {"side": (1,)})
    for value in (True, 2.0, "six", (1,)):
        with pytest.raises(ExpressionError, match="not a whole number"):
            bind_layout("experts", layout, {"side": (1,), "q_rows": value})
    with pytest.raises(ExpressionError, match="not a list of whole numbers"):
        bind_layout("experts", layout, {"side": (1, "a"), "q_rows": 6})
