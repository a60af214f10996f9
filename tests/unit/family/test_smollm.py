"""A model of another family that ships, against the file that its weights come in."""

from __future__ import annotations

from math import prod

import llamagen
from llamagen.analysis.records import architecture_of, records_of
from llamagen.emit.config.checkpoint import check_checkpoint, import_path
from llamagen.spec.families import EVERY_FAMILY
from llamagen.spec.registry import Registry
from llamagen.weights.gguf_file import read_gguf
from tests.real import smollm2

ID = "smollm/2/135m-instruct"


def test_it_is_what_its_file_says() -> None:
    """Its configuration, its tensors, their elements, its licence."""
    registry, path = Registry(), smollm2()
    imported = import_path(path)
    assert imported.nearest.id == ID and not imported.nearest.differences
    report = check_checkpoint(registry.load(ID), path, registry)
    assert report.clean, report.findings
    header = read_gguf(path)
    model = llamagen.load(ID)
    counted = architecture_of(model.resolved)
    assert counted is not None
    assert counted.totals["params"] == sum(prod(one.shape) for one in header.tensors)
    release, tokenizer = model.spec.release, model.spec.tokenizer
    assert release is not None and tokenizer is not None and release.licence is not None
    assert release.licence.casefold() == header.keys["general.license"]
    assert header.keys["tokenizer.ggml.model"] == "gpt2" and tokenizer.kind == "bpe"
    unknown = header.keys["tokenizer.ggml.unknown_token_id"]
    assert tokenizer.special_tokens == {"unk": unknown}


def test_the_family_is_asked_unless_another_is_named() -> None:
    """A history through two families is none: what follows what would be an accident of dates."""
    registry = Registry()
    family = [one.id for one in records_of(registry)]
    assert ID not in family and len(family) == 70
    assert [row.id for row in llamagen.list_models(family="smollm")] == [ID]
    every = [row.id for row in llamagen.list_models(family=EVERY_FAMILY)]
    assert {*family, ID} < set(every)
    assert not llamagen.query(f"id == '{ID}'").rows
