"""Models of other families: each is what transformers makes of its configuration, and their files are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import llamagen
from llamagen.analysis.records import architecture_of
from llamagen.analysis.sources import conflicts, known_sources, source_of
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.checkpoint import import_path
from llamagen.emit.config.foreign import read_config
from llamagen.emit.config.importing import Imported, import_foreign
from llamagen.emit.config.json_source import Json, parse_json
from llamagen.emit.config.table import CONFIG_FILE, config_files, flat, plain, value_of
from llamagen.ir.elaborate import build
from llamagen.spec.families import EVERY_FAMILY, FAMILY, family_of
from llamagen.spec.registry import Registry
from tests.unit.family.facts import REGISTRY
from tests.unit.family.importing import KINDS, MODELS

IDS = (
    "deepseek/3/671b",
    "gemma/2/27b",
    "gemma/2/9b",
    "gemma/3/1b-it",
    "gemma/3/4b-it",
    "gpt-oss/1/120b",
    "gpt-oss/1/20b",
    "mistral/0.1/7b",
    "mistral/small-3/24b",
    "mixtral/0.1/8x7b",
    "olmo/2/7b",
    "phi/3/mini-4k-instruct",
    "phi/4/14b",
    "qwen/2/7b",
    "qwen/3/0.6b",
    "qwen/3/30b-a3b",
    "qwen/3/32b",
    "qwen/3/8b",
)
OWN = {one: family_of(one) for one in IDS}
TOTALS = {
    "deepseek/3/671b": 671_026_419_200,
    "gemma/3/1b-it": 999_885_952,
    "gemma/3/4b-it": 3_880_263_168,
    "gpt-oss/1/120b": 116_829_156_672,
    "gpt-oss/1/20b": 20_914_757_184,
    "gemma/2/27b": 27_227_128_320,
    "gemma/2/9b": 9_241_705_984,
    "mistral/0.1/7b": 7_241_732_096,
    "mistral/small-3/24b": 23_572_403_200,
    "mixtral/0.1/8x7b": 46_702_792_704,
    "olmo/2/7b": 7_298_617_344,
    "phi/3/mini-4k-instruct": 3_821_079_552,
    "phi/4/14b": 14_659_507_200,
    "qwen/2/7b": 7_615_616_512,
    "qwen/3/0.6b": 596_049_920,
    "qwen/3/30b-a3b": 30_532_122_624,
    "qwen/3/32b": 32_762_123_264,
    "qwen/3/8b": 8_190_735_360,
}
"""What transformers counts: see test_parameters_are_those_of_transformers."""


def config_of(spec_id: str) -> dict[str, Json]:
    config: dict[str, Json] = json.loads(config_files(REGISTRY.load(spec_id))[CONFIG_FILE])
    return config


def theirs(config: Mapping[str, Json]) -> PretrainedConfig:
    return AutoConfig.for_model(**config)


def read(config: Mapping[str, Json] | PretrainedConfig) -> Imported:
    made = config if isinstance(config, Mapping) else config.to_dict()
    source = parse_json(json.dumps(made).encode(), CONFIG_FILE)
    return import_foreign(read_config(source, KINDS), "imported/model", MODELS, REGISTRY)


def refused(config: Mapping[str, Json]) -> str:
    with pytest.raises(LlamagenError) as caught:
        read(config)
    return " ".join(one.message for one in caught.value.diagnostics)


def test_all_are_here() -> None:
    others = [i for i in Registry().ids(abstract=False) if family_of(i) != FAMILY]
    assert [i for i in others if not i.startswith("smollm/")] == list(IDS)


@pytest.mark.parametrize("spec_id", IDS)
def test_its_configuration_comes_back(spec_id: str) -> None:
    """As written, and with all that transformers fills in."""
    config = config_of(spec_id)
    found = read(config)
    assert found.exact == found.alike == (spec_id,)
    filled = read(theirs(config))
    assert filled.alike == (spec_id,) and not filled.nearest.differences
    assert filled.resolved.digest == REGISTRY.load(spec_id).digest


def _counted_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trained without a gradient: DeepSeek-V3 moves the biases of its router by how often experts were chosen."""
    return {name: b for name, b in model.named_buffers() if name.endswith("correction_bias")}


def _ours(name: str) -> str:
    """Latent attention multiplies by the matrix itself, and the bias belongs to the block that chooses."""
    name = name.replace("self_attn.kv_b_proj.weight", "self_attn.kv_b_proj")
    return name.replace("mlp.gate.e_score", "mlp.e_score")


