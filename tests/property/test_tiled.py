"""Models that attend to tiles of images, of random sizes: PyTorch, ONNX Runtime and the reference agree."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from llamagen.verify.limits import difference, measured_tolerance
from llamagen.verify.scenarios import TiledMaker
from tests.parity.models import RandomModel
from tests.property.strategies import SpecText

SPEC = """
spec: 1
id: drawn/tiled
extends: reduced/llama-3.2-11b-vision
hyperparameters:
  num_layers: {layers}
  num_heads: {heads}
  num_kv_heads: {kv}
  head_dim: {head_dim}
  hidden_size: {hidden}
  vision:
    hidden_size: {width}
    num_layers: {local}
    num_global_layers: {global_}
    num_heads: {vision_heads}
    image_size: {image}
    patch_size: {patch}
    max_tiles: {tiles}
    aspect_ratios: {ratios}
    intermediate_layers: {collected}
    output_size: {output}
patterns: {{layer_kinds: {{default: self, at: {{cross: {cross}}}}}}}
"""


@st.composite
def tiled(draw: DrawFn) -> SpecText:
    """Another number of everything; any layer may attend, and any state be collected, the first one too."""
    layers, local = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    kv, head_dim = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))
    heads = kv * draw(st.integers(1, 2))
    vision_heads = draw(st.integers(1, 3))
    width, tiles, patch = 4 * vision_heads, draw(st.integers(1, 4)), draw(st.integers(1, 3))
    some = st.sets(st.integers(0, local - 1), min_size=1).map(sorted)
    collected = draw(some)
    cross = draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=layers - 1).map(sorted))
    ratios = [[1, n] for n in range(1, tiles + 1)]
    text = SPEC.format(
        layers=layers, heads=heads, kv=kv, head_dim=head_dim, hidden=heads * head_dim, width=width,
        local=local, global_=draw(st.integers(1, 2)), vision_heads=vision_heads, tiles=tiles,
        image=patch * draw(st.integers(1, 4)), patch=patch, ratios=ratios, collected=collected,
        output=width * (1 + len(collected)), cross=cross,
    )  # fmt: skip
    return SpecText(text.lstrip())


ROWS = st.lists(
    st.lists(st.sampled_from((1, None, 2)), min_size=1, max_size=4), min_size=1, max_size=3
)


@settings(max_examples=6, derandomize=True)
@given(text=tiled(), rows=ROWS, seed=st.integers(0, 99))
def test_all_graphs_agree(text: SpecText, rows: list[list[int | None]], seed: int) -> None:
    model = RandomModel.of_text(text)
    assert model.pipeline is not None
    generator = np.random.default_rng(seed)
    maker = TiledMaker(model.pipeline, model.graphs, model.vocab_size, generator)
    scenario = maker.scenario("drawn", rows, (1, 1))
    reference = scenario.logits(model.whole("reference"))
    rounding = difference(scenario.logits(model.whole("rounded")), reference)
    tolerance = measured_tolerance("float32", rounding)
    for backend in ("onnx", "torch"):
        found = difference(scenario.logits(model.whole(backend)), reference)
        assert found.within(tolerance), (backend, found, tolerance)
