"""A folder of a model with images: graphs beside each other over one file of weights, and what they compute."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest

from llamagen import api, verify_folder
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions
from llamagen.ir.graph import all_parameters
from llamagen.spec.fmt import resolved_text
from llamagen.verify.folder import DROPS_SEEN
from llamagen.verify.report import EXACTLY
from llamagen.verify.witnesses import COUNTS_PADDING
from tests.parity.llama4 import shrunk
from tests.parity.models import RandomModel

SEED = 7


@pytest.fixture(scope="module")
def model() -> RandomModel:
    return shrunk("llama/4/scout")


def exported(model: RandomModel, folder: Path, *, by_checkpoint: bool) -> Path:
    spec, out = folder / "spec.yaml", folder / "out"
    spec.write_text(resolved_text(model.resolved), encoding="utf-8")
    if not by_checkpoint:
        api.load(spec).export(out, random_weights=SEED)
        return out
    checkpoint = folder / "checkpoint"
    api.random_checkpoint(spec, checkpoint, seed=SEED, dtype="float32")
    api.load(spec).export(out, checkpoint=checkpoint)
    return out


CASES = (
    *("prefill", "decode", "left padding", "right padding"),
    *("cut anywhere", "rows exchanged", "far apart", "rows that wait", "rows cut anywhere"),
    *("around 3", "around 5", "around 64"),
    *("image prefill", "images decode", "images padded batch"),
)


def test_a_folder_verifies_with_images(model: RandomModel, tmp_path: Path) -> None:
    out = exported(model, tmp_path, by_checkpoint=True)
    witnesses = ("reference", "torch", "transformers")
    report = verify_folder(out, witnesses, steps=4)
    assert report.passed, report
    skipped = [row.case for row in report.rows if row.verdict == "skipped"]
    limits = [f"around {limit}" for limit in (3, 5, 64)]
    assert skipped == ["far apart", *limits], (
        "no temperature by position, and no past is given to it"
    )
    found = [(r.witness, r.case) for r in report.rows if not r.case.startswith("table ")]
    exactly = [("spec", f"{case}{EXACTLY}") for case in CASES]
    assert sorted(found) == sorted(
        [*exactly, *((witness, case) for witness in witnesses for case in CASES)]
    )
    alone = {r.case for r in report.rows if r.note == COUNTS_PADDING}
    holes = {"right padding", "rows that wait", "rows cut anywhere"}
    assert alone == {"left padding", "rows exchanged", "images padded batch", *holes}


@pytest.fixture(scope="module")
def random_folder(model: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(model, tmp_path_factory.mktemp("random"), by_checkpoint=False)


def test_weights_are_stored_once(model: RandomModel, random_folder: Path) -> None:
    out = random_folder
    count = sum(p.count for p in all_parameters(model.graphs).values())
    padding = 64 * len(model.all_parameters) * 64
    assert 4 * count <= (out / "model.onnx_data").stat().st_size <= 4 * count + padding
    assert {p.name for p in out.glob("*.onnx")} == {f"{name}.onnx" for name in model.graphs}


def test_layers_of_every_graph_are_told(random_folder: Path) -> None:
    report = verify_folder(random_folder, steps=1, layers=True)
    text, images = "language_model.model.layers", "vision_model.model.layers"
    assert {(row.case, row.graph, row.path.rpartition(".")[0]) for row in report.layers} == {
        ("prefill", "model", text),
        ("left padding", "model", text),
        ("images decode", "vision_encoder", images),
        ("images decode", "decoder", text),
    }
    for row in report.layers:
        assert row.onnx is not None and row.onnx.rms_over_std < 1e-5, row
        assert row.torch is not None and row.torch.rms_over_std < 1e-5, row


def test_a_folder_with_bounded_caches(model: RandomModel, tmp_path: Path) -> None:
    """Verified against the model with whole caches, and told to whoever feeds it."""
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(resolved_text(model.resolved), encoding="utf-8")
    api.load(spec).export(out, ExportOptions(cache="bounded"), random_weights=SEED)
    report = verify_folder(out, ("reference", "torch"), steps=4)
    assert report.passed, report
    found = Counter(row.witness for row in report.rows if not row.case.endswith(EXACTLY))
    assert (found["reference"], found["torch"]) == (len(CASES), len(CASES))
    skipped = {(row.case, row.note) for row in report.rows if row.verdict == "skipped"}
    holes = ("right padding", "rows that wait", "rows cut anywhere")
    assert skipped == {(case, DROPS_SEEN) for case in holes}
    exactly = {row.case for row in report.rows if row.case.endswith(EXACTLY)}
    assert exactly == {f"{case}{EXACTLY}" for case in {*CASES} - {*holes}}
    assert read_manifest(out).cache == "bounded"
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "bounded: at most 4 tokens in 6 of 8 caches" in readme
    reason = "keeps at most 4 tokens in 6 of 8 caches; clients want pasts of one length"
    assert f"onnxruntime-genai: the model {reason}" in readme
    assert not (out / "genai_config.json").exists()


@pytest.mark.parametrize("graph", ["vision_encoder", "embedding", "decoder"])
def test_a_mistake_in_a_graph_for_images_is_found(
    random_folder: Path, tmp_path: Path, graph: str
) -> None:
    """Only in cases with images: the graph of text is another file."""
    out = shutil.copytree(random_folder, tmp_path / "out")
    model_file = out / f"{graph}.onnx"
    edited = onnx.load(str(model_file), load_external_data=False)
    mutate(edited.graph, graph)
    model_file.write_bytes(edited.SerializeToString())
    verdicts = {row.case: row.verdict for row in verify_folder(out, ["torch"], steps=1).rows}
    wrong = {case for case, verdict in verdicts.items() if verdict == "different"}
    images = [case for case in CASES if "image" in case]
    assert wrong == {*images, f"{images[0]}{EXACTLY}"}


def mutate(graph: onnx.GraphProto, name: str) -> None:
    """Another epsilon; where there is none, embeddings of the other sign."""
    if name == "embedding":
        (output,) = graph.output
        (maker,) = (node for node in graph.node if output.name in node.output)
        maker.output[:] = ["before"]
        graph.node.append(onnx.helper.make_node("Neg", ["before"], [output.name]))
        return
    norms = [a for node in graph.node for a in node.attribute if a.name == "epsilon"]
    assert norms
    for epsilon in norms:
        epsilon.f = 1e-2
