"""Layouts stated in a spec do what the same rules do here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llamagen.spec.naming import CheckpointNaming
from llamagen.weights.names import resolve_names
from llamagen.weights.spec_layouts import spec_layouts
from llamagen.weights.stream import read_tensor
from tests.unit.weights.files import checkpoint, noise, ranks

STATED = CheckpointNaming.model_validate_json(
    """{
    "drop": ["noise.{i}"],
    "layouts": {"other": {
        "detect": "blk.{i}.wq",
        "drop": ["freqs"],
        "rules": [
            {"from": "blk.{i}.wq", "to": "l.{i}.q", "shard_dim": 0,
             "transform": {"kind": "rope_permute", "heads": "num_heads * 1"}},
            {"from": "blk.{i}.wo", "to": "l.{i}.o", "shard_dim": 1},
            {"from": ["blk.{i}.e.{e}.w1", "blk.{i}.e.{e}.w3"], "to": "l.{i}.gate_up",
             "transform": {"kind": "stack", "concat_dim": 0}},
            {"from": "blk.{i}.e.{e}.w2", "to": "l.{i}.down", "transform": {"kind": "stack"}},
            {"from": "router", "to": "r", "transform": {"kind": "transpose"}},
            {"from": ["a", "b"], "to": "ab", "transform": {"kind": "concat", "dim": 1}},
            {"from": "conv", "to": "patch", "transform": {"kind": "reshape"}},
            {"from": "grid", "to": "table", "transform": {"kind": "tile_table"}}
        ]}}}"""
)
LAYOUTS = spec_layouts(STATED, {"num_heads * 1": 2}.__getitem__)


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
    }
    shards = [
        {"blk.0.wq": q[4 * rank : 4 * rank + 4], "blk.0.wo": o[:, 4 * rank : 4 * rank + 4], **same}
        for rank in (0, 1)
    ]
    wanted = {**{name: value.shape for name, value in expected.items()}, "table": (9, 8)}
    found = resolve_names(wanted, ranks(tmp_path, shards), LAYOUTS)
    assert found.layout == "other" and found.diagnostics == ()
    bindings = {binding.name: binding for binding in found.bindings}
    for name, value in expected.items():
        np.testing.assert_array_equal(read_tensor(bindings[name], "F32"), value, err_msg=name)
    table = read_tensor(bindings["table"], "F32")
    np.testing.assert_array_equal(table[1, :2], same["grid"][0, 0].reshape(-1))


def test_role_paths_with_names_to_drop(tmp_path: Path) -> None:
    stored = checkpoint(tmp_path, {"x": noise(1, 2), "noise.3": noise(2, 1)})
    found = resolve_names({"x": (2,)}, stored, LAYOUTS)
    assert found.layout == "role paths" and found.diagnostics == ()
    assert spec_layouts(CheckpointNaming(), int) == ()
