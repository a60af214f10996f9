"""Models of several graphs are counted, compared and shown whole: published numbers, torch's own counter."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llamagen import api
from llamagen.analysis.diff.judge import Surface, Verdict, diff
from llamagen.analysis.numbers import Component, count_parameters, image_cost
from llamagen.analysis.targets import Model, built
from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.graph import MAIN, all_parameters
from llamagen.spec.registry import Registry

SCOUT, MAVERICK, GUARD = "llama/4/scout", "llama/4/maverick", "llama/guard/4-12b"


@cache
def model(spec_id: str) -> Model:
    return built(Registry().load(spec_id))


@pytest.mark.parametrize(
    ("spec_id", "total", "active"),
    [
        (SCOUT, 108_641_793_536, 17_172_894_720),
        (MAVERICK, 401_583_781_376, 17_184_691_200),
        (GUARD, 12_001_097_216, 11_129_164_800),
    ],
)
def test_all_graphs_are_counted(spec_id: str, total: int, active: int) -> None:
    graphs = model(spec_id).graphs
    report = count_parameters(graphs)
    assert (report.total, report.active) == (total, active)
    assert report.of(Component.VISION) == 871_932_416
    assert sum(p.count for p in all_parameters(graphs).values()) == total
    cost = api.cost(spec_id)
    assert cost.parameters == report
    assert cost.weight_bytes == 2 * total
    assert cost.decode.weight_bytes_read < 2 * active, "text alone reads no encoder"


@pytest.mark.parametrize(
    ("spec_id", "total", "vision", "kept"),
    [
        ("llama/3.2/11b-vision", 10_642_941_475, 867_749_395, 8 * 2 * 1024 * 4 * 1025 * 2),
        ("llama/3.2/11b-vision-instruct", 10_670_220_835, 895_028_755, 8 * 2 * 1024 * 4 * 1601 * 2),
        ("llama/3.2/90b-vision", 88_593_355_323, 926_490_131, 20 * 2 * 1024 * 4 * 1601 * 2),
    ],
)
def test_keys_and_values_of_cross_layers_belong_to_the_text(
    spec_id: str, total: int, vision: int, kept: int
) -> None:
    """The encoder makes them, the decoder's layers own their weights; they are kept for every image."""
    graphs = model(spec_id).graphs
    report = count_parameters(graphs)
    assert (report.total, report.of(Component.VISION)) == (total, vision)
    found = image_cost(graphs, 1, 1, 4096, 2)
    assert found is not None
    assert found.kept_bytes == kept
    text = api.cost(spec_id)
    assert text.images is not None
    assert text.images.decode.total > text.decode.flops.total, "cross layers run beside an image"
    assert text.cache.per_token(2) == 2 * 2 * 1024 * (32 if "11b" in spec_id else 80)


