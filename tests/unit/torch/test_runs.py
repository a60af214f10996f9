"""Generated modules under torch.compile, torch.export and the meta device."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.export import Dim, export

from llamagen.ir.graph import Graph
from tests.unit.torch.models import cache_of, changed, graph, ids, llama, module, padded, scatter

SHAPE = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
CACHE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
SEVERAL = (
    "foreign/_decoder",
    "foreign/gemma3",
    "foreign/mixtral",
    "foreign/cohere2",
    "foreign/mpt",
)
SLOW = pytest.mark.slow
CAPTURED: Any = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
"""Not by monkeypatch, which takes the option away when it is undone."""


def made(spec_id: str) -> Graph:
    return changed() if spec_id == "foreign/_decoder" else graph(spec_id)


def model_of(spec_id: str, **options: object) -> Any:
    return of_graph(made(spec_id), **options)


def of_graph(graph: Graph, **options: object) -> Any:
    model = scatter(getattr(module(graph), graph.root)(**options))
    if hasattr(model, "tie"):
        model.tie()
    return model


@pytest.mark.parametrize(
    "spec_id", ["foreign/_decoder", *(pytest.param(i, marks=SLOW) for i in SEVERAL[1:])]
)
@torch.no_grad()
def test_export_with_dynamic_batch_sequence_and_past(spec_id: str) -> None:
    model = model_of(spec_id)
    _, past = step(model, ids(2, 7))
    _, other_past = step(model, ids(3, 11))
    prefill = export(model, (ids(2, 7),), dynamic_shapes={"input_ids": SHAPE}, strict=False)
    assert torch.equal(prefill.module()(ids(3, 11)), model(ids(3, 11)))

    several = [CACHE] * len(past)
    shapes = {"input_ids": {0: Dim.DYNAMIC}, "past": several}
    given: dict[str, Any] = {"input_ids": ids(2, 1), "past": past}
    decode = export(Step(model), (), given, dynamic_shapes=shapes, strict=False)
    expected = step(model, ids(3, 1), other_past)[0]
    assert torch.equal(decode.module()(input_ids=ids(3, 1), past=other_past)[0], expected)

    masked = {"input_ids": SHAPE, "past": several, "attention_mask": SHAPE}
    given = {"input_ids": ids(2, 5), "past": past, "attention_mask": padded(2, 12, 2)}
    chunk = export(Step(model), (), given, dynamic_shapes=masked, strict=False)
    given = {"input_ids": ids(3, 4), "past": other_past, "attention_mask": padded(3, 15, 3)}
    assert torch.equal(chunk.module()(**given)[0], step(model, **given)[0])


def step(
    model: Any, input_ids: torch.Tensor, past: list[torch.Tensor] | None = None, **more: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and what a later call is given: a cache that is a function's argument and result."""
    cache = cache_of(model)
    if past is not None:
        cache.slots, cache.tokens = list(past), past[0].shape[2]
    logits = model(input_ids, cache=cache, **more)
    return logits, [slot[:, :, : cache.tokens] for slot in cache.slots]


