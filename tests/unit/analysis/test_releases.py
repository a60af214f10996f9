"""The releases at one look, by the published history, and the claims about them."""

from __future__ import annotations

import json
from datetime import date

import pytest

from llamagen import api
from llamagen.analysis.releases import json_text, text
from llamagen.analysis.sources import claims, known_sources
from llamagen.cli import main


def test_the_seven_releases_with_what_each_brought() -> None:
    news = {one.generation: set(one.techniques) for one in api.releases()}
    assert list(news) == ["1", "2", "3", "3.1", "3.2", "3.3", "4"]
    assert {"SwiGLU", "rotary positions (RoPE)", "RMSNorm before every block"} <= news["1"]
    assert news["2"] == {"grouped-query attention (GQA)"}
    assert news["3"] == {"a tiktoken tokenizer", "a vocabulary of 128,256"}
    assert news["3.1"] == {"RoPE scaled by llama3 (factor 8.0)"}
    assert {"the head tied to the embedding", "images by cross-attention"} <= news["3.2"]
    assert news["3.3"] == set()
    assert {
        "mixture of experts",
        "global layers without positions (NoPE)",
        "attention within chunks",
        "images by early fusion",
        "a vocabulary of 202,048",
    } <= news["4"]


def test_dates_and_contexts_are_those_of_the_facts() -> None:
    found = {one.generation: (one.date, one.context) for one in api.releases()}
    assert found["1"] == (date(2023, 2, 24), "2,048")
    assert found["3.2"] == (date(2024, 9, 25), "131,072")
    assert found["4"] == (date(2025, 4, 5), "1,048,576 to 10,485,760")


def test_a_claim_stands_once_in_the_text_and_with_each_release_in_json() -> None:
    shown = text(api.releases())
    for number, claim in claims().items():
        assert shown.count(f"{number}. {claim.claim}") == 1
    documents = json.loads(json_text(api.releases()))["releases"]
    numbers = [c["number"] for one in documents for c in one["claims"]]
    assert len(numbers) == sum(len(claim.about) for claim in claims().values())


@pytest.mark.parametrize("number", claims())
def test_a_claim_has_known_sources_and_a_command_that_runs(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    claim = claims()[number]
    assert claim.sources
    assert set(claim.sources) <= known_sources().keys()
    assert main(shlex.split(claim.see)[1:]) == 0
    assert capsys.readouterr().out


def test_a_text_token_of_scout_uses_17_billion_as_its_card_says() -> None:
    answer = api.query("id == 'llama/4/scout'", select=["active_params", "params"])
    assert answer.rows == ((17_172_894_720, 108_641_793_536),)
    assert api.cost("llama/4/scout").parameters.active == 17_172_894_720


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "silu"), ("norm", "rms_norm")])
def test_what_never_changed_is_said(name: str, value: str) -> None:
    history = api.timeline(name)
    assert history.constant
    assert history.steps[0].held[0].value == value


def test_a_section_shows_what_is_disputed_in_it() -> None:
    assert "disputed advertised_context: 10M was chosen" in api.explain("llama/4/scout", "training")


def test_sql_has_conflicts_lineage_devices_and_claims() -> None:
    def rows(statement: str) -> tuple[tuple[object, ...], ...]:
        return api.sql(statement).rows

    assert ("10M", "l4card") in rows(
        "SELECT value, source FROM conflicts WHERE model = 'llama/4/scout' AND path LIKE '%context'"
    )
    assert rows("SELECT base FROM lineage WHERE model = 'llama/3.3/70b-instruct'") == (
        ("llama/3.1/70b",),
    )
    assert rows("SELECT count(*) FROM claims") == ((18,),)
    assert rows("SELECT count(*) > 0 FROM devices WHERE memory_bytes > 0") == ((1,),)
    assert rows("SELECT count(*) FROM variants WHERE model = 'llama/3.1/8b'") == ((1,),)
    assert rows(
        "SELECT models.id, j.value FROM models, json_each(languages) j"
        " WHERE models.id = 'llama/3/8b'"
    ) == (("llama/3/8b", "en"),)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["show", "llama/3.2/1b"], "sections"),
        (["timeline", "vocab_size"], "timelines"),
        (["timeline"], "timelines"),
        (["timeline", "--releases"], "releases"),
        (["resolve", "llama/3.2/1b"], "spec"),
        (["resolve", "llama/3.2/1b", "--origins"], "values"),
    ],
)
def test_readers_answer_as_json(
    arguments: list[str], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == 1
    assert answer[key]
