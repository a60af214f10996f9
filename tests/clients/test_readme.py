"""The README of a folder: every snippet in it runs there and gives the tokens of transformers."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.environments import environment
from llamagen import api
from llamagen.cli import main
from llamagen.emit.options import ExportOptions
from tests.clients.browser import in_browser
from tests.clients.models import LLAMA_2, TextModel, greedy
from tests.clients.snippets import snippets
from tests.real import smollm2

CLIENTS = {"llamagen", "onnxruntime", "onnxruntime-genai", "optimum", "transformers.js"}
PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"
NEW_TOKENS = 16
REDUCED_SCOUT = Path(__file__).parents[1] / "specs" / "reduced" / "llama-4-scout.yaml"


class Folder:
    """An exported folder and what its snippets must give."""

    def __init__(
        self,
        made: TextModel,
        place: Path,
        *,
        text: bool,
        dtype: str = "float32",
        profile: str = "portable",
    ) -> None:
        place.mkdir()
        self.made, self.place, self.text = made, place, text
        checkpoint = made.checkpoint(place)
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        if not text:
            (checkpoint / "tokenizer.json").unlink()
            (checkpoint / "tokenizer_config.json").unlink()
        self.out = place / "out"
        api.load(made.spec(place)).export(
            self.out, ExportOptions(dtype=dtype, profile=profile), checkpoint=checkpoint
        )
        self.snippets = snippets(self.out)
        prompt = tokenizer.encode(PROMPT).ids if text else [made.layout.bos, 1, 2, 3]
        (tokens,) = greedy(checkpoint, [prompt], NEW_TOKENS)
        self.tokens = [t for t in tokens if t not in made.layout.ends]
        self.words = tokenizer.decode(self.tokens)


@pytest.fixture(scope="module", params=["text", "ids", "fused"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    place = tmp_path_factory.mktemp("readme") / request.param
    profile = "ort-cpu" if request.param == "fused" else "portable"
    return Folder(TextModel("llama/3.2/1b"), place, text=request.param == "text", profile=profile)


def run_here(code: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(folder.out)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def without_end(folder: Folder, tokens: list[int]) -> list[int]:
    return [t for t in tokens if t not in folder.made.layout.ends]


def test_every_client_is_there(folder: Folder) -> None:
    refused = (folder.out / "README.md").read_text().partition("## Not with this folder")[2]
    if folder.place.name == "fused":
        assert set(folder.snippets) == CLIENTS - {"transformers.js"}
        assert refused.count("\n- ") == refused.count("\n- transformers.js:") == 1
    else:
        assert set(folder.snippets) == CLIENTS
        assert refused == ""


def test_onnxruntime(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_here(folder.snippets["onnxruntime"], folder, monkeypatch)
    assert names["answer"] == folder.tokens


def test_genai(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_here(folder.snippets["onnxruntime-genai"], folder, monkeypatch)
    answer: list[int] = names["answer"].tolist()  # type: ignore[attr-defined]
    assert without_end(folder, answer) == folder.tokens


def test_llamagen(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.out)
    verify, run = folder.snippets["llamagen"].splitlines()
    assert main(shlex.split(verify)[1:]) == 0
    capsys.readouterr()
    assert main(shlex.split(run)[1:]) == 0
    printed = capsys.readouterr().out
    if not folder.text:
        assert [int(word) for word in printed.split()] == folder.tokens


@pytest.mark.slow
def test_optimum(folder: Folder) -> None:
    code = folder.snippets["optimum"] + "\nprint(answer.tolist())\n"
    printed = outside(environment("optimum"), ["-c", code], folder.out)
    assert without_end(folder, ast.literal_eval(printed.splitlines()[-1])) == folder.tokens


@pytest.mark.slow
def test_transformers_js(folder: Folder) -> None:
    if "transformers.js" not in folder.snippets:
        return  # refused in its README, which test_every_client_is_there reads
    place = environment("transformers.js")
    script = place / f"{folder.place.name}.mjs"
    script.write_text(folder.snippets["transformers.js"])  # node finds packages beside the script
    printed = outside(Path("node"), [str(script)], folder.out)
    if folder.text:
        assert printed == folder.words + "\n"
    else:
        assert without_end(folder, ast.literal_eval(printed)) == folder.tokens


@pytest.mark.slow
def test_a_browser(folder: Folder) -> None:
    """The same lines in Chromium, which fetches only the names that config.json and transformers.js know."""
    if "transformers.js" not in folder.snippets:
        return
    (line,) = in_browser(folder.out, folder.snippets["transformers.js"])
    if folder.text:
        assert line == folder.words
    else:
        assert without_end(folder, [int(one) for one in line.split(",")]) == folder.tokens
    config = folder.out / "config.json"
    whole = config.read_bytes()
    config.write_text(
        json.dumps({**json.loads(whole), "transformers.js_config": {"dtype": "fp32"}})
    )
    with pytest.raises(RuntimeError, match="onnx_data"):
        in_browser(folder.out, folder.snippets["transformers.js"])
    config.write_bytes(whole)


@pytest.mark.slow
def test_a_trained_model_answers_in_a_browser(tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.imported(smollm2()).export(out, checkpoint=smollm2())
    answer = "".join(a.text for a in api.run(out, QUESTION, chat=True, max_new_tokens=NEW_TOKENS))
    script = snippets(out)["transformers.js"]
    for words, instead in (
        (f'"{PROMPT}"', f'[{{role: "user", content: "{QUESTION}"}}]'),
        ("answer.generated_text", "answer.generated_text.at(-1).content"),
        ("return_full_text: false", "return_full_text: true"),
    ):
        assert words in script
        script = script.replace(words, instead)
    assert in_browser(out, script) == [answer]
    assert "Paris" in answer


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runtimes take the folder. In 16 bit the tokens soon leave those of float32; the first is far from a tie."""
    folder = Folder(TextModel("llama/2/7b", LLAMA_2), tmp_path / "it", text=True, dtype=dtype)
    ours = run_here(folder.snippets["onnxruntime"], folder, monkeypatch)["answer"]
    theirs = run_here(folder.snippets["onnxruntime-genai"], folder, monkeypatch)["answer"]
    assert without_end(folder, theirs.tolist()) == ours  # type: ignore[attr-defined]
    assert isinstance(ours, list)
    assert ours[0] == folder.tokens[0]


