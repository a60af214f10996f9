"""The text of generated modules: formatted, deterministic, complete, and never a door for a spec's text."""

from __future__ import annotations

import ast
import keyword
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch import emit_torch, load_module
from llamagen.emit.torch.check import check_source
from llamagen.emit.torch.module import formatted
from llamagen.emit.torch.names import HELPER_NAMES, MODULE_ATTRIBUTES, Constants, class_names, local
from llamagen.ir.graph import Graph
from llamagen.ops.code import (
    Binary,
    Code,
    Negative,
    Text,
    Tuple,
    call,
    flat,
    literal,
    method,
    statement,
)
from llamagen.ops.rope import ROPE_KINDS
from llamagen.ops.table import NODES, OPS
from llamagen.spec.expr import parse
from llamagen.spec.registry import Registry
from llamagen.verify.limits import TOLERANCES, difference, largest_of
from llamagen.verify.scenarios import scenarios
from tests.parity.models import RandomModel
from tests.unit.torch.models import LLAMA3, SPECS, TIED, changed, graph, module
from tests.unit.torch.wirings import WIRINGS, wiring

ROOT = Path(__file__).resolve().parents[3]
FOREIGN = [i for i in Registry((SPECS,)).ids(abstract=False) if i.startswith("foreign/")]
RUFF = [sys.executable, "-m", "ruff"]


def every_graph() -> dict[str, Graph]:
    found = {spec_id: graph(spec_id) for spec_id in FOREIGN}
    found["llama3"] = changed(f"tie_embeddings: true, rope: {LLAMA3}", TIED)
    found |= {name.replace(" ", "_"): wiring(name) for name in WIRINGS}
    found["linear"] = changed("rope: {kind: linear, theta: 10000.0, factor: 4.0}")
    return found


