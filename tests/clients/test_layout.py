"""`export --layout hub`: the names of repositories on the Hub, which transformers.js finds by `dtype` alone."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.environments import environment
from llamagen import api
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.runtime.generation import run
from tests.clients.browser import in_browser
from tests.clients.models import TextModel
from tests.clients.snippets import snippets
from tests.parity.models import SPECS
from tests.real import smollm2

PROMPT = "The capital of France is"
COUNT = 16


def coded(scheme: str) -> QuantizeOptions:
    return QuantizeOptions(scheme, 16, method="rtn")


KINDS = {
    "": ExportOptions(layout="hub"),
    "_fp16": ExportOptions(layout="hub", dtype="float16"),
    "_q4": ExportOptions(layout="hub", quantize=coded("int4")),
    "_q4f16": ExportOptions(layout="hub", dtype="float16", quantize=coded("int4")),
    "_int8": ExportOptions(layout="hub", quantize=coded("int8")),
    "_quantized": ExportOptions(layout="hub", quantize=coded("w8a8")),
}
DTYPES = {
    "": "fp32",
    "_fp16": "fp16",
    "_q4": "q4",
    "_q4f16": "q4f16",
    "_int8": "int8",
    "_quantized": "q8",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TextModel("llama/3.2/1b").checkpoint(tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module", params=KINDS)
def folder(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("hub") / "out"
    api.load(checkpoint.parent / "reduced.yaml").export(
        out, KINDS[request.param], checkpoint=checkpoint
    )
    return request.param, out


def of_run(folder: Path) -> list[int]:
    answer = run(folder, PROMPT, max_new_tokens=COUNT)
    return [piece.token for piece in answer if piece.token is not None]


def test_names_are_those_of_the_hub_and_every_reader_knows_them(folder: tuple[str, Path]) -> None:
    suffix, out = folder
    there = sorted(path.name for path in (out / "onnx").iterdir())
    graph = f"model{suffix}.onnx"
    assert there == [graph, f"{graph}.txt", f"{graph}_data"]
    assert not list(out.glob("*.onnx*"))
    config = json.loads((out / "config.json").read_text())
    said = {"dtype": DTYPES[suffix], "use_external_data_format": {"model": 1}}
    assert config["transformers.js_config"] == said
    manifest = json.loads((out / "MANIFEST.json").read_text())
    assert manifest["graphs"]["model"]["file"] == f"onnx/{graph}"
    genai = json.loads((out / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == f"onnx/{graph}"
    assert api.check_integrity(out).whole
    assert of_run(out)
    if suffix == "_q4":
        assert api.verify_folder(out, ("torch", "reference"), 2, layers=True).passed


def test_snippets_of_the_readme_find_it(
    folder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, out = folder
    monkeypatch.chdir(out)
    code = snippets(out)
    names: dict[str, object] = {}
    exec(compile(code["onnxruntime"], "README.md", "exec"), names)
    assert names["answer"] == of_run(out)
    assert f'dtype: "{DTYPES[suffix]}"' in code["transformers.js"]
    genai: dict[str, object] = {}
    exec(compile(code["onnxruntime-genai"], "README.md", "exec"), genai)
    answer: list[int] = genai["answer"].tolist()  # type: ignore[attr-defined]
    assert answer[: len(of_run(out))] == of_run(out)


def in_node(folder: Path, script: str) -> str:
    place = environment("transformers.js")
    file = place / "layout.mjs"
    file.write_text(script)  # node finds packages beside the script
    done = subprocess.run(["node", str(file)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_transformers_js_finds_it_by_its_dtype(folder: tuple[str, Path]) -> None:
    _, out = folder
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert in_node(out, snippets(out)["transformers.js"]) == tokenizer.decode(of_run(out)) + "\n"


@pytest.mark.slow
def test_optimum_finds_it(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.load(checkpoint.parent / "reduced.yaml").export(out, KINDS["_q4"], checkpoint=checkpoint)
    code = snippets(out)["optimum"] + "\nprint(answer.tolist())\n"
    command = [str(environment("optimum")), "-c", code]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = ast.literal_eval(done.stdout.splitlines()[-1])
    assert said[: len(of_run(out))] == of_run(out)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", "_q4", "_int8"])
def test_a_browser_finds_it(checkpoint: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "out"
    api.load(checkpoint.parent / "reduced.yaml").export(out, KINDS[suffix], checkpoint=checkpoint)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    script = snippets(out)["transformers.js"]
    assert in_browser(out, script) == [tokenizer.decode(of_run(out))]


@pytest.mark.slow
def test_graphs_of_several_dtypes_go_into_one_repository(checkpoint: Path, tmp_path: Path) -> None:
    """All else in the folders is equal, but for the dtype that is loaded where none is asked for."""
    folders = {}
    for suffix in ("", "_fp16", "_q4"):
        folders[suffix] = out = tmp_path / f"out{suffix}"
        api.load(checkpoint.parent / "reduced.yaml").export(
            out, KINDS[suffix], checkpoint=checkpoint
        )
    together = tmp_path / "together"
    shutil.copytree(folders[""], together)
    for out in folders.values():
        shutil.copytree(out / "onnx", together / "onnx", dirs_exist_ok=True)
    said = {suffix: snippets(out)["transformers.js"] for suffix, out in folders.items()}
    alone = {suffix: in_node(out, said[suffix]) for suffix, out in folders.items()}
    assert {suffix: in_node(together, script) for suffix, script in said.items()} == alone
    without = said["_q4"].replace('{ dtype: "q4" }', "{}")
    assert without != said["_q4"] and in_node(folders["_q4"], without) == alone["_q4"]


def test_packed_weights_are_named_by_their_bits(tmp_path: Path) -> None:
    """Of a GGUF whose blocks stay as they are."""
    out = tmp_path / "out"
    api.imported(smollm2()).export(out, ExportOptions(layout="hub"), checkpoint=smollm2())
    assert (out / "onnx" / "model_q4.onnx").is_file()


def test_graphs_for_images_lie_beside_the_text_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = SPECS / "reduced" / "llama-3.2-11b-vision.yaml"
    api.load(spec).export(out, KINDS["_fp16"], random_weights=3)
    graphs = {path.name for path in (out / "onnx").glob("*.onnx")}
    assert "model_fp16.onnx" in graphs and "vision_encoder_fp16.onnx" in graphs
    assert api.verify_folder(out, ("torch",), 2).passed


def test_another_export_takes_its_place_only_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    out, spec = tmp_path / "out", str(checkpoint.parent / "reduced.yaml")
    command = ["export", spec, "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*command, "--layout", "hub"]) == 0
    assert main(command) == 3
    (out / "onnx" / "mine.txt").write_text("notes")
    assert main([*command, "--overwrite"]) == 3
    assert (out / "onnx" / "mine.txt").read_text() == "notes"
    (out / "onnx" / "mine.txt").unlink()
    assert main([*command, "--overwrite"]) == 0
    assert not (out / "onnx").exists() and (out / "model.onnx").is_file()


def test_a_link_does_not_stand_for_the_folder_of_the_graphs(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    api.load(checkpoint.parent / "reduced.yaml").export(out, KINDS[""], checkpoint=checkpoint)
    (out / "onnx").rename(tmp_path / "elsewhere")
    (out / "onnx").symlink_to(tmp_path / "elsewhere")
    for reads in (lambda: of_run(out), lambda: api.verify_folder(out)):
        with pytest.raises(LlamagenError, match="LG775"):
            reads()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ExportOptions(layout="hub", dtype="bfloat16"), "in bfloat16"),
        (
            ExportOptions(layout="hub", dtype="float16", quantize=coded("int8")),
            "in float16 with int8 projections",
        ),
        (ExportOptions(layout="hub", stages=2), "that is cut into stages"),
        (ExportOptions(layout="hub", web=True), "that has a page"),
        (
            ExportOptions(layout="hub", weights="reference"),
            "whose weights are the checkpoint's own files",
        ),
    ],
)
def test_what_the_hub_has_no_names_for(
    checkpoint: Path, tmp_path: Path, options: ExportOptions, why: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(LlamagenError) as caught:
        api.load(checkpoint.parent / "reduced.yaml").export(out, options, checkpoint=checkpoint)
    assert [f"{one.code} {one.message}" for one in caught.value.diagnostics] == [
        f"LG725 the Hub has no names for a folder {why}"
    ]
    assert not out.exists()
