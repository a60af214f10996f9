"""Products with weights, and weights themselves."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from llamagen.ops.code import (
    Binary,
    Call,
    Code,
    Text,
    Tuple,
    call,
    literal,
    method,
)
from llamagen.ops.dims import RUN_TIME, Dim
from llamagen.ops.lazy import ir, np
from llamagen.ops.op import (
    INIT_KINDS,
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
    a_ints,
    a_str,
    broadcast,
    elements,
    int_attr,
    need,
    need_last,
    need_real,
    parameter,
    part_text,
    result_dtype,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import ModuleSite, TorchSite
    from llamagen.ops.op import Array, Values


MAX_WIDENED = 2**23
"""Elements of a large weight that are float64 at one time."""


def _embedding_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (ids,) = types
    need(ids.dtype is DType.INT64, f"an embedding is looked up by integer ids, not by {ids}")
    return (TensorType(DType.MODEL, (*ids.shape, Dim.of(a_int(attrs, "features")))),)


def _linear_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of a linear part")
    need_last(x, a_int(attrs, "in_features"), "the operand of this linear part")
    return (TensorType(DType.MODEL, (*x.shape[:-1], Dim.of(a_int(attrs, "out_features")))),)


def _linear_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    inputs, outputs = a_int(attrs, "in_features"), a_int(attrs, "out_features")
    weight = parameter("weight", (outputs, inputs), "matrix")
    return (weight, parameter("bias", (outputs,), "bias")) if a_bool(attrs, "bias") else (weight,)


def _linear_numpy(o: Operands) -> tuple[Array, ...]:
    x, weight = o.real(), o.stored("weight")
    rows = max(1, MAX_WIDENED // weight.shape[1])
    blocks = (o.widened(weight[i : i + rows]) for i in range(0, len(weight), rows))
    tokens = x.reshape(-1, x.shape[-1])
    y = np.concatenate([tokens @ block.T for block in blocks], axis=-1)
    y = y.reshape(*x.shape[:-1], -1)
    return (y + o.weight("bias") if a_bool(o.attrs, "bias") else y,)


def _linear_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    operand = x[0]
    if at.operand_types[0].dtype is DType.FLOAT32:
        operand = method(operand, "to", at.model_dtype())
    return part_text(at, (operand,))


def _linear_module(at: ModuleSite) -> Call:
    bias = literal(a_bool(at.attrs, "bias"))
    return call("nn.Linear", at.number("in_features"), at.number("out_features"), bias=bias)


def _parameter_module(at: ModuleSite) -> Call:
    return call("nn.Parameter", call("torch.empty", Tuple(at.numbers("shape"))))


def _parameter_start(at: ModuleSite) -> Call:
    """Gains start at one, biases and gates at zero, rows of a table as those of the released vision encoders."""
    own = Text(f"self.{at.name}")
    match a_str(at.attrs, "kind"):
        case "norm":
            return call("nn.init.ones_", own)
        case "bias" | "gate":
            return call("nn.init.zeros_", own)
        case _:
            scale = Binary("**", at.numbers("shape")[-1], literal(-0.5))
            return call("nn.init.normal_", own, std=scale)


def _embedding_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Rows are cast after they were picked: a table in another dtype is never cast as a whole."""
    parts = b.parts(site.parameters["weight"])
    if parts is not None:
        return (parts.gather(b, x[0], site.dims()),)
    return (b.to(b.op("Gather", b.stored(site.parameters["weight"]), x[0], axis=0), b.model),)


