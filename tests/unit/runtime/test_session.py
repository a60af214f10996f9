"""The session's cache: token by token gives the logits of all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions, _require_attention, open_session
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.runtime.session import BufferCache, GrowingCache, Session, cache_of

TINY = Path(__file__).resolve().parents[2] / "cases/common/tiny.yaml"
IDS = (5, 17, 2, 80, 33, 9, 61)


@pytest.fixture(scope="module", params=["portable", "ort-cpu"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    api.load(TINY).export(out, ExportOptions(profile=request.param), random_weights=3)
    return out


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose attention is fused, with room for 40 tokens."""
    folder = tmp_path_factory.mktemp("fused")
    text = TINY.read_text().replace("head_dim: 8", "head_dim: 16")
    (folder / "wide.yaml").write_text(text)
    out = folder / "out"
    model = api.load(folder / "wide.yaml")
    model.export(out, ExportOptions(profile="ort-cpu", max_context=40), random_weights=3)
    model.export(folder / "portable", random_weights=3)
    return out


def test_a_cache_in_place_grows_and_forgets(fused: Path) -> None:
    """Token by token from a buffer of one token on, after a text that has to be forgotten."""
    session = Session(fused, OpenOptions(threads=1))
    assert isinstance(session.cache, BufferCache)
    session.step((9, 9, 9))
    session.reset()
    whole = Session(fused.parent / "portable", OpenOptions(threads=1))
    for n, token in enumerate(IDS, 1):
        found = session.step((token,))
        assert session.cache.capacity >= n
    expected = whole.step(IDS)
    assert np.abs(found - expected).max() <= 2e-5 * expected.std()
    assert session.cache.capacity < 4 * len(IDS)


def test_a_plugin_gets_no_buffer_to_append_to(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel would write behind tokens that its copy of the buffer has not."""
    session = open_session(fused / "model.onnx")
    assert isinstance(cache_of(session), BufferCache)
    monkeypatch.setattr(session, "get_providers", lambda: ["WebGpuExecutionProvider"])
    assert isinstance(cache_of(session), GrowingCache)


def test_decode_moves_nothing(fused: Path) -> None:
    session = Session(fused, OpenOptions(threads=1))
    session.cache.reserve(20)
    assert isinstance(session.cache, BufferCache)
    places = {name: value.data_ptr() for name, value in session.cache.buffers.items()}
    for token in IDS:
        session.step((token,))
    assert {n: v.data_ptr() for n, v in session.cache.buffers.items()} == places
    key = session.cache.buffers["past_key_values.0.key"].numpy()
    assert key[:, :, : len(IDS)].any(axis=-1).all() and not key[:, :, len(IDS) :].any()


def test_the_context_of_the_tables_is_a_limit(fused: Path) -> None:
    assert len(list(api.run(fused, IDS, max_new_tokens=500, threads=1))) == 40 - len(IDS)
    session = Session(fused, OpenOptions(threads=1))
    session.step((1,) * 40)
    with pytest.raises(LlamagenError) as failure:
        session.step((1,))
    assert failure.value.diagnostics[0].code == "LG764"
    assert "41 tokens are more than the model was exported for, 40" in str(failure.value)


def test_steps_are_equal_to_one_call(folder: Path) -> None:
    session = Session(folder, OpenOptions(threads=1))
    whole = session.step(IDS)
    session.reset()
    for token in IDS[:-1]:
        session.step((token,))
    step_by_step = session.step(IDS[-1:])
    assert np.abs(whole - step_by_step).max() <= 1e-5 * whole.std()
    assert np.abs(session.step((1,)) - whole).max() > 0.1 * whole.std()


def test_generation_is_greedy_and_stops_at_eos(folder: Path) -> None:
    free = api.run(folder, IDS, max_new_tokens=5, threads=1)
    tokens = [piece.token for piece in free]
    assert len(tokens) == 5
    session = Session(folder, OpenOptions(threads=1))
    assert tokens[0] == int(np.argmax(session.step(IDS)))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokens[2], 95]}))
    try:
        stopped = api.run(folder, IDS, max_new_tokens=5, threads=1)
        assert [piece.token for piece in stopped] == tokens[: tokens.index(tokens[2])]
        assert stopped.tokens == tokens[: tokens.index(tokens[2])]
        assert f"{tokens.index(tokens[2])} written" in stopped.summary()
    finally:
        (folder / "generation_config.json").unlink()


def test_generation_stops_where_the_context_ends(folder: Path) -> None:
    config = folder / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({"max_position_embeddings": len(IDS) + 2}))
    try:
        assert len(list(api.run(folder, IDS, max_new_tokens=50, threads=1))) == 2
        with pytest.raises(LlamagenError) as failure:
            api.run(folder, (*IDS, 1, 2), threads=1)
        assert failure.value.diagnostics[0].code == "LG764"
    finally:
        config.write_text(before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_run(dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.load(TINY).export(out, ExportOptions(dtype=dtype), random_weights=3)
    assert len(list(api.run(out, IDS, max_new_tokens=3, threads=1))) == 3


BFLOAT16_MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
counting (int64[1, S] input_ids, bfloat16[1, 1, P, 1] "past_key_values.0.key")
    => (bfloat16[1, 1, 300] logits, bfloat16[1, 1, T, 1] "present.0.key")
    <int64[4] shape = {1, 1, -1, 1}, int64[3] wide = {1, 1, 300}>
{
    new = Cast <to: int = 16> (input_ids)
    rows = Reshape (new, shape)
    "present.0.key" = Concat <axis: int = 2> ("past_key_values.0.key", rows)
    numbers = Cast <to: int = 1> ("present.0.key")
    sum = ReduceSum <keepdims: int = 0> (numbers)
    line = Expand (sum, wide)
    logits = Cast <to: int = 16> (line)
}
"""


def test_bfloat16_crosses_the_border(tmp_path: Path) -> None:
    """numpy has no bfloat16: the cache stays in ONNX Runtime, logits come as the float32 of the same value."""
    onnx.save(onnx.parser.parse_model(BFLOAT16_MODEL), tmp_path / "model.onnx")
    session = Session(tmp_path, OpenOptions(threads=1))
    assert session.step((3, 256)).tolist() == [260.0] * 300  # 259 is between two of 8 bits
    found = session.step((1,))
    assert found.dtype == np.float32
    assert found.tolist() == [260.0] * 300
    session.reset()
    assert session.step((2,)).tolist() == [2.0] * 300


@pytest.mark.parametrize(
    ("word", "has", "reason"),
    [
        ("gpu", [], "there is no provider 'gpu'"),
        ("./libgpu.so", [], "there is no provider './libgpu.so'"),
        (__file__, [], "does not load"),
        ("cuda", ["CPUExecutionProvider"], "this ONNX Runtime has no CUDAExecutionProvider"),
        ("cuda", ["CUDAExecutionProvider"], "CUDAExecutionProvider does not start"),
    ],
)
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(onnxruntime.get_device() != "CPU", reason="needs onnxruntime's CPU build")
def test_no_provider_stands_in_for_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, word: str, has: list[str], reason: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: has)
    with pytest.raises(LlamagenError) as caught:
        api.run(folder, (1, 2), provider=word)
    assert caught.value.diagnostics[0].code == "LG711"
    assert reason in caught.value.diagnostics[0].message


