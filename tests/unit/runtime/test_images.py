"""A folder with graphs for images: what `run` computes is what the reference computes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions
from llamagen.images.decode import read_image
from llamagen.images.prepare import Prompt, prompt_of
from llamagen.runtime.session import Session
from llamagen.spec.fmt import resolved_text
from llamagen.verify.scenarios import FloatArray, Scenario
from tests.parity import mllama
from tests.parity.llama4 import shrunk
from tests.parity.models import RandomModel
from tests.unit.images.pictures import photo

TINY = Path(__file__).resolve().parents[2] / "cases/common/tiny.yaml"
BOS, IMAGE, PATCH = 53, 56, 60


@pytest.fixture(scope="module")
def model() -> RandomModel:
    return shrunk("llama/4/scout")


@pytest.fixture(scope="module")
def folder(model: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images")
    (out / "spec.yaml").write_text(resolved_text(model.resolved), encoding="utf-8")
    api.load(out / "spec.yaml").export(out / "out", random_weights=7)
    Image.fromarray(photo(30, 70)).save(out / "wide.png")
    Image.fromarray(photo(24, 24)).save(out / "small.png")
    return out


@pytest.fixture(scope="module")
def cross_model() -> RandomModel:
    return mllama.shrunk(mllama.WIDE)


@pytest.fixture(scope="module")
def cross_folder(
    cross_model: RandomModel, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("cross")
    (out / "spec.yaml").write_text(resolved_text(cross_model.resolved), encoding="utf-8")
    api.load(out / "spec.yaml").export(out / "out", random_weights=7)
    for name in ("wide.png", "small.png"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out


def prompt(folder: Path, ids: tuple[int, ...], *names: str) -> Prompt:
    record = read_manifest(folder / "out").images
    assert record is not None and record.preprocessing is not None
    pictures = [read_image(folder / name) for name in names]
    return prompt_of(ids, pictures, record.preprocessing, encoded=False)


def by_reference(model: RandomModel, prompt: Prompt, new: tuple[int, ...]) -> FloatArray:
    """Logits after the prompt and after each new token, which sees what the last of the prompt sees."""
    ids = np.array([[*prompt.input_ids, *new]])
    calls = (len(prompt.input_ids), *(1 for _ in new))
    beside = {
        name: np.concatenate([value, *(value[:, -1:] for _ in new)], axis=1)
        for name, value in prompt.beside.items()
    }
    case = Scenario("run", ids, np.ones_like(ids), calls, images=prompt.images, beside=beside)
    return case.logits(model.whole("reference"))[len(prompt.input_ids) - 1 :]


def test_what_runs_is_what_the_reference_computes(model: RandomModel, folder: Path) -> None:
    case = prompt(folder, (BOS, 4, IMAGE, 9, IMAGE, 11), "wide.png", "small.png")
    assert case.input_ids.count(PATCH) == 9 * len(case.images["pixel_values"])
    record = read_manifest(folder / "out").images
    session = Session(folder / "out", OpenOptions(threads=1), record)
    session.see(case.images)
    found = [session.step(case.input_ids, case.beside), session.step((5,)), session.step((6,))]
    expected = by_reference(model, case, (5, 6))
    assert np.abs(np.array(found) - expected).max() <= 1e-5 * expected.std()
    session.reset()
    session.see(prompt(folder, (BOS, IMAGE), "wide.png").images)
    other = session.step(prompt(folder, (BOS, IMAGE), "wide.png").input_ids)
    assert np.abs(other - found[0]).max() > 0.01 * expected.std()


@pytest.mark.parametrize(
    "ids", [(61, 1, 5), (1, 61, 61, 5), (1, 4, 61, 9, 61), (61, 1, 3, 61, 4, 61, 61)]
)
def test_cross_attention_runs_as_the_reference_computes(
    ids: tuple[int, ...], cross_model: RandomModel, cross_folder: Path
) -> None:
    names = ["wide.png", "small.png", "wide.png", "small.png"][: ids.count(61)]
    case = prompt(cross_folder, ids, *names)
    assert case.input_ids == ids
    session = Session(
        cross_folder / "out", OpenOptions(threads=1), read_manifest(cross_folder / "out").images
    )
    session.see(case.images)
    found = [session.step(ids, case.beside), session.step((5,)), session.step((6,))]
    expected = by_reference(cross_model, case, (5, 6))
    assert np.abs(np.array(found) - expected).max() <= 1e-5 * expected.std()


def test_the_token_of_an_image_is_no_word(cross_folder: Path) -> None:
    """Llama 3.2 Vision reads it and has no logit for it, so a text cannot hold it."""
    with pytest.raises(LlamagenError) as caught:
        Session(cross_folder / "out").step((1, 61))
    assert caught.value.diagnostics[0].code == "LG763"


def test_generation_reads_images_and_never_writes_their_tokens(folder: Path) -> None:
    files = [folder / "wide.png", folder / "small.png"]
    marked = api.run(folder / "out", (BOS, IMAGE, IMAGE, 5), images=files, max_new_tokens=4)
    tokens = [piece.token for piece in marked]
    front = api.run(folder / "out", (BOS, 5), images=files, max_new_tokens=4)
    assert [piece.token for piece in front] == tokens and len(tokens) == 4
    assert "2 images seen in" in marked.summary()
    swapped = api.run(folder / "out", (BOS, 5), images=files[::-1], max_new_tokens=1)
    assert swapped.prompt.input_ids != front.prompt.input_ids
    assert marked.session.never == {PATCH}
    hot = api.run(
        folder / "out", (BOS, 5), images=files, max_new_tokens=200, temperature=50.0, seed=1
    )
    assert PATCH not in {piece.token for piece in hot}


def test_text_alone_needs_no_graph_for_images(folder: Path, tmp_path: Path) -> None:
    """Nor a dummy image: only model.onnx is opened."""
    text = tmp_path / "text"
    text.mkdir()
    for name in ("model.onnx", "model.onnx_data", "config.json", "MANIFEST.json"):
        (text / name).write_bytes((folder / "out" / name).read_bytes())
    found = [p.token for p in api.run(text, (BOS, 4, 5), max_new_tokens=3)]
    assert found == [p.token for p in api.run(folder / "out", (BOS, 4, 5), max_new_tokens=3)]
    with pytest.raises(LlamagenError) as caught:
        list(api.run(text, (BOS, 4, 5), images=[folder / "small.png"]))
    assert caught.value.diagnostics[0].code == "LG760"


def test_the_context_counts_the_tokens_of_images(folder: Path) -> None:
    """128 positions: a picture of 4 x 4 tiles alone takes more."""
    Image.fromarray(photo(96, 96)).save(folder / "large.png")
    with pytest.raises(LlamagenError, match=r"the prompt has 17\d tokens") as caught:
        api.run(folder / "out", (BOS, 5), images=[folder / "large.png"])
    assert caught.value.diagnostics[0].code == "LG764"


def test_a_model_of_text_refuses_images(folder: Path, tmp_path: Path) -> None:
    api.load(TINY).export(tmp_path / "out", random_weights=3)
    with pytest.raises(LlamagenError, match="reads text only") as caught:
        api.run(tmp_path / "out", (1, 2), images=[folder / "small.png"])
    assert caught.value.diagnostics[0].code == "LG783"


def test_rows_of_images_are_used_up(folder: Path) -> None:
    """Each token that stands for one gets its own, in whatever call it comes."""
    record = read_manifest(folder / "out").images
    session = Session(folder / "out", OpenOptions(threads=1), record)
    ((name, one),) = session.placeholders.items()
    per_item, token = one.rows or 1, one.placeholder
    assert token is not None
    rows = np.arange(3 * per_item, dtype=np.float32).reshape(3, per_item)
    session.rows = {name: rows}
    first = session.stood_for([token] * per_item + [1])
    second = session.stood_for([1] + [token] * (2 * per_item))
    assert np.array_equal(first[name], rows[:1]) and np.array_equal(second[name], rows[1:])
    assert len(session.stood_for([1, 2])[name]) == 0