def _linear_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Gemm reads the weight as stored, [out, in]: no transposed copy, and a tied embedding is one initializer."""
    parts = b.parts(site.parameters["weight"])
    if parts is not None:
        return (parts.product(b, x[0], site.parameters.get("bias")),)
    dims = site.dims()
    rows = b.flat(b.to(x[0], b.model), dims)
    bias = (site.parameters["bias"],) if "bias" in site.parameters else ()
    product = b.op("Gemm", rows, site.parameters["weight"], *bias, transB=1)
    if len(dims) == 2:
        return (product,)
    want = site.results[0].shape
    return (b.op("Reshape", product, b.shape(want)),)


def _fused_matmul_onnx(b: Builder, site: Site, x: Values) -> Values:
    parts = b.parts(site.parameters["weight"])
    if parts is not None:
        return (parts.product(b, x[0], None),)
    return (b.op("FusedMatMul", b.to(x[0], b.model), site.parameters["weight"], transB=1),)


def _matmul_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    dtype = result_dtype(a, b)
    need(min(len(a.shape), len(b.shape)) >= 2, "`@` takes matrices, not {} and {}", a, b)
    fits = a.shape[-1] == b.shape[-2]
    need(
        fits,
        "`@` of {} and {}: the rows of the first are not as long as the columns of the second",
        a,
        b,
    )
    beside = broadcast(*(TensorType(dtype, t.shape[:-2]) for t in types))
    return (TensorType(dtype, (*beside, a.shape[-2], b.shape[-1])),)


def _matmul_onnx(b: Builder, site: Site, x: Values) -> Values:
    dtype = b.element(site.results[0].dtype)
    return (b.op("MatMul", *(b.to(v, dtype) for v in x)),)


Axes: TypeAlias = tuple[str, ...]


def _einsum_axes(attrs: Attrs) -> tuple[Axes, Axes, Axes]:
    """Names of the axes of both operands and of the result. Raises ShapeError."""
    text = a_str(attrs, "equation")
    operands, arrow, result = text.partition("->")
    left, comma, right = operands.partition(",")
    axes = (tuple(left.split()), tuple(right.split()), tuple(result.split()))
    form = "an equation is 'B N S H, B N T H -> B N S T', names of axes with spaces between them"
    named = all(re.fullmatch(r"[A-Za-z]\w*", name) for names in axes for name in names)
    need(bool(arrow and comma and named and all(axes)), "{}, not '{}'", form, text)
    for names in axes:
        need(len(set(names)) == len(names), "'{}' names an axis twice", " ".join(names))
    for name in axes[2]:
        need(
            name in axes[0] or name in axes[1], "axis {} of the result is in neither operand", name
        )
    for name in {*axes[0], *axes[1]} - {*axes[2]}:
        both = name in axes[0] and name in axes[1]
        need(
            both,
            "axis {} is in one operand alone and not in the result: take the `sum` first",
            name,
        )
    return axes


def _einsum_sizes(types: Types, attrs: Attrs) -> dict[str, Dim]:
    """Sizes by name. Raises ShapeError for an axis with two, and for B, S, T and I that are no such ones."""
    sizes: dict[str, Dim] = {}
    for names, t in zip(_einsum_axes(attrs), types, strict=False):
        need(len(names) == len(t.shape), "'{}' are not the axes of {}", " ".join(names), t)
        for name, size in zip(names, t.shape, strict=True):
            known = sizes.setdefault(name, RUN_TIME.get(name, size))
            need(known == size, "axis {} is {} and {}", name, known, size)
    return sizes


def _einsum_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    dtype, sizes = result_dtype(*types), _einsum_sizes(types, attrs)
    return (TensorType(dtype, tuple(sizes[name] for name in _einsum_axes(attrs)[2])),)


def _einsum_letters(attrs: Attrs) -> str:
    """The equation with a letter for each axis, its own where it has one."""
    axes = _einsum_axes(attrs)
    every = dict.fromkeys(name for names in axes for name in names)
    free = (c for c in string.ascii_letters if c not in every)
    letters = {name: name if len(name) == 1 else next(free) for name in every}
    left, right, result = ("".join(letters[name] for name in names) for names in axes)
    return f"{left},{right}->{result}"


def _einsum_onnx(b: Builder, site: Site, x: Values) -> Values:
    """One MatMul: axes of both in front, then those of one operand as one, and those that are summed as one."""
    left, right, result = _einsum_axes(site.attrs)
    sizes = _einsum_sizes(site.operands, site.attrs)
    dtype = b.element(site.results[0].dtype)
    batch = [n for n in result if n in left and n in right]
    summed = [n for n in left if n in right and n not in result]
    rows, columns = ([n for n in names if n not in (*batch, *summed)] for names in (left, right))

    def ordered(value: ir.Value, have: Sequence[str], want: Sequence[str]) -> ir.Value:
        order = [list(have).index(n) for n in want]
        return value if order == sorted(order) else b.op("Transpose", value, perm=order)

    def matrices(value: ir.Value, have: Sequence[str], *groups: Sequence[str]) -> ir.Value:
        want = [*batch, *groups[0], *groups[1]]
        flat = (*(sizes[n] for n in batch), *(elements([sizes[n] for n in g]) for g in groups))
        value = ordered(b.to(value, dtype), have, want)
        return b.reshape(value, [sizes[n] for n in want], flat)

    product = b.op(
        "MatMul", matrices(x[0], left, rows, summed), matrices(x[1], right, summed, columns)
    )
    flat = (*(sizes[n] for n in batch), *(elements([sizes[n] for n in g]) for g in (rows, columns)))
    order = [*batch, *rows, *columns]
    product = b.reshape(product, flat, [sizes[n] for n in order])
    return (ordered(product, order, result),)


LINEAR_OPS: tuple[Op, ...] = (
    Op(
        "embedding",
        "Row lookup: one row of ``features`` for each id.",
        "y[..., :] = weight[ids[...], :]",
        ("ids",),
        _embedding_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(int_attr("rows", "number of ids"), int_attr("features", "width of a row")),
        parameters=lambda attrs: (
            parameter("weight", (a_int(attrs, "rows"), a_int(attrs, "features")), "embedding"),
        ),
        is_part=True,
        role=Role.EMBEDDING,
        numpy=lambda o: (o.widened(o.stored("weight")[o.ints()]),),
        torch=part_text,
        torch_module=lambda at: call("nn.Embedding", at.number("rows"), at.number("features")),
        onnx=_embedding_onnx,
    ),
    Op(
        "linear",
        "Matrix product with a weight stored [out, in], as checkpoints store it.",
        "y = x @ weight.T + bias",
        ("x",),
        _linear_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(
            int_attr("in_features", "width of the operand"),
            int_attr("out_features", "width of the result"),
            AttrSpec("bias", "bool", "whether a bias is added", default=False),
            AttrSpec("tied_to", "str", "role path of the weight to share", optional=True),
        ),
        parameters=_linear_parameters,
        flops=lambda operands, results, attrs: (
            elements(results[0].shape) * (2 * a_int(attrs, "in_features"))
        ),
        is_part=True,
        role=Role.LINEAR,
        numpy=_linear_numpy,
        torch=_linear_torch,
        torch_module=_linear_module,
        onnx=_linear_onnx,
    ),
    Op(
        "parameter",
        "A tensor of its own (a gate, a class embedding); used by its part name, without a call.",
        "y = parameter",
        (),
        lambda types, attrs: (TensorType(DType.MODEL, tuple(map(Dim.of, a_ints(attrs, "shape")))),),
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(
            AttrSpec("shape", "ints", "its shape", required=True),
            AttrSpec(
                "kind",
                "str",
                "what it is for; decides where training starts, and random test values",
                default="gate",
                choices=tuple(INIT_KINDS),
            ),
            AttrSpec(
                "used",
                "int",
                "of experts that equations spell out: how many of its first dimension a token's result rests on",
                default=0,
            ),
        ),
        parameters=lambda attrs: (
            parameter("", a_ints(attrs, "shape"), INIT_KINDS[a_str(attrs, "kind")]),
        ),
        is_part=True,
        role=Role.PARAMETER,
        numpy=lambda o: (o.weight(""),),
        torch=lambda at, x: Text(f"self.{at.part}"),
        torch_module=_parameter_module,
        torch_start=_parameter_start,
        onnx=lambda b, site, x: (site.parameters[""],),
    ),
    Op(
        "matmul",
        "Product of two tensors of matrices, [..., n, k] and [..., k, m]; written ``a @ b``.",
        "y = a @ b",
        ("a", "b"),
        _matmul_shape,
        Precision.MODEL,
        Tokens.MIXED,
        internal=True,
        symbol="@",
        flops=lambda operands, results, attrs: (
            elements(results[0].shape) * 2 * operands[0].shape[-1]
        ),
        numpy=lambda o: (o.real(0) @ o.real(1),),
        torch=lambda at, x: Binary("@", x[0], x[1]),
        onnx=_matmul_onnx,
    ),
    Op(
        "einsum",
        "Sum of products of two tensors over the axes that the result has not, by names: "
        "``einsum(q, k, 'B N S H, B N T H -> B N S T')``. B, S, T and I are what they are in shapes; other names are "
        "the author's.",
        "y[result] = sum a[...] b[...]",
        ("a", "b"),
        _einsum_shape,
        Precision.MODEL,
        Tokens.MIXED,
        attrs=(AttrSpec("equation", "str", "names of the axes", required=True),),
        flops=lambda operands, results, attrs: (
            elements(list(_einsum_sizes(operands, attrs).values())) * 2
        ),
        numpy=lambda o: (np.einsum(_einsum_letters(o.attrs), o.real(0), o.real(1)),),
        torch=lambda at, x: call("torch.einsum", literal(_einsum_letters(at.attrs)), *x),
        onnx=_einsum_onnx,
    ),
    Op(
        "FusedMatMul",
        "A product of [B, S, features] with a weight [out, in], without reshapes.",
        "y = x @ weight.T",
        ("x",),
        _linear_shape,
        Precision.MODEL,
        Tokens.ALONE,
        fused=True,
        role=Role.LINEAR,
        onnx=_fused_matmul_onnx,
    ),
)
