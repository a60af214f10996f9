"""Models that keep other states than keys and values, in a folder: `run`, batches, `verify`, what clients are told."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import llamagen
from llamagen.analysis.numbers import cache_of
from llamagen.api import Runner, verify_folder
from llamagen.emit.options import ExportOptions
from tests.parity.models import SPECS, RandomModel

FOREIGN = SPECS / "foreign"


@pytest.fixture(scope="module", params=["portable", "ort-cpu"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("states") / "out"
    options = ExportOptions(profile=request.param)
    llamagen.load(FOREIGN / "qwen3_next.yaml").export(out, options, random_weights=3)
    return out


def test_each_row_of_a_batch_is_as_alone(folder: Path) -> None:
    runner, rows = Runner(folder), [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]
    alone = []
    for ids in rows:
        stream = runner.run(ids, max_new_tokens=8)
        list(stream)
        alone.append(stream.tokens)
    assert [one.tokens for one, _ in runner.run_batch(rows, max_new_tokens=8)] == alone
    stream = runner.run(rows[0], max_new_tokens=8)
    list(stream)
    assert stream.tokens == alone[0], "states are left of the texts before"


def test_a_folder_says_what_its_states_are(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    # three layers of a convolution and a recurrence, then an attention
    assert shapes["past_key_values.0.conv_state"] == ["batch_size", 44, 3]
    assert shapes["past_key_values.1.recurrent_state"] == ["batch_size", 4, 6, 5]
    assert str(shapes["past_key_values.6.key"][2]).startswith("past_")
    pasts = {name: dims for name, dims in shapes.items() if name.startswith("past_key_values")}
    assert len(pasts) == 8
    for name, dims in pasts.items():
        present = shapes[name.replace("past_key_values", "present")]
        assert present == [present[2] if str(d).startswith("past_") else d for d in dims]
    assert not (folder / "genai_config.json").exists()
    assert "other states than keys and values" in (folder / "README.md").read_text()


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
def test_verify_proves_it(profile: str, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ExportOptions(profile=profile)
    llamagen.load(FOREIGN / "lfm2.yaml").export(out, options, random_weights=3)
    assert verify_folder(out, ("torch",), steps=2, prompt_tokens=9).passed


def test_states_have_the_same_size_at_every_context() -> None:
    cache = cache_of(RandomModel.named("foreign/qwen3_next").graph)
    assert [str(t) for t in cache.states[:2]] == ["model[B, 44, 3]", "float32[B, 4, 6, 5]"]
    fixed = 3 * (2 * 44 * 3 + 4 * 4 * 6 * 5)
    assert cache.needed(0, 2) == cache.allocated(0, 2) == fixed
    assert cache.needed(10, 2) == fixed + 10 * cache.per_token(2)


def test_a_hybrid_is_no_code_for_transformers() -> None:
    model, options = llamagen.load(FOREIGN / "lfm2.yaml"), ExportOptions(format="transformers")
    with pytest.raises(llamagen.LlamagenError, match="keeps a state of `conv1d`"):
        model.export(Path("nowhere"), options, random_weights=0)
