"""The graph in exact arithmetic, limits at released sizes, and mutants of a folder: what is seen, in every dtype."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from llamagen.api import load
from llamagen.emit.options import ExportOptions
from llamagen.verify.folder import verify_folder
from llamagen.verify.limits import Tolerance, difference, largest_of
from llamagen.verify.mutants import mutate
from llamagen.verify.report import EXACTLY
from tests.parity.models import SPECS

LIMIT = 8192
MAVERICK = f"""\
spec: 1
id: maverick
extends: reduced/llama-4-maverick
hyperparameters:
  num_layers: 4
  max_positions: 16384
  head_dim: 16
  attention_chunk_size: {LIMIT}
  attention_temperature_floor: {LIMIT}
"""
GROUPS = """\
spec: 1
id: groups
extends: foreign/deepseek_v3
hyperparameters: {num_experts: 12, num_experts_per_token: 2, num_layers: 3}
blocks:
  MoE:
    forward: |
      scores = sigmoid(float32(gate(x)))
      grouped = reshape(scores + float32(e_score_correction_bias), [B, S, 4, 3])
      best, _ = topk(grouped, 2)
      of_group = sum(best)
      top, _ = topk(reshape(of_group, [B, S, 4]), 2)
      _, least = split(top, [1, 1])
      kept = clamp((of_group - reshape(least, [B, S, 1, 1])) * 1000000.0 + 1.0, 0.0, 1.0)
      _, chosen = topk(reshape((grouped + 8.0) * kept, [B, S, 12]), num_experts_per_token)
      w = gather(scores, chosen)
      return experts(x, chosen, model_dtype(w / sum(w) * routed_scale)) + shared_experts(x)
"""


def exported(text: str, folder: Path, **options: str) -> Path:
    name = text.splitlines()[1].removeprefix("id: ")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    model = load(name, roots=(SPECS, folder))
    model.export(folder / "out", ExportOptions(**options), random_weights=3)  # type: ignore[arg-type]
    return folder / "out"


def edited(folder: Path, edit: Callable[[onnx.GraphProto], int]) -> Path:
    out = folder.parent / "edited"
    shutil.copytree(folder, out)
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    assert edit(model.graph)
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def number(kind: str, old: float, new: float) -> Callable[[onnx.GraphProto], int]:
    """``old`` made ``new`` where operators of ``kind`` read it."""

    def edit(graph: onnx.GraphProto) -> int:
        constants = {
            t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_location != 1
        }
        count = 0
        for node in graph.node:
            for i, name in enumerate(node.input):
                value = constants.get(name)
                if node.op_type != kind or value is None or value.size != 1:
                    continue
                if abs(float(value.reshape(-1)[0]) - old) < 1e-6 * old:
                    wrong = np.full(value.shape, new, value.dtype)
                    graph.initializer.append(numpy_helper.from_array(wrong, f"wrong/{count}"))
                    node.input[i], count = f"wrong/{count}", count + 1
        return count

    return edit


def masks_exchanged(graph: onnx.GraphProto) -> int:
    """Chunked layers see everything, the others one chunk."""
    nodes = [n for n in graph.node if n.op_type == "Attention"]
    other = dict(
        zip(
            *[sorted({n.input[3] for n in nodes}, reverse=way) for way in (False, True)],
            strict=True,
        )
    )
    for node in nodes:
        node.input[3] = other[node.input[3]]
    return len(other)


def attribute(name: str, change: Callable[[float], float]) -> Callable[[onnx.GraphProto], int]:
    def edit(graph: onnx.GraphProto) -> int:
        found = [a for n in graph.node for a in n.attribute if a.name == name]
        for one in found:
            one.f = change(one.f)
        return len(found)

    return edit


@pytest.fixture(scope="module")
def maverick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(MAVERICK, tmp_path_factory.mktemp("maverick"), dtype="bfloat16")


def test_limits_are_crossed_at_their_released_size(maverick: Path) -> None:
    report = verify_folder(maverick, ["reference"], steps=2)
    assert report.passed
    proofs = {(one.kind, one.size): one.proof for one in report.facts.limits}
    assert proofs == {("chunk", LIMIT): "run", ("temperature floor", LIMIT): "run"}
    exact = [r for r in report.rows if r.case.endswith(EXACTLY)]
    assert len(exact) > 8
    assert all(r.difference is not None and r.difference.max_over_std < 1e-12 for r in exact)


@pytest.mark.parametrize(
    "edit",
    [
        number("Div", LIMIT, LIMIT + 1),
        number("Mul", 0.1, 0.11),
        number("Mul", 0.1, 0.1001),
        masks_exchanged,
        attribute("epsilon", lambda eps: 1e-6),
        attribute("scale", lambda scale: 1.01 * scale),
    ],
)
def test_what_is_wrong_at_a_limit_or_below_rounding_is_seen_in_bfloat16(
    edit: Callable[[onnx.GraphProto], int], maverick: Path, tmp_path: Path
) -> None:
    report = verify_folder(
        edited(shutil.copytree(maverick, tmp_path / "out"), edit), ["reference"], steps=2
    )
    different = {row.case for row in report.rows if row.verdict == "different"}
    assert not report.passed and any(case.endswith(EXACTLY) for case in different)


FUSED = """\
spec: 1
id: fused
extends: reduced/llama-3.1-8b
hyperparameters: {num_heads: 4, head_dim: 16}
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_of_a_table_is_read_back(dtype: str, tmp_path: Path) -> None:
    folder = exported(FUSED, tmp_path, profile="ort-cpu", dtype=dtype)
    right = [r for r in verify_folder(folder, ["reference"], steps=2).rows if r.witness == "spec"]
    assert right and all(row.verdict == "equal" for row in right)

    def last_row(graph: onnx.GraphProto) -> int:
        (cosines,) = (
            t for t in graph.initializer if "cos_cache" in t.name and t.data_location != 1
        )
        values = numpy_helper.to_array(cosines).copy()
        values[-1, 0] += values.dtype.type(0.02)
        cosines.CopyFrom(numpy_helper.from_array(values, cosines.name))
        return 1

    report = verify_folder(edited(folder, last_row), ["reference"], steps=2)
    tables = [r for r in report.rows if r.witness == "spec" and not r.case.endswith(EXACTLY)]
    assert [r.verdict for r in tables] == ["different"]
    assert not report.passed