def test_tiled_encoder_flops_are_those_that_torch_counts() -> None:
    graphs = model("llama/3.2/11b-vision").graphs
    graph = graphs["vision_encoder"]
    with torch.device("meta"):
        encoder = getattr(load_module(emit_torch(graph)), graph.root_block.name)()
        pixels = torch.zeros((1, 2, 4, 3, 448, 448))
        ids, mask = torch.ones((1, 2), dtype=torch.int64), torch.ones((1, 2, 4), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        encoder(pixels, ids, mask)
    found = image_cost(graphs, 2, 1, 1, 2)
    assert found is not None
    assert found.encoder.total == counter.get_total_flops()


@pytest.mark.parametrize("tiles", [1, 5])
def test_encoder_flops_are_those_that_torch_counts(tiles: int) -> None:
    graphs = model(SCOUT).graphs
    graph = graphs["vision_encoder"]
    with torch.device("meta"):
        encoder = getattr(load_module(emit_torch(graph)), graph.root_block.name)()
    pixels = torch.zeros((tiles, 3, 336, 336), device="meta")
    with FlopCounterMode(display=False) as counter:
        features = encoder(pixels)
    found = image_cost(graphs, tiles, 1, 4096, 2)
    assert found is not None
    assert found.encoder.total == counter.get_total_flops()
    assert found.kept_bytes == 2 * features.numel()
    assert found.tokens == 144 * tiles == features.shape[0] * features.shape[1]


def test_a_batch_needs_the_tiles_of_all_sequences() -> None:
    one, four = (image_cost(model(SCOUT).graphs, 2, batch, 100, 2) for batch in (1, 4))
    assert one is not None
    assert four is not None
    assert four.encoder.total == 4 * one.encoder.total
    assert four.tokens == one.tokens, "of one sequence"


def test_what_is_kept_of_images_takes_its_part_of_a_device() -> None:
    """Keys and values of 8 layers for 4 tiles of 1,601 tokens: 200 MiB an image, beside 512 MiB of text."""
    image = 8 * 4 * 1601 * 2 * 1024 * 2
    for images in (1, 3):
        found = api.cost("llama/3.2/11b-vision-instruct", device="a100-80gb", images=images)
        assert found.images is not None
        assert found.images.kept_bytes == images * image
        assert found.device is not None
        left = 80_000_000_000 - found.weight_bytes
        most = left // (536_870_912 + images * image)
        assert found.device.max_batch in (most - 1, most)  # the decode activations take some MB


def test_images_of_a_model_of_text_are_refused() -> None:
    with pytest.raises(LlamagenError, match="takes no images"):
        api.cost("llama/3.1/8b", images=2)


def test_a_model_of_text_has_no_images() -> None:
    assert api.cost("llama/3.2/1b").images is None


def test_a_diff_sees_every_graph() -> None:
    """The encoder is new against a model of text, and said once; what both graphs share is not said twice."""
    result = diff(model("llama/3.1/8b"), model(SCOUT))
    blocks = {
        c.path for c in result.changes if c.kind == "block" and c.path.startswith("vision_encoder/")
    }
    assert blocks == {"vision_encoder/"}
    paths = [c.path for c in result.changes if c.kind == "parameter"]
    assert "vision_model.model.layers.*.self_attn.q_proj.weight" in paths
    assert not any(p.startswith("decoder/model.layers") for p in (c.path for c in result.changes))
    inputs = [c.path for c in result.on(Surface.INTERFACE)]
    assert "vision_encoder/pixel_values" in inputs
    numbers = {c.path: c.after.text for c in result.changes if c.kind == "number"}
    assert numbers["parameters"] == "108,641,793,536"
    assert "image_flops" in numbers


def test_equal_encoders_are_no_change() -> None:
    result = diff(model(SCOUT), model(MAVERICK))
    assert not any(c.path.startswith(("vision", "embedding/")) for c in result.changes)
    assert result.verdict(Surface.MEMORY) is Verdict.GROWS


def test_questions_see_every_graph() -> None:
    answer = api.query("vision_params > 0", select=("id", "vision_params", "graphs"))
    assert (SCOUT, 871_932_416, ("model", "vision_encoder", "embedding", "decoder")) in answer.rows
    (row,) = api.sql(f"select sum(total) from parameters where model = '{SCOUT}'").rows
    assert row == (108_641_793_536,)


def test_pictures_have_a_tower_for_every_graph() -> None:
    assert api.graph_tower(SCOUT).count("\nllama/4/scout ") == 3
    svg = api.graph_svg(SCOUT)
    assert "llama/4/scout vision_encoder" in svg
    drawn = json.loads(api.graph_explorer(SCOUT))
    assert [g["id"] for g in drawn["graphs"]] == list(model(SCOUT).graphs)
    assert api.graph_text(SCOUT, "decoder") in api.graph_text(SCOUT)


def test_an_unknown_graph_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LlamagenError) as caught:
        api.graph_text(SCOUT, "encoder")
    (found,) = caught.value.diagnostics
    assert found.code == "LG901"
    assert found.help is not None
    assert "`vision_encoder`" in found.help
    assert MAIN in found.help
