"""Numbers against published ones, worked out there from published shapes, and by hand here."""

from __future__ import annotations

import pytest

from llamagen.analysis.cost import cost_of, device, devices, largest, text, workload
from llamagen.analysis.numbers import (
    Component,
    activation_levels,
    cache_of,
    count_flops,
    count_parameters,
    flops_of,
    peak,
    storage,
    visible_pairs,
    weight_bytes,
)
from llamagen.analysis.parallel import Layout
from llamagen.diagnostics import LlamagenError
from llamagen.ir.bounded import bound_caches
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import MAIN
from llamagen.ir.shard import plan
from llamagen.ops.table import OPS
from tests.unit.analysis import models

EVERY = [
    models.LLAMA_2_7B,
    models.LLAMA_3_8B,
    models.LLAMA_31_405B,
    models.LLAMA_32_1B,
    models.SCOUT,
]


@pytest.mark.parametrize(
    ("source", "total", "per_token"),
    [
        (models.LLAMA_2_7B, 6_738_415_616, 524_288),
        (models.LLAMA_3_8B, 8_030_261_248, 131_072),
        (models.LLAMA_31_405B, 405_853_388_800, 516_096),
        (models.LLAMA_32_1B, 1_235_814_400, 32_768),
        (models.SCOUT, 107_769_861_120, 196_608),
    ],
)
def test_totals_of_facts(source: str, total: int, per_token: int) -> None:
    graph = models.graph(source)
    assert count_parameters({MAIN: graph}).total == total
    assert cache_of(graph).per_token(2) == per_token
    assert weight_bytes({MAIN: graph}, storage("bfloat16")) == 2 * total


@pytest.mark.parametrize("source", EVERY)
def test_folded_sums_equal_the_unrolled_graph(source: str) -> None:
    graph = models.graph(source)
    flat = flatten(graph)
    assert count_parameters({MAIN: graph}).total == sum(p.count for p in graph.parameters.values())
    keys = [s for s in flat.slots if s.of_tokens][::2]
    slots = [(s.path, s.found.shape[1].value, s.found.shape[3].value) for s in keys]
    assert [(c.path, c.kv_heads, c.key_dim) for c in cache_of(graph).layers] == slots
    sizes = {"B": 3, "S": 5, "P": 7}
    total = sum(
        OPS[n.op]
        .flops([flat.types[o] for o in n.operands], [flat.types[r] for r in n.results], n.attrs)
        .evaluate(sizes)
        for n in flat.nodes
    )
    assert count_flops(flops_of(graph), 3, 5, 7).total == total


def test_components_of_a_tied_model() -> None:
    report = count_parameters({MAIN: models.graph(models.LLAMA_32_1B)})
    assert {c.component: c.count for c in report.components} == {
        Component.EMBEDDING: 128256 * 2048,
        Component.ATTENTION: 16 * (2 * 2048 * 2048 + 2 * 512 * 2048),
        Component.FEED_FORWARD: 16 * 3 * 8192 * 2048,
        Component.NORM: 33 * 2048,
    }
    assert report.tied
    assert report.active_without_embedding == report.total


def test_active_parameters_of_scout() -> None:
    report = count_parameters({MAIN: models.graph(models.SCOUT)})
    assert report.active == 17_172_894_720
    assert report.active_without_embedding == 16_138_408_960
    assert report.of(Component.EXPERTS) == 96_636_764_160
    assert report.of(Component.ROUTER) == 48 * 16 * 5120


def test_chunked_layers_keep_one_chunk() -> None:
    cache = cache_of(models.graph(models.SCOUT))
    assert [layer.chunk for layer in cache.layers[:5]] == [8192, 8192, 8192, None, 8192]
    a_layer = 2 * 2 * 8 * 128
    assert cache.needed(8191, 2) == cache.allocated(8191, 2) == 48 * a_layer * 8191
    assert cache.needed(131072, 2) == a_layer * (36 * 8191 + 12 * 131072)
    assert cache.allocated(131072, 2) == 48 * a_layer * 131072


