"""What quantising costs: the numbers themselves, and where they are kept."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llamagen import api
from llamagen.api import load, random_checkpoint
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import DEFAULTS, ExportOptions, QuantizeOptions
from llamagen.resources import data_text
from llamagen.verify import quality
from llamagen.verify.stored import CodedPlace, stored_weights
from llamagen.verify.witnesses import OpenOnnx, TextSession
from tests.clients.models import TextModel
from tests.parity.models import SPECS

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"
EXPERTS = SPECS / "reduced" / "llama-4-scout.yaml"


def test_the_divergence_of_known_distributions() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
    q = np.array([[0.25, 0.5, 0.25], [0.1, 0.4, 0.5]])
    found = quality.Distances()
    for i, following in enumerate((2, 0)):  # logits may be shifted by anything
        own, exact = np.log(q[[[i]]]) + 3.0, np.log(p[[[i]]]) - [700.0, 20.0][i]
        found.add(own, exact, np.array([[following]]))
    divergence = [(p[i] * np.log(p[i] / q[i])).sum() for i in range(2)]
    assert found.divergence == pytest.approx(sum(divergence), rel=1e-9)
    assert found.largest == pytest.approx(max(divergence), rel=1e-9)
    assert found.same == 1 and found.positions == 2
    perplexities = [(0.25 * 0.1) ** -0.5, (0.25 * 0.2) ** -0.5]
    assert found.perplexities() == pytest.approx(perplexities, rel=1e-3)


def test_no_perplexity_of_a_text_that_cannot_be() -> None:
    found = quality.Distances()
    found.add(np.array([[[0.0, 900.0]]]), np.array([[[0.0, 900.0]]]), np.array([[0]]))
    with pytest.raises(LlamagenError, match=r"LG777.*a token of the text takes 900 nats"):
        found.perplexities()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["the folder", "the float32 model"])
def test_no_quality_of_logits_that_are_no_numbers(value: float, whose: str) -> None:
    sound, damaged = np.zeros((1, 1, 3)), np.array([[[0.0, value, 0.0]]])
    own, exact = (damaged, sound) if whose == "the folder" else (sound, damaged)
    with pytest.raises(LlamagenError) as caught:
        quality.Distances().add(own, exact, np.array([[0]]))
    (found,) = caught.value.diagnostics
    assert found.code == "LG777" and whose in found.message


def test_fewer_bits_cost_more(tmp_path: Path) -> None:
    results = {}
    for scheme in ("none", "int8", "int4"):
        out = tmp_path / scheme
        load(DENSE).export(out, ExportOptions(quantize=QuantizeOptions(scheme)), random_weights=1)
        before = {p.name: p.read_bytes() for p in out.iterdir() if p.name != "MANIFEST.json"}
        results[scheme] = api.measure_quality(out)
        assert read_manifest(out).quality == results[scheme]
        assert {
            p.name: p.read_bytes() for p in out.iterdir() if p.name != "MANIFEST.json"
        } == before
        assert api.check_integrity(out).findings == ()
    none, int8, int4 = results.values()
    for one in results.values():
        assert one.inputs == quality.RANDOM
        assert (one.text, one.perplexity, one.float32_perplexity) == (None, None, None)
    assert none.greedy_same == none.prompts and none.greedy_until == none.greedy_tokens
    assert int4.greedy_until < int8.greedy_until <= none.greedy_until
    assert none.kl_max < 1e-9 and none.top1_agreement == 1.0
    assert 1e-6 < int8.kl_mean < 1e-3 and int8.top1_agreement > 0.9
    assert 10 * int8.kl_mean < int4.kl_mean < 0.1 and int4.top1_agreement < int8.top1_agreement


def test_the_float32_model_reads_several_tokens_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder reads one, and what is compared is the same: a call costs it a reading of all weights."""
    options = ExportOptions(logits="last")
    load(DENSE).export(tmp_path / "out", options, random_weights=1)
    calls: list[int] = []
    step = TextSession.step

    def counted(self: TextSession, ids: Any, *rest: Any) -> Any:
        if not isinstance(self.graph, OpenOnnx):
            calls.append(ids.shape[1])
        return step(self, ids, *rest)

    monkeypatch.setattr(TextSession, "step", counted)
    found = {}
    for positions in (quality.ROWS, quality.POSITIONS):
        calls.clear()
        monkeypatch.setattr(quality, "POSITIONS", positions)
        one = api.measure_quality(tmp_path / "out")
        assert max(calls[: -quality.STEPS]) == positions // quality.ROWS
        assert one.positions == quality.PROMPTS * (quality.PROMPT + quality.STEPS - 1)
        found[positions] = one
    few, many = found[quality.ROWS], found[64]
    assert many.kl_mean == pytest.approx(few.kl_mean, abs=1e-8)
    assert many.top1_agreement == few.top1_agreement


