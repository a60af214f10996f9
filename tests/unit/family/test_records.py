"""The history of every model against the fact table: dates, tokens, contexts, languages, lineage, tokenizer.

A fact that the table does not have must be absent, so a note that an heir takes over from its base by mistake is found.
"""

from __future__ import annotations

import re

import pytest

from llamagen.spec.schema import Release, Spec, Tokenizer, Training
from tests.unit.family.facts import NAMES, REGISTRY, Record, records, spec_of

STATUS = {
    "llama-2-34b": "unreleased",
    "llama-4-behemoth": "announced",
}
"""The table has one word, announced-unreleased, for two things."""

PARENTS = {
    "llama-3.2-1b": ("llama/3.1/8b", "llama/3.1/70b"),
    "llama-3.2-3b": ("llama/3.1/8b", "llama/3.1/70b"),
    "llama-4-maverick-17b-128e": ("llama/4/behemoth",),
    "llama-4-scout-17b-16e": ("llama/4/behemoth",),
    "llama-guard-3-1b-pruned": ("llama/guard/3-1b", "llama/guard/3-8b"),
}
"""Where the table has prose in place of a name, or leaves out a teacher that the announcement or the card names."""

DOUBTFUL_INFILLING = "codellama-70b-instruct"
"""The table says yes, but neither of the two documents it quotes names this model; the spec says nothing."""


def history(name: str) -> tuple[Spec, Release, Training, Record]:
    spec = spec_of(name).spec
    assert spec.release is not None
    assert spec.training is not None
    return spec, spec.release, spec.training, records()[name]


def test_every_record_is_a_spec_and_every_spec_a_record() -> None:
    """Of the family; test_smollm.py has the facts of the other one."""
    family = (one for one in REGISTRY.ids() if one.startswith("llama/"))
    concrete = {one for one in family if not REGISTRY.load(one).spec.abstract}
    assert concrete == {record["id"] for record in records().values()}
    assert len(concrete) == 70


@pytest.mark.parametrize("name", NAMES)
def test_release(name: str) -> None:
    spec, release, _, known = history(name)
    date = known.get("date", known.get("announced"))
    assert spec.title == known["title"]
    assert release.status == STATUS.get(name, known["status"])
    assert (release.date.isoformat() if release.date else None) == date
    assert release.repo == (known["repo"].split(" ")[0] if "repo" in known else None)
    assert release.published_parameters == known["published"]
    assert release.licence == known.get("licence")


@pytest.mark.parametrize("name", NAMES)
def test_training(name: str) -> None:
    _, _, training, known = history(name)
    assert training.context_length == known.get("trained")
    assert training.advertised_context == known.get("advertised")
    assert list(training.languages or ()) == known.get("languages", [])
    assert training.languages_note == known.get("languages_note")
    assert list(training.modalities_in or ()) == known["modalities_in"]
    assert list(training.modalities_out or ()) == known["modalities_out"]
    assert training.gpu == known.get("gpu")
    assert list(training.weight_variants or ()) == known.get("weight_variants", [])
    infilling = None if name == DOUBTFUL_INFILLING else known.get("infilling")
    assert training.infilling == infilling


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_published_with_their_bound(name: str) -> None:
    _, _, training, known = history(name)
    said: str = known.get("tokens", "")
    amount = str(training.tokens) if training.tokens is not None else None
    if amount == (said.replace(".0T", "T") or None):
        return
    assert training.tokens_note == said
    assert amount is None or re.match(rf"{re.escape(amount)}\s", said)


@pytest.mark.parametrize("name", NAMES)
def test_cutoff_and_compute(name: str) -> None:
    _, _, training, known = history(name)
    said = known.get("cutoff", "")
    assert training.knowledge_cutoff == (said[: len("2023-12")] or None)
    longer = said if len(said) > len("2023-12") else None
    assert training.knowledge_cutoff_note == known.get("cutoff_note", longer)
    hours, note = known.get("gpu_hours"), known.get("gpu_hours_note")
    if isinstance(hours, str):
        hours, note = None, f"{hours}; {note}"
    assert training.gpu_hours == hours
    assert training.gpu_hours_note == note