def test_ruff_has_nothing_to_say(tmp_path: Path) -> None:
    for name, made in every_graph().items():
        (tmp_path / f"{name.replace('/', '_')}.py").write_text(emit_torch(made))
    for command in (["format", "--diff"], ["check", "--select", "E,F,W,I,UP,B,C4,SIM,RUF,PIE,RET"]):
        options = ["--isolated", "--config", "line-length=100", "--target-version", "py311"]
        done = subprocess.run(
            [*RUFF, *command, *options, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("spec_id", FOREIGN)
def test_state_dict_has_the_role_paths(spec_id: str) -> None:
    made = graph(spec_id)
    with torch.device("meta"):
        model = getattr(module(made), made.root)()
    tied = getattr(module(made), "TIED", {})
    found = {n: tuple(p.shape) for n, p in model.state_dict().items() if n not in tied}
    assert found == {n: p.shape for n, p in made.parameters.items()}


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert emit_torch(graph("foreign/gemma3")) == emit_torch(graph("foreign/gemma3"))


def test_only_what_a_model_uses_is_printed() -> None:
    plain = emit_torch(changed())
    assert "def sliding_causal_mask" in emit_torch(graph("foreign/mistral"))
    for absent in (
        "sliding",
        "chunked",
        "cap:",
        "Experts",
        "TIED",
        "temperature_table",
        "interleaved",
    ):
        assert absent not in plain.partition("def generate")[0], absent
    assert "enable_gqa" not in emit_torch(changed("num_kv_heads: 4"))
    assert "sdpa" not in emit_torch(graph("foreign/gemma2"))


def test_blocks_read_like_their_equations() -> None:
    text = emit_torch(changed())
    for line in (
        "        h = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)",
        "        return h + self.mlp(self.post_attention_layernorm(h))",
        "        q = rotate(split_heads(self.q_proj(x), HEAD_DIM), rope)",
        "        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))",
        "        x = self.embed_tokens(input_ids)",
        "        self.layers = nn.ModuleList([DecoderLayer(attend) for _ in range(NUM_LAYERS)])",
        "        self.q_proj = nn.Linear(HIDDEN_SIZE, NUM_HEADS * HEAD_DIM, bias=False)",
    ):
        assert f"{line}\n" in text


def test_torch_owns_no_name_that_is_let_through() -> None:
    owned = {n for n in dir(torch.nn.Module()) if not n.startswith("_")}
    patched_in_by_transformers = {"smart_apply"}
    assert owned - patched_in_by_transformers <= MODULE_ATTRIBUTES


@pytest.mark.parametrize("name", ["forward", "half", "training", "generate", "_modules", "_x"])
def test_a_part_named_like_a_method_is_refused(name: str) -> None:
    block = f"  FeedForward:\n    parts: {{{name}: 'linear(hidden_size, hidden_size)'}}\n"
    block += f"    forward: 'return down_proj(silu(gate_proj(x)) * up_proj({name}(x)))'\n"
    with pytest.raises(LlamagenError, match="LG740"):
        emit_torch(changed(blocks=block))


def test_blocks_named_like_helpers_get_classes_of_their_own() -> None:
    """None of them is another one's, and the model's class is found by the name that it got."""
    text = (ROOT / "tests/cases/common/tiny.yaml").read_text()
    text = text.replace("intermediate_size,", "mlp2,").replace(", intermediate_size)", ", mlp2)")
    others = {"Attention": "Rope", "SwiGLU": "RopeBlock", "CausalLM": "Path", "Decoder": "Experts2"}
    for name, other in {**others, "DecoderLayer": "MLP2"}.items():
        text = re.sub(rf"\b{name}\b", other, text)
    text = text.replace("root: Path", "constants: {mlp2: 48}\nroot: Path")
    model = RandomModel.of_text(text)
    classes = re.findall(r"^class (\w+)\(nn", emit_torch(model.graph), re.MULTILINE)
    assert len(classes) == len(set(classes)) == 6
    assert class_names(model.graph)["Path"] == classes[-1] == "PathBlock"
    case = scenarios(model.vocab_size, 5, 2)[1]
    found = difference(case.logits(model.torch), case.logits(model.reference))
    assert found.within(largest_of(TOLERANCES["float32"], found.count))


def test_values_named_like_helpers_and_modules_give_way() -> None:
    block = """
  FeedForward:
    forward: |
      F = gate_proj(x)
      torch = silu(F)
      cache = up_proj(x)
      return down_proj(torch * cache)
"""
    text = emit_torch(changed(blocks=block))
    assert "F_ = self.gate_proj(x)" in text
    assert "torch_ = F.silu(F_)" in text
    assert "return self.down_proj(torch_ * cache_)" in text


def test_a_block_named_like_a_helper_gives_way() -> None:
    block = """
  DecoderLayer:
    parts: {mlp: RMSNorm}
  RMSNorm:
    parts: {gate_proj: 'linear(hidden_size, hidden_size)'}
    forward: return gate_proj(x)
"""
    text = emit_torch(changed(blocks=block))
    assert "class RMSNormBlock(nn.Module):" in text
    assert "self.mlp = RMSNormBlock()" in text


def test_a_value_that_is_still_needed_keeps_its_variable() -> None:
    block = """
  FeedForward:
    forward: |
      h = x
      x = gate_proj(x)
      return down_proj(silu(x) * up_proj(h)) + h
"""
    text = emit_torch(changed(blocks=block))
    assert "x_ = self.gate_proj(x)" in text
    assert "return self.down_proj(F.silu(x_) * self.up_proj(x)) + x" in text


@pytest.mark.parametrize("bad", ['x"""\nimport os\n"""', "x\\", "x\r\nimport os", "x\u2028y"])
def test_text_of_a_graph_cannot_become_code(bad: str) -> None:
    text = emit_torch(replace(changed(), spec_id=bad, digest=bad))
    imported = {
        a.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names
    }
    assert imported == {"json", "torch", "torch.nn.functional"}
    root = replace(changed().root_block, name=bad)
    with pytest.raises(LlamagenError, match="LG740"):
        emit_torch(replace(changed(), root=bad, blocks={**changed().blocks, bad: root}))


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "from os import path",
        "from .x import y",
        "x = open('f')",
        "x = ().__class__",
        "x = eval('1')",
        "x = lambda: 1",
        "async def f(): pass",
        "def f(): yield 1",
        "try:\n    x = 1\nfinally:\n    x = 2",
        "global x",
        'x = "\u00e9"',
        "x = (",
        "del x",
        "while True:\n    x = 1",
    ],
)
def test_syntax_outside_the_list_is_refused(source: str) -> None:
    with pytest.raises(LlamagenError, match="LG742"):
        check_source(source)
    with pytest.raises(LlamagenError, match="LG742"):
        load_module(source)