def test_a_bounded_graph_allocates_what_is_needed() -> None:
    """10 million tokens: at most one chunk of keys in 36 of 48 layers, and a decode step reads no more."""
    full = models.graph(models.SCOUT)
    cut = bound_caches(full)
    whole, bounded = (cache_of(g) for g in (full, cut))
    assert [layer.keep for layer in bounded.layers] == [8191, 8191, 8191, None] * 12
    assert bounded.allocated(10_485_760, 2) == whole.needed(10_485_760, 2)
    assert bounded.allocated(10_485_760, 2) == 4096 * (36 * 8191 + 12 * 10_485_760)
    load = workload(10_485_760)
    wide, narrow = cost_of({MAIN: full}, load), cost_of({MAIN: cut}, load)
    assert narrow.cache_bytes == narrow.decode.cache_bytes_read == narrow.cache_bytes_needed
    assert narrow.decode.flops.attention * 3 < wide.decode.flops.attention
    assert narrow.prefill.cache_bytes_written == narrow.cache_bytes


def test_flops_of_7b_by_hand() -> None:
    flops = count_flops(flops_of(models.graph(models.LLAMA_2_7B)), 1, 1, 9)
    assert flops.matmul == 2 * 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert flops.attention == 2 * 2 * 32 * 10 * 4096
    assert flops.head == 2 * 4096 * 32000


