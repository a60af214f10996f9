"""Generated modules under torch.compile, torch.export, the meta device, and cut into pipeline stages."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim, export

from llamagen.ir.graph import Graph
from tests.unit.torch.models import changed, graph, ids, llama, module, padded, scatter

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


def made(spec_id: str) -> Graph:
    return changed() if spec_id == "foreign/_decoder" else graph(spec_id)


def model_of(spec_id: str, **options: object) -> torch.nn.Module:
    found = made(spec_id)
    model = scatter(getattr(module(found), found.root)(**options))
    if hasattr(model, "tie"):
        model.tie()
    return model


@pytest.mark.parametrize(
    "spec_id", ["foreign/_decoder", *(pytest.param(i, marks=SLOW) for i in SEVERAL[1:])]
)
@torch.no_grad()
def test_export_with_dynamic_batch_sequence_and_past(spec_id: str) -> None:
    model = model_of(spec_id)
    _, past = model(ids(2, 7))
    _, other_past = model(ids(3, 11))
    prefill = export(model, (ids(2, 7),), dynamic_shapes={"input_ids": SHAPE}, strict=False)
    assert torch.equal(prefill.module()(ids(3, 11))[0], model(ids(3, 11))[0])

    several = [(CACHE, CACHE)] * len(past)
    shapes = {"input_ids": {0: Dim.DYNAMIC}, "past": several}
    decode = export(model, (ids(2, 1),), {"past": past}, dynamic_shapes=shapes, strict=False)
    expected = model(ids(3, 1), past=other_past)[0]
    assert torch.equal(decode.module()(ids(3, 1), past=other_past)[0], expected)

    masked = {"input_ids": SHAPE, "attention_mask": SHAPE, "past": several}
    given = {"attention_mask": padded(2, 12, 2), "past": past}
    chunk = export(model, (ids(2, 5),), given, dynamic_shapes=masked, strict=False)
    given = {"attention_mask": padded(3, 15, 3), "past": other_past}
    assert torch.equal(chunk.module()(ids(3, 4), **given)[0], model(ids(3, 4), **given)[0])


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
    _, past = model(ids(2, 7))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for given in (
        {"input_ids": ids(2, 7)},
        {"input_ids": ids(3, 11)},
        {"input_ids": ids(2, 1), "past": past},
        {"input_ids": ids(2, 7), "attention_mask": padded(2, 7, 3)},
        {"input_ids": ids(2, 5), "attention_mask": padded(2, 12, 3), "past": past},
    ):
        logits, _ = compiled(**given)
        assert torch.equal(logits, model(**given)[0])


@torch.no_grad()
def test_experts_compile_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two experts a token; some that nobody chose, in the graph of a single token too."""
    monkeypatch.setattr(torch._dynamo.config, "capture_dynamic_output_shape_ops", True)
    model = model_of("foreign/mixtral")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    past, past_compiled = None, None
    for new in (7, 1, 1):
        logits, past_compiled = compiled(ids(2, new), past=past_compiled)
        expected, past = model(ids(2, new), past=past)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_experts_compile_with_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "capture_dynamic_output_shape_ops", True)
    experts = model_of("foreign/mixtral").model.layers["0"].mlp.experts
    compiled = torch.compile(experts, fullgraph=True, dynamic=True)
    x, weights = torch.randn(1, 3, 24), torch.rand(1, 3, 2)
    for chosen in ([[[0, 3], [3, 1], [0, 1]]], [[[2, 3], [2, 1], [2, 0]]]):
        given = x, torch.tensor(chosen), weights
        torch.testing.assert_close(compiled(*given), experts(*given), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_of_other_experts_are_not_read() -> None:
    """NaN in an expert that no token chose stays where it is; one that a token chose spreads."""
    experts = model_of("foreign/mixtral").model.layers["0"].mlp.experts
    state = {name: p.clone() for name, p in experts.state_dict().items()}
    try:
        experts.gate_up_proj[2], experts.down_proj[2] = torch.nan, torch.nan
        x, half = torch.randn(1, 2, 24), torch.full((1, 2, 2), 0.5)
        assert experts(x, torch.tensor([[[0, 3], [3, 1]]]), half).isfinite().all()
        assert experts(x, torch.tensor([[[0, 3], [2, 1]]]), half)[0, 1].isnan().all()
    finally:
        experts.load_state_dict(state)


@pytest.mark.slow
@torch.no_grad()
def test_compile_with_inductor() -> None:
    model = llama()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(ids(2, 7))[0], model(ids(2, 7))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec_id", SEVERAL)
@torch.no_grad()
def test_meta_device_holds_no_state_that_loading_would_miss(spec_id: str) -> None:
    found, model = made(spec_id), model_of(spec_id)
    with torch.device("meta"):
        empty = getattr(module(found), found.root)()
    assert not list(empty.buffers())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(ids(2, 7))[0], model(ids(2, 7))[0])


