"""Models that give something else than logits, or more: a reward model, an embedding, heads of Medusa."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers import AutoModelForSequenceClassification as AutoClassifier

from llamagen.api import load, measure_quality, run
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.reference import evaluate
from llamagen.spec.fmt import resolved_text
from llamagen.verify.folder import verify_folder
from tests.parity.models import SPECS, RandomModel
from tests.parity.peers import common, everything_float64

torch.set_num_threads(1)

PADDING = 60
"""An id of padding, which no text has: transformers' classifier looks for it, not at the mask."""
LENGTHS = (7, 4, 1)

Arrays = dict[str, NDArray[Any]]


@cache
def model_of(name: str) -> RandomModel:
    return RandomModel.named(f"outputs/{name}")


@cache
def texts(side: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask of three texts, padded on the left or on the right."""
    generator = np.random.default_rng(4)
    slots = np.arange(max(LENGTHS))
    behind = slots if side == "right" else slots[::-1]
    mask = (behind < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = generator.integers(0, PADDING, mask.shape)
    return np.where(mask > 0, ids, PADDING), mask


def ours(model: RandomModel, side: str) -> Arrays:
    ids, mask = texts(side)
    found = evaluate(model.flat, model.weight, ids, mask)
    return dict(zip(model.graph.output_names, found.outputs, strict=True))


def widened(model: RandomModel, path: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(model.weight(path), np.float64))


def peer_of(model: RandomModel, auto: Any, prefix: str = "", **more: object) -> Any:
    """A Llama of transformers with our weights below ``prefix``, in float64."""
    values = {**common(model.resolved.spec), **more}
    config = AutoConfig.for_model("llama", **values)
    peer = auto.from_config(config, attn_implementation="eager", dtype=torch.float64)
    paths = [p for p in model.parameters if p.removeprefix(prefix) in peer.state_dict()]
    peer.load_state_dict({p.removeprefix(prefix): widened(model, p) for p in paths})
    return peer.double().eval()


def theirs(name: str, side: str) -> dict[str, torch.Tensor]:
    model = model_of(name)
    ids, mask = map(torch.from_numpy, texts(side))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": ids, "position_ids": positions}
    with everything_float64(), torch.no_grad():
        match name:
            case "reward":
                peer = peer_of(model, AutoClassifier, num_labels=3, pad_token_id=PADDING)
                return {"scores": peer(**given, attention_mask=mask).logits}
            case "embedding":
                hidden = torch.where(mask[:, None, None] > 0, 0.0, -torch.inf)
                peer = peer_of(model, AutoModel)
                every = hidden.expand(-1, -1, ids.shape[1], -1)
                states = peer(**given, attention_mask=every).last_hidden_state
                mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                return {"embedding": torch.nn.functional.normalize(mean)}
        peer = peer_of(model, AutoModelForCausalLM)
        states = peer.model(**given, attention_mask=mask).last_hidden_state
        outputs = {"logits": peer.lm_head(states), "hidden": states}
        for i in (1, 2):  # ResBlock and linear of FasterDecoding/Medusa, medusa_model.py
            at = {n: widened(model, f"head_{i}.{n}") for n in ("residual.weight", "residual.bias")}
            turned = states @ at["residual.weight"].T + at["residual.bias"]
            residual = states + torch.nn.functional.silu(turned)
            outputs[f"medusa_{i}"] = residual @ widened(model, f"head_{i}.vocabulary.weight").T
        return outputs


def furthest(found: Arrays, expected: dict[str, torch.Tensor], side: str) -> float:
    """Of all outputs, over their spread; padding is left out."""
    assert found.keys() == expected.keys()
    mask, worst = texts(side)[1] > 0, 0.0
    for name, value in expected.items():
        a, b = found[name], value.double().numpy()
        assert a.shape == b.shape
        if a.ndim == 3:
            a, b = a[mask], b[mask]
        worst = max(worst, float(np.abs(a - b).max() / b.std()))
    return worst


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["reward", "embedding", "medusa"])
def test_it_is_the_model_of_transformers(name: str, side: str) -> None:
    assert furthest(ours(model_of(name), side), theirs(name, side), side) < 1e-12


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("reward", "last_token", "first_token"),
        ("reward", "last_token", "mean_tokens"),
        ("embedding", "mean_tokens", "last_token"),
        ("embedding", "theta: 10000.0", "theta: 10001.0"),
        ("embedding", "square(h)", "square(h) * 1.000001"),
        ("medusa", "x + silu", "silu"),
    ],
)
def test_another_model_is_seen(name: str, right: str, wrong: str) -> None:
    text = resolved_text(model_of(name).resolved)
    assert right in text
    found = ours(RandomModel.of_text(text.replace(right, wrong)), "left")
    assert furthest(found, theirs(name, "left"), "left") > 1e-8


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("op", ["first_token", "last_token", "mean_tokens"])
@torch.no_grad()
def test_texts_of_any_padding_in_torch(op: str, side: str) -> None:
    """The file itself, which makes a mask of ones where none is given."""
    text = resolved_text(model_of("reward").resolved).replace("last_token", op)
    model = RandomModel.of_text(text)
    made = load_module(emit_torch(model.graph)).SequenceClassifier()
    made.load_state_dict({p: torch.from_numpy(model.weight(p)) for p in model.parameters})
    ids, mask = map(torch.from_numpy, texts(side))
    found = made(ids, attention_mask=mask).numpy()
    expected = ours(model, side)["scores"]
    assert np.abs(found - expected).max() < 1e-5 * expected.std()
    for row, (own, real) in enumerate(zip(ids, mask > 0, strict=True)):
        alone = made(own[None, real]).numpy()
        assert np.abs(alone - expected[row]).max() < 1e-5 * expected.std()


@torch.no_grad()
def test_several_outputs_and_a_text_in_torch() -> None:
    """Tokens come of the logits, wherever these stand among what the model gives."""
    text = resolved_text(model_of("medusa").resolved)
    text = text.replace("outputs: [logits, medusa_1,", "outputs: [medusa_1, logits,")
    text = text.replace("return lm_head(h), head_1(h),", "return head_1(h), lm_head(h),")
    for one in (model_of("medusa"), RandomModel.of_text(text)):
        made = load_module(emit_torch(one.graph)).Medusa()
        made.load_state_dict({p: torch.from_numpy(one.weight(p)) for p in one.parameters})
        ids = torch.tensor([[5, 17, 2]])
        written = made.generate(ids, max_new_tokens=3).clone()
        at = one.graph.output_names.index("logits")
        for length in range(3, 6):
            assert written[0, length] == made(written[:, :length])[at][0, -1].argmax()
        assert float(made.loss(ids, ids)) > 0


def exported(name: str, out: Path, **options: Any) -> Path:
    model = load(f"outputs/{name}", roots=(SPECS,))
    model.export(out, ExportOptions(**options), random_weights=5)
    return out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reward", {}),
        ("reward", {"profile": "ort-cpu", "dtype": "float16"}),
        ("embedding", {"profile": "ort-cpu"}),
        ("medusa", {}),
        ("medusa", {"profile": "ort-cpu"}),
    ],
)
def test_every_output_of_a_folder_is_compared(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = exported(name, tmp_path / "out", **options)
    report = verify_folder(folder, steps=3)
    names = model_of(name).graph.output_names
    cases = {(r.witness, r.case) for r in report.rows if r.verdict == "equal"}
    for case in ("prefill", "left padding", "right padding", "rows cut anywhere"):
        for output in names:
            assert {("torch", f"{case}, {output}"), ("reference", f"{case}, {output}")} <= cases
    assert report.passed
    graph = read_manifest(folder).graphs["model"]
    assert graph.outputs == {
        n: f"[{', '.join(map(str, t.shape))}]" for n, t in model_of(name).graph.outputs
    }


def test_the_output_that_is_wrong_is_named(tmp_path: Path) -> None:
    folder = exported("medusa", tmp_path / "out")
    file = folder / "model.onnx"
    model = onnx.load(str(file), load_external_data=False)
    swapped = {"medusa_1": "medusa_2", "medusa_2": "medusa_1"}
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = swapped.get(name, name)
    onnx.save(model, str(file))
    report = verify_folder(folder, against=("torch",), steps=3)
    verdicts = {r.case: r.verdict for r in report.rows if r.case.startswith("decode")}
    assert verdicts == {
        "decode, logits": "equal",
        "decode, medusa_1": "different",
        "decode, medusa_2": "different",
        "decode, hidden": "equal",
    }


def test_what_wants_logits_says_so(tmp_path: Path) -> None:
    folder = exported("reward", tmp_path / "out")
    with pytest.raises(LlamagenError, match="gives 'scores', and no logits") as caught:
        run(folder, [1, 2])
    assert caught.value.diagnostics[0].code == "LG786"
    with pytest.raises(LlamagenError, match="gives `scores` and no logits") as caught:
        measure_quality(folder)
    assert caught.value.diagnostics[0].code == "LG778"
    report = verify_folder(folder, against=("transformers",), steps=3)
    (row,) = (r for r in report.rows if r.witness == "transformers")
    assert row.missing and "asked for logits alone" in row.note and not report.passed
    recorded = tmp_path / "recorded.npz"
    np.savez(recorded)
    with pytest.raises(LlamagenError, match="asked for logits alone"):
        verify_folder(folder, against=(str(recorded),), steps=3)
    other = exported("medusa", tmp_path / "medusa")
    with pytest.raises(LlamagenError, match="3 scores a text"):
        verify_folder(folder, against=(str(other),), steps=3)