class Step(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        past: list[torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return step(self.model, input_ids, past, attention_mask=attention_mask)


def test_generate_compiles_once_for_a_prompt_and_once_for_all_tokens() -> None:
    """In one graph each, whatever the length; a second text compiles nothing."""
    for spec_id in ("foreign/_decoder", "foreign/gemma3"):
        model = model_of(spec_id)
        graphs: list[torch.fx.GraphModule] = []
        texts = [model.generate(ids(2, n, seed=n), max_new_tokens=12) for n in (9, 5)]

        def counted(
            graph: torch.fx.GraphModule,
            _: object,
            graphs: list[torch.fx.GraphModule] = graphs,
        ) -> object:
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        model.compile(fullgraph=True, dynamic=True, backend=counted)
        for n, text in zip((9, 5), texts, strict=True):
            assert torch.equal(model.generate(ids(2, n, seed=n), max_new_tokens=12), text)
        assert len(graphs) == 2


@pytest.mark.parametrize("capacity", [0, 5, 64])
@torch.no_grad()
def test_a_cache_is_written_in_place_and_grows(capacity: int) -> None:
    """By doubling: 40 tokens one by one are copied a few times, not 40 times."""
    model, text = llama(), ids(2, 40)
    cache = cache_of(model, capacity)
    rooms: list[int] = []
    for i in range(40):
        logits = model(text[:, i : i + 1], cache=cache)
        rooms.append(cache.slots[0].shape[2])
    torch.testing.assert_close(logits, model(text)[:, -1:], rtol=0, atol=1e-5)
    assert len(set(rooms)) <= 7 and rooms[-1] >= 40
    assert rooms[0] == max(capacity, 1)
    assert len({slot.data_ptr() for slot in cache.slots}) == len(cache.slots) == 4


@pytest.mark.parametrize(
    "spec_id",
    [
        "foreign/_decoder",
        *(pytest.param(f"foreign/{i}", marks=SLOW) for i in ("gemma3", "cohere2")),
    ],
)
@torch.no_grad()
def test_compile_in_one_graph(spec_id: str) -> None:
    model = model_of(spec_id)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for given in (
        {"input_ids": ids(2, 7)},
        {"input_ids": ids(3, 11)},
        {"input_ids": ids(2, 7), "attention_mask": padded(2, 7, 3)},
    ):
        assert torch.equal(compiled(**given), model(**given))
    given = {"input_ids": ids(2, 5), "attention_mask": padded(2, 12, 3)}
    caches = [cache_of(model) for _ in range(2)]
    for cache in caches:
        model(ids(2, 7), cache=cache)
    found, expected = (f(**given, cache=c) for f, c in zip((compiled, model), caches, strict=True))
    assert torch.equal(found, expected)


@CAPTURED
@torch.no_grad()
def test_experts_compile_in_one_graph() -> None:
    """Two experts a token; some that nobody chose, in the graph of a single token too."""
    model = model_of("foreign/mixtral")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    cache, cache_compiled = cache_of(model), cache_of(model)
    for new in (7, 1, 1):
        logits = compiled(ids(2, new), cache=cache_compiled)
        expected = model(ids(2, new), cache=cache)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@CAPTURED
@torch.no_grad()
def test_experts_compile_with_inductor() -> None:
    experts = model_of("foreign/mixtral").model.layers[0].mlp.experts
    compiled = torch.compile(experts, fullgraph=True, dynamic=True)
    x, weights = torch.randn(1, 3, 24), torch.rand(1, 3, 2)
    for chosen in ([[[0, 3], [3, 1], [0, 1]]], [[[2, 3], [2, 1], [2, 0]]]):
        given = x, torch.tensor(chosen), weights
        torch.testing.assert_close(compiled(*given), experts(*given), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_of_other_experts_are_not_read() -> None:
    """NaN in an expert that no token chose stays where it is; one that a token chose spreads."""
    experts = model_of("foreign/mixtral").model.layers[0].mlp.experts
    state = {name: p.clone() for name, p in experts.state_dict().items()}
    try:
        experts.gate_up_proj[2], experts.down_proj[2] = torch.nan, torch.nan
        x, half = torch.randn(1, 2, 24), torch.full((1, 2, 2), 0.5)
        assert experts(x, torch.tensor([[[0, 3], [3, 1]]]), half).isfinite().all()
        assert experts(x, torch.tensor([[[0, 3], [2, 1]]]), half)[0, 1].isnan().all()
    finally:
        experts.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("spec_id", ["foreign/_decoder", "foreign/mixtral"])
@CAPTURED
@torch.no_grad()
def test_compile_with_inductor(spec_id: str) -> None:
    """Logits and generated text, dense and with experts."""
    model = model_of(spec_id)
    logits, text = model(ids(2, 7)), model.generate(ids(2, 7), max_new_tokens=6)
    model.compile(fullgraph=True, dynamic=True)
    torch.testing.assert_close(model(ids(2, 7)), logits, rtol=0, atol=1e-5)
    assert torch.equal(model.generate(ids(2, 7), max_new_tokens=6), text)


@pytest.mark.parametrize("spec_id", SEVERAL)
@torch.no_grad()
def test_meta_device_holds_no_state_that_loading_would_miss(spec_id: str) -> None:
    found, model = made(spec_id), model_of(spec_id)
    with torch.device("meta"):
        empty = getattr(module(found), found.root)()
    assert not list(empty.buffers())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(ids(2, 7)), model(ids(2, 7)))


@torch.no_grad()
def test_positions_count_tokens_not_padding() -> None:
    model = llama()
    mask = padded(2, 9, 4)
    cache, alone_cache = cache_of(model), cache_of(model)
    alone = model(ids(2, 9)[:1, 4:], cache=alone_cache)
    together = model(ids(2, 9), attention_mask=mask, cache=cache)
    torch.testing.assert_close(together[:1, 4:], alone, rtol=0, atol=1e-5)
    mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
    new = ids(2, 1)
    expected = model(new[:1], cache=alone_cache)
    logits = model(new, attention_mask=mask, cache=cache)
    torch.testing.assert_close(logits[:1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_rows_that_see_nothing_are_finite(attention: str) -> None:
    model = llama(attention=attention)
    cache = cache_of(model)
    logits = model(ids(2, 6), attention_mask=torch.tensor([[0] * 6, [1] * 6]), cache=cache)
    assert logits.isfinite().all()
    assert all(slot.isfinite().all() for slot in cache.slots)


@torch.no_grad()
def test_only_chosen_experts_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("foreign/mixtral")
    rows: list[int] = []
    linear = torch.nn.functional.linear

    def counting(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[0])
        return linear(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    experts = model.model.layers[0].mlp.experts
    chosen = torch.tensor([[[0, 3], [3, 1]]])
    experts(torch.randn(1, 2, 24), chosen, torch.full((1, 2, 2), 0.5))
    assert sum(rows) == 2 * chosen.numel()


PLAIN: dict[str, int | tuple[int, ...]] = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 0}
EVEN = (1, 1, 1)
RANKS: dict[str, tuple[str, str, str, dict[str, int | tuple[int, ...]]]] = {
    "plain": ("", "_decoder", "self_attn", PLAIN),
    "fused": (
        "num_heads: 4, num_kv_heads: 2",
        "phi3",
        "self_attn",
        {"qkv_proj": (4, 2, 2), "o_proj": 0},
    ),
    "fused evenly": (
        "num_heads: 4, hidden_size: 32",
        "gpt2",
        "attn",
        {"c_attn": EVEN, "c_proj": 0},
    ),
    "gate and up": ("", "glm4", "mlp", {"gate_up_proj": (1, 1), "down_proj": 0}),
    "slopes": ("num_heads: 4, hidden_size: 32", "mpt", "attn", {"wqkv": EVEN, "out_proj": 0}),
    "norm of heads": ("", "cohere", "self_attn", {**PLAIN, "q_norm": 1, "k_norm": 1}),
    "latent": ("", "deepseek_v3", "self_attn", {"q_b_proj": 1, "kv_b_proj": 1, "o_proj": 0}),
}
"""A block, and how its weights are cut: by rows, in pieces of these shares that are halved each, or by columns (0)."""


@pytest.mark.parametrize("case", RANKS)
@torch.no_grad()
def test_sizes_come_from_the_weights(case: str) -> None:
    """Two modules with half of the heads or of the width, as tensor parallelism cuts them, add up to the whole."""
    hyperparameters, base, part, cuts = RANKS[case]
    model = of_graph(changed(hyperparameters, base=f"foreign/{base}"))
    calls: list[tuple[object, ...]] = []
    blocks = [m for n, m in model.named_modules() if n.split(".")[-1] == part]
    whole = blocks[0]
    whole.register_forward_pre_hook(lambda _, x: calls.append(x))
    model(ids(2, 7))
    total, expected = torch.zeros(()), whole(*calls[0])
    for rank in range(2):
        half = deepcopy(whole)
        for name, shares in cuts.items():
            for parameter in getattr(half, name).parameters():
                parameter.data = of_rank(parameter, shares, rank)
        if hasattr(half, "slopes"):
            half.slopes = half.slopes[2 * rank :][:2]
        total = total + half(*calls[0])
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-5)


def of_rank(x: torch.Tensor, shares: int | tuple[int, ...], rank: int) -> torch.Tensor:
    if shares == 0:
        return x.chunk(2, dim=1)[rank] if x.ndim > 1 else x / 2
    shares = shares if isinstance(shares, tuple) else (shares,)
    width = len(x) // sum(shares)
    pieces = x.split([width * share for share in shares])
    return torch.cat([piece.chunk(2)[rank] for piece in pieces])


@pytest.mark.parametrize("spec_id", SEVERAL)
def test_every_parameter_gets_a_gradient(spec_id: str) -> None:
    model = model_of(spec_id).train()
    logits = model(ids(4, 16), attention_mask=padded(4, 16, 3))
    targets = ids(4, 16, seed=2).flatten()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_generate_is_greedy_and_stops_at_an_eos() -> None:
    model = llama()
    start = ids(2, 9)
    out = model.generate(start, max_new_tokens=6)
    assert torch.equal(out[:, :9], start)
    text = start
    for _ in range(6):
        text = torch.cat((text, model(text)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(out, text)
    eos = int(out[0, 10])
    stopped = model.generate(start[:1], max_new_tokens=6, eos_ids=[eos])
    assert stopped[0, -1] == eos
    assert stopped.shape[1] == list(out[0, 9:]).index(eos) + 10
    both = model.generate(start, max_new_tokens=6, eos_ids=[eos])
    ended = stopped.shape[1]
    assert (both[0, ended:] == eos).all()


def test_generate_with_left_padding() -> None:
    model = llama()
    alone = model.generate(ids(2, 9)[:1, 4:], max_new_tokens=8)
    together = model.generate(ids(2, 9), attention_mask=padded(2, 9, 4), max_new_tokens=8)
    assert torch.equal(together[0, 9:], alone[0, 5:])


def test_sampling_keeps_to_top_k_and_top_p() -> None:
    sample = module(changed()).sample
    torch.manual_seed(0)
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]])).repeat(4000, 1)
    assert set(sample(logits, 1.0, 2, 1.0).flatten().tolist()) == {1, 2}
    assert set(sample(logits, 1.0, 0, 0.6).flatten().tolist()) == {1, 2}
    assert set(sample(logits, 1.0, 0, 0.0001).flatten().tolist()) == {1}
    drawn = sample(logits, 1.0, 0, 1.0).flatten().bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.1, 0.4, 0.3, 0.2]), rtol=0, atol=0.04)
    sharp = sample(logits, 0.25, 0, 1.0).flatten().bincount(minlength=4) / 4000
    expected = torch.tensor([0.1, 0.4, 0.3, 0.2]) ** 4
    torch.testing.assert_close(sharp, expected / expected.sum(), rtol=0, atol=0.04)


