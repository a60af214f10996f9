"""Bytes of a GPU and traffic of a token, worked out by hand from published shapes; what is refused."""

from __future__ import annotations

import pytest

from llamagen.analysis.numbers import count_parameters, storage
from llamagen.analysis.parallel import Layout, ParallelReport, parallel_of
from llamagen.diagnostics import LlamagenError
from llamagen.ir.graph import MAIN
from llamagen.ir.shard import stage_layers
from tests.unit.analysis import models

FORM = storage("bfloat16")


def spread(source: str, layout: Layout, context: int = 4096, batch: int = 1) -> ParallelReport:
    graphs = {MAIN: models.graph(source)}
    return parallel_of(graphs, layout, context=context, batch=batch, weights=FORM)


@pytest.mark.parametrize("source", [models.LLAMA_32_1B, models.LLAMA_3_8B, models.SCOUT])
def test_one_gpu_holds_all(source: str) -> None:
    (held,) = spread(source, Layout()).held
    assert held.weights == 2 * count_parameters({MAIN: models.graph(source)}).total


def test_405b_over_sixteen_gpus() -> None:
    """A layer has 2 D (D + K H) of attention, 3 D F of feed-forward, 2 D of norms; norms alone are on every GPU."""
    first, last = spread(models.LLAMA_31_405B, Layout(tp=8, pp=2)).held
    layer = 2 * 16384 * (16384 + 1024) + 3 * 16384 * 53248
    table = 128256 * 16384
    assert (first.layers, last.layers) == (range(63), range(63, 126))
    assert first.weights == 2 * ((63 * layer + table) // 8 + 63 * 2 * 16384)
    assert last.weights == first.weights + 2 * 16384
    assert first.cache == 63 * 4096 * 2 * 128 * 2


def test_heads_that_engines_hold_twice() -> None:
    """At 16 for 8 key/value heads a GPU has one, as at 8, and everything else is half."""
    eight, sixteen = (spread(models.LLAMA_31_405B, Layout(tp=n)) for n in (8, 16))
    keys = 126 * 2 * 16384 * 128 * 2
    norms = (126 * 2 + 1) * 16384 * 2
    rest = eight.held[0].weights - keys - norms
    assert sixteen.held[0].weights == rest // 2 + keys + norms
    assert sixteen.held[0].cache == eight.held[0].cache
    assert sixteen.notes and not eight.notes


def test_a_tied_table_is_on_the_first_stage_and_on_the_last() -> None:
    first, last = spread(models.LLAMA_32_1B, Layout(pp=2)).held
    assert last.weights == first.weights + 2 * 2048


def test_groups_of_experts_have_some_of_them_and_their_own_sequences() -> None:
    one, four = (spread(models.SCOUT, Layout(ep=n), batch=8).held[0] for n in (1, 4))
    experts = 48 * 16 * 3 * 5120 * 8192 * 2
    assert one.weights - four.weights == experts - experts // 4
    assert four.cache == one.cache // 4


def test_traffic_is_two_sums_a_layer_and_that_of_the_table() -> None:
    report = spread(models.LLAMA_3_8B, Layout(tp=4, pp=2))
    sums, logits, crossing = report.traffic
    assert (sums.times, sums.bytes) == (65, 65 * 4096 * 2) and sums.sent == sums.bytes * 3 // 2
    assert (logits.bytes, crossing.bytes) == (128256 * 2, 4096 * 2)
    assert spread(models.LLAMA_3_8B, Layout()).traffic == ()


@pytest.mark.parametrize(
    ("layout", "gpus", "code", "says"),
    [
        (Layout(tp=3), None, "LG906", "Attention.k_proj has 8 heads"),
        (Layout(tp=24), None, "LG906", "Attention.k_proj has 8 heads"),
        (Layout(ep=2), None, "LG906", "has no experts"),
        (Layout(pp=33), None, "LG907", "32 layers, not enough for 33"),
        (Layout(tp=8), 12, "LG908", "12 GPUs are not a multiple of tp x pp x ep = 8 x 1 x 1 = 8"),
    ],
)
def test_what_cannot_be(layout: Layout, gpus: int | None, code: str, says: str) -> None:
    graphs = {MAIN: models.graph(models.LLAMA_3_8B)}
    with pytest.raises(LlamagenError, match=says) as caught:
        parallel_of(graphs, layout, context=8, batch=1, weights=FORM, gpus=gpus)
    (found,) = caught.value.diagnostics
    assert found.code == code and found.help


@pytest.mark.parametrize(
    ("layout", "gpus"), [(Layout(tp=8, pp=32), 512), (Layout(tp=16), None), (Layout(pp=32), 32)]
)
def test_what_can(layout: Layout, gpus: int | None) -> None:
    graphs = {MAIN: models.graph(models.LLAMA_3_8B)}
    parallel_of(graphs, layout, context=8, batch=1, weights=FORM, gpus=gpus)


@pytest.mark.parametrize(("layers", "stages"), [(16, 3), (5, 5), (126, 4)])
def test_every_layer_is_on_one_stage(layers: int, stages: int) -> None:
    parts = stage_layers(layers, stages)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
