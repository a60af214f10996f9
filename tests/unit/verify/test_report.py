"""The report of a verification: complete, escaped, the same on every machine but for the last digits."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

from llamagen.api import load
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import ExportOptions
from llamagen.verify.folder import verify_folder
from llamagen.verify.report import (
    EXACTLY,
    ReportDocument,
    Row,
    VerifyReport,
    check_report_names,
    document,
    html_text,
    json_text,
    write_verify_report,
)
from tests.fuzz.hostile import TOGETHER
from tests.parity.models import SPECS
from tests.unit.verify.test_folder import exported

WITH_WINDOW = "mistral"  # a window of 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(WITH_WINDOW, tmp_path_factory.mktemp("report") / "mistral")


@pytest.fixture(scope="module")
def report(folder: Path) -> VerifyReport:
    return verify_folder(folder, steps=3, seed=4, layers=True)


class Page(HTMLParser):
    """Tags, attributes, and what is between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.labels += [value or "" for name, value in attrs if name == "aria-labelledby"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_document_tells_everything(report: VerifyReport) -> None:
    found = document(report)
    assert found.passed and found.seed == 4 and found.dtype == "float32"
    assert {c.witness for c in found.comparisons} == {"spec", "torch", "reference"}
    for witness in ("torch", "reference"):
        cases = {c.case.removesuffix(EXACTLY) for c in found.comparisons if c.witness == witness}
        assert cases == {c.name for c in found.cases}
    assert found.tokens == sum(case.tokens for case in found.cases) > 100
    assert [(one.kind, one.size, one.proof) for one in found.limits] == [
        ("sliding window", 5, "run")
    ]
    for layers in found.layers:
        assert layers.basis == "reference"
        assert [row.path for row in layers.layers] == ["model.layers.0", "model.layers.1"]
        for row in layers.layers:
            assert row.onnx is not None and 0 < row.onnx.rms_over_std < 1.5e-6
            assert row.torch is not None and 0 < row.torch.rms_over_std < 1.5e-6
    packages = {one.package for one in found.versions}
    assert packages == {"llamagen", "onnxruntime", "onnx", "torch", "numpy"}


@pytest.mark.parametrize("profile", ["ort-cpu", "ort-cuda", "ort-webgpu"])
def test_layers_of_rewritten_models_are_those_of_the_reference(
    profile: str, tmp_path: Path
) -> None:
    """Whether padding is packed away or not, and whatever is fused."""
    spec = SPECS / "reduced" / "llama-3.1-8b.yaml"
    load(spec).export(tmp_path / "out", ExportOptions(profile=profile), random_weights=5)
    report = verify_folder(tmp_path / "out", ["reference"], steps=2, layers=True)
    assert report.passed and len(report.layers) == 4
    for row in report.layers:
        assert row.onnx is not None and row.onnx.rms_over_std < 1.5e-6, row


def test_json_round_trips(report: VerifyReport) -> None:
    text = json_text(document(report))
    assert json_text(ReportDocument.model_validate_json(text)) == text
    assert json.loads(text)["report"] == 2


def test_a_limit_that_nothing_proves_is_named_and_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = document(verify_folder(folder, ["reference"], steps=1, prompt_tokens=3))
    assert [(one.reached, one.proof) for one in found.limits] == [(8, "run")] and found.passed
    monkeypatch.setattr("llamagen.verify.folder.limit_scenarios", lambda *of: ())
    found = document(verify_folder(folder, ["reference"], steps=1, prompt_tokens=3))
    assert [(one.reached, one.proof) for one in found.limits] == [(4, "none")]
    assert not found.passed and found.verdict != "equal"
    assert "sliding window of 5: NOT PROVEN" in Page(html_text(found)).text


def test_a_case_whose_witness_failed_crosses_no_limit() -> None:
    failed = Row("oracle.py", "around 5", None, None, "LG774: no", missing=True)
    assert failed.verdict == "not compared" and not failed.is_of("around 5")


def test_the_page_is_whole_and_loads_nothing(report: VerifyReport) -> None:
    found = document(report)
    page = Page(html_text(found))
    for tag in ("script", "link", "img", "iframe", "object", "form", "base"):
        assert page.tags[tag] == 0
    allowed = {"lang", "charset", "name", "content", "http-equiv", "class", "id", "scope", "style"}
    assert page.attributes <= {*allowed, "aria-labelledby", "aria-hidden"}
    assert sorted(page.ids) == sorted(page.labels) and len(set(page.ids)) == len(page.ids)
    assert page.tags["table"] == page.tags["caption"] == 3 + len(found.layers)
    for word in (found.model, found.spec_digest, "rows exchanged", "model.layers.1", "seed 4"):
        assert word in page.text
    assert "url(" not in html_text(found) and "@import" not in html_text(found)


def test_a_difference_is_what_the_page_says_first(report: VerifyReport) -> None:
    row = report.rows[0]
    assert row.difference is not None
    wrong = replace(row, difference=replace(row.difference, max_abs=1.0))
    page = Page(html_text(document(replace(report, rows=(wrong, *report.rows[1:])))))
    count = sum(one.difference is not None for one in report.rows)
    assert f"1 of {count} comparisons are beyond their tolerances." in page.text
    nothing = replace(report, rows=(replace(row, difference=None, note="too large"),))
    assert "Nothing could be compared." in Page(html_text(document(nothing))).text


def test_a_report_is_no_file_of_an_export(report: VerifyReport, folder: Path) -> None:
    """It would be one that its manifest does not list."""
    for name in ("new.html", "MANIFEST.json"):
        with pytest.raises(LlamagenError, match="LG634"):
            write_verify_report(report, folder / name)
    assert not (folder / "new.html").exists()


def test_hostile_texts_of_a_model_file_stay_texts(report: VerifyReport, folder: Path) -> None:
    """The profile and the names of layers come from model.onnx, which anyone can edit."""
    found = document(report)
    harmless, hostile = Page(html_text(found)), TOGETHER
    layers = [
        one.model_copy(update={"layers": [row.model_copy(update={"path": hostile})]})
        for one in found.layers
        for row in one.layers[:1]
    ]
    edited = found.model_copy(
        update={
            "model": hostile,
            "profile": hostile,
            "tied": (hostile,),
            "layers": tuple(layers),
            "comparisons": tuple(c.model_copy(update={"note": hostile}) for c in found.comparisons),
        }
    )
    page = Page(html_text(edited))
    assert page.attributes == harmless.attributes
    assert set(page.tags) == set(harmless.tags) and page.tags["tr"] < harmless.tags["tr"]
    assert hostile in page.text


def test_the_same_report_twice_and_elsewhere(
    report: VerifyReport, folder: Path, tmp_path: Path
) -> None:
    moved = folder.rename(folder.with_name("moved"))
    try:
        again = document(verify_folder(moved, steps=3, seed=4, layers=True))
    finally:
        moved.rename(folder)
    assert again == document(report)
    assert str(folder.parent) not in json_text(again) + html_text(again)


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, data = tmp_path / "r.html", tmp_path / "r.json"
    words = ["verify", str(folder), "--steps", "2", "--against", "reference"]
    assert main([*words, "--report", str(html), "--report", str(data)]) == 0
    assert f"wrote {html}\nwrote {data}\n" in capsys.readouterr().out
    assert html.read_text() == html_text(ReportDocument.model_validate_json(data.read_text()))
    assert {p.name for p in tmp_path.iterdir()} == {"r.html", "r.json"}


def test_another_kind_of_report_is_refused_before_anything_runs(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path), "--report", str(tmp_path / "r.pdf")]) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "code"), [("file/r.json", "LG634"), ("locked/new/r.json", "LG633")]
)
def test_a_place_that_cannot_be_written_is_told_before_anything_runs(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    locked = tmp_path / "locked"
    locked.mkdir()
    may = os.access  # who is root may always
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and may(path, mode))
    with pytest.raises(LlamagenError, match=code):
        check_report_names([tmp_path / name])
    assert list(locked.iterdir()) == []


def test_a_place_that_cannot_be_written(report: VerifyReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LlamagenError, match="LG634"):
        write_verify_report(report, tmp_path / "file" / "r.json")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_without_marks_has_no_layers_of_onnx(folder: Path, tmp_path: Path) -> None:
    """Such as one that another tool has rewritten: the other witness is still shown."""
    import shutil

    copy = shutil.copytree(folder, tmp_path / "stripped")
    model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
    del model.graph.value_info[:]
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    found = document(verify_folder(copy, steps=1, layers=True))
    assert {row.onnx for one in found.layers for row in one.layers} == {None}
    assert "ONNX Runtime</th>" not in html_text(found)
