"""Ops for images: patches, masks over tiles and from text to them, features in place of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamagen.ops.code import (
    Call,
    Shared,
    call,
    literal,
)
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    DType,
    Op,
    Operands,
    Parameter,
    Precision,
    Role,
    TensorType,
    Tokens,
    Types,
    a_bool,
    a_int,
    elements,
    int_attr,
    need,
    need_rank,
    need_real,
    parameter,
    part_text,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import ModuleSite, PreludeSite
    from llamagen.ops.op import Array, Values


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


def _replace_rows_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, rows, ids = types
    need_rank(x, 3, "the first operand of replace_rows")
    need(ids.dtype is DType.INT64, f"rows are replaced where integer ids say so, not {ids}")
    need(ids.shape == x.shape[:2], f"replace_rows needs one id a row: {x} has other than {ids}")
    need(
        len(rows.shape) > 1 and rows.shape[-1] == x.shape[-1] and rows.dtype is x.dtype,
        f"rows {rows} cannot take the place of rows of {x}",
    )
    return (x,)


def _conv2d_numpy(o: Operands) -> tuple[Array, ...]:
    """Place by place: the kernel against the patch below it."""
    x, weight = o.real(), o.weight("weight")
    kernel, stride = o.whole("kernel"), o.whole("stride")
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[2:])
    y = np.empty((len(x), len(weight), rows, columns))
    for i, j in np.ndindex(rows, columns):
        top, left = i * stride, j * stride
        patch = x[:, :, top : top + kernel, left : left + kernel]
        y[:, :, i, j] = np.einsum("ncuv,ocuv->no", patch, weight)
    return (y + o.weight("bias")[:, None, None] if a_bool(o.attrs, "bias") else y,)


def _replace_rows_numpy(o: Operands) -> tuple[Array, ...]:
    x, rows = o.real(0).copy(), o.real(1)
    places = np.argwhere(o.ints(2) == o.whole("id"))
    rows = rows.reshape(-1, rows.shape[-1])
    if len(places) != len(rows):
        raise ValueError(f"{len(places)} tokens stand for {len(rows)} rows of features")
    for (b, s), row in zip(places, rows, strict=True):
        x[b, s] = row
    return (x,)


def _tile_mask_numpy(o: Operands) -> tuple[Array, ...]:
    """Pair by pair of places, from the sentence of facts 4.7."""
    used = o.ints().reshape(-1, o.ints().shape[-1]) != 0
    tokens, padded = o.whole("tokens"), o.whole("padded")
    tile, place = np.divmod(np.arange(used.shape[1] * padded), padded)
    padding = (place >= tokens) | ~used[:, tile]
    return (~(padding[:, None, :, None] & padding[:, None, None, :]),)


def _cross_mask_numpy(o: Operands) -> tuple[Array, ...]:
    tiles = o.ints()
    flat = tiles.reshape(*tiles.shape[:2], -1) != 0
    mask = np.repeat(flat, o.whole("tokens"), axis=2)[:, None]
    return (mask, flat.any(axis=2, keepdims=True).astype(np.float64))


def _conv2d_module(at: ModuleSite) -> Call:
    channels = [at.number(n) for n in ("in_channels", "out_channels", "kernel")]
    bias = literal(a_bool(at.attrs, "bias"))
    return call("nn.Conv2d", *channels, stride=at.number("stride"), bias=bias)


def _tile_mask_prelude(at: PreludeSite) -> Shared:
    tiles, tokens = at.operand(0), at.define("TILE_TOKENS", "tokens")
    padded = at.define("PADDED_TILE_TOKENS", "padded")
    name = at.results[0].replace("tile_mask", "image_mask")
    return Shared("tiles", (name,), "Tensor", f"tile_mask({tiles}, {tokens}, {padded})")


def _cross_mask_prelude(at: PreludeSite) -> Shared:
    """The values of text rows are in the dtype of the model."""
    tiles, tokens = at.operand(0), at.define("TILE_TOKENS", "tokens")
    return Shared("tiles", at.results, "Tensor", f"cross_masks({tiles}, {tokens}, self.dtype)")


def _conv2d_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Patches that touch and do not overlap are a product with each: on CUDA a Conv wants cuDNN, a product does not."""
    bias = (site.parameters["bias"],) if "bias" in site.parameters else ()
    channels, kernel, stride = (a_int(site.attrs, n) for n in ("in_channels", "kernel", "stride"))
    image, weight = b.to(x[0], b.model), site.parameters["weight"]
    sides = [side.value for side in site.operands[0].shape[2:]]
    if stride != kernel or any(side % kernel for side in sides):
        return (b.op("Conv", image, weight, *bias, strides=(stride, stride)),)
    rows, columns = (side // kernel for side in sides)
    cut = b.op("Reshape", image, b.ints([-1, channels, rows, kernel, columns, kernel]))
    patches = b.op("Transpose", cut, perm=(0, 2, 4, 1, 3, 5))
    flat = b.op("Reshape", patches, b.ints([-1, channels * kernel**2]))
    matrix = b.op("Reshape", weight, b.ints([-1, channels * kernel**2]))
    features = b.op("Gemm", flat, matrix, *bias, transB=1)
    placed = b.op(
        "Reshape", features, b.ints([-1, rows, columns, a_int(site.attrs, "out_channels")])
    )
    return (b.op("Transpose", placed, perm=(0, 3, 1, 2)),)


def _replace_rows_onnx(b: Builder, site: Site, x: Values) -> Values:
    """ScatterND refuses more or fewer rows than places."""
    here = b.op("Equal", x[2], b.whole(a_int(site.attrs, "id")), dtype=b.BOOL)
    places = b.op("Transpose", b.op("NonZero", here, dtype=b.INT64), perm=(1, 0))
    rows = b.flat(x[1], site.dims(1))
    return (b.op("ScatterND", x[0], places, rows),)


def _tile_mask_onnx(b: Builder, site: Site, x: Values) -> Values:
    """bool[n, 1, L, L], L the places of all tiles."""
    tokens, padded = a_int(site.attrs, "tokens"), a_int(site.attrs, "padded")
    tiles, images = site.dims()[-1].value, site.results[0].shape[0]
    one = Dim.of(1)
    marks = b.reshape(x[0], site.dims(), (images, site.dims()[-1], one))
    empty = b.op("Equal", marks, b.whole(0), dtype=b.BOOL)
    after = b.constant(f"{b.scope}/after_tokens", np.arange(padded) >= tokens)
    padding = b.op("Or", empty, after)
    flat = b.op("Reshape", padding, b.ints([-1, tiles * padded]))
    queries, keys = (b.op("Unsqueeze", flat, b.ints(axes)) for axes in ([1, 3], [1, 2]))
    return (b.op("Not", b.op("And", queries, keys)),)


def _cross_mask_onnx(b: Builder, site: Site, x: Values) -> Values:
    """bool[B, 1, S, keys], and [B, S, 1] in the model's dtype."""
    tokens = a_int(site.attrs, "tokens")
    tiles = b.op("Reshape", b.to(x[0], b.BOOL), b.ints([0, 0, -1]))
    # counted, as CUDA has no ReduceMax of truth values
    count = b.op("ReduceSum", b.to(tiles, b.INT64), b.ints([2]), keepdims=1)
    each = b.op("Expand", b.op("Unsqueeze", tiles, b.ints([1, 4])), b.ints([1, 1, 1, 1, tokens]))
    return (b.op("Reshape", each, b.ints([0, 0, 0, -1])), b.to(b.to(count, b.BOOL), b.model))


IMAGE_OPS: tuple[Op, ...] = (
    Op(
        "conv2d",
        "Two-dimensional convolution without padding; with a stride as large as its kernel a product with each patch.",
        "y[n, o, i, j] = sum_cuv weight[o, c, u, v] x[n, c, i stride + u, j stride + v] + bias[o]",
        ("x",),
        _conv2d_shape,
        Precision.MODEL,
        Tokens.MIXED,
        attrs=(
            int_attr("in_channels", "channels of the operand"),
            int_attr("out_channels", "channels of the result"),
            int_attr("kernel", "side of the kernel"),
            AttrSpec("stride", "int", "step between two places", default=1),
            AttrSpec("bias", "bool", "whether a bias is added", default=False),
        ),
        parameters=_conv2d_parameters,
        flops=lambda operands, results, attrs: (
            elements(results[0].shape)
            * (2 * a_int(attrs, "in_channels") * a_int(attrs, "kernel") ** 2)
        ),
        is_part=True,
        numpy=_conv2d_numpy,
        torch=part_text,
        torch_module=_conv2d_module,
        onnx=_conv2d_onnx,
    ),
    Op(
        "tile_mask",
        "True but where query and key are both padding: places after the ``tokens`` of a tile, and tiles marked 0. "
        "What is real sees padding too, as in both implementations of Llama 3.2 Vision.",
        "not (padding[i] and padding[j]), padding[t padded + p] = p >= tokens or tiles[..., t] == 0",
        ("tiles",),
        _tile_mask_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(
            int_attr("tokens", "real tokens of a tile"),
            int_attr("padded", "tokens of a tile with padding"),
        ),
        hoisted=True,
        cite="facts 4.7",
        numpy=_tile_mask_numpy,
        torch_prelude=_tile_mask_prelude,
        onnx=_tile_mask_onnx,
    ),
    Op(
        "cross_mask",
        "Which image tokens a text token sees, from which tiles it sees; and 1 for text that sees any, 0 for text that "
        "sees none: what a cross-attention layer adds to that text is multiplied by it.",
        "mask[b, 0, s, n tokens + p] = tiles[b, s, n] != 0;  seen[b, s, 0] = any_n tiles[b, s, n] != 0",
        ("tiles",),
        _cross_mask_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(int_attr("tokens", "tokens of a tile"),),
        hoisted=True,
        result_names=("cross_mask", "seen"),
        cite="facts 4.7",
        numpy=_cross_mask_numpy,
        torch_prelude=_cross_mask_prelude,
        onnx=_cross_mask_onnx,
    ),
    Op(
        "replace_rows",
        "Rows of another tensor in place of those whose id is ``id``, in order: image features at their tokens. There "
        "are as many rows as such ids, or the model stops.",
        "y[b, s] = rows[n] where ids[b, s] == id is the n-th such place (row-major), else x[b, s]",
        ("x", "rows", "ids"),
        _replace_rows_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(int_attr("id", "the token whose embedding is replaced"),),
        cite="facts 4.9",
        role=Role.PLACEHOLDERS,
        numpy=_replace_rows_numpy,
        torch=lambda at, x: call("replace_rows", *x, at.number("id")),
        onnx=_replace_rows_onnx,
    ),
)
