"""Every key of a params.json counts: it is mapped, passed over for a reason, or refused at its place."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.spec.schema import EveryPattern
from tests.unit.family.facts import records
from tests.unit.family.importing import imported_params


def params(name: str, path: str, value: object) -> dict[str, Any]:
    """The released file with one value changed or added."""
    made: dict[str, Any] = deepcopy(records()[name]["meta_params"])
    group, _, key = path.rpartition(".")
    (made[group] if group else made)[key] = value
    return made


SCOUT = "llama-4-scout-17b-16e"
VISION = "llama-3.2-11b-vision"


@pytest.mark.parametrize(
    ("name", "path", "value", "code"),
    [
        (SCOUT, "moe_args.shared_experts", 2, "LG107"),
        (SCOUT, "vision_args.window", 2, "LG107"),
        (SCOUT, "vision_chunk_size", 560, "LG107"),
        ("llama-3-8b", "attention_chunk_size", 8192, "LG107"),
        ("llama-3-8b", "vision_args", {}, "LG107"),
        (SCOUT, "moe_args.auto_scale_F", 1, "LG108"),
        (SCOUT, "moe_args", 1, "LG108"),
        (SCOUT, "nope_layer_interval", 0, "LG108"),
        (SCOUT, "nope_layer_interval", 2.5, "LG108"),
        (SCOUT, "nope_layer_interval", 49, "LG108"),
        (SCOUT, "vision_args.image_size", [336, 448], "LG108"),
        (SCOUT, "vision_args.patch_size", 14, "LG108"),
        (SCOUT, "use_scaled_rope", 1, "LG108"),
        (VISION, "vision_num_cross_attention_layers", 20, "LG108"),
        (VISION, "n_layers", 32.5, "LG108"),
    ],
)
def test_what_cannot_be_said_is_refused_at_its_place(
    name: str, path: str, value: object, code: str
) -> None:
    with pytest.raises(LlamagenError) as caught:
        imported_params(params(name, path, value))
    assert {one.code for one in caught.value.diagnostics} == {code}
    assert all(f"`{path}`" in one.message for one in caught.value.diagnostics)
    assert all(one.span is not None and one.span.line > 1 for one in caught.value.diagnostics)


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (4, EveryPattern(every=4, value="global", otherwise="chunked")),
        (6, EveryPattern(every=6, value="global", otherwise="chunked")),
    ],
)
def test_the_interval_without_positions_is_the_layer_pattern(
    value: int, pattern: EveryPattern
) -> None:
    made = imported_params(params(SCOUT, "nope_layer_interval", value))
    assert made.resolved.spec.patterns["layer_kinds"] == pattern
    assert "nope_layer_interval" in made.handled


def test_experts_are_narrower_only_where_they_are_scaled() -> None:
    made = imported_params(params(SCOUT, "moe_args.auto_scale_F", False))
    # int(1.2 * int(8 * 5120 / 3)) = 16383, up to a multiple of 2048
    assert made.resolved.spec.hyperparameters.expert_intermediate_size == 16384


def test_the_image_encoder_is_read() -> None:
    made = imported_params(params(SCOUT, "vision_args.n_layers", 30))
    vision = made.resolved.spec.hyperparameters.vision
    assert vision is not None
    assert vision.num_layers == 30
    wide = imported_params(params(SCOUT, "vision_args.mlp_ratio", 3.0)).resolved.spec
    assert wide.hyperparameters.vision is not None
    assert wide.hyperparameters.vision.intermediate_size == 3 * 1408


def test_cross_attention_is_spread_from_the_last_layer() -> None:
    made = imported_params(params(VISION, "vision_num_cross_attention_layers", 4))
    pattern = made.resolved.spec.patterns["layer_kinds"]
    assert made.resolved.spec.hyperparameters.num_layers == 36
    # every 8th of 32 self-attention layers, each moved by the cross layers before it
    assert pattern.model_dump()["at"] == {"cross": (7, 16, 25, 34)}
