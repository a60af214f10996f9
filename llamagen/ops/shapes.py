"""Ops that move values: heads, joining and cutting, reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING

from llamagen.ops.code import (
    Code,
    Indexed,
    Text,
    Tuple,
    call,
    flat,
    literal,
    method,
)
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    Cut,
    Cuts,
    NeedsWhole,
    Op,
    Operands,
    Precision,
    Role,
    ShapeError,
    TensorType,
    Tokens,
    Types,
    a_int,
    a_ints,
    axis_attr,
    axis_of,
    broadcast,
    cut_beside,
    elements,
    int_attr,
    need,
    need_rank,
    need_real,
    parse_dims,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import TorchSite
    from llamagen.ops.op import Array, Values


def _split_heads_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 3, "the operand of split_heads")
    heads = a_int(attrs, "heads")
    size = x.shape[2].divided_by(heads) if heads > 0 else None
    if size is None:
        raise ShapeError(f"{x.shape[2]} features cannot be split into {heads} heads")
    return (TensorType(x.dtype, (x.shape[0], Dim.of(heads), x.shape[1], size)),)


def _repeat_heads_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 4, "the operand of repeat_heads")
    need(x.shape[1] == Dim.of(1), f"repeat_heads repeats one head, {x} has {x.shape[1]}")
    heads = a_int(attrs, "heads")
    need(heads > 0, f"the number of heads must be above 0, not {heads}")
    return (TensorType(x.dtype, (x.shape[0], Dim.of(heads), *x.shape[2:])),)


def _merge_heads_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 4, "the operand of merge_heads")
    return (TensorType(x.dtype, (x.shape[0], x.shape[2], x.shape[1] * x.shape[3])),)


def _split_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, sizes = axis_of(attrs, len(x.shape)), a_ints(attrs, "sizes")
    need(all(s > 0 for s in sizes), f"split sizes {list(sizes)} must be above 0")
    need(
        Dim.of(sum(sizes)) == x.shape[axis],
        f"split sizes {list(sizes)} add up to {sum(sizes)}, the dimension has {x.shape[axis]}",
    )
    shapes = [(*x.shape[:axis], Dim.of(s), *x.shape[axis + 1 :]) for s in sizes]
    return tuple(TensorType(x.dtype, shape) for shape in shapes)


def _concat_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    first = types[0]
    axis = axis_of(attrs, len(first.shape))
    total = Dim.of(0)
    for t in types:
        rest, want = (
            (*t.shape[:axis], *t.shape[axis + 1 :]),
            (*first.shape[:axis], *first.shape[axis + 1 :]),
        )
        need(
            t.dtype is first.dtype and len(t.shape) == len(first.shape) and rest == want,
            f"{first} and {t} cannot be joined along axis {axis}",
        )
        total = total + t.shape[axis]
    return (TensorType(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :])),)


def _reshape_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    shape = parse_dims(attrs)
    have, want = elements(x.shape), elements(shape)
    need(have == want, f"{x} has {have} elements, the new shape has {want}")
    return (TensorType(x.dtype, shape),)


def _permute_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axes = a_ints(attrs, "axes")
    need(sorted(axes) == list(range(len(x.shape))), f"axes {list(axes)} do not order those of {x}")
    return (TensorType(x.dtype, tuple(x.shape[a] for a in axes)),)


def _slice_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, start, stop = axis_of(attrs, len(x.shape)), a_int(attrs, "start"), a_int(attrs, "stop")
    need(x.shape[axis].is_static, f"axis {axis} of {x} has no fixed size to slice")
    need(0 <= start < stop <= x.shape[axis].value, f"slice {start}:{stop} is outside {x}")
    shape = (*x.shape[:axis], Dim.of(stop - start), *x.shape[axis + 1 :])
    return (TensorType(x.dtype, shape),)


def _pad_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of pad")
    axis, before, after = (
        axis_of(attrs, len(x.shape)),
        a_int(attrs, "before"),
        a_int(attrs, "after"),
    )
    need(before >= 0 and after >= 0, f"pad adds elements: {before} before and {after} after")
    shape = (*x.shape[:axis], x.shape[axis] + (before + after), *x.shape[axis + 1 :])
    return (TensorType(x.dtype, shape),)


def _expand_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    shape = parse_dims(attrs)
    wide = TensorType(x.dtype, shape)
    need(
        len(shape) >= len(x.shape) and broadcast(x, wide) == shape,
        f"{x} cannot be repeated to [{', '.join(map(str, shape))}]",
    )
    return (wide,)


def _split_heads_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    """Features into heads: every rank has some of the heads."""
    (cut,) = cuts
    if cut is None:
        return (None,)
    if cut.axis != 2:
        raise NeedsWhole("needs whole tokens")
    return (Cut(1, a_int(attrs, "heads")),)


def _repeat_heads_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    if cuts != (None,):
        raise NeedsWhole("needs whole values")
    return (Cut(1, 0),)


def _merge_heads_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    (cut,) = cuts
    if cut is None or cut.units == 0:
        return (None,)
    if cut.axis != 1:
        raise NeedsWhole("needs whole heads")
    return (Cut(2, cut.units),)


def _split_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    """Along its own axis every rank has a part of each piece."""
    (cut,) = cuts
    if cut is None or cut.axis != axis_of(attrs, len(operands[0].shape)):
        return (cut,) * len(results)
    return tuple(Cut(cut.axis, size) for size in a_ints(attrs, "sizes"))


def _concat_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    found = [cut for cut in cuts if cut is not None]
    units = gcd(*(cut.units for cut in found))
    if units == 0 and (len(found) < len(cuts) or not found):
        return (None,)
    axes = {cut.axis for cut in found}
    if len(found) < len(cuts) or len(axes) > 1:
        raise NeedsWhole("joins cut values and whole ones")
    if axes == {axis_of(attrs, len(operands[0].shape))}:
        raise NeedsWhole("joins what is cut along the same axis")
    return (Cut(found[0].axis, units),)


def _reshape_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    """The cut axis must begin where one of the result does: the first that is a number, which is left to be found."""
    (cut,) = cuts
    if cut is None:
        return (None,)
    old, new = operands[0].shape, results[0].shape
    before = elements(old[: cut.axis])
    numbers = [i for i, d in enumerate(new) if d.is_static and d.value > 1]
    if not numbers or elements(new[: numbers[0]]) != before:
        raise NeedsWhole("needs whole values")
    return (Cut(numbers[0], gcd(cut.units, new[numbers[0]].value)),)


def _permute_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    (cut,) = cuts
    return (cut and Cut(a_ints(attrs, "axes").index(cut.axis), cut.units),)


def _split_heads_numpy(o: Operands) -> tuple[Array, ...]:
    x, heads = o.real(), o.whole("heads")
    b, s, width = x.shape
    return (x.reshape(b, s, heads, width // heads).transpose(0, 2, 1, 3),)


def _merge_heads_numpy(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    b, heads, s, size = x.shape
    return (x.transpose(0, 2, 1, 3).reshape(b, s, heads * size),)


def _split_numpy(o: Operands) -> tuple[Array, ...]:
    ends = np.cumsum(a_ints(o.attrs, "sizes"))[:-1]
    return tuple(np.split(o.real(), ends, axis=o.whole("axis")))


def _slice_numpy(o: Operands) -> tuple[Array, ...]:
    wanted = np.arange(o.whole("start"), o.whole("stop"))
    return (np.take(o.real(), wanted, axis=o.whole("axis")),)


def _pad_numpy(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    widths = [(0, 0)] * x.ndim
    widths[o.whole("axis")] = (o.whole("before"), o.whole("after"))
    return (np.pad(x, widths),)


def _expand_numpy(o: Operands) -> tuple[Array, ...]:
    shape = [d.evaluate(o.sizes) for d in parse_dims(o.attrs)]
    return (np.broadcast_to(o.real(), shape).copy(),)


def _split_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    """Pieces are parts of what is there, for that may be a rank's part: of equal size, or so many heads each."""
    axis, sizes = literal(a_int(at.attrs, "axis")), a_ints(at.attrs, "sizes")
    if len(set(sizes)) == 1:
        return method(x[0], "chunk", literal(len(sizes)), dim=axis)
    nodes = at.body.block.nodes
    cut = [n.results[0] for r in at.node.results for n in nodes if n.operands == (r,)]
    types = [at.body.type(r) for r in cut]
    heads = [t.shape[1] for t in types if len(t.shape) == 4 and t.shape[1].is_static]
    if len(heads) == len(sizes) and len({t.shape[-1] for t in types}) == 1:
        return call("split_by", x[0], Tuple(tuple(literal(h.value) for h in heads)))
    if at.of_parts:
        return call("split_by", x[0], Tuple(tuple(literal(s // gcd(*sizes)) for s in sizes)))
    return method(x[0], "split", Tuple(at.numbers("sizes")), dim=axis)


def _pad_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    """``F.pad`` counts pairs of widths from the last dimension on."""
    rank = len(at.operand_types[0].shape)
    later = rank - 1 - a_int(at.attrs, "axis") % rank
    widths = (*[literal(0)] * (2 * later), at.number("before"), at.number("after"))
    return call("F.pad", x[0], Tuple(widths))


def _slice_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    rank = len(at.operand_types[0].shape)
    axis, start = a_int(at.attrs, "axis") % rank, at.number("start")
    begin, end = "" if a_int(at.attrs, "start") == 0 else flat(start), flat(at.number("stop"))
    simple = all(isinstance(e, Text) for e in (start, at.number("stop")))
    colon = ":" if simple else " :" if not begin else " : "
    bounds = f"{begin}{colon}{end}" if simple or begin else f": {end}"
    return Indexed(x[0], f"..., {bounds}" if axis == rank - 1 else f"{':, ' * axis}{bounds}")


def _split_heads_onnx(b: Builder, site: Site, x: Values) -> Values:
    batch, tokens, _ = site.dims()
    _, heads, _, size = site.results[0].shape
    apart = b.reshape(x[0], site.dims(), (batch, tokens, heads, size))
    return (b.op("Transpose", apart, perm=(0, 2, 1, 3)),)


def _merge_heads_onnx(b: Builder, site: Site, x: Values) -> Values:
    batch, heads, tokens, size = site.dims()
    beside = b.op("Transpose", x[0], perm=(0, 2, 1, 3))
    return (b.reshape(beside, (batch, tokens, heads, size), site.results[0].shape),)


def _split_onnx(b: Builder, site: Site, x: Values) -> Values:
    sizes = a_ints(site.attrs, "sizes")
    if len(sizes) == 1:
        return x
    dtypes = [b.element(t.dtype) for t in site.results]
    return b.ops("Split", x[0], b.ints(sizes), dtypes=dtypes, axis=site.axis())


def _slice_onnx(b: Builder, site: Site, x: Values) -> Values:
    start, stop = a_int(site.attrs, "start"), a_int(site.attrs, "stop")
    return (b.op("Slice", x[0], b.ints([start]), b.ints([stop]), b.ints([site.axis()])),)


def _pad_onnx(b: Builder, site: Site, x: Values) -> Values:
    widths = b.ints([a_int(site.attrs, "before"), a_int(site.attrs, "after")])
    return (b.op("Pad", x[0], widths, None, b.ints([site.axis()])),)


_HEADS = int_attr("heads", "number of heads")
_SHAPE = AttrSpec("shape", "dims", "new shape: numbers and B, S, T, I", required=True)

SHAPE_OPS: tuple[Op, ...] = (
    Op(
        "split_heads",
        "[B, S, heads * size] -> [B, heads, S, size].",
        "y[b, h, s, :] = x[b, s, h * size : (h + 1) * size]",
        ("x",),
        _split_heads_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(_HEADS,),
        cut=_split_heads_cut,
        numpy=_split_heads_numpy,
        torch=lambda at, x: call("split_heads", x[0], at.size(at.result_types[0].shape[-1])),
        onnx=_split_heads_onnx,
    ),
    Op(
        "repeat_heads",
        "One head for all: [B, 1, S, size] -> [B, heads, S, size] (the rotated key of latent attention, DeepSeek).",
        "y[b, h] = x[b, 0]",
        ("x",),
        _repeat_heads_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(_HEADS,),
        cite="arXiv 2405.04434",
        cut=_repeat_heads_cut,
        numpy=lambda o: (np.repeat(o.real(), o.whole("heads"), axis=1),),
        torch=lambda at, x: method(
            x[0],
            "expand",
            literal(-1),
            at.heads(a_int(at.attrs, "heads")),
            literal(-1),
            literal(-1),
        ),
        onnx=lambda b, site, x: (
            b.op("Expand", x[0], b.ints([1, a_int(site.attrs, "heads"), 1, 1])),
        ),
    ),
    Op(
        "merge_heads",
        "[B, heads, S, size] -> [B, S, heads * size].",
        "y[b, s, h * size : (h + 1) * size] = x[b, h, s, :]",
        ("x",),
        _merge_heads_shape,
        Precision.EXACT,
        Tokens.ALONE,
        cut=_merge_heads_cut,
        numpy=_merge_heads_numpy,
        torch=lambda at, x: call("merge_heads", x[0]),
        onnx=_merge_heads_onnx,
    ),
    Op(
        "split",
        "Cut a dimension into consecutive pieces.",
        "y_0, y_1, ... = x",
        ("x",),
        _split_shape,
        Precision.EXACT,
        Tokens.ALONG,
        attrs=(AttrSpec("sizes", "ints", "size of each piece", required=True), axis_attr()),
        cut=_split_cut,
        role=Role.SPLIT,
        numpy=_split_numpy,
        torch=_split_torch,
        onnx=_split_onnx,
    ),
    Op(
        "concat",
        "Join along a dimension.",
        "y = x_0, x_1, ...",
        ("x",),
        _concat_shape,
        Precision.EXACT,
        Tokens.ALONG,
        attrs=(axis_attr(),),
        cut=_concat_cut,
        variadic=True,
        numpy=lambda o: (
            np.concatenate([o.real(i) for i in range(len(o.tensors))], axis=o.whole("axis")),
        ),
        torch=lambda at, x: call("torch.cat", at.listed(x), dim=literal(a_int(at.attrs, "axis"))),
        onnx=lambda b, site, x: (b.op("Concat", *x, axis=site.axis()),),
    ),
    Op(
        "reshape",
        "The same elements in row-major order with another shape; ``[B, S, num_heads, head_dim]``.",
        "y",
        ("x",),
        _reshape_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(_SHAPE,),
        cut=_reshape_cut,
        numpy=lambda o: (o.tensors[0].reshape([d.evaluate(o.sizes) for d in parse_dims(o.attrs)]),),
        torch=lambda at, x: method(x[0], "reshape", *at.sizes(parse_dims(at.attrs))),
        onnx=lambda b, site, x: (b.reshape(x[0], site.dims(), site.results[0].shape),),
    ),
    Op(
        "permute",
        "Reorder dimensions: result axis i is operand axis axes[i].",
        "y",
        ("x",),
        _permute_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(AttrSpec("axes", "ints", "order", required=True),),
        cut=_permute_cut,
        numpy=lambda o: (o.tensors[0].transpose(a_ints(o.attrs, "axes")),),
        torch=lambda at, x: method(
            x[0], "permute", *(literal(a) for a in a_ints(at.attrs, "axes"))
        ),
        onnx=lambda b, site, x: (b.op("Transpose", x[0], perm=a_ints(site.attrs, "axes")),),
    ),
    Op(
        "slice",
        "The elements start..stop-1 of a dimension of fixed size.",
        "y = x[start:stop]",
        ("x",),
        _slice_shape,
        Precision.EXACT,
        Tokens.ALONG,
        attrs=(
            AttrSpec("start", "int", "first index", default=0),
            int_attr("stop", "index after the last"),
            axis_attr(),
        ),
        cut=cut_beside,
        numpy=_slice_numpy,
        torch=_slice_torch,
        onnx=_slice_onnx,
    ),
    Op(
        "pad",
        "Zeros before and after the elements of a dimension.",
        "y = 0 (before times), x, 0 (after times)",
        ("x",),
        _pad_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(
            AttrSpec("before", "int", "zeros before", default=0),
            AttrSpec("after", "int", "zeros after", default=0),
            axis_attr(),
        ),
        cut=cut_beside,
        numpy=_pad_numpy,
        torch=_pad_torch,
        onnx=_pad_onnx,
    ),
    Op(
        "expand",
        "Repeat along new leading dimensions and dimensions of size 1; ``[I, 1, D]`` from [D].",
        "y[..., i, j] = x[j], as numpy broadcasts",
        ("x",),
        _expand_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(_SHAPE,),
        numpy=_expand_numpy,
        torch=lambda at, x: method(x[0], "expand", *(at.size(d) for d in parse_dims(at.attrs))),
        onnx=lambda b, site, x: (b.op("Expand", x[0], b.shape(site.results[0].shape)),),
    ),
)
