"""Prompts side by side: each gets what it gets alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import llamagen
from llamagen.api import Runner
from llamagen.emit.options import ExportOptions
from tests.parity.models import SPECS
from tests.unit.runtime.test_run import folder

__all__ = ["folder"]

PROMPTS = ["one two three one two", "three", "w9 w10 one", "w20"]


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(),
        ExportOptions(profile="ort-cpu"),
        ExportOptions(profile="ort-cpu", logits="all"),
        ExportOptions(profile="ort-cpu", runtime="1.31"),
        ExportOptions(profile="ort-cpu", cache_dtype="int8"),
    ],
    ids=["grows", "in place", "all logits", "one row", "codes"],
)
def test_each_row_is_as_alone(options: ExportOptions, tmp_path: Path) -> None:
    """In float32, with rows of other lengths, of which some end early."""
    out = tmp_path / "out"
    llamagen.load(SPECS / "reduced" / "llama-1-7b.yaml").export(out, options, random_weights=3)
    runner, rows = Runner(out), [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [15, 16]]
    alone = []
    for ids in rows:
        stream = runner.run(ids, max_new_tokens=12)
        list(stream)
        alone.append(stream.tokens)
    assert [one.tokens for one, _ in runner.run_batch(rows, max_new_tokens=12)] == alone
    ends = json.loads((out / "generation_config.json").read_text())
    (out / "generation_config.json").write_text(json.dumps({**ends, "eos_token_id": alone[0][3]}))
    stopped = runner.run_batch(rows, max_new_tokens=12)
    cut = [ids[: ids.index(alone[0][3])] if alone[0][3] in ids else ids for ids in alone]
    assert [one.tokens for one, _ in stopped] == cut and len(cut[0]) < 12
    assert stopped[0][0].ended == "token"


@pytest.mark.parametrize("chosen", [{}, {"temperature": 1.0, "seed": 5}, {"chat": True}])
def test_texts_stops_and_draws(chosen: dict[str, object], folder: Path) -> None:
    runner = Runner(folder)

    def alone(prompt: str, stop: list[str]) -> tuple[str, str | None]:
        stream = runner.run(prompt, max_new_tokens=10, stop=stop, **chosen)  # type: ignore[arg-type]
        return "".join(piece.text for piece in stream), stream.ended

    whole = [alone(prompt, [])[0] for prompt in PROMPTS]
    stop = [whole[1][3:6]]
    wanted = [alone(prompt, stop) for prompt in PROMPTS]
    found = runner.run_batch(PROMPTS, max_new_tokens=10, stop=stop, **chosen)  # type: ignore[arg-type]
    assert [(text, one.ended) for one, text in found] == wanted
    assert "string" in {why for _, why in wanted}


def test_a_batch_beyond_the_context_is_answered_in_turn(folder: Path) -> None:
    runner = Runner(folder)
    (one, _) = runner.run_batch(["one"], max_new_tokens=100_000)[0]
    assert one.ended in ("context", "token")


def test_lines_of_json_keep_their_order(folder: Path) -> None:
    words = [sys.executable, "-m", "llamagen", "run", str(folder), "--max-new-tokens", "5"]
    words += ["--prompts", "-", "--format", "json"]
    given = "\n".join(PROMPTS).encode()
    answers = []
    for more in ([], ["--batch", "3"]):
        done = subprocess.run([*words, *more], input=given, capture_output=True, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        answers.append([(one["text"], one["tokens"], one["read"]) for one in lines])
    assert answers[0] == answers[1] and len(answers[0]) == 4
    words = [sys.executable, "-m", "llamagen", "run", str(folder), "--batch", "2"]
    refused = subprocess.run([*words, "--prompt", "one"], capture_output=True)
    assert refused.returncode == 2 and b"--prompts" in refused.stderr
