"""What graphs take of ONNX Runtime by version: inputs of operators, the refusal of what is too new."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx import profile as profiles
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.onnx.profile import (
    ORT_CPU,
    ORT_CUDA,
    PROFILES,
    LaterInput,
    OnnxDType,
    Profile,
    needed,
    runtime_named,
    runtime_versions,
)
from llamagen.emit.onnx.session import open_session
from llamagen.emit.options import ExportOptions
from tests.parity.models import RandomModel
from tests.unit.analysis.models import overlaid, text

BASE = text(
    "t/base", vocab=32, hidden=32, layers=2, heads=4, kv=2, head_dim=16, ffn=48, positions=512,
    rope="{kind: default, theta: 100.0}",
)  # fmt: skip
ATTENTION = "GroupQueryAttention"


@pytest.fixture
def model(tmp_path: Path) -> RandomModel:
    return RandomModel(overlaid("hyperparameters: {norm_eps: 1.0e-5}", tmp_path, base=BASE))


def most_inputs(model: RandomModel, profile: Profile, dtype: OnnxDType, runtime: str | None) -> int:
    options = ExportOptions(profile.name, dtype, logits="last", max_context=64, runtime=runtime)
    found = emit_onnx(model.graph, options)
    nodes = ir.traversal.RecursiveGraphIterator(found.model.graph)
    return max(len(node.inputs) for node in nodes if node.op_type == ATTENTION)


def test_the_table_has_the_names_of_the_installed_runtime() -> None:
    schemas = {s.name: s for s in binding.get_all_operator_schema() if s.domain == "com.microsoft"}
    inputs = runtime_versions().inputs
    assert inputs[ATTENTION]
    for operator, later in inputs.items():
        for name, one in later.items():
            assert schemas[operator].inputs[one.place].name == name


def test_every_profile_has_a_published_runtime() -> None:
    known = runtime_versions()
    assert {profile.provider for profile in PROFILES.values()} == set(known.published)
    assert ort.__version__.startswith(f"{known.published['CPUExecutionProvider']}.")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_published_cuda_builds_know_every_input(
    dtype: Literal["float16", "bfloat16"], model: RandomModel
) -> None:
    assert most_inputs(model, ORT_CUDA, dtype, None) <= 16
    assert most_inputs(model, ORT_CUDA, dtype, "1.32") == 17


def test_the_cpu_has_the_newest(model: RandomModel) -> None:
    assert most_inputs(model, ORT_CPU, "float32", None) == 17
    assert most_inputs(model, ORT_CPU, "float32", "1.27") <= 14, "as many as 1.27 has"


@pytest.mark.parametrize("name", ["1.30", "1.33", "2", "1.32.0", "", "newest"])
def test_an_unknown_runtime_is_refused(name: str, model: RandomModel, tmp_path: Path) -> None:
    with pytest.raises(LlamagenError, match=r"1\.27, 1\.31, 1\.32") as caught:
        runtime_named(name, "CPUExecutionProvider")
    assert caught.value.diagnostics[0].code == "LG717"
    with pytest.raises(LlamagenError, match="1\\.27"):
        emit_onnx(model.graph, ExportOptions("ort-cpu", max_context=64, runtime=name))


def folder_of(model_yaml: Path, out: Path) -> Path:
    api.load(model_yaml).export(
        out, ExportOptions(profile="ort-cpu", max_context=64), random_weights=1
    )
    return out / "model.onnx"


def of_the_future(file: Path, monkeypatch: pytest.MonkeyPatch, since: str) -> None:
    """Give the attention an input that no runtime has yet, and tell the table of it."""
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == ATTENTION:
            node.input.append(node.input[0])
    onnx.save(model, file)
    table = runtime_versions()
    inputs = {
        ATTENTION: {**table.inputs[ATTENTION], "more": LaterInput(place=17, since=since, heeded=())}
    }
    later = table.model_copy(update={"inputs": inputs})
    monkeypatch.setattr(profiles, "runtime_versions", lambda: later)


@pytest.mark.parametrize("since", ["1.33", "1.100", "2.0"])
def test_a_runtime_that_is_too_old_is_named(
    since: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "t.yaml"
    spec.write_text(BASE)
    file = folder_of(spec, tmp_path / "out")
    of_the_future(file, monkeypatch, since)
    for source in (file, file.read_bytes()):
        with pytest.raises(LlamagenError) as caught:
            open_session(source)
        (finding,) = caught.value.diagnostics
        assert finding.code == "LG713"
        assert f"needs onnxruntime {since} or later" in finding.message
        assert f"the input `more` of {ATTENTION}" in finding.message
        assert f"{ort.__version__} is installed" in finding.message
        assert "--runtime" in (finding.help or "") and "whole" not in (finding.help or "")


@pytest.mark.parametrize("profile", PROFILES)
def test_no_score_is_infinite(profile: str) -> None:
    """1.27 makes NaN of a row of -inf, which is what padding sees, and of all that reads it."""
    found = emit_onnx(RandomModel.named("foreign/mpt").graph, ExportOptions(profile))
    nodes = list(ir.traversal.RecursiveGraphIterator(found.model.graph))
    attributes = [
        one.as_tensor()
        for node in nodes
        for one in node.attributes.values()
        if one.type == ir.AttributeType.TENSOR
    ]
    values = [
        *attributes,
        *(
            v.const_value
            for v in found.model.graph.initializers.values()
            if v.const_value is not None
        ),
    ]
    numbers = [value.numpy() for value in values if value.dtype == ir.DataType.FLOAT]
    assert any((array == np.finfo(np.float32).min).any() for array in numbers)
    assert all(np.isfinite(array).all() for array in numbers)


def test_a_damaged_model_is_not_called_too_new(tmp_path: Path) -> None:
    spec = tmp_path / "t.yaml"
    spec.write_text(BASE)
    file = folder_of(spec, tmp_path / "out")
    (file.parent / "model.onnx_data").unlink()
    for damage in (lambda: None, lambda: file.write_bytes(file.read_bytes()[:-40])):
        damage()
        with pytest.raises(LlamagenError) as caught:
            open_session(file)
        (finding,) = caught.value.diagnostics
        assert finding.code == "LG713" and "whole" in (finding.help or "")
        assert f"ONNX Runtime {ort.__version__} cannot load" in finding.message


def test_what_a_graph_needs_is_found_inside_branches(model: RandomModel) -> None:
    helper = onnx.helper
    given = ["x"] * 12
    new, codes, old = (
        helper.make_node(ATTENTION, [*given, *more], ["y"], domain="com.microsoft")
        for more in (["", "", "", "", "x"], ["x", "x"], ["", "", "x", "x", ""])
    )
    for inner, wanted in ((new, ["1.32"]), (codes, ["1.32", "1.32"]), (old, [])):
        branch = helper.make_graph([inner], "branch", [], [])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        found = needed(helper.make_model(helper.make_graph([node], "g", [], [])))
        assert [since for since, _ in found] == wanted * 2
