"""onnxruntime-genai runs exported folders unmodified, and writes what transformers writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest
from transformers import AutoTokenizer

from llamagen import api
from llamagen.emit.options import ExportOptions, QuantizeOptions
from tests.clients.models import LLAMA_2, Layout, TextModel, greedy

MODELS = (
    TextModel("llama/1/7b", LLAMA_2),
    TextModel("llama/2/7b", LLAMA_2),
    TextModel("llama/2/70b", LLAMA_2),
    TextModel("llama/code/7b", LLAMA_2),
    TextModel("llama/code/34b", LLAMA_2),
    TextModel("llama/3/8b"),
    TextModel("llama/3.1/8b"),
    TextModel("llama/3.2/1b"),
    TextModel("llama/3.3/70b-instruct"),
    TextModel("llama/guard/1-7b", LLAMA_2),
    TextModel("llama/guard/2-8b"),
    TextModel("llama/guard/3-8b"),
    TextModel("llama/guard/3-1b"),
    TextModel("llama/guard/3-1b-pruned"),
)
CHAT = [{"role": "user", "content": "What is the capital of Spain?"}]
PROMPTS = ("The capital of France is", "Wien in Österreich: 2024 → 40")
NEW_TOKENS = 16


def generate(
    model: og.Model, layout: Layout, rows: list[list[int]], new_tokens: int
) -> list[list[int]]:
    """Greedy continuations of a batch, padded on the right with the end token; each up to its own end."""
    longest = max(map(len, rows))
    batch = [row + [layout.eos] * (longest - len(row)) for row in rows]
    params = og.GeneratorParams(model)
    params.set_search_options(
        max_length=longest + new_tokens, batch_size=len(rows), do_sample=False
    )
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(batch, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [_ended(generator.get_sequence(i)[longest:].tolist(), layout) for i in range(len(rows))]


def _ended(tokens: list[int], layout: Layout) -> list[int]:
    """Without what follows the first end token: padding, while other rows go on."""
    ends = [i for i, token in enumerate(tokens) if token in layout.ends]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("made", MODELS, ids=lambda made: made.id)
def test_same_text_as_transformers(made: TextModel, tmp_path: Path) -> None:
    checkpoint = made.checkpoint(tmp_path)
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    rows = [theirs(prompt).input_ids for prompt in PROMPTS]
    expected = greedy(checkpoint, rows, NEW_TOKENS)
    assert len({token for row in expected for token in row}) > NEW_TOKENS // 2, "a dull model"

    for profile, shared in (("portable", False), ("ort-cpu", True)):
        out = tmp_path / profile
        api.load(made.spec(tmp_path)).export(
            out, ExportOptions(profile=profile), checkpoint=checkpoint
        )
        search = json.loads((out / "genai_config.json").read_text())["search"]
        assert search["past_present_share_buffer"] == shared
        model = og.Model(str(out))
        tokenizer = og.Tokenizer(model)
        tokenizer.update_options(add_special_tokens="true")
        assert [tokenizer.encode(prompt).tolist() for prompt in PROMPTS] == rows
        # a random model writes broken UTF-8, where the two libraries show another number of marks
        assert [tokenizer.decode(row) for row in rows] == list(PROMPTS)
        single = [generate(model, made.layout, [row], NEW_TOKENS)[0] for row in rows]
        assert single == expected, profile
        assert generate(model, made.layout, rows, NEW_TOKENS) == expected, profile


def test_same_chat_prompt_as_transformers(tmp_path: Path) -> None:
    made = TextModel("llama/3.2/1b-instruct")
    checkpoint = made.checkpoint(tmp_path)
    out = tmp_path / "out"
    api.load(made.spec(tmp_path)).export(out, checkpoint=checkpoint)
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    tokenizer = og.Tokenizer(og.Model(str(out)))
    prompt = tokenizer.apply_chat_template(json.dumps(CHAT), add_generation_prompt=True)
    assert tokenizer.encode(prompt).tolist() == expected


SENSITIVE = "int4 in blocks of 32 (61,440); int8 in blocks of 32 (45,568); float32 (448)"
"""The head, the embedding, and weights of layers where it matters have eight bits."""


@pytest.mark.parametrize(
    ("profile", "how", "scheme", "said"),
    [
        ("ort-cpu", "reference", "none", "bfloat16"),
        ("ort-cpu", "copy", "int4", SENSITIVE),
        ("portable", "copy", "int8", "int8 in blocks of 32 (107,008); float32 (448)"),
    ],
    ids=["reference", "int4", "int8"],
)
def test_same_tokens_as_our_own_session(
    profile: str, how: str, scheme: str, said: str, tmp_path: Path
) -> None:
    made = TextModel("llama/3.2/1b")
    checkpoint = made.checkpoint(tmp_path)
    out = tmp_path / "out"
    api.load(made.spec(tmp_path)).export(
        out,
        ExportOptions(profile=profile, weights=how, quantize=QuantizeOptions(scheme)),
        checkpoint=checkpoint,
    )
    assert f"| weights | {said} |\n" in (out / "README.md").read_text()
    prompt = made.tokenizer().encode(PROMPTS[0]).ids
    told = api.run(out, prompt, max_new_tokens=NEW_TOKENS)
    ours = [one.token for one in told if one.token is not None]
    (theirs,) = generate(og.Model(str(out)), made.layout, [prompt], NEW_TOKENS)
    assert [token for token in theirs if token not in made.layout.ends] == ours


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
def test_stages_write_the_same_tokens(profile: str, tmp_path: Path) -> None:
    made = TextModel("llama/3.2/1b")
    checkpoint, texts = made.checkpoint(tmp_path), []
    prompt = made.tokenizer().encode(PROMPTS[0]).ids
    for stages in (None, 2):
        out = tmp_path / f"out-{stages}"
        options = ExportOptions(profile=profile, stages=stages)
        api.load(made.spec(tmp_path)).export(out, options, checkpoint=checkpoint)
        texts.append(generate(og.Model(str(out)), made.layout, [prompt], NEW_TOKENS))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "stopped"])
def test_a_conversation_as_the_readme_says(ended: bool, profile: str, tmp_path: Path) -> None:
    """The next turn sees every token of the one before."""
    made = TextModel("llama/2/7b", LLAMA_2)
    checkpoint, out = made.checkpoint(tmp_path), tmp_path / "out"
    api.load(made.spec(tmp_path)).export(out, ExportOptions(profile=profile), checkpoint=checkpoint)
    first, second = [made.layout.bos, 50, 60, 70, 80], [90, 100, 110]
    (answer,) = greedy(checkpoint, [first], 4)
    assert len(set(answer)) == 4
    (expected,) = greedy(checkpoint, [first + answer + second], 6)
    config = og.Config(str(out))
    if ended:
        config.overlay(json.dumps({"model": {"eos_token_id": answer[-1]}}))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=64, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(first)
    while not generator.is_done() and generator.token_count() < len(first + answer):
        generator.generate_next_token()
    assert generator.is_done() == ended
    if ended:
        generator.append_tokens(answer[-1:] + second)
    else:
        generator.rewind_to(generator.token_count() - 2)
        generator.append_tokens(answer[-2:] + second)
    found: list[int] = []
    while not generator.is_done() and len(found) < len(expected):
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found and found == expected[: len(found)]