@pytest.mark.parametrize("spec_id", SEVERAL)
@torch.no_grad()
def test_pipeline_stages(spec_id: str) -> None:
    whole = model_of(spec_id)
    found = made(spec_id)
    make = getattr(module(found), found.root)
    count = module(found).NUM_LAYERS
    state = whole.state_dict()
    first = make(layers=range(1), head=False)
    last = make(layers=range(1, count), embed=False)
    assert first.state_dict().keys() | last.state_dict().keys() == state.keys()
    for stage in (first, last):
        stage.load_state_dict({name: state[name] for name in stage.state_dict()})
    positions = torch.arange(7)[None]
    hidden, early = first(ids(2, 7))
    logits, late = last(hidden, positions)
    expected, past = whole(ids(2, 7))
    assert torch.equal(logits, expected)
    assert len(early) + len(late) == len(past)
    new = ids(2, 1)
    hidden, _ = first(new, past=early)
    logits, _ = last(hidden, positions[:, :1] + 7, past=late)
    assert torch.equal(logits, whole(new, past=past)[0])


def test_a_stage_without_ids_needs_positions() -> None:
    stage = module(changed()).CausalLM(layers=range(1, 2), embed=False)
    with pytest.raises(ValueError, match="needs position_ids"):
        stage(torch.zeros(2, 7, 24))


@torch.no_grad()
def test_positions_count_tokens_not_padding() -> None:
    model = llama()
    mask = padded(2, 9, 4)
    alone, _ = model(ids(2, 9)[:1, 4:])
    together, past = model(ids(2, 9), attention_mask=mask)
    torch.testing.assert_close(together[:1, 4:], alone, rtol=0, atol=1e-5)
    mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
    new = ids(2, 1)
    _, alone_past = model(ids(2, 9)[:1, 4:])
    expected, _ = model(new[:1], past=alone_past)
    logits, _ = model(new, attention_mask=mask, past=past)
    torch.testing.assert_close(logits[:1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_rows_that_see_nothing_are_finite(attention: str) -> None:
    model = llama(attention=attention)
    logits, past = model(ids(2, 6), attention_mask=torch.tensor([[0] * 6, [1] * 6]))
    assert logits.isfinite().all()
    assert all(t.isfinite().all() for pair in past for t in pair)


@torch.no_grad()
def test_only_chosen_experts_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("foreign/mixtral")
    rows: list[int] = []
    linear = torch.nn.functional.linear

    def counting(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[0])
        return linear(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    experts = model.model.layers["0"].mlp.experts
    chosen = torch.tensor([[[0, 3], [3, 1]]])
    experts(torch.randn(1, 2, 24), chosen, torch.full((1, 2, 2), 0.5))
    assert sum(rows) == 2 * chosen.numel()


@torch.no_grad()
def test_head_counts_come_from_the_weights() -> None:
    """Half of the heads in each of two modules, as tensor parallelism cuts them, add up to the whole."""
    whole = llama().model.layers["0"].self_attn
    found = module(changed())
    x, positions = torch.randn(2, 7, 24), torch.arange(7)[None]
    rope = found.rope_table(positions, torch.float32)
    total = torch.zeros_like(x)
    for rank in range(2):
        half = found.Attention(found.sdpa)
        half.load_state_dict(whole.state_dict())
        for projection in (half.q_proj, half.k_proj, half.v_proj):
            projection.weight = torch.nn.Parameter(projection.weight.chunk(2, dim=0)[rank])
        half.o_proj.weight = torch.nn.Parameter(half.o_proj.weight.chunk(2, dim=1)[rank])
        total += half(x, rope, None, found.KVCache(None))
    expected = whole(x, rope, None, found.KVCache(None))
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec_id", SEVERAL)
def test_every_parameter_gets_a_gradient(spec_id: str) -> None:
    model = model_of(spec_id).train()
    logits, _ = model(ids(4, 16), attention_mask=padded(4, 16, 3))
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
        text = torch.cat((text, model(text)[0][:, -1:].argmax(-1)), dim=1)
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


@torch.no_grad()
def test_logits_to_keep() -> None:
    model = llama()
    logits, _ = model(ids(2, 9))
    kept, _ = model(ids(2, 9), logits_to_keep=2)
    assert kept.shape[1] == 2
    torch.testing.assert_close(kept, logits[:, -2:], rtol=0, atol=1e-5)
