"""Names and shapes of every model, to the parameter, in the dialects of the Hub and of Meta; four counters agree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from onnx_ir import Shape

from llamagen.analysis.records import measure
from llamagen.emit.config.table import CONFIG_FILE, config_files
from llamagen.ir.graph import all_parameters
from llamagen.weights.checkpoint import Checkpoint, StoredTensor
from llamagen.weights.names import bind
from llamagen.weights.safetensors import TensorEntry
from tests.unit.family.facts import (
    BUILDABLE,
    NAMES,
    Shapes,
    architectures,
    graph_of,
    graphs_of,
    in_files,
    manifests,
    records,
    spec_of,
)

HEAD = "output.weight"
REPEATED_HEAD = "LG616"
IN_META = [name for name in BUILDABLE if name in manifests("meta")]


def shapes_of(name: str) -> Shapes:
    return {path: p.shape for path, p in all_parameters(graphs_of(name)).items()}


def total(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def stored(shapes: Shapes) -> Checkpoint:
    """Headers of a checkpoint with these tensors; there is no data behind them."""
    nowhere = Path("nowhere")
    tensors = {
        name: StoredTensor(
            name,
            "BF16",
            shape,
            (TensorEntry(name, "BF16", shape, nowhere, 0, 2 * math.prod(shape)),),
        )
        for name, shape in shapes.items()
    }
    return Checkpoint(nowhere, "safetensors", tensors, {})


def test_every_text_model_is_here() -> None:
    assert len(BUILDABLE) == 65
    assert len(IN_META) >= 45
    assert len(NAMES) == 70


@pytest.mark.parametrize("name", BUILDABLE)
def test_names_and_shapes_are_those_of_the_hub(name: str) -> None:
    assert shapes_of(name) == in_files(name)


@pytest.mark.parametrize("name", IN_META)
def test_meta_names_bind_to_every_parameter(name: str) -> None:
    checkpoint = stored(manifests("meta")[name])
    found = bind(spec_of(name), graph_of(name), checkpoint, compare_values=False)
    # Meta stores the head of a tied model once more, under its own name
    again = {HEAD} if spec_of(name).spec.hyperparameters.tie_embeddings else set()
    assert [one.code for one in found.diagnostics] == [REPEATED_HEAD] * len(again)
    assert found.layout is not None
    assert found.layout.startswith("meta")
    assert {b.name: b.tensor.shape for b in found.bindings} == shapes_of(name)
    used = [source for binding in found.bindings for source in binding.sources]
    assert sorted([*used, *again]) == sorted(checkpoint.tensors), "every tensor is used once"


@pytest.mark.parametrize("name", IN_META)
def test_a_wrong_meta_shape_is_found(name: str) -> None:
    shapes = dict(manifests("meta")[name])
    norm = next(one for one in shapes if one.endswith("norm.weight"))
    shapes[norm] = (shapes[norm][0] + 1,)
    found = bind(spec_of(name), graph_of(name), stored(shapes), compare_values=False)
    assert {one.code for one in found.diagnostics} - {REPEATED_HEAD} == {"LG613"}


def of_images(name: str) -> int:
    """Parameters that a token of text does not use: towers, projectors, layers that attend to an image."""
    tensors = manifests("hub")[name]
    layers = {n.partition("cross_attn")[0] for n in tensors if "cross_attn." in n}
    image = ("vision_model.", "multi_modal_projector.", *layers)
    return total({n: s for n, s in tensors.items() if any(part in n for part in image)})


@pytest.mark.parametrize("name", BUILDABLE)
def test_totals_are_exact(name: str) -> None:
    known = records()[name]
    totals = measure(spec_of(name)).totals
    assert totals["params"] == known["params"] == total(manifests("hub")[name])
    assert totals["active_params"] == known["active"] - of_images(name)
    if "meta_total" in known:
        assert total(manifests("meta")[name]) == known["meta_total"]


@pytest.mark.parametrize("name", architectures())
def test_four_counters_agree(name: str) -> None:
    """The op table, the generated module, the ONNX initializers and transformers, each by its own means."""
    import json

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from llamagen.emit.onnx.emit import emit_onnx
    from llamagen.emit.torch import emit_torch, load_module

    by_table = shapes_of(name)
    by_module: Shapes = {}
    by_onnx: Shapes = {}
    for graph in graphs_of(name).values():
        generated = load_module(emit_torch(graph))
        with torch.device("meta"):
            model = getattr(generated, graph.root)()
        by_module |= {path: tuple(p.shape) for path, p in model.named_parameters()}
        onnx = emit_onnx(graph).model.graph.initializers
        by_onnx |= {path: _static(v.shape) for path, v in onnx.items() if path in by_table}
    config = json.loads(config_files(spec_of(name))[CONFIG_FILE])
    several = len(graphs_of(name)) > 1
    auto = AutoModelForImageTextToText if several else AutoModelForCausalLM
    with torch.device("meta"):
        witness = auto.from_config(AutoConfig.for_model(**config))
    by_witness = {path: tuple(p.shape) for path, p in witness.named_parameters()}
    assert by_table == by_module == by_onnx == in_files(name)
    assert by_witness == manifests("hub")[name]
    assert total(by_table) == records()[name]["params"]


def _static(shape: Shape | None) -> tuple[int, ...]:
    assert shape is not None
    return shape.numpy()
