"""config.json of every model: equal to the released one as written, and as transformers reads it."""

from __future__ import annotations

import json

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.table import CONFIG_FILE, GENERATION_FILE, ConfigTable, config_files
from llamagen.spec.registry import Registry
from tests.unit.family.facts import REGISTRY, configs, spec_of

NAMES = sorted(configs())


def written(name: str) -> dict[str, object]:
    config: dict[str, object] = json.loads(config_files(spec_of(name))[CONFIG_FILE])
    return config


def test_all_53_are_here() -> None:
    assert len(NAMES) == 53


@pytest.mark.parametrize("name", NAMES)
def test_config_is_the_released_one(name: str) -> None:
    assert written(name) == configs()[name]


@pytest.mark.parametrize("name", NAMES)
def test_auto_config_reads_both_alike(name: str) -> None:
    from transformers import AutoConfig

    ours = AutoConfig.for_model(**written(name))
    theirs = AutoConfig.for_model(**configs()[name])
    assert type(ours) is type(theirs)
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_generation_config_stops_where_the_config_does(name: str) -> None:
    from transformers import GenerationConfig

    config = configs()[name]
    text = config.get("text_config", config)
    files = config_files(spec_of(name))
    made = GenerationConfig(**json.loads(files[GENERATION_FILE]))
    assert made.eos_token_id == text["eos_token_id"]
    assert made.bos_token_id == text["bos_token_id"]
    assert made.pad_token_id == text.get("pad_token_id")


def test_every_literal_says_why_import_may_pass_over_it() -> None:
    for spec_id in REGISTRY.ids():
        resolved = REGISTRY.load(spec_id)
        if resolved.spec.config is not None:
            table = ConfigTable(resolved, resolved.spec.config)
            keys = {key.rpartition(".")[2] for key in table.literals}
            assert keys <= set(table.ignored), spec_id


def test_a_record_without_dimensions_has_no_config() -> None:
    assert config_files(spec_of("llama-4-behemoth")) == {}


def changed(text: str) -> dict[str, str]:
    return config_files(Registry().load_text(f"spec: 1\nid: test/changed\n{text}"))


def test_a_child_writes_its_own_numbers() -> None:
    made = changed("extends: llama/3.2/1b\nhyperparameters: {num_layers: 3}\n")
    config = json.loads(made[CONFIG_FILE])
    assert config == {**configs()["llama-3.2-1b"], "num_hidden_layers": 3}


def test_head_dim_is_left_out_only_where_its_absence_says_the_same() -> None:
    text = "extends: llama/2/7b\nhyperparameters: {head_dim: 64}\ninvariants: {heads_fill_the_width: null}\n"
    assert json.loads(changed(text)[CONFIG_FILE])["head_dim"] == 64
    assert "head_dim" not in json.loads(changed("extends: llama/2/7b\n")[CONFIG_FILE])


REWIRED = """
blocks:
  DecoderLayer:
    parts: {post_attention_layernorm: none}
    forward: |
      h = x + self_attn(input_layernorm(x))
      return h + mlp(input_layernorm(h))
"""


@pytest.mark.parametrize(
    "text",
    [
        "hyperparameters: {rope: {layout: interleaved}}",
        "hyperparameters: {rope: {partial: 0.5}}",
        REWIRED,
    ],
)
def test_what_transformers_cannot_mean_gets_no_config(text: str) -> None:
    assert changed(f"extends: llama/2/7b\n{text}\n") == {}


def test_only_a_size_that_is_not_set_means_no_config() -> None:
    assert changed("abstract: true\nextends: llama/1/_base\n") == {}
    for table in ("fields: {vocab_size: vocab_siz}", "fields: {vocab_size: vocab_size // 0}"):
        with pytest.raises(LlamagenError, match="LG301"):
            changed(f"extends: llama/2/7b\nconfig: {{{table}}}\n")
    with pytest.raises(LlamagenError, match="LG301"):
        changed("extends: llama/2/7b\nconfig: {requires: {typo: head_dimm > 0}}\n")


def test_what_an_empty_list_of_rope_flags_means_is_in_the_spec() -> None:
    text = "extends: llama/4/scout\npatterns: {layer_kinds: {every: 3, value: global, otherwise: chunked}}\n"
    table = "config: {fields: {text_config: {no_rope_layers: \"rope_flags(layer_kinds, 'global', 3)\"}}}\n"
    assert json.loads(changed(text)[CONFIG_FILE])["text_config"]["no_rope_layers"][:3] == [1, 1, 0]
    assert json.loads(changed(text + table)[CONFIG_FILE])["text_config"]["no_rope_layers"] == []
