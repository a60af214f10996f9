"""The page that `export --web` puts into a folder: in a real browser, offline, it says what `llamagen run` says."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from llamagen import api
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.clients import web
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.runtime.generation import run
from tests.clients.browser import SOFTWARE_GPU, Page, page_of
from tests.clients.models import TextModel
from tests.real import smollm2

QUESTION = "What is the capital of France?"
READY = "document.getElementById('status').textContent.startsWith('Ready')"
ANSWERED = "document.querySelectorAll('article footer').length"
LAST = "[...document.querySelectorAll('article')].at(-1)"

INT4 = QuantizeOptions("int4", 16, head="int4", embedding="int4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TextModel("llama/3.2/1b").checkpoint(tmp_path_factory.mktemp("page"))


def exported(checkpoint: Path, out: Path, options: ExportOptions) -> Path:
    api.load(checkpoint.parent / "reduced.yaml").export(out, options, checkpoint=checkpoint)
    return out


def of_run(folder: Path, count: int) -> list[int]:
    answer = run(folder, QUESTION, chat=True, max_new_tokens=count)
    return [piece.token for piece in answer if piece.token is not None]


def answered(page: Page, query: str, some: int | None = None) -> list[int]:
    """The tokens of an answer, without what ends it; with ``some`` letters of it there, it is stopped."""
    page.open(query)
    page.until(READY)
    page.ask(QUESTION)
    if some is not None:
        page.until(f"{LAST}.firstChild.textContent.length > {some}")
        page.value("document.getElementById('stop').click()")
    page.until(f"{ANSWERED} === 1")
    return [int(one) for one in page.value(f"{LAST}.dataset.ids").split(",")]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["wasm", "webgpu"])
@pytest.mark.parametrize("quantize", [QuantizeOptions(), INT4], ids=["float32", "int4"])
def test_the_page_says_what_run_says(
    checkpoint: Path, tmp_path: Path, quantize: QuantizeOptions, device: str
) -> None:
    out = exported(checkpoint, tmp_path / "out", ExportOptions(web=True, quantize=quantize))
    with page_of(out, SOFTWARE_GPU if device == "webgpu" else ()) as page:
        said = answered(page, f"?device={device}", some=4)
        where = page.value("document.getElementById('device').textContent")
        assert ("WebGPU" in where) == (device == "webgpu")
        note = page.value(f"{LAST}.lastChild.textContent")
    assert said
    assert said == of_run(out, len(said))
    assert "tokens per second" in note and note.endswith("stopped")
    assert api.check_integrity(out).whole


@pytest.mark.slow
def test_without_a_gpu_the_page_computes_on_the_cpu_and_says_so(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = exported(checkpoint, tmp_path / "out", ExportOptions(web=True))
    with page_of(out, ["--disable-gpu"]) as page:
        page.open()
        page.until(READY)
        assert "CPU" in page.value("document.getElementById('device').textContent")
        (out / "model.onnx_data").unlink()
        page.open("?again")
        with pytest.raises(RuntimeError, match="onnx_data"):
            page.until(READY)


@pytest.mark.slow
def test_the_page_says_which_file_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    """A server answers with a page of its own, which is no configuration, template or tokenizer."""
    out = exported(checkpoint, tmp_path / "out", ExportOptions(web=True))
    names = "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
    with page_of(out) as page:
        for name in names:
            data = (out / name).read_bytes()
            (out / name).unlink()
            page.open(f"?device=wasm&without={name}")
            with pytest.raises(RuntimeError, match=f"{name} is not beside the page"):
                page.until(READY)
            (out / name).write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["portable", "ort-webgpu"])
@pytest.mark.parametrize("quantize", ["kept", "float32", "int4"])
def test_a_trained_model_answers_on_its_page(
    profile: Literal["portable", "ort-webgpu"], tmp_path: Path, quantize: str
) -> None:
    """As it is packed, decoded, and quantised by us."""
    options = {
        "kept": QuantizeOptions(),
        "float32": QuantizeOptions("none"),
        "int4": QuantizeOptions("int4", requantize=True),
    }
    out = tmp_path / "out"
    api.imported(smollm2()).export(
        out, ExportOptions(profile, web=True, quantize=options[quantize]), checkpoint=smollm2()
    )
    with page_of(out) as page:
        said = answered(page, "?device=wasm")
        text = page.value(f"{LAST}.firstChild.textContent")
    assert "Paris" in text
    assert said[: len(said) - 1] == of_run(out, len(said) - 1)


# what has no page


def refused(checkpoint: Path, out: Path, options: ExportOptions) -> list[str]:
    with pytest.raises(LlamagenError) as caught:
        exported(checkpoint, out, options)
    assert not out.exists()
    return [f"{one.code} {one.message}" for one in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ExportOptions(web=True, profile="ort-cpu"), "has operators of ort-cpu"),
        (ExportOptions(web=True, dtype="bfloat16"), "computes in bfloat16"),
        (ExportOptions(web=True, dtype="float16"), "computes in float16"),
        (ExportOptions(web=True, weights="reference", dtype="float32"), "has the checkpoint's own"),
        (ExportOptions(web=True, quantize=QuantizeOptions("w8a8")), "has products of w8a8"),
    ],
)
def test_a_folder_that_no_browser_runs_has_no_page(
    checkpoint: Path, tmp_path: Path, options: ExportOptions, why: str
) -> None:
    """Before anything is fetched or written."""
    (line,) = refused(checkpoint, tmp_path / "out", options)
    assert line.startswith(f"LG720 the folder {why}")
    without = replace(options, web=False)
    assert not (exported(checkpoint, tmp_path / "out", without) / "index.html").exists()


def test_a_tokenizer_without_its_settings_has_no_page(checkpoint: Path, tmp_path: Path) -> None:
    """As of Meta's folders. transformers.js opens none, so the README gives it token ids."""
    bare = shutil.copytree(checkpoint.parent, tmp_path / "model") / checkpoint.name
    (bare / "tokenizer_config.json").unlink()
    (line,) = refused(bare, tmp_path / "out", ExportOptions(web=True))
    assert line.startswith("LG720 the folder has no tokenizer_config.json")
    readme = (exported(bare, tmp_path / "out", ExportOptions()) / "README.md").read_text()
    assert "const prompt = [" in readme and 'pipeline("text-generation"' not in readme
    (bare / "tokenizer_config.json").write_text("{}")
    readme = (exported(bare, tmp_path / "other", ExportOptions()) / "README.md").read_text()
    assert 'pipeline("text-generation"' in readme


