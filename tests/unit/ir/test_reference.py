"""The reference's formulas against values worked out by hand or in another way."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from llamagen.emit.onnx.profile import OnnxDType
from llamagen.ir.reference import evaluate
from llamagen.ops.attention import alibi_slopes
from llamagen.ops.op import Array, AttrValue, Operands, Real
from llamagen.ops.rope import frequencies
from llamagen.ops.table import OPS
from tests.parity.models import RandomModel


def operands(op: str, *tensors: object, **attrs: AttrValue) -> Operands:
    """Operands with the attributes' defaults filled in."""
    filled = {a.name: a.default for a in OPS[op].attrs} | attrs
    weights: Mapping[str, Real] = {}
    return Operands([np.asarray(t) for t in tensors], filled, {}, weights.__getitem__)


def formula(op: str, given: Operands) -> tuple[Array, ...]:
    numpy = OPS[op].numpy
    assert numpy is not None
    return numpy(given)


def run(op: str, *tensors: object, **attrs: AttrValue) -> Array:
    return formula(op, operands(op, *tensors, **attrs))[0]


def weighted(op: str, weights: Mapping[str, Real], *tensors: object, **attrs: AttrValue) -> Array:
    plain = operands(op, *tensors, **attrs)
    return formula(op, Operands(plain.tensors, plain.attrs, {}, weights.__getitem__))[0]


@pytest.mark.parametrize(
    ("op", "x", "y"),
    [
        ("silu", 1.0, 1 / (1 + math.exp(-1))),
        ("silu", -800.0, 0.0),
        ("gelu", 1.0, 0.8413447460685429),
        ("relu2", -3.0, 0.0),
        ("relu2", 3.0, 9.0),
        ("sigmoid", -2.0, 1 / (1 + math.exp(2))),
        ("softplus", 1000.0, 1000.0),
        ("softplus", 0.0, math.log(2)),
    ],
)
def test_activations(op: str, x: float, y: float) -> None:
    assert run(op, [x])[0] == pytest.approx(y, rel=1e-15)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "y"),
    [
        ("sub", ([5.0], [3.0]), {}, [2.0]),
        ("div", ([5.0], [4.0]), {}, [1.25]),
        ("square", ([-3.0],), {}, [9.0]),
        ("log2", ([8.0],), {}, [3.0]),
        ("abs", ([-3.0, 2.0],), {}, [3.0, 2.0]),
        ("reciprocal", ([4.0],), {}, [0.25]),
        ("floor", ([-1.5, 1.5],), {}, [-2.0, 1.0]),
        ("ceil", ([-1.5, 1.5],), {}, [-1.0, 2.0]),
        ("round", ([0.5, 1.5, -1.2],), {}, [0.0, 2.0, -1.0]),
        ("pow", ([2.0], [3.0]), {}, [8.0]),
        ("pow_scalar", ([9.0],), {"value": 0.5}, [3.0]),
        ("maximum", ([1.0, 5.0], [2.0, 3.0]), {}, [2.0, 5.0]),
        ("minimum", ([1.0, 5.0], [2.0, 3.0]), {}, [1.0, 3.0]),
        ("max", ([1.0, 5.0, 2.0],), {"axis": -1}, [5.0]),
        ("min", ([1.0, 5.0, 2.0],), {"axis": -1}, [1.0]),
        ("matmul", ([[1.0, 2.0]], [[3.0], [4.0]]), {}, [[11.0]]),
        ("einsum", ([1.0, 2.0], [3.0, 4.0]), {"equation": "A, B -> B A"}, [[3.0, 6.0], [4.0, 8.0]]),
        (
            "limit_groups",
            ([5.0, -9.0, 1.0, 2.0, 0.0, 4.0],),
            {"groups": 3, "kept": 2, "fill": 7.0},
            [7.0, 7.0, 1.0, 2.0, 0.0, 4.0],
        ),
        (
            "limit_groups",
            ([5.0, -9.0, 1.0, 2.0],),
            {"groups": 2, "kept": 1, "best": 1},
            [5.0, -9.0, -math.inf, -math.inf],
        ),
        ("less", ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]), {}, [True, False, False]),
        ("less_equal", ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]), {}, [True, True, False]),
        ("greater_scalar", ([1.0, 2.0, 3.0],), {"value": 2.0}, [False, False, True]),
        ("greater_equal_scalar", ([1.0, 2.0, 3.0],), {"value": 2.0}, [False, True, True]),
        ("equal_scalar", ([1.0, 2.0],), {"value": 2.0}, [False, True]),
        ("not_equal", ([1.0, 2.0], [2.0, 2.0]), {}, [True, False]),
        ("sqrt", ([9.0],), {}, [3.0]),
        ("concat", ([1.0], [2.0], [3.0]), {"axis": -1}, [1.0, 2.0, 3.0]),
        ("clamp", ([-2.0, 0.5, 2.0],), {"low": -1.0, "high": 1.0}, [-1.0, 0.5, 1.0]),
        ("softcap", ([1e9],), {"cap": 2.0}, [2.0]),
        ("slice", ([1.0, 2.0, 3.0],), {"start": 1, "stop": 3}, [2.0, 3.0]),
    ],
)
def test_arithmetic(
    op: str, operands: tuple[list[Any], ...], attrs: Mapping[str, AttrValue], y: list[Any]
) -> None:
    assert run(op, *operands, **attrs).tolist() == y