@pytest.mark.parametrize("spec_id", IDS)
def test_parameters_are_those_of_transformers(spec_id: str) -> None:
    """Names, shapes, and their sum."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs(config_of(spec_id)))
    theirs_by_name = {**dict(model.named_parameters()), **_counted_buffers(model)}
    wanted = {_ours(name): tuple(p.shape) for name, p in theirs_by_name.items()}
    graph = build(REGISTRY.load(spec_id))
    assert {name: tuple(p.shape) for name, p in graph.parameters.items()} == wanted
    assert sum(map(math.prod, wanted.values())) == TOTALS[spec_id]
    counted = architecture_of(REGISTRY.load(spec_id))
    assert counted is not None and counted.totals["params"] == TOTALS[spec_id]


NAMED_TWICE = ("num_experts", "num_local_experts", "num_experts_per_tok", "qk_rope_head_dim")
"""Keys that the meaning of another one's absence rests on."""
ONLY_IN_FILES = (
    *("experts_per_token", "sliding_window_pattern"),
    *("scoring_func", "topk_method", "moe_layer_freq"),
)
"""Keys of released files that the classes of transformers do not keep, or fix."""


@pytest.mark.parametrize("spec_id", IDS)
def test_what_absence_means_is_what_transformers_takes(spec_id: str) -> None:
    (table,) = (one for one in MODELS if one.spec.id == spec_id)
    beside = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 5}
    made = AutoConfig.for_model(table.kind, **beside)
    rope = made.rope_parameters
    ropes = {"rope_theta": rope.get("full_attention", rope).get("rope_theta")}
    ropes["rope_local_base_freq"] = rope.get("sliding_attention", rope).get("rope_theta")
    for key, text in flat(table.mapping.absent).items():
        if key in ("architectures", "rope_scaling", *ONLY_IN_FILES):
            continue
        experts = {n: v for n in NAMED_TWICE if (v := getattr(made, n, None))}
        value = plain(value_of(text, {**experts, **beside}))
        taken = ropes[key] if key in ropes else getattr(made, key, None)
        if key == "head_dim" and taken is None:  # its modelling code divides
            taken = made.hidden_size // made.num_attention_heads
        if key == "layer_types" and taken is None:
            continue
        assert value == taken, key


@pytest.mark.parametrize("spec_id", IDS)
def test_every_value_has_a_source(spec_id: str) -> None:
    resolved = REGISTRY.load(spec_id)
    sections = (
        *("title", "release", "training", "tokenizer", "hyperparameters", "constants", "patterns"),
        *("root", "blocks", "config", "invariants"),
    )
    stated = [
        path
        for path, leaf in resolved.leaves
        if path.split(".", 1)[0] in sections and leaf.origins[-1].text != "null"
    ]
    found = {path: source_of(resolved, path) for path in stated}
    assert [path for path, source in found.items() if source is None] == []
    assert {str(source).split("#", 1)[0] for source in found.values()} <= known_sources().keys()


@pytest.mark.parametrize("spec_id", IDS)
def test_nothing_is_said_of_it_that_was_said_of_llama(spec_id: str) -> None:
    """Release, training, tokens and sizes: an heir of LLaMA's wiring is no heir of its record."""
    resolved = REGISTRY.load(spec_id)
    sections = ("release", "training", "lineage", "tokenizer", "hyperparameters", "config")
    for path, leaf in resolved.leaves:
        if path.startswith(sections) and leaf.origins[-1].text not in ("null", "false"):
            assert not leaf.origins[-1].spec_id.startswith("llama/"), path
    for one in conflicts(resolved):
        assert not any(claim.source.startswith("l1") for claim in one.claims), one.path


@pytest.mark.parametrize("spec_id", ["mistral/0.1/7b", "mixtral/0.1/8x7b"])
def test_where_the_class_says_otherwise_a_conflict_is_recorded(spec_id: str) -> None:
    """Defaults that are documented as those of the checkpoint, and are not."""
    made = theirs({"model_type": OWN[spec_id]}).to_dict()
    found = read({key: value for key, value in made.items() if key != "architectures"})
    assert found.nearest.id == spec_id
    keys = {"max_position_embeddings": "max_positions", "rms_norm_eps": "norm_eps"}
    differs = {f"hyperparameters.{keys[one.key]}" for one in found.nearest.differences}
    recorded = {
        one.path
        for one in conflicts(REGISTRY.load(spec_id))
        if any(claim.source == "hfdefaults" for claim in one.claims)
    }
    assert differs == recorded