def outside(program: Path, arguments: list[str], folder: Path) -> str:
    done = subprocess.run([str(program), *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_snippets_are_python_of_this_version(folder: Folder) -> None:
    for client in ("onnxruntime", "onnxruntime-genai", "optimum"):
        ast.parse(folder.snippets[client], feature_version=sys.version_info[:2])


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", "float16"), ("cuda", "bfloat16"), ("webgpu", "float16")]
)
def test_a_folder_for_a_gpu_says_what_was_not_run(device: str, dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = TextModel("llama/3.2/1b")
    api.load(made.spec(tmp_path)).export(
        out, ExportOptions(profile=f"ort-{device}", dtype=dtype), random_weights=3
    )
    text = (out / "README.md").read_text()
    assert "No GPU ran this folder before it was written." in text
    runs = set(snippets(out))
    assert ("onnxruntime" in runs) == (dtype == "float16")
    assert runs - {"onnxruntime"} == {"llamagen", "onnxruntime-genai"}
    commands = snippets(out)["llamagen"].splitlines()
    assert all(command.endswith(f" --provider {device}") for command in commands)
    assert "threads" not in snippets(out)["onnxruntime-genai"]
    session = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert session["session_options"]["provider_options"] == [{device: {}}]


def test_bounded_caches_are_refused_to_clients_and_run_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunked layers that forget: onnxruntime-genai wants pasts of one length, a loop over a session does not."""
    model = api.load(REDUCED_SCOUT)
    answers = []
    for cache in ("full", "bounded"):
        out = tmp_path / cache
        model.export(out, ExportOptions(cache=cache), random_weights=3)
        assert (out / "genai_config.json").is_file() == (cache == "full")
        assert ("onnxruntime-genai" in snippets(out)) == (cache == "full")
        monkeypatch.chdir(out)
        names: dict[str, object] = {}
        exec(compile(snippets(out)["onnxruntime"], "README.md", "exec"), names)
        answers.append(names["answer"])
    full, bounded = answers
    assert full == bounded
    assert isinstance(full, list)
    assert len(full) > 10  # twice the chunk
    refused = (tmp_path / "bounded" / "README.md").read_text().partition("## Not with")[2]
    assert "onnxruntime-genai: the model keeps at most 4 tokens in" in refused
