"""Models with routers in two bytes: no false alarm however experts fall, and no wrong router or expert unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from llamagen import api, verify_folder
from llamagen.api import load
from llamagen.emit.onnx.session import AS_IT_IS
from llamagen.emit.options import ExportOptions
from llamagen.spec.fmt import resolved_text
from llamagen.verify.folder import CHOICES
from llamagen.verify.graph_copies import open_graph
from llamagen.verify.limits import Tolerance, difference, for_few_tokens
from llamagen.verify.report import EXACTLY, Row, VerifyReport
from llamagen.verify.routing import Router, Routers, RoutersDiffer, compared, measured_reach
from llamagen.verify.scenarios import scenarios
from llamagen.verify.witnesses import GraphsWitness, OnnxWitness
from tests.parity.llama4 import shrunk
from tests.parity.models import SPECS
from tests.unit.verify.test_folder import CASES, exported

AROUND = ("around 3", "around 5", "around 64")
ALARM = 1
"""The weights of a reduced Scout whose early tokens choose otherwise in bfloat16: rms 0.12 without a script."""


def scout(folder: Path, dtype: str, profile: str = "portable") -> Path:
    spec, out = folder / "spec.yaml", folder / "out"
    folder.mkdir(parents=True, exist_ok=True)
    spec.write_text(resolved_text(shrunk("llama/4/scout").resolved), encoding="utf-8")
    api.load(spec).export(out, ExportOptions(dtype=dtype, profile=profile), random_weights=ALARM)
    return out


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scout(tmp_path_factory.mktemp("scout"), request.param)


def counts(row: Row) -> tuple[int, int, int]:
    """Choices, those beyond rounding's reach, and those that differ, out of the remark."""
    words = row.note.replace(",", "").split()
    return int(words[0]), int(words[2]), int(words[6])


def choices(report: VerifyReport) -> list[Row]:
    return [row for row in report.rows if row.case.startswith(CHOICES)]


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
def test_choices_that_rounding_moved_are_no_alarm(profile: str, tmp_path: Path) -> None:
    """Every token is compared, within the bound of a dense model; without the script this model fails."""
    report = verify_folder(scout(tmp_path, "bfloat16", profile), steps=16)
    assert report.passed, [row.cells() for row in report.rows]
    text, images = (row for row in choices(report) if row.witness == "reference")
    assert images.case == f"{CHOICES}, images"
    moved = [counts(row)[2] for row in (text, images)]
    assert sum(moved) >= 5, "nothing would be told here by a verify that does without"
    for row in (text, images):
        count, decided, _ = counts(row)
        assert decided > 0.75 * count > 750
    bounds = [r.tolerance.rms_over_std for r in report.rows if r.tolerance and r.case == "prefill"]
    assert max(bounds) < 0.04  # of few tokens; those that choose otherwise differ by 0.12


def edited(
    folder: Path, out: Path, edit: Callable[[onnx.GraphProto, onnx.NodeProto], None]
) -> Path:
    """A copy with the routers of the text model edited."""
    shutil.copytree(folder, out)
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    routers = [node for node in model.graph.node if node.op_type == "TopK"]
    assert len(routers) == 8
    for router in routers:
        edit(model.graph, router)
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def insert(graph: onnx.GraphProto, before: onnx.NodeProto, *made: onnx.NodeProto) -> None:
    at = list(graph.node).index(before)
    for i, node in enumerate(made):
        graph.node.insert(at + i, node)


def constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def chooses_otherwise(graph: onnx.GraphProto, router: onnx.NodeProto) -> None:
    """By scores with a bias, but gives the right scores of what it chose: every logit is that of its choice."""
    scores = router.input[0]
    values, chosen = router.output
    name = chosen
    bias = np.array([0.3, 0.0, 0.0, 0.0], dtype=np.float32)
    cast = helper.make_node("Cast", [scores], [f"{name}/wide"], to=onnx.TensorProto.FLOAT)
    add = helper.make_node(
        "Add", [f"{name}/wide", constant(graph, f"{name}/b", bias)], [f"{name}/s"]
    )
    insert(graph, router, cast, add)
    router.input[0] = f"{name}/s"
    router.output[0] = f"{name}/values"
    at = list(graph.node).index(router)
    gather = helper.make_node("GatherElements", [scores, chosen], [values], axis=-1)
    graph.node.insert(at + 1, gather)