def test_against_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_checkpoint(DENSE, tmp_path / "checkpoint", seed=1)
    out = str(tmp_path / "out")
    command = ["export", str(DENSE), "--checkpoint", str(tmp_path / "checkpoint"), "--out", out]
    assert main([*command, "--quantize", "w8a8"]) == 0
    assert f"verify {out} --quality {tmp_path / 'checkpoint'}" in capsys.readouterr().err
    assert main(["verify", out, "--quality", str(tmp_path / "checkpoint")]) == 0
    assert "same likeliest token" in capsys.readouterr().out
    with pytest.raises(LlamagenError) as caught:
        api.measure_quality(out)
    assert caught.value.diagnostics[0].code == "LG778"


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (DENSE, QuantizeOptions()),
        (DENSE, QuantizeOptions("int4", block_size=32)),
        (DENSE, QuantizeOptions("int4", block_size=128, asymmetric=True)),
        (DENSE, QuantizeOptions("int8")),
        (DENSE, QuantizeOptions("w8a8")),
        (EXPERTS, QuantizeOptions("int4")),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_checkpoint_is_refused(
    tmp_path: Path, spec: Path, options: QuantizeOptions, dtype: str
) -> None:
    """Only one tensor is another's, and of codes only a row: what a fine-tune leaves of it."""
    random_checkpoint(spec, tmp_path / "checkpoint", seed=1)
    load(spec).export(
        tmp_path / "out",
        ExportOptions(dtype=dtype, quantize=options),
        checkpoint=tmp_path / "checkpoint",
    )
    assert api.measure_quality(tmp_path / "out", tmp_path / "checkpoint")
    before = (tmp_path / "out/MANIFEST.json").read_bytes()
    file = tmp_path / "checkpoint/model.safetensors"
    tensors = load_file(file)
    prefix = "language_model." if spec == EXPERTS else ""
    for end in ("norm.weight", "layers.1.self_attn.v_proj.weight"):
        name = f"{prefix}model.{end}"
        changed = tensors[name].clone()
        changed[0] = -changed[0]
        save_file({**tensors, name: changed}, file)
        with pytest.raises(LlamagenError) as caught:
            api.measure_quality(tmp_path / "out", tmp_path / "checkpoint")
        assert caught.value.diagnostics[0].code == "LG778"
        assert f"`{name}`" in caught.value.diagnostics[0].message
    assert (tmp_path / "out/MANIFEST.json").read_bytes() == before


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the tokenizer of its kind, and spec.yaml beside it."""
    place = tmp_path_factory.mktemp("quality")
    TextModel("llama/3.2/1b").checkpoint(place)
    return place


def exported(place: Path, out: Path, options: ExportOptions = DEFAULTS) -> Path:
    load(place / "reduced.yaml").export(out, options, checkpoint=place / "checkpoint")
    return out


def test_perplexity_is_that_of_transformers(with_tokenizer: Path, tmp_path: Path) -> None:
    """On our text, in windows that each begin as the tokenizer begins a text; told token by token or call by call."""
    checkpoint = with_tokenizer / "checkpoint"
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = data_text("spec", "quality.txt")
    bos, *body = tokenizer.encode(text).ids
    size = quality.WINDOW - 1
    rows = torch.tensor([[bos, *body[i : i + size]] for i in range(0, len(body) - size, size)])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    for told in ("all", "last"):
        out = exported(with_tokenizer, tmp_path / told, ExportOptions(logits=told))
        found = api.measure_quality(out, checkpoint)
        assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=2e-3)
        assert found.perplexity == pytest.approx(found.float32_perplexity, rel=1e-3)
        assert found.positions == rows.numel() - len(rows) > 1000
        assert found.kl_max < 1e-9 and found.top1_agreement == 1.0
        assert found.greedy_same == found.prompts == 8 and found.greedy_until == 32
        assert found.text == hashlib.sha256(text.encode()).hexdigest()


def test_a_text_of_ones_own(
    with_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four bits are seen; memory does not grow with the text."""
    quantize = QuantizeOptions("int4", method="rtn")
    out = exported(with_tokenizer, tmp_path / "out", ExportOptions(quantize=quantize))
    command = ["verify", str(out), "--quality", str(with_tokenizer / "checkpoint"), "--text"]
    peaks = []
    for times in (1, 12):
        file = tmp_path / "mine.txt"
        file.write_text("Es war einmal ein Mann, der hatte sieben Söhne. " * 12 * times)
        tracemalloc.start()
        assert main([*command, str(file)]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    printed = capsys.readouterr().out
    assert "perplexity: " in printed and "of the float32 model" in printed
    assert "inputs: the text that was given" in printed and "random" not in printed
    found = read_manifest(out).quality
    assert found is not None and found.perplexity is not None
    assert found.text == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.positions > 3000 and found.kl_mean > 1e-4 and found.top1_agreement < 1.0
    assert found.perplexity != found.float32_perplexity
    assert found.greedy_same < found.prompts and 0 < found.greedy_until < found.greedy_tokens


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (b"three words only", "LG778", "tokens, and 255 are the least"),
        (b"caf\xe9 " * 1000, "LG778", "it is not UTF-8 text: byte 3 is wrong"),
        (b"\xef\xbb\xbf" + b"words " * 1000, "LG778", "a byte-order mark"),
        (None, "LG778", "No such file"),
        ("folder", "LG778", "is a folder"),
        ("no tokenizer", "LG761", "has no tokenizer.json"),
        ("ids", "LG778", "an id 328 that the model has not"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(
    text: bytes | str | None, code: str, message: str, with_tokenizer: Path, tmp_path: Path
) -> None:
    out, file = exported(with_tokenizer, tmp_path / "out"), tmp_path / "mine.txt"
    before = (out / "MANIFEST.json").read_bytes()
    match text:
        case bytes():
            file.write_bytes(text)
        case "folder":
            file.mkdir()
        case "no tokenizer":
            (out / "tokenizer.json").unlink()
        case "ids":
            tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
            tokenizer.add_tokens(["extra", "more", "most", "last"])
            (out / "tokenizer.json").write_text(tokenizer.to_str())
            file.write_text("extra more most last " * 1000)
    with pytest.raises(LlamagenError) as caught:
        api.measure_quality(out, with_tokenizer / "checkpoint", text=file)
    (found,) = caught.value.diagnostics
    assert found.code == code and message in found.message
    assert (out / "MANIFEST.json").read_bytes() == before


def test_a_text_goes_with_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), "--text", "mine.txt"]) == 2
    assert "--quality" in capsys.readouterr().err