MIXED_HEAD = """
  CausalLM:
    forward: |
      y = lm_head(model(input_ids))
      return y - mean(y, axis=1)
"""
NESTED_HEAD = """
  CausalLM:
    parts: {inner: Inner, model: none, lm_head: none}
    forward: return softcap(inner(input_ids), 3.0)
  Inner:
    parts: {model: Decoder, lm_head: 'linear(hidden_size, vocab_size)', gate: 'linear(hidden_size, 1)'}
    forward: |
      h = model(x)
      return lm_head(h) * sigmoid(gate(h))
"""


@pytest.mark.parametrize("spec_id", [*SEVERAL, "foreign/llama4_text", "nested", "mixed"])
@torch.no_grad()
def test_the_head_runs_on_the_kept_tokens_only(spec_id: str) -> None:
    """Wherever the head stands; one that mixes tokens needs them all, and is right all the same."""
    blocks = {"nested": NESTED_HEAD, "mixed": MIXED_HEAD}.get(spec_id)
    model = model_of(spec_id) if blocks is None else of_graph(changed(blocks=blocks))
    (head,) = [m for n, m in model.named_modules() if n.split(".")[-1] in ("lm_head", "embed_out")]
    tokens: list[int] = []
    head.register_forward_pre_hook(lambda _, x: tokens.append(x[0].shape[1]))
    whole, kept = model(ids(2, 9)), model(ids(2, 9), logits_to_keep=2)
    assert tokens == [9, 9 if spec_id == "mixed" else 2]
    torch.testing.assert_close(kept, whole[:, -2:], rtol=0, atol=1e-5)


