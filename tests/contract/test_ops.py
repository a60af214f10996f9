"""An op has one place: nobody outside llamagen/ops asks for one by name, so a row is all that a new op needs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagen.analysis.numbers import count_parameters, flops_of
from llamagen.analysis.rewrites import REWRITTEN_PROFILES, Export, rewrite
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import MAIN
from llamagen.ops.activations import ACTIVATIONS, Activation, row
from llamagen.ops.code import call
from llamagen.ops.op import Op
from llamagen.ops.table import NODES, OPS
from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import scenarios
from tests.parity.models import RandomModel
from tests.unit.analysis.models import overlaid, text

PACKAGE = Path(__file__).resolve().parents[2] / "llamagen"

MISH = Activation(
    "mish",
    "x tanh(log(1 + exp(x)))",
    "Self-regularised.",
    numpy=lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    torch=lambda x: call("F.mish", x),
    onnx=lambda b, x: b.op("Mul", x, b.op("Tanh", b.op("Softplus", x))),
)
TINY = text(
    "t/base", vocab=32, hidden=32, layers=2, heads=2, kv=2, head_dim=16, ffn=48, positions=64,
    rope="{kind: default, theta: 100.0}",
)  # fmt: skip
OWN = {"quick-gelu": "QuickGelu"}
"""Rules of one elementwise op, and what they make of it."""


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_a_row_means_something_in_each_witness(op: Op) -> None:
    """What a state does is written where the state is kept."""
    assert op.numpy is not None or op.state is not None
    assert op.onnx is not None or op.state is not None
    assert (op.torch or op.torch_prelude) is not None or op.state is not None
    assert (op.torch_module is not None) == op.is_part
    assert (op.torch_prelude is not None) == op.hoisted


def names_asked_for(tree: ast.AST) -> Iterator[ast.expr]:
    """Comparisons of something's ``op`` with a text, a set or a list, but not with the table itself."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=[right]):
                sides = [left, right]
            case ast.Match(subject=subject, cases=cases):
                values = [c.pattern.value for c in cases if isinstance(c.pattern, ast.MatchValue)]
                sides = [subject, *values]
            case _:
                continue
        if not any(isinstance(s, ast.Attribute) and s.attr == "op" for s in sides):
            continue
        for side in sides:
            if (
                (isinstance(side, ast.Constant) and side.value in NODES)
                or isinstance(side, ast.Set | ast.Tuple | ast.List)
                or (isinstance(side, ast.Name) and side.id not in ("OPS", "NODES"))
            ):
                yield side


def test_nobody_asks_for_an_op_by_name() -> None:
    """Ask its row for a trait (llamagen/ops/op.py), or give it one."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "ops":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            places = [f"{path.name}:{side.lineno}" for side in names_asked_for(tree)]
            assert places == []


@pytest.mark.parametrize(
    "code", ['node.op == "linear"', "node.op in LINEAR", 'n.op in ("call", "stack")']
)
def test_the_rule_fires(code: str) -> None:
    assert len(list(names_asked_for(ast.parse(code)))) == 1


@pytest.fixture
def mish(monkeypatch: pytest.MonkeyPatch) -> str:
    """An op that is a row and nothing else."""
    for table, value in ((ACTIVATIONS, MISH), (OPS, row(MISH)), (NODES, row(MISH))):
        assert isinstance(table, dict)
        monkeypatch.setitem(table, "mish", value)
    return "mish"


EVERYWHERE = """
blocks:
  CausalLM: {{forward: "return {op}(lm_head({op}(model(input_ids))))"}}
  SwiGLU: {{forward: "return down_proj({op}(gate_proj(x)) * up_proj({op}(x)))"}}
"""


def seen(op: str, folder: Path) -> dict[object, Any]:
    """What profiles and numbers make of a model that has ``op`` in its layers, before its head and after it."""
    graph = build(overlaid(EVERYWHERE.format(op=op), folder, base=TINY))
    whole: dict[object, Any] = {
        "parameters": count_parameters({MAIN: graph}),
        "flops": flops_of(graph),
    }
    for profile in REWRITTEN_PROFILES:
        for dtype in ("float32", "float16"):
            export = Export(profile, dtype, logits="last")
            rewritten = rewrite(flatten(graph), export, graph.output_names)
            nodes = rewritten.flat.nodes
            ops = [("*" if n.op in (op, *OWN.values()) else n.op, n.path) for n in nodes]
            fired = {rule: n for rule, n in rewritten.fired.items() if rule not in OWN}
            stopped = {rule: n for rule, n in rewritten.stopped.items() if rule not in OWN}
            whole[profile, dtype] = (ops, fired, stopped)
    return whole


def test_the_model_that_is_compared_fuses(tmp_path: Path) -> None:
    """Rows are packed once, and the last one is chosen before the op in front of the head."""
    ops, fired, _ = seen("tanh", tmp_path)["ort-cpu", "float32"]
    assert fired["pack-rows"] == 1 and fired["grouped-query-attention"] == 2
    assert [op for op, _ in ops[-4:]] == ["last_row", "*", "FusedMatMul", "*"]


NAMES = list(dict.fromkeys(a.op or a.name for a in ACTIVATIONS.values()))


@pytest.mark.parametrize("op", NAMES)
def test_an_elementwise_op_changes_no_profile(op: str, tmp_path: Path) -> None:
    assert seen(op, tmp_path) == seen("tanh", tmp_path)


def test_a_new_row_changes_no_profile(mish: str, tmp_path: Path) -> None:
    assert seen(mish, tmp_path) == seen("tanh", tmp_path)


def test_a_new_row_is_an_op_everywhere(mish: str, tmp_path: Path) -> None:
    """In equations and by a hyperparameter; PyTorch and ONNX equal the reference."""
    overlay = """
hyperparameters: {hidden_act: mish}
blocks:
  SwiGLU: {forward: "return mish(down_proj(activation(gate_proj(x), hidden_act) * up_proj(x)))"}
"""
    model = RandomModel(overlaid(overlay, tmp_path, base=TINY))
    scenario = scenarios(model.vocab_size, 6, 3)[0]
    reference = scenario.logits(model.reference)
    rounding = difference(scenario.logits(model.rounded), reference)
    for witness in (model.torch, model.onnx):
        found = difference(scenario.logits(witness), reference)
        assert found.within(measured_tolerance("float32", rounding)), found