@pytest.mark.parametrize("chunk", [None, 1, 3, 8])
@pytest.mark.parametrize("window", [None, 1, 4, 20])
def test_pairs_in_sight_by_counting(window: int | None, chunk: int | None) -> None:
    for past in (0, 1, 7, 8, 30):
        for new in (1, 5, 17):
            seen = [
                (q, k)
                for q in range(past, past + new)
                for k in range(q + 1)
                if (window is None or q - k < window)
                and (chunk is None or q // chunk == k // chunk)
            ]
            assert visible_pairs(new, past, window, chunk) == len(seen)


def test_a_roofline_is_a_bound_for_kernels_that_skip_masked_keys() -> None:
    h100 = ("h100-sxm", device("h100-sxm"))
    long = cost_of({MAIN: models.graph(models.LLAMA_3_8B)}, workload(131_072), h100)
    one_pair = 32 * 4 * 4096
    assert long.prefill.attention_visible == one_pair * 131_072 * 131_073 // 2
    least = long.prefill.flops.total - long.prefill.flops.attention + long.prefill.attention_visible
    assert long.device is not None
    assert long.device.prefill.seconds == pytest.approx(least / 9.894e14)
    scout = cost_of({MAIN: models.graph(models.SCOUT)}, workload(100_000))
    a_layer = 8 * 128 * 2 * 2
    assert scout.decode.cache_bytes_read == a_layer * (12 * 100_000 + 36 * 8191)
    assert scout.cache_bytes == a_layer * 48 * 100_000


def test_int4_stores_a_scale_for_every_32() -> None:
    graph = models.graph(models.TINY)
    matrices = 2 * (4 * 256 * 256 + 3 * 256 * 512) + 512 * 256
    rest = 512 * 256 + 5 * 256
    assert (
        weight_bytes({MAIN: graph}, storage("int4"))
        == matrices // 2 + matrices // 32 * 2 + rest * 2
    )


def test_activation_peak_by_hand() -> None:
    """Attention of a wide batch: scores in float32 beside q, keys, values, the result and the residual."""
    graph = models.graph(models.TINY)
    b, s = 2, 64
    most = peak(activation_levels(graph, 2), {"B": b, "S": s, "P": 0})
    scores = b * 8 * s * s * 4
    assert scores < most < scores + b * s * (6 * 256 * 2 + 4 * 16 * 8) + b * s * s
    assert peak(activation_levels(graph, 2), {"B": 1, "S": 1, "P": 0}) >= 512 * 2
    # where scores are nearly all of it
    long = peak(activation_levels(graph, 2), {"B": b, "S": 2048, "P": 0})
    assert 1 < long / (b * 8 * 2048 * 2048 * 4) < 1.1


def test_rooflines_on_a_device() -> None:
    graph = models.graph(models.LLAMA_3_8B)
    h100 = device("h100-sxm")
    report = cost_of({MAIN: graph}, workload(8192), ("h100-sxm", h100))
    assert report.device is not None
    decode = report.decode
    embedding = 128256 * 4096 * 2
    assert decode.weight_bytes_read == 2 * 8_030_261_248 - embedding + 4096 * 2
    assert decode.cache_bytes_read == 131_072 * 8192
    assert report.device.decode.bound == "memory"
    assert report.device.decode.seconds == pytest.approx(decode.bytes_moved / 3.35e12)
    assert report.device.prefill.bound == "compute"
    assert report.device.fits is True
    memory = h100.memory_bytes
    assert memory is not None
    longest = report.device.max_context
    assert longest is not None
    assert report.weight_bytes + 131_072 * longest <= memory
    assert report.weight_bytes + 131_072 * (longest + 500) > memory


def test_405b_fits_eight_devices_only_in_eight_bit() -> None:
    graph = models.graph(models.LLAMA_31_405B)
    chosen = ("h100-sxm", device("h100-sxm"))
    wide = cost_of({MAIN: graph}, workload(4096, layout=Layout(tp=8)), chosen).device
    small = cost_of(
        {MAIN: graph}, workload(4096, dtype="float8", layout=Layout(tp=8)), chosen
    ).device
    assert wide is not None
    assert small is not None
    assert (wide.fits, small.fits) == (False, True)
    assert wide.max_batch == 0
    staged = cost_of({MAIN: graph}, workload(4096, layout=Layout(tp=8, pp=2)), chosen).device
    assert staged is not None and staged.fits


def test_decode_reads_chosen_experts_only() -> None:
    graph = models.graph(models.SCOUT)
    one = cost_of({MAIN: graph}, workload(16, batch=1)).decode.weight_bytes_read
    four = cost_of({MAIN: graph}, workload(16, batch=4)).decode.weight_bytes_read
    an_expert = 48 * 3 * 5120 * 8192 * 2
    assert four - one == 3 * an_expert + 3 * 5120 * 2


@pytest.mark.parametrize(
    ("source", "degrees"),
    [
        (models.LLAMA_2_7B, (1, 2, 4, 8, 16, 32)),
        (models.LLAMA_3_8B, (1, 2, 4, 8)),
        (models.SCOUT, (1, 2, 4, 8)),
    ],
)
def test_tensor_parallel_degrees(source: str, degrees: tuple[int, ...]) -> None:
    assert plan(models.graph(source)).degrees == degrees


def test_illegal_degree_names_the_legal_ones() -> None:
    with pytest.raises(LlamagenError) as caught:
        cost_of({MAIN: models.graph(models.LLAMA_3_8B)}, workload(8, layout=Layout(tp=3)))
    found = caught.value.diagnostics[0]
    assert found.code == "LG906"
    assert found.help is not None
    assert found.help.endswith("1, 2, 4, 8")


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_largest(n: int) -> None:
    assert largest(lambda k: k <= n) == n


@pytest.mark.parametrize(
    "call", [lambda: device("h100"), lambda: storage("bf16"), lambda: workload(0)]
)
def test_unknown_names_and_sizes(call: object) -> None:
    assert callable(call)
    with pytest.raises(LlamagenError) as caught:
        call()
    assert caught.value.diagnostics[0].code == "LG901"


def test_every_device_has_a_source() -> None:
    assert all(d.source and d.bandwidth > 0 and d.peak("bfloat16") > 0 for d in devices().values())


def test_keys_and_values_in_another_dtype_than_activations() -> None:
    graphs = {MAIN: models.graph(models.LLAMA_3_8B)}
    wide, narrow = (cost_of(graphs, workload(4096, cache_dtype=name)) for name in (None, "float8"))
    assert wide.cache_bytes == 2 * narrow.cache_bytes
    assert [h.cache for h in wide.held] == [2 * h.cache for h in narrow.held]
    assert wide.decode.activation_peak == narrow.decode.activation_peak
    assert wide.weight_bytes == narrow.weight_bytes
    assert wide.decode.cache_bytes_read == 2 * narrow.decode.cache_bytes_read
    with pytest.raises(LlamagenError, match="LG901"):
        workload(1, cache_dtype="int4")


def test_a_context_beyond_the_model_is_counted_and_marked() -> None:
    graphs, device_ = {MAIN: models.graph(models.LLAMA_3_8B)}, ("h200-sxm", device("h200-sxm"))
    within, beyond = (
        text(cost_of(graphs, workload(context), device_, 8192)) for context in (8192, 8193)
    )
    assert "beyond the 8,192 tokens that the model is made for" in beyond
    assert "beyond" not in within
    assert "at batch 1; the model is made for 8,192" in within