def test_gelu_approximation_is_another_function() -> None:
    exact, near = run("gelu", [1.5]), run("gelu", [1.5], approximate="tanh")
    assert 1e-5 < abs(float(exact[0] - near[0])) < 1e-3


def test_rotation_is_a_complex_product() -> None:
    x = np.arange(6.0).reshape(1, 1, 1, 6) + 1
    angles = np.array([[[0.3, -1.1]]])
    turned = [cmath.exp(1j * a) for a in angles.ravel()]
    half = run("rotate", x, np.cos(angles), np.sin(angles), layout="half").ravel()
    pairs = [complex(1, 3) * turned[0], complex(2, 4) * turned[1]]
    assert np.allclose(half, [pairs[0].real, pairs[1].real, pairs[0].imag, pairs[1].imag, 5, 6])
    inter = run("rotate", x, np.cos(angles), np.sin(angles), layout="interleaved").ravel()
    pairs = [complex(1, 2) * turned[0], complex(3, 4) * turned[1]]
    assert np.allclose(inter, [pairs[0].real, pairs[0].imag, pairs[1].real, pairs[1].imag, 5, 6])


def test_llama3_scaling_has_the_published_regimes() -> None:
    """facts 4.3: of 64 frequencies at theta 5e5, 29 are kept, 6 mixed and 29 divided."""
    shape: dict[str, AttrValue] = {"theta": 5e5, "dim": 128}
    plain = frequencies(operands("rope_table", **shape))
    scaled = frequencies(
        operands("rope_table", **shape, scaling="llama3", factor=8.0, original_max_positions=8192)
    )
    ratio = plain / scaled
    kept, divided = int((ratio == 1).sum()), int(np.isclose(ratio, 8, rtol=1e-12).sum())
    assert (kept, 64 - kept - divided, divided) == (29, 6, 29)


def test_llama3_scaling_at_the_edges_of_its_bands() -> None:
    """f is kept above high / L rotations, divided below low / L, in between the mix is linear in f (facts 4.3)."""
    length, low, high, factor = 2048, 2.0, 4.0, 8.0
    scaled: dict[str, AttrValue] = {
        "scaling": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }
    shape: dict[str, AttrValue] = {"theta": 1e4, "dim": 512}
    plain = frequencies(operands("rope_table", **shape))
    found = frequencies(operands("rope_table", **shape, **scaled, original_max_positions=length))
    rotations = length * plain / (2 * math.pi)
    near = [(low * 0.9, low), (low, low * 1.1), (high * 0.9, high), (high, high * 1.1)]
    assert all(((rotations > a) & (rotations < b)).any() for a, b in near)
    share = np.interp(rotations, [low, high], [0.0, 1.0])
    assert np.allclose(found, (1 - share) * plain / factor + share * plain, rtol=1e-12)