OTHER_SIZES = ("gemma/2/27b", "deepseek/3/671b")
"""A scale that does not follow from the width; heads of two parts (tests/parity/test_families.py has a small one)."""
SMALL: dict[str, Json] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("spec_id", [i for i in IDS if i not in OTHER_SIZES])
def test_a_folder_that_transformers_saved_is_read_without_a_spec(
    spec_id: str, tmp_path: Path
) -> None:
    """Other sizes, its configuration, and the names of its tensors."""
    kind = REGISTRY.load(spec_id).spec.config
    assert kind is not None
    window = {"sliding_window": 8} if "sliding_window" in kind.fields else {}
    written = config_of(spec_id)
    wired = {key: written[key] for key in kind.fixed if key in written and key != "architectures"}
    lengths = {key: 64 for key, text in kind.fields.items() if text == "max_positions"}
    config = AutoConfig.for_model(kind.kind, **{**SMALL, **window, **wired, **lengths})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = import_path(tmp_path)
    assert family_of(found.nearest.id) == OWN[spec_id]
    assert found.resolved.spec.hyperparameters.num_layers == 3
    assert read(config).resolved.digest == found.resolved.digest


def test_a_window_can_be_switched_off() -> None:
    """As in Mistral 7B v0.2, which has a base of a million besides."""
    config = {**config_of("mistral/0.1/7b"), "sliding_window": None, "rope_theta": 1e6}
    spec = read(config).resolved.spec.hyperparameters
    assert spec.sliding_window is None and spec.rope is not None and spec.rope.theta == 1e6
    made = json.loads(config_files(read(config).resolved)[CONFIG_FILE])
    assert made["sliding_window"] is None
    assert "is no value" in refused({**config, "rms_norm_eps": None})


def test_the_scale_of_queries_is_written_as_its_inverse_square() -> None:
    assert config_of("gemma/2/9b")["query_pre_attn_scalar"] == 256
    assert config_of("gemma/2/27b")["query_pre_attn_scalar"] == 144
    config = {**config_of("gemma/2/9b"), "query_pre_attn_scalar": 224}
    scale = read(config).resolved.spec.hyperparameters.attention_scale
    assert scale == 1 / math.sqrt(224)
    for wrong in (0, -1, True, "256", None):
        assert "query_pre_attn_scalar" in refused({**config, "query_pre_attn_scalar": wrong})


def test_embeddings_are_scaled_by_the_width_whatever_it_is() -> None:
    config = {**config_of("gemma/2/9b"), "hidden_size": 2304}
    assert read(config).resolved.spec.hyperparameters.embedding_multiplier == 48.0


