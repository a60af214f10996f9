"""Rows of the op table for images: patches, grids, tiles and their masks, features in place of embeddings."""

from __future__ import annotations

from llamagen.ir.dims import Dim
from llamagen.ir.graph import Attrs, DType, Parameter, TensorType
from llamagen.ir.ops_basic import parse_dims
from llamagen.ir.optypes import (
    AttrSpec,
    Op,
    Precision,
    Types,
    a_bool,
    a_int,
    broadcast,
    elements,
    need,
    need_rank,
    need_real,
    parameter,
)


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


def _conv2d_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 4, "the operand of conv2d")
    need_real(x, "the operand of conv2d")
    channels, kernel, stride = (a_int(attrs, n) for n in ("in_channels", "kernel", "stride"))
    need(x.shape[1] == Dim.of(channels), f"conv2d reads {channels} channels, {x} has others")
    need(kernel > 0 and stride > 0, f"a kernel of {kernel} and a stride of {stride}")
    need(
        all(d.is_static and d.value >= kernel for d in x.shape[2:]),
        f"a kernel of {kernel} does not fit into {x}",
    )
    sides = (Dim.of((d.value - kernel) // stride + 1) for d in x.shape[2:])
    return (TensorType(DType.MODEL, (x.shape[0], Dim.of(a_int(attrs, "out_channels")), *sides)),)


def _conv2d_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    outputs, inputs, kernel = (a_int(attrs, n) for n in ("out_channels", "in_channels", "kernel"))
    weight = parameter("weight", (outputs, inputs, kernel, kernel), "matrix")
    return (weight, parameter("bias", (outputs,), "bias")) if a_bool(attrs, "bias") else (weight,)


def _conv2d_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    return elements(results[0].shape) * (
        2 * a_int(attrs, "in_channels") * a_int(attrs, "kernel") ** 2
    )


def _tile_mask_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (tiles,) = types
    tokens, padded = a_int(attrs, "tokens"), a_int(attrs, "padded")
    need(tiles.dtype is DType.INT64, f"tiles are marked by integers, not by {tiles}")
    need(len(tiles.shape) > 1, f"tile_mask needs one mark for each tile of an image, not {tiles}")
    need(0 < tokens <= padded, f"{tokens} tokens of a tile do not fit into {padded}")
    places = tiles.shape[-1] * padded
    images = elements(tiles.shape[:-1])
    return (TensorType(DType.BOOL, (images, Dim.of(1), places, places)),)


def _cross_mask_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (seen,) = types
    tokens = a_int(attrs, "tokens")
    need(seen.dtype is DType.INT64, f"what is seen is marked by integers, not by {seen}")
    need(len(seen.shape) > 2, f"cross_mask needs [B, S, tiles] or [B, S, I, tiles], not {seen}")
    need(tokens > 0, f"a tile has more than {tokens} tokens")
    b, s = seen.shape[:2]
    keys = elements(seen.shape[2:]) * tokens
    one = Dim.of(1)
    return (TensorType(DType.BOOL, (b, one, s, keys)), TensorType(DType.MODEL, (b, s, one)))


IMAGE_OPS: tuple[Op, ...] = (
    Op(
        "conv2d",
        "Two-dimensional convolution without padding; with a stride as large as its kernel a product with each patch.",
        "y[n, o, i, j] = sum_cuv weight[o, c, u, v] x[n, c, i stride + u, j stride + v] + bias[o]",
        ("x",),
        _conv2d_shape,
        Precision.MODEL,
        (
            AttrSpec("in_channels", "int", "channels of the operand", required=True),
            AttrSpec("out_channels", "int", "channels of the result", required=True),
            AttrSpec("kernel", "int", "side of the kernel", required=True),
            AttrSpec("stride", "int", "step between two places", default=1),
            AttrSpec("bias", "bool", "whether a bias is added", default=False),
        ),
        _conv2d_parameters,
        _conv2d_flops,
        is_part=True,
    ),
    Op(
        "tile_mask",
        "True but where query and key are both padding: places after the ``tokens`` of a tile, and tiles marked 0. What "
        "is real sees padding too, as in both implementations of Llama 3.2 Vision.",
        "not (padding[i] and padding[j]), padding[t padded + p] = p >= tokens or tiles[..., t] == 0",
        ("tiles",),
        _tile_mask_shape,
        Precision.EXACT,
        (
            AttrSpec("tokens", "int", "real tokens of a tile", required=True),
            AttrSpec("padded", "int", "tokens of a tile with padding", required=True),
        ),
        hoisted=True,
        cite="facts 4.7",
    ),
    Op(
        "cross_mask",
        "Which image tokens a text token sees, from which tiles it sees; and 1 for text that sees any, 0 for text that "
        "sees none: what a cross-attention layer adds to that text is multiplied by it.",
        "mask[b, 0, s, n tokens + p] = tiles[b, s, n] != 0;  seen[b, s, 0] = any_n tiles[b, s, n] != 0",
        ("tiles",),
        _cross_mask_shape,
        Precision.EXACT,
        (AttrSpec("tokens", "int", "tokens of a tile", required=True),),
        hoisted=True,
        result_names=("cross_mask", "seen"),
        cite="facts 4.7",
    ),
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
