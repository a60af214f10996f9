"""Rows of the op table for images beside text: grids of patches, class tokens, features in place of embeddings."""

from __future__ import annotations

from llamagen.ir.dims import Dim
from llamagen.ir.graph import Attrs, DType, TensorType
from llamagen.ir.ops_basic import parse_dims
from llamagen.ir.optypes import AttrSpec, Op, Precision, Types, a_int, broadcast, need, need_rank


def _expand(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    shape = parse_dims(attrs)
    wide = TensorType(x.dtype, shape)
    need(
        len(shape) >= len(x.shape) and broadcast(x, wide) == shape,
        f"{x} cannot be repeated to [{', '.join(map(str, shape))}]",
    )
    return (wide,)


def _replace_rows(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, rows, ids = types
    need_rank(x, 3, "the first operand of replace_rows")
    need(ids.dtype is DType.INT64, f"rows are replaced where integer ids say so, not {ids}")
    need(ids.shape == x.shape[:2], f"replace_rows needs one id a row: {x} has other than {ids}")
    need(
        len(rows.shape) > 1 and rows.shape[-1] == x.shape[-1] and rows.dtype is x.dtype,
        f"rows {rows} cannot take the place of rows of {x}",
    )
    return (x,)


def _grid_table_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    rows, columns, dim = (a_int(attrs, n) for n in ("rows", "columns", "dim"))
    extra = a_int(attrs, "extra")
    need(dim > 0 and dim % 4 == 0, f"a grid rotates two sets of pairs: {dim} is not 4 n features")
    need(rows > 0 and columns > 0 and extra >= 0, f"a grid of {rows} x {columns} and {extra}")
    places = Dim.of(rows * columns + extra)
    table = TensorType(DType.FLOAT32, (Dim.of(1), places, Dim.of(dim // 2)))
    return (table, table)


IMAGE_OPS: tuple[Op, ...] = (
    Op(
        "expand",
        "Repeat along new leading dimensions and dimensions of size 1; ``[I, 1, D]`` from [D].",
        "y[..., i, j] = x[j], as numpy broadcasts",
        ("x",),
        _expand,
        Precision.EXACT,
        (AttrSpec("shape", "dims", "new shape: numbers and B, S, T, I", required=True),),
    ),
    Op(
        "replace_rows",
        "Rows of another tensor in place of those whose id is ``id``, in order: image features at their tokens. There "
        "are as many rows as such ids, or the model stops.",
        "y[b, s] = rows[n] where ids[b, s] == id is the n-th such place (row-major), else x[b, s]",
        ("x", "rows", "ids"),
        _replace_rows,
        Precision.EXACT,
        (AttrSpec("id", "int", "the token whose embedding is replaced", required=True),),
        cite="facts 4.9",
    ),
    Op(
        "grid_rope_table",
        "Angles of the places of a grid, row by row, and of ``extra`` places after it that are not turned: the first "
        "half of the pairs turns with the column, the second with the row, both counted from 1; written "
        "``grid_rope(x, rows, columns, theta, extra)`` in a spec.",
        "cos, sin = cos(a), sin(a), a = [(column + 1) f_i, (row + 1) f_i], f_i = theta^(-4i/dim)",
        (),
        _grid_table_shape,
        Precision.FLOAT32_RESULT,
        (
            AttrSpec("rows", "int", "height of the grid", required=True),
            AttrSpec("columns", "int", "width of the grid", required=True),
            AttrSpec("theta", "float", "base of the frequencies", required=True),
            AttrSpec("extra", "int", "places after the grid, such as a class token", default=0),
            AttrSpec("dim", "int", "rotated width, a multiple of 4", required=True),
        ),
        hoisted=True,
        internal=True,
        cite="facts 4.9",
    ),
)