def test_a_model_that_is_too_large_has_no_page(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 100_000)
    (line,) = refused(checkpoint, tmp_path / "out", ExportOptions(web=True))
    assert "of weights; a browser holds 97.7 KiB" in line


def test_every_reason_is_told_at_once(tmp_path: Path) -> None:
    """Random weights have no tokenizer, and transformers.js was not tested with every architecture."""
    spec = Path(__file__).parents[1] / "specs" / "reduced" / "llama-4-scout.yaml"
    with pytest.raises(LlamagenError) as caught:
        api.load(spec).export(tmp_path / "out", ExportOptions(web=True), random_weights=0)
    lines = [one.message for one in caught.value.diagnostics]
    assert any("has graphs for images" in line for line in lines)
    assert any("is a llama4, which was not tested" in line for line in lines)
    assert any("no tokenizer.json" in line for line in lines)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of npm a script that the test writes."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}/usr/bin{os.pathsep}/bin")
    script = place / "npm"
    script.write_text("")
    script.chmod(0o755)
    return script


def test_a_package_that_does_not_come_or_is_another(
    checkpoint: Path, tmp_path: Path, npm: Path
) -> None:
    npm.write_text("#!/bin/sh\necho no such registry >&2\nexit 1\n")
    (line,) = refused(checkpoint, tmp_path / "out", ExportOptions(web=True))
    assert line.startswith("LG722 npm does not bring @huggingface/transformers@")
    assert "no such registry" in line
    npm.write_text("#!/bin/sh\necho another > package.tgz\n")
    (line,) = refused(checkpoint, tmp_path / "out", ExportOptions(web=True))
    assert line.endswith("is not the package that llamagen knows")


def test_npm_is_needed(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec, out = str(checkpoint.parent / "reduced.yaml"), tmp_path / "out"
    command = ["export", spec, "--checkpoint", str(checkpoint), "--out", str(out), "--web"]
    assert main(command) == 3
    assert "error[LG721]: npm is not installed" in capsys.readouterr().err
    assert not out.exists()
