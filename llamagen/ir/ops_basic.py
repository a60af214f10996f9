"""Rows of the op table without parameters: arithmetic, activations, selection and layout."""

from __future__ import annotations

from llamagen.ir.dims import Dim
from llamagen.ir.graph import Attrs, DType, TensorType
from llamagen.ir.optypes import (
    AttrSpec,
    Op,
    Precision,
    ShapeError,
    ShapeRule,
    Types,
    a_int,
    a_ints,
    axis_of,
    broadcast,
    elements,
    need,
    need_rank,
    need_real,
    result_dtype,
)


def _same(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    need_real(types[0], "the operand")
    return (types[0],)


def _binary(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(result_dtype(*types), broadcast(types[0], types[1])),)


def _cast(dtype: DType) -> ShapeRule:
    def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        need_real(types[0], "the operand of a cast")
        return (TensorType(dtype, types[0].shape),)

    return rule


def _softmax(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    need_real(types[0], "the operand of softmax")
    axis_of(attrs, len(types[0].shape))
    return (types[0],)


def _topk(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of topk")
    k = a_int(attrs, "k")
    need(0 < k <= x.shape[-1].value, f"topk of {k} from a last dimension of {x.shape[-1]}")
    shape = (*x.shape[:-1], Dim.of(k))
    return (TensorType(x.dtype, shape), TensorType(DType.INT64, shape))


def _gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices = types
    need(indices.dtype is DType.INT64, f"indices must be integers, they are {indices}")
    need(x.shape[:-1] == indices.shape[:-1], f"{x} and its indices {indices} differ before the end")
    return (TensorType(x.dtype, indices.shape),)


def _reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand")
    axis = axis_of(attrs, len(x.shape))
    return (TensorType(x.dtype, (*x.shape[:axis], Dim.of(1), *x.shape[axis + 1 :])),)


def _split_heads(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 3, "the operand of split_heads")
    heads = a_int(attrs, "heads")
    size = x.shape[2].divided_by(heads) if heads > 0 else None
    if size is None:
        raise ShapeError(f"{x.shape[2]} features cannot be split into {heads} heads")
    return (TensorType(x.dtype, (x.shape[0], Dim.of(heads), x.shape[1], size)),)


def _repeat_heads(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 4, "the operand of repeat_heads")
    need(x.shape[1] == Dim.of(1), f"repeat_heads repeats one head, {x} has {x.shape[1]}")
    heads = a_int(attrs, "heads")
    need(heads > 0, f"the number of heads must be above 0, not {heads}")
    return (TensorType(x.dtype, (x.shape[0], Dim.of(heads), *x.shape[2:])),)


def _merge_heads(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_rank(x, 4, "the operand of merge_heads")
    return (TensorType(x.dtype, (x.shape[0], x.shape[2], x.shape[1] * x.shape[3])),)


def _split(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, sizes = axis_of(attrs, len(x.shape)), a_ints(attrs, "sizes")
    need(all(s > 0 for s in sizes), f"split sizes {list(sizes)} must be above 0")
    need(
        Dim.of(sum(sizes)) == x.shape[axis],
        f"split sizes {list(sizes)} add up to {sum(sizes)}, the dimension has {x.shape[axis]}",
    )
    shapes = [(*x.shape[:axis], Dim.of(s), *x.shape[axis + 1 :]) for s in sizes]
    return tuple(TensorType(x.dtype, shape) for shape in shapes)


def _concat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
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


def parse_dims(attrs: Attrs) -> tuple[Dim, ...]:
    """The ``shape`` of a reshape; it is kept as text such as ``B, S, 32, 128``."""
    text = attrs["shape"]
    assert isinstance(text, str)
    return tuple(Dim.of(int(d) if d.strip().isdigit() else d.strip()) for d in text.split(","))


def _reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    shape = parse_dims(attrs)
    have, want = elements(x.shape), elements(shape)
    need(have == want, f"{x} has {have} elements, the new shape has {want}")
    return (TensorType(x.dtype, shape),)


def _permute(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axes = a_ints(attrs, "axes")
    need(sorted(axes) == list(range(len(x.shape))), f"axes {list(axes)} do not order those of {x}")
    return (TensorType(x.dtype, tuple(x.shape[a] for a in axes)),)


def _slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, start, stop = axis_of(attrs, len(x.shape)), a_int(attrs, "start"), a_int(attrs, "stop")
    need(x.shape[axis].is_static, f"axis {axis} of {x} has no fixed size to slice")
    need(0 <= start < stop <= x.shape[axis].value, f"slice {start}:{stop} is outside {x}")
    shape = (*x.shape[:axis], Dim.of(stop - start), *x.shape[axis + 1 :])
    return (TensorType(x.dtype, shape),)


def _pad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
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


def _axis(default: int = -1) -> AttrSpec:
    return AttrSpec("axis", "int", "which dimension; negative counts from the end", default=default)


def _unary(name: str, formula: str, doc: str, *attrs: AttrSpec) -> Op:
    return Op(name, doc, formula, ("x",), _same, Precision.MODEL, attrs)


def _pair(name: str, formula: str) -> Op:
    doc = "Elementwise, with broadcasting; written as an operator in equations."
    return Op(name, doc, formula, ("a", "b"), _binary, Precision.MODEL, internal=True)


def _scalar(name: str, formula: str) -> Op:
    value = AttrSpec("value", "float", "the number", required=True)
    doc = "Elementwise with a number, in the operand's dtype; written as an operator in equations."
    return Op(name, doc, formula, ("x",), _same, Precision.MODEL, (value,), internal=True)


_APPROXIMATE = AttrSpec("approximate", "str", "", default="none", choices=("none", "tanh"))

BASIC_OPS: tuple[Op, ...] = (
    _pair("add", "a + b"),
    _pair("sub", "a - b"),
    _pair("mul", "a * b"),
    _pair("div", "a / b"),
    _scalar("add_scalar", "x + c"),
    _scalar("mul_scalar", "x * c"),
    _scalar("div_scalar", "x / c"),
    _unary("neg", "-x", "Negation; written ``-x``."),
    _unary("silu", "x sigmoid(x)", "Also called swish."),
    _unary(
        "gelu", "x Phi(x)", "With ``approximate='tanh'`` the usual approximation.", _APPROXIMATE
    ),
    _unary("relu", "max(x, 0)", "Rectifier."),
    _unary("relu2", "max(x, 0)^2", "Squared rectifier."),
    _unary("sigmoid", "1 / (1 + exp(-x))", "Logistic function."),
    _unary("tanh", "tanh(x)", "Hyperbolic tangent."),
    _unary("softplus", "log(1 + exp(x))", "Smooth rectifier."),
    _unary("exp", "exp(x)", "Exponential."),
    _unary("square", "x^2", "Square."),
    _unary("sqrt", "sqrt(x)", "Square root."),
    _unary(
        "softcap",
        "c tanh(x / c)",
        "Bounds values to (-c, c), for logits and scores (Gemma 2).",
        AttrSpec("cap", "float", "the bound c", required=True),
    ),
    _unary(
        "clamp",
        "min(max(x, low), high)",
        "Bounds values; ``none`` leaves a side open.",
        AttrSpec("low", "float", "lower bound", optional=True),
        AttrSpec("high", "float", "upper bound", optional=True),
    ),
    Op(
        "rms_normalize",
        "Root-mean-square norm over the last dimension without a weight (Llama 4's QK norm).",
        "x / sqrt(mean(x^2) + eps)",
        ("x",),
        _same,
        Precision.FLOAT32_INSIDE,
        (AttrSpec("eps", "float", "added to the mean of squares, inside the root", required=True),),
        cite="facts 4.8",
    ),
    Op(
        "float32",
        "Cast to float32, for parts of a model that compute in it.",
        "float32(x)",
        ("x",),
        _cast(DType.FLOAT32),
        Precision.FLOAT32_RESULT,
    ),
    Op(
        "model_dtype",
        "Cast back to the dtype the model is run in.",
        "x",
        ("x",),
        _cast(DType.MODEL),
        Precision.MODEL,
    ),
    Op(
        "softmax",
        "Normalised exponentials along an axis.",
        "exp(x - max x) / sum exp(x - max x)",
        ("x",),
        _softmax,
        Precision.FLOAT32_INSIDE,
        (_axis(),),
    ),
    Op(
        "topk",
        "The k largest values of the last dimension, largest first, and their indices; of equal values the first.",
        "values, indices",
        ("x",),
        _topk,
        Precision.EXACT,
        (AttrSpec("k", "int", "how many", required=True),),
    ),
    Op(
        "gather",
        "Pick values of the last dimension by index.",
        "y[..., j] = x[..., indices[..., j]]",
        ("x", "indices"),
        _gather,
        Precision.EXACT,
    ),
    Op(
        "sum",
        "Sum along an axis, which stays with size 1.",
        "sum x",
        ("x",),
        _reduce,
        Precision.MODEL,
        (_axis(),),
    ),
    Op(
        "mean",
        "Mean along an axis, which stays with size 1.",
        "mean x",
        ("x",),
        _reduce,
        Precision.MODEL,
        (_axis(),),
    ),
    Op(
        "split_heads",
        "[B, S, heads * size] -> [B, heads, S, size].",
        "y[b, h, s, :] = x[b, s, h * size : (h + 1) * size]",
        ("x",),
        _split_heads,
        Precision.EXACT,
        (AttrSpec("heads", "int", "number of heads", required=True),),
    ),
    Op(
        "repeat_heads",
        "One head for all: [B, 1, S, size] -> [B, heads, S, size] (the rotated key of latent attention, DeepSeek).",
        "y[b, h] = x[b, 0]",
        ("x",),
        _repeat_heads,
        Precision.EXACT,
        (AttrSpec("heads", "int", "number of heads", required=True),),
        cite="arXiv 2405.04434",
    ),
    Op(
        "merge_heads",
        "[B, heads, S, size] -> [B, S, heads * size].",
        "y[b, s, h * size : (h + 1) * size] = x[b, h, s, :]",
        ("x",),
        _merge_heads,
        Precision.EXACT,
    ),
    Op(
        "split",
        "Cut a dimension into consecutive pieces.",
        "y_0, y_1, ... = x",
        ("x",),
        _split,
        Precision.EXACT,
        (AttrSpec("sizes", "ints", "size of each piece", required=True), _axis()),
    ),
    Op(
        "concat",
        "Join along a dimension.",
        "y = x_0, x_1, ...",
        ("x",),
        _concat,
        Precision.EXACT,
        (_axis(),),
        variadic=True,
    ),
    Op(
        "reshape",
        "The same elements in row-major order with another shape; ``[B, S, num_heads, head_dim]``.",
        "y",
        ("x",),
        _reshape,
        Precision.EXACT,
        (AttrSpec("shape", "dims", "new shape: numbers and B, S, T, I", required=True),),
    ),
    Op(
        "permute",
        "Reorder dimensions: result axis i is operand axis axes[i].",
        "y",
        ("x",),
        _permute,
        Precision.EXACT,
        (AttrSpec("axes", "ints", "order", required=True),),
    ),
    Op(
        "slice",
        "The elements start..stop-1 of a dimension of fixed size.",
        "y = x[start:stop]",
        ("x",),
        _slice,
        Precision.EXACT,
        (
            AttrSpec("start", "int", "first index", default=0),
            AttrSpec("stop", "int", "index after the last", required=True),
            _axis(),
        ),
    ),
    Op(
        "pad",
        "Zeros before and after the elements of a dimension.",
        "y = 0 (before times), x, 0 (after times)",
        ("x",),
        _pad,
        Precision.EXACT,
        (
            AttrSpec("before", "int", "zeros before", default=0),
            AttrSpec("after", "int", "zeros after", default=0),
            _axis(),
        ),
    ),
)