KERNELS = ("foreign/_decoder", "foreign/mixtral", "foreign/llama4_text", "foreign/gemma3")


@pytest.mark.parametrize("spec_id", KERNELS)
@torch.no_grad()
def test_a_kernel_may_give_its_result_in_another_layout(
    spec_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's memory-efficient kernel does on a GPU: [B, S, N, H] in memory, seen as [B, N, S, H]."""
    model, batch = model_of(spec_id), ids(2, 7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    expected = model.generate(batch, attention_mask=mask, max_new_tokens=4)
    kernel = torch.nn.functional.scaled_dot_product_attention

    def transposed(*arguments: Any, **named: Any) -> torch.Tensor:
        return kernel(*arguments, **named).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", transposed)
    assert torch.equal(model.generate(batch, attention_mask=mask, max_new_tokens=4), expected)


@torch.no_grad()
def test_a_mask_that_does_not_cover_all_tokens_is_refused() -> None:
    model = model_of("foreign/_decoder")
    cache = cache_of(model)
    model(ids(2, 5), attention_mask=torch.ones(2, 5), cache=cache)
    with pytest.raises(ValueError, match="1 columns for 6 tokens"):
        model(ids(2, 1), attention_mask=torch.ones(2, 1), cache=cache)


@torch.no_grad()
def test_generation_is_refused_after_padding_on_the_right() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="pad on the left"):
        model_of("foreign/_decoder").generate(ids(2, 4), attention_mask=mask)


@torch.no_grad()
@pytest.mark.parametrize("name", ["foreign/_decoder", "foreign/lfm2"])
def test_a_call_that_failed_can_be_made_again(name: str) -> None:
    """Its tokens do not count: the cache is that of before."""
    model = model_of(name)
    cache, expected = cache_of(model), cache_of(model)
    for one in (cache, expected):
        model(ids(2, 5), cache=one)
    layers = model.model.layers
    last, layers[-1] = layers[-1], torch.nn.Linear(1, 1)  # the layers before it have written
    with pytest.raises(TypeError):
        model(ids(2, 2, seed=1), cache=cache)
    layers[-1] = last
    again = model(ids(2, 2, seed=1), cache=cache)
    assert torch.equal(again, model(ids(2, 2, seed=1), cache=expected))
    assert cache.tokens == 7