@pytest.mark.parametrize("name", [name for name in NAMES if "learning_rate" in records()[name]])
def test_rates_and_batches_are_those_of_the_facts(name: str) -> None:
    _, _, training, known = history(name)
    assert training.learning_rate == known["learning_rate"]
    assert training.batch_tokens == {"4M": 4_000_000}[known["batch"]]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_measured_of_a_model_is_not_said_of_its_heirs(name: str) -> None:
    """Results are stated by the file of the model itself, emissions and rates by nobody for a fine-tuned classifier."""
    resolved, (_, _, training, _) = spec_of(name), history(name)
    results = resolved.leaf("training", "benchmarks")
    assert (
        results is None
        or results.origins[-1].spec_id == resolved.spec.id
        or not training.benchmarks
    )
    if resolved.spec.id.startswith("llama/guard/"):
        assert (training.co2_tonnes, training.learning_rate, training.batch_tokens) == (None,) * 3


@pytest.mark.parametrize("name", NAMES)
def test_lineage(name: str) -> None:
    lineage = spec_of(name).spec.lineage
    said = records()[name].get("derived_from")
    if said is None and name not in PARENTS:
        assert lineage is None
        return
    parents = PARENTS.get(name) or (records()[str(said).split(" ")[0]]["id"],)
    assert lineage is not None
    assert lineage.derived_from == parents
    assert all(REGISTRY.load(parent) for parent in parents)


def tokenizer_of(name: str) -> Tokenizer:
    tokenizer = spec_of(name).spec.tokenizer
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name", [name for name in NAMES if "params" in records()[name]])
def test_tokenizer(name: str) -> None:
    spec, known = spec_of(name).spec, records()[name]
    tokenizer, facts = tokenizer_of(name), known["tokenizer"]
    eos = known["eos"]
    assert tokenizer.kind == facts["kind"].split(" ")[0]
    assert tokenizer.bos_id == facts["bos_id"] == known["bos"]
    assert tokenizer.eos_ids == (tuple(eos) if isinstance(eos, list) else (eos,))
    assert tokenizer.pad_id == known.get("pad")
    if known["id"] not in ("llama/code/70b-python", "llama/code/70b-instruct"):
        assert spec.hyperparameters.vocab_size == facts["n_vocab"]
    for token, number in tokenizer.special_tokens.items():
        keys = [key for key in (token, f"{token}_id", f"{token}_token_id") if key in facts]
        assert keys, f"the table has no {token}"
        assert number == facts[keys[0]]


@pytest.mark.parametrize("name", [name for name in NAMES if "meta_params" in records()[name]])
def test_meta_writes_the_same_sizes(name: str) -> None:
    """params.json of Meta, by the width rule of its code (facts 4.5); a second origin of every number."""
    sizes, meta = spec_of(name).spec.hyperparameters, records()[name]["meta_params"]
    cross = meta.get("vision_num_cross_attention_layers", 0)
    assert sizes.hidden_size == meta["dim"]
    assert sizes.num_layers == meta["n_layers"] + cross
    assert sizes.num_heads == meta["n_heads"]
    assert sizes.num_kv_heads == meta.get("n_kv_heads", meta["n_heads"])
    assert sizes.norm_eps == meta["norm_eps"]
    assert sizes.rope is not None
    assert sizes.rope.theta == meta.get("rope_theta", 10000.0)
    assert (sizes.rope.kind == "llama3") == meta.get("use_scaled_rope", False)
    if "moe_args" not in meta:
        width = int(meta.get("ffn_dim_multiplier", 1) * (2 * 4 * meta["dim"] // 3))
        multiple = meta["multiple_of"]
        assert sizes.intermediate_size == -(-width // multiple) * multiple
    if "vision_chunk_size" in meta:
        assert sizes.vision is not None
        assert sizes.vision.image_size == meta["vision_chunk_size"]


def test_behemoth_states_no_dimension() -> None:
    spec = spec_of("llama-4-behemoth").spec
    assert spec.root is None
    assert spec.blocks == {}
    assert spec.hyperparameters.model_dump(exclude_none=True) == {}


@pytest.mark.parametrize("name", [name for name in NAMES if "hub_total" in records()[name]])
def test_the_hub_counts_what_the_table_says(name: str) -> None:
    """Old Llama 2 files persist rotary_emb.inv_freq, half a head a layer; every other total is exact."""
    spec, known = spec_of(name).spec, records()[name]
    sizes = spec.hyperparameters
    assert sizes.num_layers is not None
    assert sizes.head_dim is not None
    persisted = sizes.num_layers * sizes.head_dim // 2 if spec.id.startswith("llama/2/") else 0
    assert known["hub_total"] - known["params"] == persisted
