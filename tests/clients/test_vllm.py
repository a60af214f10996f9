"""vLLM as a witness: what `verify --against vllm` says where it is absent, other or wrong; and what vLLM computes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

import llamagen
from bench.environments import environment
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import ExportOptions
from llamagen.emit.torch.check import load_module
from llamagen.ir.elaborate import build
from llamagen.verify.engine import Devices, rows_of, verify_engine
from tests.clients.vllm_models import folder_of, spec_of

torch.set_num_threads(1)


@cache
def place() -> Path:
    return Path(mkdtemp())


@cache
def folder(name: str) -> Path:
    return folder_of(name, place())


def stand_in(where: Path, says: str) -> Path:
    """An interpreter whose vLLM is a few lines: ``says`` makes an answer of a question and the generated model."""
    script = where / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, pathlib\n"
        "asked = json.loads(sys.stdin.readline())\n"
        f"answer = {says}\n"
        "pathlib.Path(asked['answer']).write_text(json.dumps(answer))\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return script


def right_answers(name: str, steps: int = 12) -> list[dict[str, Any]]:
    """What a right engine says for the prompts that are asked."""
    from llamagen.verify.engine import _prompts

    model = llamagen.load(spec_of(name, place()))
    run = load_module(model.torch_source()).CausalLM.from_pretrained(folder(name))
    texts = []
    for prompt in _prompts(model.resolved, model.graph, 0):
        ids = run.generate(torch.tensor([prompt]), max_new_tokens=steps)
        with torch.inference_mode():
            every = run(ids)[0, :-1].double().log_softmax(-1)
        values = every.gather(-1, ids[0, 1:, None])[:, 0].tolist()
        texts.append({"tokens": ids[0, len(prompt) :].tolist(), "logprobs": values})
    return texts


def test_right_answers_are_equal_and_wrong_ones_different(tmp_path: Path) -> None:
    texts = right_answers("odd")
    python = stand_in(tmp_path, f"{{'version': '0.32.0', 'texts': {texts!r}}}")
    report = verify_engine(folder("odd"), python=python)
    assert report.passed
    assert [row.case for row in report.rows] == [
        *("prompt of 5", "prompt of 17", "prompt of 33"),
        "greedy tokens",
    ]
    texts[1]["logprobs"][3] += 1e-3
    python = stand_in(tmp_path, f"{{'version': '0.32.0', 'texts': {texts!r}}}")
    verdicts = [row.verdict for row in verify_engine(folder("odd"), python=python).rows]
    assert verdicts == ["equal", "different", "equal", "equal"]


def test_a_model_that_is_sure_of_every_token_is_measured(tmp_path: Path) -> None:
    """Log probabilities of what it writes are all zero: they have no spread of their own."""
    texts = right_answers("gemma3")
    assert all(abs(value) < 1e-6 for text in texts for value in text["logprobs"][-12:])
    python = stand_in(tmp_path, f"{{'version': '0.32.0', 'texts': {texts!r}}}")
    assert verify_engine(folder("gemma3"), python=python).passed


def test_the_command_writes_its_evidence(tmp_path: Path) -> None:
    texts = right_answers("odd")
    python = stand_in(tmp_path, f"{{'version': '0.32.0', 'texts': {texts!r}}}")
    report = tmp_path / "report.json"
    words = ["verify", str(folder("odd")), "--against", "vllm", "--vllm-python", str(python)]
    done = subprocess.run(
        [sys.executable, "-m", "llamagen", *words, "--report", str(report)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "greedy tokens: 36 of 36 tokens are the likeliest" in done.stdout
    rows = json.loads(report.read_text())["comparisons"]
    assert [row["verdict"] for row in rows] == ["equal"] * 4


def test_a_token_that_is_not_the_likeliest_is_seen(tmp_path: Path) -> None:
    texts = right_answers("odd")
    texts[0]["tokens"][-1] = (texts[0]["tokens"][-1] + 1) % 512
    python = stand_in(tmp_path, f"{{'version': '0.32.0', 'texts': {texts!r}}}")
    report = verify_engine(folder("odd"), python=python)
    assert [row.verdict for row in report.rows][-1] == "different"


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("{'version': None}", "vLLM is not installed in"),
        ("{'version': '0.31.2'}", "vLLM 0.31.2 is there, and 0.32.0 is the version that is known"),
        ("{'version': '0.32.0', 'error': 'ValueError: no'}", "vLLM: ValueError: no"),
        ("1 / 0", "vLLM ended with 1: ZeroDivisionError"),
    ],
)
def test_an_engine_that_says_nothing_is_a_row_and_nothing_passes(
    says: str, why: str, tmp_path: Path
) -> None:
    report = verify_engine(folder("odd"), python=stand_in(tmp_path, says))
    (row,) = report.rows
    assert (row.verdict, report.passed) == ("not compared", False)
    assert why in row.note


def test_an_interpreter_that_is_not_there_is_a_row() -> None:
    (row,) = verify_engine(folder("odd"), python="/nowhere/python").rows
    assert row.verdict == "not compared" and "cannot be run" in row.note


def test_what_the_table_refuses_is_not_compared() -> None:
    (row,) = verify_engine(folder("mpt"), python=sys.executable).rows
    assert "cannot express alibi as custom code; it has a class of its own" in row.note


@pytest.mark.parametrize(
    ("devices", "code", "said"),
    [
        ({"tensor": 3}, "LG906", "cannot be cut over 3 devices"),
        ({"pipeline": 5}, "LG907", "4 layers cannot be 5 stages"),
    ],
)
def test_degrees_that_are_not_legal(devices: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        verify_engine(folder("odd"), **devices)
    assert caught.value.diagnostics[0].code == code and said in str(caught.value)


def without(name: str, fact: str, where: Path) -> Path:
    """A folder whose configuration has a fact no more, in the file and in the code."""
    for file in folder(name).iterdir():
        target = where / file.name
        if file.suffix == ".safetensors":
            target.hardlink_to(file)
            continue
        text = file.read_text(encoding="utf-8")
        if file.name == "config.json":
            text = json.dumps({k: v for k, v in json.loads(text).items() if k != fact})
        elif file.name.startswith("configuration"):
            assert f'    "{fact}": ' in text
            text = text.replace(f'    "{fact}": ', f'    "un{fact}": ')
        target.write_text(text, encoding="utf-8")
    return where


def test_a_fact_that_is_missing_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError, match=r"`layer_types` is missing, not \[") as caught:
        verify_engine(without("gemma2", "layer_types", tmp_path))
    assert caught.value.diagnostics[0].code == "LG779"


# vLLM itself, in an environment of its own


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("odd", {}),
        ("odd", {"tensor": 2}),
        ("odd", {"pipeline": 2}),
        ("odd", {"compiled": True}),
        ("olmo2", {"tensor": 2}),
        ("gemma2", {}),
        ("mistral", {}),
        ("mixtral", {}),
        ("mixtral", {"tensor": 2}),
        ("qwen2", {}),
    ],
)
def test_vllm_computes_the_model(name: str, devices: dict[str, Any]) -> None:
    report = verify_engine(folder(name), python=environment("vllm"), **devices)
    assert report.passed, [row.cells() for row in report.rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # vLLM compiles as it starts, and the first of these tests installs it
def test_our_code_is_the_class_of_vllm(tmp_path: Path) -> None:
    for custom in (False, True):
        options = ExportOptions(format="transformers", custom_code=custom)
        place = tmp_path / f"{custom}"
        place.mkdir()
        out = folder_of("llama", place, options)
        assert verify_engine(out, python=environment("vllm")).passed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "fact"), [("odd", "logit_scale"), ("gemma2", "layer_types")])
def test_vllm_is_wrong_without_a_fact_and_that_is_seen(
    name: str, fact: str, tmp_path: Path
) -> None:
    wrong = without(name, fact, tmp_path)
    model = llamagen.load(spec_of(name, place()))
    graph, python = build(model.resolved), environment("vllm")
    rows = rows_of(wrong, model.resolved, graph, Devices(), python=python)
    assert "different" in {row.verdict for row in rows}, [row.cells() for row in rows]