@pytest.mark.parametrize("wrong", ["zeros", "scaled"])
def test_a_table_in_two_bytes_is_the_rounded_one_in_small_numbers_too(
    wrong: str, tmp_path: Path
) -> None:
    """Sines near zero that are zero, and numbers off by less than a last digit that are none of the dtype."""

    def sines(graph: onnx.GraphProto) -> int:
        (table,) = (t for t in graph.initializer if "sin_cache" in t.name and t.data_location != 1)
        values = numpy_helper.to_array(table).copy()
        assert values.dtype == np.float32
        values = (
            np.where(np.abs(values) < 0.0038, 0, values)
            if wrong == "zeros"
            else values * np.float32(1.0019)
        )
        table.CopyFrom(numpy_helper.from_array(values.astype(np.float32), table.name))
        return 1

    folder = exported(FUSED, tmp_path, profile="ort-cpu", dtype="bfloat16")
    report = verify_folder(edited(folder, sines), ["torch"], steps=2)
    different = {row.case for row in report.rows if row.verdict == "different"}
    assert "table /rope/cos_cache, /rope/sin_cache" in different
    assert f"prefill{EXACTLY}" in different, "it is not put right either"


CLIPPED = """\
spec: 1
id: clipped
extends: foreign/mpt
constants: {clip: 8.0}
"""


def test_a_bound_that_nothing_reaches_is_read_back(tmp_path: Path) -> None:
    folder = exported(CLIPPED, tmp_path)
    assert verify_folder(folder, ["torch"], steps=2).passed
    report = verify_folder(edited(folder, number("Clip", 8.0, 9.0)), ["torch"], steps=2)
    assert [r.case for r in report.rows if r.verdict == "different"] == ["table of bounds"]


