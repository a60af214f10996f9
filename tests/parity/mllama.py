"""Llama 3.2 Vision shrunk to milliseconds with every kind of layer, and transformers' model of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from llamagen.spec.schema import AtPattern, Spec, TiledVision
from llamagen.verify.scenarios import Item, Scenario, TiledMaker
from tests.parity.models import RandomModel
from tests.parity.peers import common

Row: TypeAlias = tuple[Item, ...]

WIDE, TALL = "wide", "tall"

TALLER = """
spec: 1
id: shrunk/taller
extends: reduced/llama-3.2-11b-vision
hyperparameters: {num_kv_heads: 1, vision: {image_size: 20, num_global_layers: 1, num_heads: 4}}
patterns: {layer_kinds: {default: self, at: {cross: [2, 3, 6]}}}
"""


def shrunk(which: str) -> RandomModel:
    """The model of tests/specs/reduced, or one with 25 + 1 tokens a tile and cross-attention in other layers."""
    if which == WIDE:
        return RandomModel.named("reduced/llama-3.2-11b-vision")
    return RandomModel.of_text(TALLER.lstrip())


def _vision(spec: Spec) -> TiledVision:
    vision = spec.hyperparameters.vision
    assert isinstance(vision, TiledVision)
    return vision


def peer_name(path: str) -> str:
    """A role path (the Hub's name) as transformers 5 calls the parameter in memory."""
    if path.startswith("language_model.model."):
        return "model.language_model." + path.removeprefix("language_model.model.")
    if path.startswith("language_model."):
        return path.removeprefix("language_model.")
    return f"model.{path}"


def whole_peer(model: RandomModel) -> torch.nn.Module:
    """MllamaForConditionalGeneration with the weights of ``model``. Call it inside ``everything_float64``."""
    spec = model.resolved.spec
    v, kinds = _vision(spec), spec.patterns["layer_kinds"]
    assert isinstance(kinds, AtPattern)
    vision = MllamaVisionConfig(
        hidden_size=v.hidden_size,
        num_hidden_layers=v.num_layers,
        num_global_layers=v.num_global_layers,
        attention_heads=v.num_heads,
        intermediate_size=v.intermediate_size,
        norm_eps=v.norm_eps,
        image_size=v.image_size,
        patch_size=v.patch_size,
        num_channels=v.num_channels,
        max_num_tiles=v.max_tiles,
        intermediate_layers_indices=list(v.intermediate_layers),
        supported_aspect_ratios=[list(r) for r in v.aspect_ratios],
        vision_output_dim=v.output_size,
    )
    unknown = ("head_dim", "bos_token_id", "eos_token_id")
    given = {k: v for k, v in common(spec).items() if k not in unknown}
    text = MllamaTextConfig(**given, cross_attention_layers=list(dict(kinds.others)["cross"]))
    config = MllamaConfig(vision_config=vision, text_config=text)
    config._attn_implementation = "eager"
    peer = MllamaForConditionalGeneration(config)
    state = {
        peer_name(path): torch.from_numpy(np.asarray(model.weight(path), np.float64))
        for path in model.all_parameters
    }
    peer.load_state_dict(state, strict=True)
    peer.double().train(False)
    return peer


IMAGE_FIRST: Row = (None, 7)
TEXT_FIRST: Row = (2, None, 5)
SEVERAL: Row = (1, None, 3, None, None, 4)
NO_IMAGE: Row = (8,)

STORIES: Mapping[str, tuple[tuple[Row, ...], tuple[int, ...]]] = {
    "image first": ((IMAGE_FIRST,), ()),
    "text first": ((TEXT_FIRST,), (1, 1, 1, 1)),
    "several images": ((SEVERAL,), (1, 2)),
    "a batch": ((IMAGE_FIRST, SEVERAL, NO_IMAGE), (1, 1, 1)),
    "no image": (((6,), (8,)), (1, 1, 1)),
}
"""The ways in which text and images come together: rows, and lengths of the calls after the first."""


def story(model: RandomModel, name: str, seed: int = 3) -> Scenario:
    """Text with random images, in arrangements and with numbers of tiles that are random too."""
    assert model.pipeline is not None
    rows, decoded = STORIES[name]
    generator = np.random.default_rng(seed)
    maker = TiledMaker(model.pipeline, model.graphs, model.vocab_size, generator)
    return maker.scenario(name, rows, decoded)