def test_a_file_is_loaded_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "modeling.py"
    path.write_text(emit_torch(changed()))
    assert load_module(path).CausalLM is load_module(path).CausalLM


def test_constants_print_the_expression_only_if_it_means_the_value() -> None:
    constants = Constants({"num_heads": 4, "head_dim": 6, "eps": 1e-6, "flag": True})
    assert flat(constants.code(24, parse("num_heads * head_dim"))) == "NUM_HEADS * HEAD_DIM"
    assert flat(constants.code(25, parse("num_heads * head_dim"))) == "25"
    assert flat(constants.code(6, parse("width"))) == "6"
    assert flat(constants.code(True, parse("flag"))) == "True"
    assert flat(constants.code(1e-6, parse("eps"))) == "EPS"
    record = Constants({"vision.width": 4, "vision_width": 5, "vision.heads": 2})
    assert flat(record.code(8, parse("vision.width * 2"))) == "VISION_WIDTH_2 * 2"
    assert flat(record.code(5, parse("vision_width"))) == "VISION_WIDTH"
    assert flat(record.code(2, parse("vision.heads"))) == "VISION_HEADS"
    assert flat(record.code(2, parse("vision.depth"))) == "2"
    assert flat(constants.define("HEAD_DIM", 8)) == "HEAD_DIM_2"
    assert flat(constants.define("HEAD_DIM", 6)) == "HEAD_DIM"
    assert constants.lines() == (
        ("NUM_HEADS", "4"), ("HEAD_DIM", "6"), ("EPS", "1e-06"), ("HEAD_DIM_2", "8"),
    )  # fmt: skip


def test_locals_never_shadow() -> None:
    assert local("x", {"x", "x_"}) == "x__"
    for name in (*keyword.kwlist, *HELPER_NAMES):
        assert local(name) not in {*keyword.kwlist, *HELPER_NAMES}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            Binary("*", Binary("**", Text("HEAD_DIM"), literal(-0.5)), Text("x")),
            "HEAD_DIM**-0.5 * x",
        ),
        (Binary("-", Text("a"), Binary("-", Text("b"), literal(-1.5))), "a - (b - -1.5)"),
        (Negative(Binary("+", Text("a"), Text("b"))), "-(a + b)"),
        (Binary("**", Negative(Text("a")), call("f", Text("x"))), "(-a) ** f(x)"),
        (method(Binary("+", Text("a"), Text("b")), "sum", dim=literal(0)), "(a + b).sum(dim=0)"),
        (call("f", Tuple((Text("a"),)), size=Tuple(())), "f((a,), size=())"),
        (Tuple((Text("a"), Tuple((Text("b"), Text("c"))))), "a, (b, c)"),
        (call("f", how=literal("tanh")), 'f(how="tanh")'),
    ],
)
def test_expressions_are_spaced_as_ruff_does(code: Code, text: str) -> None:
    assert flat(code) == text
    assert formatted({"": statement("y = ", code, 0)})[""] == f"y = {text}\n"


@pytest.mark.parametrize("lacks", ["op", "module", "rope"])
def test_what_this_backend_lacks_is_a_finding_with_a_place(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = changed("rope: {kind: linear, theta: 10000.0, factor: 4.0}")
    match lacks:
        case "op":
            monkeypatch.setitem(NODES, "silu", replace(OPS["silu"], torch=None))
        case "module":
            monkeypatch.setitem(NODES, "rms_norm", replace(OPS["rms_norm"], torch_module=None))
        case _:
            monkeypatch.setitem(ROPE_KINDS, "linear", replace(ROPE_KINDS["linear"], torch=None))
    with pytest.raises(LlamagenError, match="LG741") as error:
        emit_torch(made)
    assert all(finding.span is not None for finding in error.value.diagnostics)