SLOPED = """\
spec: 1
id: sloped
extends: foreign/mpt
hyperparameters: {hidden_size: 16, num_heads: 4}
blocks:
  Layer:
    parts:
      q_norm: rms_norm(4, eps=norm_eps)
    forward: |
      h = x + reshape(q_norm(reshape(attn(norm_1(x)), [B, S, 4, 4])), [B, S, 16])
      return h + ffn(norm_2(h))
"""


def test_a_weight_as_long_as_there_are_heads_is_no_slope(tmp_path: Path) -> None:
    report = verify_folder(exported(SLOPED, tmp_path), ["torch"], steps=2)
    assert report.passed, [row.cells() for row in report.rows if row.verdict != "equal"]


DYNAMIC = """\
spec: 1
id: dynamic
extends: foreign/mistral
hyperparameters: {rope: {kind: dynamic, theta: 10000.0, factor: 4.0}}
"""


def test_where_frequencies_are_of_the_call_one_token_reads_the_numbers(tmp_path: Path) -> None:
    folder = exported(DYNAMIC, tmp_path)
    report = verify_folder(
        edited(folder, attribute("epsilon", lambda e: e * 1.1)), ["torch"], steps=2
    )
    exactly = {row.case: row.verdict for row in report.rows if row.case.endswith(EXACTLY)}
    assert exactly == {f"all{EXACTLY}": "skipped", f"one token{EXACTLY}": "different"}
    assert verify_folder(folder, ["torch"], steps=2).passed


def test_a_window_that_the_spec_has_not_is_seen(tmp_path: Path) -> None:
    """Beyond the texts: in what is around a limit."""

    def window(graph: onnx.GraphProto) -> int:
        nodes = [n for n in graph.node if n.op_type == "GroupQueryAttention"]
        for node in nodes:
            node.attribute.append(helper.make_attribute("local_window_size", 40))
        return len(nodes)

    folder = edited(exported(FUSED, tmp_path, profile="ort-cpu"), window)
    report = verify_folder(folder, ["reference"], steps=2)
    found = {row.case for row in report.rows if row.verdict == "different"}
    assert {case.partition(",")[0] for case in found} == {"around 64", "around 512"}


def test_experts_in_groups_are_judged_group_by_group(tmp_path: Path) -> None:
    report = verify_folder(exported(GROUPS, tmp_path, dtype="bfloat16"), ["reference"], steps=4)
    assert report.passed, [row.cells() for row in report.rows if row.verdict != "equal"]
    (row,) = (row for row in report.rows if row.case == "experts chosen")
    compared = [c for c in report.facts.cases if c.same_as is None]
    assert row.difference is not None
    assert row.difference.count == 2 * sum(case.tokens for case in compared)  # two routed layers


def test_mutants_that_survive_compute_the_same(tmp_path: Path) -> None:
    mutation = mutate(exported(FUSED, tmp_path))
    assert mutation.tried == mutation.possible > 60
    assert mutation.killed + len(mutation.survivors) == mutation.tried
    assert {one.partition(": ")[2] for one in mutation.survivors} <= {
        "end 2 becomes 3",
        "operand 1, 0, becomes -1",
        "axis 0 becomes -1",
    }


def test_the_largest_of_many_errors_may_be_larger() -> None:
    """In 200 draws of right errors none is an alarm, at either size; one logit that is wrong is seen."""
    generator = np.random.default_rng(0)
    bound = Tolerance(None, 1.5e-6)
    for count in (64, 8192):
        exact = generator.standard_normal((28, count))
        std = float(exact.std())
        for _ in range(100):
            found = exact + std * 1.4e-6 * generator.standard_normal(exact.shape)
            away = difference(found, exact)
            assert away.within(largest_of(bound, away.count))
        found[3, 5] = exact[3, 5] + 3e-5 * std
        away = difference(found, exact)
        assert away.within(bound) == (count > 64) and not away.within(largest_of(bound, away.count))
    tied = np.concatenate([generator.standard_normal(10_000), [40.0]])[None]
    away = difference(tied * (1 + 4e-7), tied)
    assert away.within(largest_of(bound, away.count)), (
        "an error in the last digits of a large logit"
    )