def test_equal_llama3_bounds_are_a_hard_cut() -> None:
    """Llama 4 Scout has low == high == 1: no division by zero, no frequency between."""
    shape: dict[str, AttrValue] = {"theta": 5e5, "dim": 128}
    scaled = frequencies(
        operands("rope_table", **shape, scaling="llama3", factor=16.0, high_freq_factor=1.0)
    )
    ratio = frequencies(operands("rope_table", **shape)) / scaled
    assert np.isin(np.round(ratio, 9), [1.0, 16.0]).all()


def mask(rows: list[list[int]], new: int, **limits: int | None) -> np.ndarray:
    positions = np.zeros((len(rows), new), np.int64)
    return run("causal_mask", positions, np.array(rows, np.int64), **limits)[:, 0].astype(int)


def test_masks() -> None:
    assert mask([[1, 1, 1]], 3).tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert mask([[0, 1, 1]], 2).tolist() == [[[0, 1, 0], [0, 1, 1]]]
    assert mask([[1, 1, 1, 1]], 2, window=2).tolist() == [[[0, 1, 1, 0], [0, 0, 1, 1]]]
    assert mask([[1, 1, 1, 1]], 1, chunk=2).tolist() == [[[0, 0, 1, 1]]]


def test_chunks_count_true_positions() -> None:
    """One token of padding moves the border of the chunks by one slot."""
    assert mask([[0, 1, 1, 1]], 1, chunk=2).tolist() == [[[0, 0, 0, 1]]]


def test_attention_shares_heads_in_groups() -> None:
    q = np.zeros((1, 4, 1, 2))
    k = np.zeros((1, 2, 3, 2))
    v = np.stack([np.full((3, 1), 1.0), np.full((3, 1), 5.0)])[None]
    assert run("attention", q, k, v).ravel().tolist() == [1, 1, 5, 5]


def test_softcap_bounds_scores_before_the_softmax() -> None:
    q, k = np.full((1, 1, 1, 1), 100.0), np.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    v = np.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    assert run("attention", q, k, v, softcap=2.0).item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_a_sink_takes_its_share() -> None:
    q, k, v = (np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1)))
    visible = np.ones((1, 1, 1, 1), bool)
    assert run("attention", q, k, v, visible, np.array([math.log(3)])).item() == pytest.approx(0.25)


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12])
def test_alibi_slopes_of_the_table_are_those_of_the_reference(heads: int) -> None:
    q = np.zeros((1, heads, 1, 1))
    k = np.zeros((1, heads, 2, 1))
    v = np.broadcast_to(np.array([1.0, 0.0]).reshape(1, 1, 2, 1), (1, heads, 2, 1))
    share = run("attention", q, k, v, alibi=True).ravel()
    assert np.allclose(np.log(1 / share - 1), alibi_slopes(heads), rtol=1e-12)


def test_eight_heads_have_the_published_slopes() -> None:
    """arXiv 2108.12409: 1/2, 1/4, ..., 1/256."""
    assert alibi_slopes(8) == tuple(2.0**-h for h in range(1, 9))


def test_a_score_on_the_input_is_not_one_on_the_output() -> None:
    """Experts of width 1: silu(g x) u x d, with the weight w inside or outside."""
    x, chosen = np.array([[[2.0]]]), np.array([[[1]]], np.int64)
    w = np.array([[[0.5]]])
    stored = {
        "gate_up_proj": np.array([[[9.0], [9.0]], [[3.0], [5.0]]]),
        "down_proj": np.array([[[9.0]], [[7.0]]]),
    }
    sizes: dict[str, AttrValue] = {"num_experts": 2, "features": 1, "intermediate": 1}

    def silu(value: float) -> float:
        return value / (1 + math.exp(-value))

    outside = weighted("experts", stored, x, chosen, w, **sizes)
    assert outside.item() == pytest.approx(0.5 * silu(6.0) * 10 * 7)
    inside = weighted("experts", stored, x, chosen, w, **sizes, scale="input")
    assert inside.item() == pytest.approx(silu(3.0) * 5 * 7)