def asks_the_next_expert(graph: onnx.GraphProto, router: onnx.NodeProto) -> None:
    chosen = router.output[1]
    router.output[1] = f"{chosen}/own"
    one, four = (constant(graph, f"{chosen}/{n}", np.array(n)) for n in (1, 4))
    at = list(graph.node).index(router)
    graph.node.insert(at + 1, helper.make_node("Add", [f"{chosen}/own", one], [f"{chosen}/sum"]))
    graph.node.insert(at + 2, helper.make_node("Mod", [f"{chosen}/sum", four], [chosen]))


def takes_the_least(graph: onnx.GraphProto, router: onnx.NodeProto) -> None:
    router.attribute.append(helper.make_attribute("largest", 0))


@pytest.mark.parametrize(
    ("edit", "wrong"),
    [
        (chooses_otherwise, {CHOICES}),
        (asks_the_next_expert, {*CASES, *AROUND, CHOICES}),
        (takes_the_least, {CHOICES}),
    ],
)
def test_a_wrong_router_is_caught(
    edit: Callable[[onnx.GraphProto, onnx.NodeProto], None],
    wrong: set[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    """What each witness cannot excuse: choices far from a tie, or logits of other experts."""
    out = edited(folder, tmp_path / "out", edit)
    for witness in ("reference", "torch"):
        report = verify_folder(out, [witness], steps=2, prompt_tokens=7)
        different = {row.case for row in report.rows if row.verdict == "different"}
        exactly = {case for case in different if case.endswith(EXACTLY)}
        assert different - exactly == wrong
        # the file that goes on after images is another one, with its routers as they were
        texts = {*CASES, *AROUND} if witness == "reference" else {CASES[0], *AROUND}
        assert exactly == {f"{case}{EXACTLY}" for case in texts}


@pytest.mark.parametrize("profile", ["portable", "ort-cpu", "ort-cuda", "ort-webgpu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_asking_for_the_choices_changes_no_bit(profile: str, dtype: str, tmp_path: Path) -> None:
    if (profile, dtype) == ("ort-cuda", "bfloat16"):
        profile = "ort-cpu"  # the CPU has no such kernels
    out = scout(tmp_path, dtype, profile)
    routed, _, tapped = open_graph(out / "model.onnx", AS_IT_IS, routers=True)
    assert tapped
    chosen: dict[str, list[np.ndarray]] = {}
    told = replace(routed, told=lambda name, value: chosen.setdefault(name, []).append(value))
    asked = GraphsWitness("asked", {"model": told})
    plain = GraphsWitness("plain", {"model": OnnxWitness(_session(out))})
    for case in scenarios(50, 9, 3)[:4]:
        chosen.clear()
        case = case.of_last() if profile != "portable" else case
        assert np.array_equal(case.given(asked), case.given(plain)), case.name
        assert list(chosen) == [f"router/{i}" for i in range(8)]
        places = {np.concatenate(calls, axis=1).shape[:2] for calls in chosen.values()}
        assert places == {case.input_ids.shape}


def _session(folder: Path) -> object:
    from llamagen.emit.onnx.session import open_session

    return open_session(folder / "model.onnx")


def test_transformers_takes_the_same_experts(tmp_path: Path) -> None:
    spec, checkpoint, out = tmp_path / "spec.yaml", tmp_path / "checkpoint", tmp_path / "out"
    spec.write_text(resolved_text(shrunk("llama/4/scout").resolved), encoding="utf-8")
    api.random_checkpoint(spec, checkpoint, seed=ALARM, dtype="bfloat16")
    api.load(spec).export(out, ExportOptions(dtype="bfloat16"), checkpoint=checkpoint)
    report = verify_folder(out, ["transformers"], steps=16)
    assert report.passed, [row.cells() for row in report.rows]
    assert sum(counts(row)[2] for row in choices(report)) >= 5


def test_a_model_too_large_to_measure_has_a_fixed_reach(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llamagen.verify.folder.MAX_REFERENCE_PARAMETERS", 10)
    row = choices(verify_folder(folder, ["torch"], steps=2))[0]
    assert row.verdict == "equal" and row.tolerance is not None and row.tolerance.rule == "fixed"
    out = edited(folder, tmp_path / "out", takes_the_least)
    assert choices(verify_folder(out, ["torch"], steps=2))[0].verdict == "different"


def test_float32_chooses_itself(tmp_path: Path) -> None:
    report = verify_folder(exported("mixtral", tmp_path / "out"), ["reference"], steps=2)
    assert report.passed and not choices(report)


def test_a_few_tokens_may_be_those_that_round_most() -> None:
    rounding = replace(difference(np.ones((4, 2)), np.eye(4, 2)), variation=0.5)
    bound = Tolerance(None, 0.01)
    assert for_few_tokens(bound, rounding, 1).rms_over_std == pytest.approx(0.01 * 3**0.5)
    assert for_few_tokens(bound, rounding, 100).rms_over_std == pytest.approx(0.01 * 1.2**0.5)
    even = difference(np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2) * 3)
    assert even.variation == 0.0


@pytest.mark.parametrize("seed", [0, 6])
def test_one_token_of_a_call_is_no_alarm(seed: int, tmp_path: Path) -> None:
    """Both seeds were one in bfloat16, where the profile gives the logits of the last token only."""
    out = tmp_path / "out"
    load("foreign/qwen3_moe", roots=(SPECS,)).export(
        out, ExportOptions(dtype="bfloat16", profile="ort-cpu"), random_weights=seed
    )
    report = verify_folder(out, ["reference"], steps=4, seed=seed)
    assert report.passed, [row.cells() for row in report.rows]


SCORES = np.array([[3.0, 2.0, 1.9, -4.0], [1.0, 5.0, 4.0, 4.5]])
"""Two of four: the first token by 0.1, the second by 0.5."""


def test_choices_are_judged_by_their_distance_from_a_tie() -> None:
    spread = SCORES.std()
    right = compared([Router(np.array([[0, 1], [1, 3]]), SCORES, 0.2)])
    assert (right.count, right.other, right.decided) == (2, 0, 1) and right.farthest == 0
    near = compared([Router(np.array([[0, 2], [1, 3]]), SCORES, 0.2)])
    assert near.other == 1 and near.farthest == pytest.approx(0.1 / spread)
    assert near.difference.within(near.tolerance("measured"))
    far = compared([Router(np.array([[0, 1], [1, 2]]), SCORES, 0.2)])
    assert far.other == 1 and far.farthest == pytest.approx(0.5 / spread)
    assert not far.difference.within(far.tolerance("measured"))
    assert compared([Router(np.array([[0, 1]]), SCORES[:1], 0.2)] * 2).count == 2


def test_the_router_that_takes_most_of_its_reach_is_told() -> None:
    near, far = np.array([[0, 2], [1, 3]]), np.array([[0, 1], [1, 2]])
    found = compared([Router(near, SCORES, 0.11), Router(far, SCORES, 10.0)])
    assert found.farthest == pytest.approx(0.1 / SCORES.std())


def test_reach_is_what_rounding_moves_two_scores_by() -> None:
    masked = np.array([[-np.inf, 1.0, 2.0]])
    (reach,) = measured_reach([masked], [masked + np.array([[0.0, 0.01, -0.03]])])
    assert reach == pytest.approx(2 * 1.6 * 0.03)


def test_a_witness_with_other_routers_is_refused() -> None:
    routers = Routers((np.zeros((1, 4, 1), dtype=np.int64),) * 2)
    script = routers.open()
    values = {"input_ids": np.zeros((1, 3), dtype=np.int64)}
    call = script.call(values)
    call.__enter__()
    script.choose(np.zeros((1, 3, 4)))
    with pytest.raises(RoutersDiffer, match="1 choices, the spec has 2"):
        call.__exit__(None, None, None)
    script = routers.open()
    with script.call(values):
        for _ in range(2):
            script.choose(np.zeros((3, 4)))
        with pytest.raises(RoutersDiffer, match="more choices than the 2"):
            script.choose(np.zeros((3, 4)))
