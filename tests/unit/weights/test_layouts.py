"""Layouts that a spec states itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import CheckpointNaming
from llamagen.weights.names import layouts_for, resolve_names
from tests.unit.weights.files import checkpoint, noise, ranks, read_tensor

BASE = """
spec: 1
id: test/layouts
extends: llama/1/7b
checkpoint:
"""
STATED = """
  drop: ["noise.{i}"]
  layouts:
    other:
      detect: "blk.{i}.wq"
      drop: [freqs]
      lists: {odd: "range(1, 7, 2)"}
      shards:
        - {names: ["blk.{i}.wq"], dims: [0]}
        - {names: ["blk.{i}.wo"], dims: [1]}
      rules:
        - from: "blk.{i}.wq"
          to: "l.{i}.q"
          transform: {kind: rope_permute, heads: num_heads // 16}
        - {from: "blk.{i}.wo", to: "l.{i}.o"}
        - from: ["blk.{i}.e.{e}.w1", "blk.{i}.e.{e}.w3"]
          to: "l.{i}.gate_up"
          transform: [{kind: concat, dim: 0}, {kind: stack}]
        - {from: "blk.{i}.e.{e}.w2", to: "l.{i}.down", transform: {kind: stack}}
        - {from: router, to: r, transform: {kind: transpose}}
        - {from: [a, b], to: ab, transform: {kind: concat, dim: 1}}
        - {from: conv, to: patch, transform: {kind: reshape}}
        - from: grid
          to: table
          transform: {kind: tile_table, grids: [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]}
        - {from: fused, to: part, transform: {kind: slice, dim: 0, start: num_heads - 31, stop: 3}}
        - {from: "side.{j}", to: "l.{odd[j]}.side"}
"""


def stated(text: str) -> ResolvedSpec:
    return Registry().load_text(BASE + text)


def test_every_transform(tmp_path: Path) -> None:
    q, o = noise(1, 8, 3), noise(2, 3, 8)
    same = {
        **{f"blk.0.e.{e}.{n}": noise(10 * e + k, 2, 3) for e in (0, 1) for k, n in enumerate(("w1", "w2", "w3"))},
        "router": noise(3, 2, 5),
        "a": noise(4, 2, 1),
        "b": noise(5, 2, 2),
        "conv": noise(6, 2, 6),
        "grid": noise(7, 4, 4, 1, 2),
        "freqs": noise(8, 2),
        "noise.3": noise(8, 1),
        "fused": noise(9, 4, 2),
        "side.2": noise(11, 2),
    }  # fmt: skip
    expected = {
        "l.0.q": q.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3),
        "l.0.o": o,
        "l.0.gate_up": np.stack(
            [np.concatenate([same[f"blk.0.e.{e}.w1"], same[f"blk.0.e.{e}.w3"]]) for e in (0, 1)]
        ),
        "l.0.down": np.stack([same["blk.0.e.0.w2"], same["blk.0.e.1.w2"]]),
        "r": same["router"].T,
        "ab": np.concatenate([same["a"], same["b"]], 1),
        "patch": same["conv"].reshape(2, 3, 2),
        "part": same["fused"][1:3],
        "l.5.side": same["side.2"],
    }
    shards = [
        {"blk.0.wq": q[4 * rank : 4 * rank + 4], "blk.0.wo": o[:, 4 * rank : 4 * rank + 4], **same}
        for rank in (0, 1)
    ]
    wanted = {**{name: value.shape for name, value in expected.items()}, "table": (9, 8)}
    found = resolve_names(wanted, ranks(tmp_path, shards), layouts_for(stated(STATED)))
    assert found.layout == "other" and found.diagnostics == ()
    bindings = {binding.name: binding for binding in found.bindings}
    for name, value in expected.items():
        np.testing.assert_array_equal(read_tensor(bindings[name], "F32"), value, err_msg=name)
    table = read_tensor(bindings["table"], "F32")
    np.testing.assert_array_equal(table[1, :2], same["grid"][0, 0].reshape(-1))


def test_drop_counts_under_every_layout(tmp_path: Path) -> None:
    stored = checkpoint(
        tmp_path, {"x": noise(1, 2), "noise.3": noise(2, 1), "noise.x": noise(2, 1)}
    )
    found = resolve_names({"x": (2,)}, stored, layouts_for(stated(STATED)))
    (extra,) = found.diagnostics
    assert found.layout == "hub" and extra.code == "LG612" and "'noise.x'" in extra.message


def test_stated_layouts_come_first() -> None:
    names = [layout.name for layout in layouts_for(stated(STATED))]
    assert names == ["other", "gguf", "hub", "hub-llama4-experts", "meta", "meta-llama4"]
    assert CheckpointNaming() == Registry().load("llama/1/7b").spec.checkpoint


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("num_heads // 16", "n_heads", "LG304", "`n_heads` is not known here"),
        (
            "num_heads // 16",
            "tie_embeddings",
            "LG304",
            "`tie_embeddings` is False, not a whole number",
        ),
        ("range(1, 7, 2)", "num_heads", "LG304", "`num_heads` is 32, not a list of whole numbers"),
        ("{odd[j]}", "{even[j]}", "LG103", "there is no list `even` in `lists`"),
        ("kind: tile_table", "kind: tiles", "LG104", "has an unknown kind"),
    ],
)
def test_layouts_are_checked_with_the_spec(old: str, new: str, code: str, words: str) -> None:
    with pytest.raises(LlamagenError) as failure:
        stated(STATED.replace(old, new))
    (found,) = failure.value.diagnostics
    assert found.code == code and words in found.message
    assert found.span is not None and found.span.line > 5
