"""Every value has a source, of its own generation; conflicts and doubts are complete and shown."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llamagen.analysis import sources as listed
from llamagen.analysis import tables
from llamagen.analysis.explain import explain_value
from llamagen.analysis.sources import conflicts, matches, source_of, uncertain
from llamagen.api import check
from llamagen.diagnostics import LlamagenError
from llamagen.resources import data_folder
from llamagen.spec.naming import known_dialects
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Conflict, Source, Uncertain
from llamagen.spec.source import load_source, to_plain
from tests.unit.family.facts import NAMES, REGISTRY, records, spec_of

RECORD = ("release", "training", "lineage")
SOURCED = (
    *("title", *RECORD, "tokenizer", "hyperparameters", "constants", "patterns"),
    *("root", "blocks", "config", "invariants"),
)

DOUBTS = {
    "architecture (inferred from Code Llama 34B)": "hyperparameters.*",
    "attn_temperature_tuning": "hyperparameters.attention_temperature_scale",
    "attn_temperature_tuning in Meta params.json": "hyperparameters.attention_temperature_scale",
    "config reconstructed from Llama-2-7b": "hyperparameters.*",
    "config reconstructed from Llama-3-8B": "hyperparameters.*",
    "config reconstructed from Llama-3.2-11B-Vision": "hyperparameters.*",
    "derived_from": "lineage.derived_from",
    "everything of the architecture: that of Code Llama": "hyperparameters.*",
    "everything except announced figures": "release.published_parameters",
    "max_position_embeddings": "hyperparameters.max_positions",
    "no_rope_layers": "patterns.layer_kinds",
    "rope_scaling": "hyperparameters.rope",
    "rope_theta": "hyperparameters.rope.theta",
    "training_context": "training.context_length",
    "use_qk_norm": "hyperparameters.qk_norm",
}
"""Words of the fact table -> path of a spec."""


@cache
def sources() -> dict[str, Source]:
    path = data_folder("spec") / "sources.yaml"
    plain = to_plain(load_source(path, "spec/sources.yaml").root)
    assert isinstance(plain, dict)
    listed = plain["sources"]
    assert isinstance(listed, dict)
    return {key: Source.model_validate(entry) for key, entry in listed.items()}


def key(source: str) -> str:
    return source.split("#", 1)[0]


def values(resolved: ResolvedSpec, sections: tuple[str, ...]) -> Iterator[str]:
    for path, leaf in resolved.leaves:
        if path.split(".", 1)[0] in sections and leaf.origins[-1].text != "null":
            yield path


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_known_source(name: str) -> None:
    resolved = spec_of(name)
    found = {path: source_of(resolved, path) for path in values(resolved, SOURCED)}
    assert len(found) > 5
    missing = [path for path, source in found.items() if source is None]
    assert missing == []
    assert {key(source) for source in found.values() if source} <= set(sources())


@pytest.mark.parametrize("name", NAMES)
def test_history_rests_on_documents_about_the_model_itself(name: str) -> None:
    """Not on those of the generation before, whose globs an heir inherits."""
    resolved = spec_of(name)
    about = {source.replace("_", "-") for source in records()[name]["sources"]}
    found = {path: source_of(resolved, path) or "" for path in values(resolved, RECORD)}
    assert {path: source for path, source in found.items() if key(source) not in about} == {}


HEIR = """spec: 1
abstract: true
id: {id}
extends: {base}
{override}
"""
OVERRIDES = {
    "hyperparameters: {vocab_size: 5000}": "hyperparameters.vocab_size",
    "hyperparameters: {rope: {theta: 7.0}}": "hyperparameters.rope.theta",
    "hyperparameters: {rope: {kind: default, theta: 7.0}}": "hyperparameters.rope.theta",
    "hyperparameters: {sliding_window: 5}": "hyperparameters.sliding_window",
    "training: {gpu_hours: 7}": "training.gpu_hours",
    "tokenizer: {eos_ids: [1]}": "tokenizer.eos_ids",
    "blocks: {DecoderLayer: {forward: return x}}": "blocks.DecoderLayer.forward",
    "title: mine": "title",
}


@pytest.mark.parametrize("spec_id", ["mine/child", "llama/child", "llama/3/8b"])
@pytest.mark.parametrize("base", ["llama/3/8b", "llama/3/_base"])
@pytest.mark.parametrize("override", OVERRIDES)
def test_what_an_heir_writes_has_no_source_but_its_own(
    override: str, base: str, spec_id: str
) -> None:
    """Whatever its id, and whether the bases had such a value or not."""
    text = HEIR.format(id=spec_id, base=base, override=override)
    path, section = OVERRIDES[override], override.split(":")[0]
    bare = Registry().load_text(text)
    assert source_of(bare, path) is None
    told = explain_value(REGISTRY, bare, path)
    assert "\nsource: none" in told and "card" not in told
    for glob in {path, section if section == path else f"{section}.*"}:
        own = Registry().load_text(f"{text}provenance: {{{glob!r}: my notes}}\n")
        assert source_of(own, path) == "my notes"


def test_who_states_no_source_is_not_asked_for_one(tmp_path: Path) -> None:
    """What the bases state does not oblige the heir: a model in other sizes is no finding."""
    file = tmp_path / "small.yaml"
    override = "hyperparameters: {num_layers: 4, vocab_size: 5000}"
    heir = HEIR.replace("abstract: true\n", "")
    file.write_text(heir.format(id="mine/small", base="llama/3/8b", override=override))
    assert check([str(file)]).findings == ()
    with file.open("a") as more:
        more.write("provenance: {hyperparameters.num_layers: hf}\n")
    (found,) = check([str(file)]).findings
    assert found.code == "LG510" and "vocab_size" in found.message


def test_what_is_inherited_keeps_its_source() -> None:
    text = HEIR.format(id="mine/child", base="llama/3/8b", override="title: mine")
    bare = Registry().load_text(text)
    assert source_of(bare, "hyperparameters.hidden_size") == "sku"
    assert source_of(bare, "training.gpu_hours") == "l3card"
    own = Registry().load_text(f"{text}provenance: {{'hyperparameters.*': measured}}\n")
    assert source_of(own, "hyperparameters.hidden_size") == "measured", "the heir says it"


def test_an_heir_may_say_again_what_its_base_says() -> None:
    """Of its own values; that is no repetition."""
    text = HEIR.format(
        id="mine/child", base="llama/3/8b", override="hyperparameters: {vocab_size: 5000}"
    )
    own = Registry().load_text(f"{text}provenance: {{'hyperparameters.*': sku}}\n")
    assert source_of(own, "hyperparameters.vocab_size") == "sku" and own.warnings == ()


def test_every_source_is_used_and_described() -> None:
    used: set[str] = set()
    for spec_id in REGISTRY.ids(sketches=True):
        spec = REGISTRY.load(spec_id).spec
        used |= {key(source) for source in spec.provenance.values()}
        used |= {key(claim.source) for one in spec.conflicts for claim in one.claims}
    used |= {source for layout in known_dialects().values() for source in layout.sources}
    assert used == set(sources())


@cache
def stated() -> tuple[frozenset[Conflict], frozenset[Uncertain]]:
    """All entries of all files."""
    specs = [REGISTRY.load(spec_id).spec for spec_id in REGISTRY.ids()]
    return (
        frozenset(one for spec in specs for one in spec.conflicts),
        frozenset(one for spec in specs for one in spec.uncertain),
    )


@cache
def shown() -> tuple[frozenset[Conflict], frozenset[Uncertain]]:
    """The entries that concern at least one model."""
    specs = [one for one in map(REGISTRY.load, REGISTRY.ids()) if not one.spec.abstract]
    return (
        frozenset(one for spec in specs for one in conflicts(spec)),
        frozenset(one for spec in specs for one in uncertain(spec)),
    )


def test_more_than_twenty_conflicts_are_recorded_and_all_are_shown() -> None:
    assert len(stated()[0]) > 40
    assert stated() == shown()


@pytest.mark.parametrize("one", sorted(stated()[0], key=str), ids=lambda one: one.path)
def test_a_conflict_is_decided_for_one_of_its_claims(one: Conflict) -> None:
    said = [claim.value for claim in one.claims]
    assert len(set(said)) == len(said)
    assert one.choice in said
    assert {key(claim.source) for claim in one.claims} <= set(sources())


@pytest.mark.parametrize("name", NAMES)
def test_the_choice_is_the_value_of_the_spec(name: str) -> None:
    resolved = spec_of(name)
    for one in conflicts(resolved):
        value = resolved.scalar(*one.path.split("."))
        choice = one.choice.replace(",", "")
        if value is None or not _is_number(value.text) or not _is_number(choice):
            continue
        assert float(value.text) == float(choice), one.path


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in NAMES if "uncertain" in records()[name]])
def test_what_the_table_doubts_the_spec_doubts(name: str) -> None:
    marked = [one.path for one in uncertain(spec_of(name))]
    for doubt in records()[name]["uncertain"]:
        assert any(matches(path, DOUBTS[doubt]) for path in marked), doubt


@pytest.mark.parametrize("name", [name for name in NAMES if "uncertain" not in records()[name]])
def test_no_size_is_doubted_that_the_table_is_sure_of(name: str) -> None:
    marked = [one.path for one in uncertain(spec_of(name))]
    assert [path for path in marked if path.startswith("hyperparameters")] == []


@pytest.mark.parametrize("spec_id", REGISTRY.ids())
def test_no_override_repeats_what_is_inherited(spec_id: str) -> None:
    assert [str(one) for one in REGISTRY.load(spec_id).warnings] == []


def test_a_repeated_value_is_found() -> None:
    text = "spec: 1\nid: test/again\nextends: llama/2/7b\nhyperparameters: {hidden_size: 4096}\n"
    assert [one.code for one in Registry().load_text(text).warnings] == ["LG501"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "version: 1\n",
        "l1code: {title: a, place: b, kind: c}\n",
        "version: 1\nsources: {l1code: a line}\n",
        "version: 1\nsources: {l1code: {title: a, place: b, kind: c, extra: d}}\n",
    ],
)
def test_sources_that_are_not_as_shipped_are_refused(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "sources.yaml").write_text(text)
    for module in (tables, listed):
        if hasattr(module, "data_folder"):
            monkeypatch.setattr(module, "data_folder", lambda name: tmp_path)
    tables._load.cache_clear()
    listed.known_sources.cache_clear()
    try:
        with pytest.raises(LlamagenError):
            listed.known_sources()
    finally:
        tables._load.cache_clear()
        listed.known_sources.cache_clear()