def test_in_out_experts_are_the_transposed_ones() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3, 4))
    chosen = generator.integers(0, 2, (2, 3, 1))
    w = np.ones((2, 3, 1))
    a, b = generator.standard_normal((2, 10, 4)), generator.standard_normal((2, 4, 5))
    sizes: dict[str, AttrValue] = {"num_experts": 2, "features": 4, "intermediate": 5}
    rows = weighted("experts", {"gate_up_proj": a, "down_proj": b}, x, chosen, w, **sizes)
    swapped = {"gate_up_proj": a.swapaxes(1, 2), "down_proj": b.swapaxes(1, 2)}
    columns = weighted("experts", swapped, x, chosen, w, **sizes, layout="in_out")
    assert np.allclose(rows, columns, rtol=1e-12)


def test_norms() -> None:
    x = np.array([[3.0, -4.0]])
    w = {"weight": np.array([0.5, 1.0]), "bias": np.array([0.0, 7.0])}
    rms = weighted("rms_norm", w, x, features=2, eps=0.5, offset=1.0)
    assert np.allclose(rms, [[1.5 * 3 / math.sqrt(13), 2 * -4 / math.sqrt(13)]])
    layer = weighted("layer_norm", w, x, features=2, eps=0.25)
    assert np.allclose(layer, [[0.5 * 3.5 / math.sqrt(12.5), 7 - 3.5 / math.sqrt(12.5)]])


def test_topk_takes_the_first_of_equals() -> None:
    values, indices = formula("topk", operands("topk", [1.0, 3.0, 3.0, 2.0], k=2))
    assert (values.tolist(), indices.tolist()) == ([3.0, 3.0], [1, 2])


def test_the_cache_and_its_shapes() -> None:
    model = RandomModel.named("foreign/mistral")
    ids = np.array([[1, 2, 3]])
    first = evaluate(model.flat, model.weight, ids)
    assert [x.shape for x in first.present] == [(1, 2, 3, 10)] * 4
    second = evaluate(model.flat, model.weight, [[4]], past=first.present)
    assert [x.shape for x in second.present] == [(1, 2, 4, 10)] * 4
    with pytest.raises(ValueError, match="attention_mask"):
        evaluate(model.flat, model.weight, [[4]], attention_mask=[[1]], past=first.present)


def test_positions_count_tokens_by_themselves() -> None:
    """Without padding and after the cache; a shift of all would not show in a model that only rotates."""
    model = RandomModel.named("foreign/llama4_text")
    ids, mask = np.array([[9, 1, 2, 3, 4, 5]]), np.array([[0, 1, 1, 1, 1, 1]])
    given = evaluate(model.flat, model.weight, ids, mask, positions=[[0, 0, 1, 2, 3, 4]])
    assert np.array_equal(evaluate(model.flat, model.weight, ids, mask).logits, given.logits)
    first = evaluate(model.flat, model.weight, ids[:, :4], mask[:, :4])
    rest = evaluate(model.flat, model.weight, ids[:, 4:], mask, past=first.present)
    assert np.allclose(rest.logits, given.logits[:, 4:], rtol=0, atol=1e-12)


def test_rounding_moves_a_result_by_its_dtype() -> None:
    model = RandomModel.named("foreign/mistral")
    ids = np.array([[5, 6, 7, 8]])
    exact = evaluate(model.flat, model.weight, ids).logits

    def error(dtype: OnnxDType) -> float:
        found = evaluate(model.flat, model.weight, ids, rounding=dtype).logits
        return float(np.abs(found - exact).max() / exact.std())

    assert 1e-8 < error("float32") < 1e-5 < error("float16") < 5e-3 < error("bfloat16") < 0.1
