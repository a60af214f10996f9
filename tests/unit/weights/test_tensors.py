"""Rectangles of rearranged tensors equal numpy on the whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import LlamagenError
from llamagen.weights import tensors
from llamagen.weights.safetensors import TensorEntry
from llamagen.weights.tensors import (
    ShapeProblem,
    Tensor,
    blocks,
    concat,
    cut,
    reshape,
    rope_rows,
    stack,
    stored,
    swap_last,
    take_rows,
    tile_table,
    whole,
    zeros,
)
from tests.unit.weights.files import Array

FILE_ELEMENTS = 6000


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "numbers"
    path.write_bytes(np.arange(FILE_ELEMENTS, dtype="<u2").tobytes())
    return path


def leaf(path: Path, first: int, *shape: int) -> tuple[Tensor, Array]:
    values = np.arange(first, first + int(np.prod(shape)), dtype=np.uint16).reshape(shape)
    return stored(TensorEntry("t", "BF16", shape, path, 2 * first, values.nbytes)), values


def rope(value: Array, heads: int) -> Array:
    """Row h*d + 2i + j moves to h*d + j*(d/2) + i, one row at a time."""
    d = value.shape[0] // heads
    out = np.empty_like(value)
    for h in range(heads):
        for i in range(d // 2):
            for j in range(2):
                out[h * d + j * (d // 2) + i] = value[h * d + 2 * i + j]
    return out


@st.composite
def trees(draw: st.DrawFn, path: Path, depth: int = 3) -> tuple[Tensor, Array]:
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
        return leaf(path, draw(st.integers(0, 1000)), *shape)
    node, value = draw(trees(path, depth - 1))
    match draw(
        st.sampled_from(["swap", "rope", "concat", "stack", "reshape", "cut", "take", "zeros"])
    ):
        case "swap" if value.ndim >= 2:
            return swap_last(node), np.swapaxes(value, -1, -2)
        case "rope" if value.shape[0] % 2 == 0:
            half = value.shape[0] // 2
            heads = draw(st.sampled_from([n for n in range(1, half + 1) if half % n == 0]))
            return rope_rows(node, heads), rope(value, heads)
        case "concat":
            dim = draw(st.integers(0, value.ndim - 1))
            longer = list(value.shape)
            longer[dim] = draw(st.integers(1, 4))
            other, more = leaf(path, 7, *longer)
            return concat((node, other), dim), np.concatenate([value, more], dim)
        case "stack":
            count = draw(st.integers(1, 3))
            return stack((node,) * count), np.stack([value] * count)
        case "reshape":
            size = value.size
            first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
            return reshape(node, (first, size // first)), value.reshape(first, size // first)
        case "cut":
            dim = draw(st.integers(0, value.ndim - 1))
            start = draw(st.integers(0, value.shape[dim] - 1))
            stop = draw(st.integers(start + 1, value.shape[dim]))
            index = (*(slice(None),) * dim, slice(start, stop))
            return cut(node, dim, start, stop), value[index]
        case "take":
            every = st.integers(0, value.shape[0] - 1)
            rows = draw(st.lists(every, min_size=1, max_size=8))
            return take_rows(node, rows), value[rows]
        case "zeros":
            more = np.zeros((2, *value.shape[1:]), value.dtype)
            return concat((node, zeros(more.shape, "BF16")), 0), np.concatenate([value, more])
        case _:
            return node, value


@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_rectangles_and_blocks_equal_numpy(
    numbers: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(tensors, "_STRIP", 2)
    node, value = data.draw(trees(numbers))
    assert node.shape == value.shape
    region = []
    for size in value.shape:
        start = data.draw(st.integers(0, size - 1))
        region.append((start, data.draw(st.integers(start + 1, size))))
    part = node.read(tuple(region))
    np.testing.assert_array_equal(part, value[tuple(slice(*bounds) for bounds in region)])
    limit = data.draw(st.integers(1, value.size + 1))
    pieces = [node.read(block) for block in blocks(value.shape, limit)]
    assert all(piece.size <= limit for piece in pieces)
    flat = np.concatenate([np.ascontiguousarray(piece).reshape(-1) for piece in pieces])
    np.testing.assert_array_equal(flat, value.reshape(-1))


GRIDS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


def test_tile_table(numbers: Path) -> None:
    node, grid = leaf(numbers, 1, 4, 4, 2, 3)
    table = tile_table(node, GRIDS).read(whole((9, 24))).reshape(9, 4, 2, 3)
    assert not table[0].any()
    for row, (h, w) in enumerate(GRIDS, start=1):
        for y in range(h):
            for x in range(w):
                np.testing.assert_array_equal(table[row, y * w + x], grid[y, x])
        assert not table[row, h * w :].any()


def test_shapes_that_do_not_fit(numbers: Path) -> None:
    vector, matrix = leaf(numbers, 0, 6)[0], leaf(numbers, 0, 6, 2)[0]
    bad: list[Callable[[], Tensor]] = [
        lambda: swap_last(vector),
        lambda: rope_rows(matrix, 2),  # three rows per head
        lambda: concat((matrix, vector), 0),
        lambda: concat((matrix, leaf(numbers, 0, 6, 3)[0]), 0),
        lambda: concat((vector,), 1),
        lambda: stack((matrix, vector)),
        lambda: reshape(matrix, (5, 2)),
        lambda: cut(matrix, 0, 3, 7),
        lambda: cut(matrix, 2, 0, 1),
        lambda: tile_table(matrix, GRIDS),
    ]
    for make in bad:
        with pytest.raises(ShapeProblem):
            make()


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(10))
    node, _ = leaf(path, 0, 6)
    with pytest.raises(LlamagenError) as failure:
        node.read(((0, 6),))
    assert failure.value.diagnostics[0].code == "LG622"