@pytest.mark.parametrize(
    ("options", "mapped"),
    [
        ({"profile": "portable"}, True),
        ({"profile": "ort-cpu"}, True),
        ({"profile": "ort-cpu", "dtype": "float16"}, False),
        ({"profile": "ort-cpu", "quantize": QuantizeOptions("int4")}, False),
        ({"profile": "ort-cuda"}, False),
    ],
)
def test_float32_weights_stay_in_their_file(
    tmp_path: Path, options: dict[str, Any], mapped: bool
) -> None:
    """Only kernels of unpacked float32 are as fast as those of packed weights."""
    api.load(TINY).export(tmp_path / "out", ExportOptions(**options), random_weights=3)
    found = read_manifest(tmp_path / "out").session
    assert found == ({"session.disable_prepacking": "1"} if mapped else {})
    session = api.run(tmp_path / "out", IDS).session.last.session
    opened = session.get_session_options()
    for name, value in found.items():
        assert opened.get_session_config_entry(name) == value
    said = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert found.items() <= said["model"]["decoder"]["session_options"].items()


@pytest.mark.parametrize("width", [40, 120])
def test_the_vocabulary_is_of_the_embedding_whatever_the_logits_are(
    width: int, tmp_path: Path
) -> None:
    """96 ids are read; of more logits those of no id are never taken."""
    text = TINY.read_text().replace(
        "lm_head: linear(hidden_size, vocab_size, tied_to='model.embed_tokens.weight' if tie_embeddings else none)",
        f"lm_head: linear(hidden_size, {width})",
    )
    (tmp_path / "spec.yaml").write_text(text)
    out = tmp_path / "out"
    api.load(tmp_path / "spec.yaml").export(out, random_weights=3)
    session = Session(out, OpenOptions(threads=1))
    assert session.step((95,)).shape == (min(width, 96),)
    with pytest.raises(LlamagenError) as failure:
        session.step((96,))
    (found,) = failure.value.diagnostics
    assert found.code == "LG763" and found.help == "ids are from 0 to 95"
    tokens = [
        one.token for one in api.run(out, IDS, max_new_tokens=30, temperature=90.0, threads=1)
    ]
    assert len(tokens) == 30 and all(token is not None and token < 96 for token in tokens)


def test_a_device_that_passes_over_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's kernel is right; one that sees the first tile of keys alone is not."""
    cpu = next(d for d in onnxruntime.get_ep_devices() if d.ep_name == "CPUExecutionProvider")
    _require_attention(cpu)

    run = onnxruntime.InferenceSession.run

    def first_tile(session: Any, names: Any, feeds: Any) -> Any:
        seen = np.where(np.arange(feeds["v"].shape[1])[:, None] < 16, feeds["v"], 0)
        return run(session, names, {**feeds, "v": seen})

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", first_tile)
    with pytest.raises(LlamagenError) as caught:
        _require_attention(cpu)
    assert caught.value.diagnostics[0].code == "LG727"
