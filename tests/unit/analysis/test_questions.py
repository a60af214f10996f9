"""Query, timeline, SQL and compat over the shipped family; answers are those of docs/facts.md."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest

from llamagen.analysis.diff.compat import compat, text
from llamagen.analysis.diff.judge import Verdict
from llamagen.analysis.diff.runtimes import Status, on_runtimes, runtimes
from llamagen.analysis.diff.weights import Transform
from llamagen.analysis.queries import query, share, timeline, timeline_text
from llamagen.analysis.records import COLUMNS, Record, attention_kind, records_of
from llamagen.analysis.sql import TABLES, sql
from llamagen.api import MAINLINE
from llamagen.diagnostics import LlamagenError
from llamagen.spec.registry import Registry
from tests.unit.analysis import models


@pytest.fixture(scope="module")
def family() -> list[Record]:
    return records_of(Registry())


def test_query_filters_sorts_and_cuts(family: list[Record]) -> None:
    answer = query(
        family,
        "generation == '3.1' and not quantised",
        select=["id", "params"],
        sort="-params",
        first=3,
    )
    assert answer.columns == ("id", "params")
    assert answer.rows == (
        ("llama/3.1/405b", 405_853_388_800),
        ("llama/3.1/405b-instruct", 405_853_388_800),
        ("llama/3.1/70b", 70_553_706_496),
    )


def test_models_without_the_value_do_not_match(family: list[Record]) -> None:
    ids = [row[0] for row in query(family, "num_experts > 16", select=["id"]).rows]
    assert ids == ["llama/4/maverick", "llama/4/maverick-instruct", "llama/4/maverick-instruct-fp8"]
    factors = query(
        family, "rope.factor == 32.0 and not quantised", select=["id", "rope.factor"]
    ).rows
    assert {row[0] for row in factors} == {
        f"llama/3.2/{n}" for n in ("1b", "1b-instruct", "3b", "3b-instruct")
    }


def test_query_names_the_nearest_name(family: list[Record]) -> None:
    with pytest.raises(LlamagenError) as caught:
        query(family, "num_kv_head < 8")
    found = caught.value.diagnostics[0]
    assert found.code == "LG905"
    assert found.help == "did you mean `num_kv_heads`?"


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        ("params", "`params` is 13,015,864,320 for llama/1/13b, not true or false", "compare it"),
        ("tokenizer = 'tiktoken'", "found `=`, at `=`", "`==` compares two values"),
        ("num_heads >", "expected a value, but the text ends", ""),
        ("rope.facter > 8", "`facter` is not a name of a model", "did you mean `factor`?"),
        (
            "num_experts > 1 and rope.x",
            "`x` is not a name of a model",
            "`llamagen query --columns`",
        ),
        (
            "hyperparameters.rope.theta > 1e5",
            "`hyperparameters` is not a name of a model",
            "values stand without their section",
        ),
    ],
)
def test_conditions_that_are_none(family: list[Record], text: str, message: str, help: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        query(family, text)
    found = caught.value.diagnostics[0]
    assert found.message.endswith(message)
    assert (found.help or "").startswith(help)


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("SELECT parms FROM models", "params"),
        ("SELECT m.licens FROM models m", "licence"),
        ("SELECT * FROM model", "models"),
    ],
)
def test_sql_names_the_nearest_name(family: list[Record], statement: str, name: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        sql(family, statement)
    assert caught.value.diagnostics[0].help == f"did you mean `{name}`?"


@pytest.mark.parametrize(
    "text", ["__class__", "id.__class__", "open('x')", "id.upper()", "lambda: 1"]
)
def test_queries_cannot_reach_python(family: list[Record], text: str) -> None:
    with pytest.raises(LlamagenError):
        query(family, text)


def test_share(family: list[Record]) -> None:
    found = share(family, "tokenizer", "generation in ['1', '2', '3'] and status == 'released'")
    assert [(s.value, s.count) for s in found] == [("sentencepiece", 10), ("tiktoken", 4)]
    assert sum((s.fraction for s in found), Fraction(0)) == 1


@pytest.mark.parametrize("text", ["num_heads >", "nothing", "rope.facter"])
def test_timelines_of_what_cannot_be(family: list[Record], text: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        timeline(family, text, MAINLINE)
    assert caught.value.diagnostics[0].code == "LG905"


def test_timelines(family: list[Record]) -> None:
    theta = timeline(family, "rope_theta", MAINLINE)
    assert [(day, h.value) for day, h in theta.firsts()] == [
        (date(2023, 2, 24), 10000.0),
        (date(2024, 4, 18), 500000.0),
    ]
    gqa = timeline(family, "attention", MAINLINE)
    assert [d for d, h in gqa.firsts() if h.value == "GQA"] == [date(2023, 7, 18)]
    assert "never changed" in timeline_text(timeline(family, "biases", MAINLINE))
    assert timeline(family, "hidden_size > 0", MAINLINE).constant
    assert "llama/code 16" in timeline_text(theta), "a default filter is not silent"
    assert "left out" not in timeline_text(timeline(family, "rope_theta", "true"))


def test_a_release_in_fewer_bits_changes_no_timeline(family: list[Record]) -> None:
    """The quantised 3.2 came on a day of their own."""
    day = date(2024, 10, 24)
    assert day not in {step.date for step in timeline(family, "hidden_size", MAINLINE).steps}
    assert day in {step.date for step in timeline(family, "context", "true").steps}


def test_results_are_asked_for_by_name(family: list[Record]) -> None:
    mmlu = query(family, "benchmarks['MMLU'] > 85", select=["id", "benchmarks['MMLU']"])
    assert mmlu.rows == (
        ("llama/3.1/405b", 85.2), ("llama/3.1/405b-instruct", 87.3), ("llama/4/maverick", 85.5)
    )  # fmt: skip
    with pytest.raises(LlamagenError) as caught:
        query(family, "benchmarks['MMLUU'] > 85")
    assert caught.value.diagnostics[0].help == "did you mean `MMLU`?"
    best = (
        "SELECT model, score, shots FROM benchmarks WHERE name = 'MMLU' ORDER BY score DESC LIMIT 1"
    )
    assert sql(family, best).rows == (("llama/3.1/405b-instruct", 87.3, 5),)


def test_emissions_rates_batches_and_papers_are_columns(family: list[Record]) -> None:
    select = ["co2_tonnes", "learning_rate", "batch_tokens", "paper"]
    (row,) = query(family, "id == 'llama/2/70b'", select=select).rows
    assert row == (291.42, 1.5e-4, 4_000_000, "2307.09288")
    (guard,) = query(family, "id == 'llama/guard/3-8b'", select=[*select, "benchmarks"]).rows
    assert guard == (None,) * 5, "what its base cost is not what it cost"


def test_dates_are_dates(family: list[Record]) -> None:
    answer = query(family, "id == 'llama/3.1/8b'", select=["released", "released < '2025'"])
    assert answer.rows == ((date(2024, 7, 23), True),)


def test_sql_over_every_table(family: list[Record]) -> None:
    assert sql(family, "SELECT params FROM models WHERE id = 'llama/3/8b'").rows == (
        (8_030_261_248,),
    )
    total = sql(family, "SELECT sum(total) FROM parameters WHERE model = 'llama/3/8b'").rows
    assert total == ((8_030_261_248,),)
    layers = "SELECT count(*), max(kv_heads), min(rope) FROM layers WHERE model = 'llama/2/70b'"
    assert sql(family, layers).rows == ((80, 8, 1),)
    changed = "SELECT after FROM changes WHERE model = 'llama/3/8b' AND path = 'hyperparameters.intermediate_size'"
    assert sql(family, changed).rows == (("14336",),)
    sourced = (
        "SELECT count(*) FROM sources WHERE model = 'llama/3/8b'"
        " AND path LIKE 'hyperparameters.%' AND source IS NULL"
    )
    assert sql(family, sourced).rows == ((0,),)
    assert set(TABLES["models"].columns) == set(COLUMNS)


def test_sql_opens_a_cell_of_json(family: list[Record]) -> None:
    each = "SELECT count(*) FROM models, json_each(languages) WHERE models.languages IS NOT NULL"
    ((count,),) = sql(family, each).rows
    assert isinstance(count, int) and count > 0
    assert sql(family, "SELECT value FROM json_tree('[1]') WHERE type = 'integer'").rows == ((1,),)


def test_sql_values_that_json_has_not(family: list[Record]) -> None:
    found = sql(family, "SELECT x'00ff', 1.0e300 * 1.0e300, 0.5")
    assert found.rows == (("00ff", "inf", 0.5),)
    both = "SELECT a.id, b.id FROM models a JOIN models b ON b.extends = a.id LIMIT 1"
    assert sql(family, both).columns == ("id", "id:1")


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE models",
        "INSERT INTO models VALUES (1)",
        "ATTACH DATABASE 'x.db' AS y",
        "PRAGMA table_info(models)",
        "SELECT 1; SELECT 2",
        "SELECT load_extension('x')",
        "SELECT nothing FROM models",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c",
    ],
)
def test_sql_only_reads(family: list[Record], statement: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        sql(family, statement)
    assert caught.value.diagnostics[0].code == "LG905"


def test_compat_of_variants_and_generations() -> None:
    same = compat(models.model_of("llama/3.1/8b"), models.model_of("llama/3.1/8b-instruct"))
    assert same.verdict is Verdict.SAME
    assert "run as they are" in text(same)
    padded = compat(models.model_of("llama/code/7b-python"), models.model_of("llama/code/7b"))
    assert padded.verdict is Verdict.CONVERTIBLE
    assert padded.transforms == (Transform.PAD_VOCAB,)
    broken = compat(models.model_of("llama/2/7b"), models.model_of("llama/3/8b"))
    assert broken.verdict is Verdict.BREAKING
    assert broken.blocking


def test_runtime_facts_apply_where_they_hold() -> None:
    def status(source: str, name: str, dtype: str) -> Status | None:
        graphs = {"model": models.graph(source)}
        return on_runtimes(models.spec(source), graphs, [name], dtype)[0].status

    assert status(models.LLAMA_3_8B, "onnxruntime-cpu", "float32") is Status.RUNS
    assert status(models.LLAMA_3_8B, "onnxruntime-cpu", "bfloat16") is Status.SLOW
    assert status(models.LLAMA_3_8B, "onnxruntime-genai", "float32") is Status.RUNS
    narrow = models.LLAMA_3_8B.replace(
        "v_proj: linear(hidden_size, num_kv_heads * head_dim)",
        "v_proj: linear(hidden_size, num_kv_heads * 64)",
    ).replace("o_proj: linear(num_heads * head_dim,", "o_proj: linear(num_heads * 64,")
    assert status(narrow, "onnxruntime-genai", "float32") is Status.REFUSES
    assert all(f.source for r in runtimes().values() for f in r.facts)


@pytest.mark.parametrize(
    ("target", "builder", "loader", "exporter"),
    [
        ("llama/3/8b", Status.RUNS, Status.RUNS, Status.WRONG),
        ("llama/3.2/11b-vision", Status.REFUSES, Status.WRONG, None),
        ("llama/4/scout", Status.REFUSES, Status.WRONG, Status.REFUSES),
        ("llama/guard/4-12b", Status.REFUSES, Status.RUNS, Status.REFUSES),
        ("tests/specs/foreign/mpt.yaml", None, None, None),
    ],
)
def test_loaders_go_by_the_architecture(
    target: str, builder: Status | None, loader: Status | None, exporter: Status | None
) -> None:
    """What takes a config.json, not our export, knows a model by its kind; of others nothing is known."""
    model = models.model_of(target)
    names = ("onnxruntime-genai-builder", "transformers", "transformers-exporter")
    found = on_runtimes(model.resolved, model.graphs, names, "float32")
    assert tuple(r.status for r in found) == (builder, loader, exporter)


def test_changed_wiring_has_no_kind(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    wiring = "blocks: {SwiGLU: {forward: 'return down_proj(relu(gate_proj(x)) * up_proj(x))'}}"
    mine.write_text(f"spec: 1\nid: mine/relu\nextends: llama/3.2/1b\n{wiring}\n")
    report = compat(models.model_of("llama/3.2/1b"), models.model_of(str(mine)), ("transformers",))
    assert report.runtimes[0].status is None


@pytest.mark.parametrize(
    ("runtime", "dtype"), [("onnxruntime-cpux", "float32"), ("onnxruntime-cpu", "bf16")]
)
def test_unknown_runtime_and_dtype(runtime: str, dtype: str) -> None:
    with pytest.raises(LlamagenError, match=r"onnxruntime-cpux|bf16"):
        compat(models.model_of("llama/2/7b"), models.model_of("llama/2/7b"), (runtime,), dtype)


def test_kinds_of_attention() -> None:
    """Without its own number of key heads a model has as many as heads."""
    kinds = [attention_kind(8, kv_heads, latent=False) for kv_heads in (None, 8, 1, 2)]
    assert kinds == ["MHA", "MHA", "MQA", "GQA"]
    assert attention_kind(8, 1, latent=True) == "MLA"