def test_our_texts_are_disjoint() -> None:
    """No four words in a row of what scales are searched with stand in what the result is judged by."""
    searched, judged = (
        {tuple(words[i : i + 4]) for i in range(len(words) - 3)}
        for words in (data_text("spec", f"{n}.txt").split() for n in ("calibration", "quality"))
    )
    assert len(judged) > 1000 and not searched & judged


@pytest.mark.parametrize("method", ["rtn", "search"])
def test_weights_may_be_as_far_as_the_method_moves_them(
    method: str, with_tokenizer: Path, tmp_path: Path
) -> None:
    """A row that is off by two steps of its codes is another's. What is beyond the codes of its block may be far away
    where scales were searched, which clip the largest weights of a trained model; with 8 bits it may not."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(with_tokenizer / "checkpoint", checkpoint)
    quantize = QuantizeOptions("int4", method=method)
    out = exported(with_tokenizer, tmp_path / "out", ExportOptions(quantize=quantize))
    tensors = load_file(checkpoint / "model.safetensors")
    places = stored_weights(out).places
    v_proj, down_proj = (
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    )
    for name, far, refused in (
        (v_proj, False, True),
        (v_proj, True, method == "rtn"),
        (down_proj, False, True),
        (down_proj, True, True),
    ):
        place = places[name]
        assert isinstance(place, CodedPlace) and place.record.bits == (4 if "v_" in name else 8)
        values, steps = place.read(), place.steps()
        wrong = tensors[name].clone()
        if far:
            at = np.argwhere(place.at_ends() & (np.abs(values) > 0))[0]
            wrong[*at] = float(values[*at]) * 3
        else:
            outwards = np.where(place.at_ends(), values, values + 2 * np.sign(values) * steps)
            wrong[0] = torch.from_numpy(outwards)[0].to(torch.bfloat16)
        save_file({**tensors, name: wrong}, checkpoint / "model.safetensors")
        if not refused:
            assert api.measure_quality(out, checkpoint)
            continue
        with pytest.raises(LlamagenError, match=r"LG778.*other values"):
            api.measure_quality(out, checkpoint)


def test_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(DENSE).export(tmp_path / "out", random_weights=1)
    monkeypatch.setattr(quality, "MEMORY_SHARE", 1e-9)
    with pytest.raises(LlamagenError) as caught:
        api.measure_quality(tmp_path / "out")
    assert caught.value.diagnostics[0].code == "LG778"
    assert read_manifest(tmp_path / "out").quality is None