REFUSED: dict[str, tuple[str, dict[str, Json]]] = {
    "a window in the upper layers": ("qwen/2/7b", {"use_sliding_window": True}),
    "a layer with a window": ("qwen/3/8b", {"layer_types": ["sliding_attention"] * 36}),
    "windows in other layers": ("gemma/2/9b", {"layer_types": ["full_attention"] * 42}),
    "a window in Mixtral": ("mixtral/0.1/8x7b", {"sliding_window": 4096}),
    "a head of its own in Gemma": ("gemma/2/9b", {"tie_word_embeddings": False}),
    "another activation": ("gemma/2/9b", {"hidden_activation": "silu"}),
    "sight of what comes after": ("gemma/2/9b", {"use_bidirectional_attention": True}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_its_spec_cannot_say_is_refused(what: str) -> None:
    spec_id, change = REFUSED[what]
    (key,) = change
    assert f"`{key}`" in refused({**config_of(spec_id), **change})


def test_kinds_of_more_layers_than_there_are_are_refused() -> None:
    config = {**config_of("qwen/3/8b"), "layer_types": ["full_attention"] * 3}
    assert "`num_hidden_layers` is 36, but the other values make it 3" in refused(config)


def test_questions_take_a_configuration_of_another_family(tmp_path: Path) -> None:
    file = tmp_path / "qwen3-config.json"
    file.write_text(json.dumps(config_of("qwen/3/8b")), encoding="utf-8")
    assert llamagen.cost(str(file)).parameters.total == TOTALS["qwen/3/8b"]
    said = llamagen.diff("llama/3.2/1b", str(file)).summary
    assert any("queries and keys are normalised" in sentence for sentence in said)


def test_all_families_are_listed_only_when_asked_for() -> None:
    listed = {row.id for row in llamagen.list_models(family=EVERY_FAMILY)}
    assert set(IDS) <= listed
    assert not {row.id for row in llamagen.list_models()} & set(IDS)


def test_questions_are_of_one_family_of_another_or_of_all() -> None:
    ours = {row[0] for row in llamagen.query(select=["family"]).rows}
    assert ours == {FAMILY}
    every = llamagen.query(family=EVERY_FAMILY, select=["id", "family"]).rows
    assert {(one, family_of(one)) for one in IDS} <= set(every)
    assert {row[0] for row in llamagen.query(family="qwen", select=["family"]).rows} == {"qwen"}
    count = "select family, count(*) from models group by family"
    assert {row[0] for row in llamagen.sql(count, family=EVERY_FAMILY).rows} > {FAMILY, "qwen"}
    assert [row[0] for row in llamagen.sql(count).rows] == [FAMILY]
    steps = llamagen.timeline("qk_norm", family="qwen").steps
    assert [step.held[0].value for step in steps] == [None, True]
    assert {one.family for one in llamagen.releases(family=EVERY_FAMILY)} > {FAMILY, "gemma"}
    assert {s.value for s in llamagen.share("attention", family="olmo")} == {"MHA"}


def test_an_unknown_family_leads_to_the_nearest() -> None:
    for ask in (llamagen.query, llamagen.list_models, llamagen.releases, llamagen.history):
        with pytest.raises(LlamagenError) as caught:
            ask(family="qwenn")
        (one,) = caught.value.diagnostics
        assert (one.code, one.help) == ("LG901", "did you mean `qwen`?")


def test_a_release_of_another_family_has_what_was_new_in_it_and_no_claims_about_llama() -> None:
    found = {(one.family, one.generation): one for one in llamagen.releases(family=EVERY_FAMILY)}
    assert "attention within a window of 4096" in found["mistral", "0.1"].techniques
    assert "norms before and behind every block" in found["gemma", "2"].techniques
    assert "norms behind every block" in found["olmo", "2"].techniques
    assert "biases" in found["qwen", "2"].techniques
    assert not found["qwen", "2"].claims
    assert found[FAMILY, "2"].claims


@pytest.mark.parametrize(
    ("spec_id", "billions"),
    [("deepseek/3/671b", 36.63), ("gpt-oss/1/120b", 5.13), ("gpt-oss/1/20b", 3.61)],
)
def test_what_a_token_uses_is_what_its_publisher_says(spec_id: str, billions: float) -> None:
    """Without the row lookup of the embedding, as the cards count."""
    counted = llamagen.cost(spec_id).parameters
    assert round(counted.active_without_embedding / 1e9, 2) == billions


def test_latent_attention_keeps_one_vector_a_token() -> None:
    """arXiv 2412.19437: 512 numbers and a rotated key of 64 a layer."""
    (row,) = llamagen.query(
        "attention == 'MLA'", family=EVERY_FAMILY, select=["id", "kv_bytes_per_token"]
    ).rows
    assert row == ("deepseek/3/671b", 61 * (512 + 64) * 2)


def test_each_kind_of_layer_of_gemma_3_has_a_base_of_its_own() -> None:
    """In both spellings of transformers; a scaled rotation of the local layers is refused."""
    config = {**config_of("gemma/3/1b-it"), "rope_local_base_freq": 2e4}
    local = read(config).resolved.spec.hyperparameters.rope_local
    assert local is not None and local.theta == 2e4
    newer = theirs(config).to_dict()
    assert "rope_local_base_freq" not in newer and "rope_scaling" not in newer
    assert read(newer).resolved.digest == read(config).resolved.digest
    newer["rope_parameters"]["sliding_attention"] = {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4
    }  # fmt: skip
    assert "rope_parameters" in refused(newer)


def test_the_text_part_of_a_model_with_images_is_imported() -> None:
    """Gemma 3 4B as the Hub has it; what is beside the text is named as passed over."""
    config: dict[str, Json] = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    }  # fmt: skip
    found = read(config)
    assert found.alike == ("gemma/3/4b-it",) and not found.nearest.differences
    assert {"vision_config", "mm_tokens_per_image"} <= found.ignored.keys()
    assert found.notes == ("only the text part of the `gemma3` is read",)
    text = config["text_config"]
    assert isinstance(text, Mapping)
    assert "`text_config.nonsense`" in refused({**config, "text_config": {**text, "nonsense": 1}})
    capped = {**config, "text_config": {**text, "attn_logit_softcapping": 50.0}}
    assert "`text_config.attn_logit_softcapping`" in refused(capped)
