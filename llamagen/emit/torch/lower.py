"""One op of the table -> one Python expression. Precision follows the op's rule (llamagen.ir.ops)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.code import (
    Attribute,
    Binary,
    Code,
    Indexed,
    Keyword,
    Negative,
    Text,
    Tuple,
    call,
    flat,
    literal,
    method,
)
from llamagen.ir.dims import Dim
from llamagen.ir.graph import DType, Node, TensorType
from llamagen.ir.ops_basic import parse_dims
from llamagen.ir.optypes import a_float, a_int, a_ints, a_str


@dataclass(frozen=True, slots=True)
class Lowering:
    """What an op needs to know of its surroundings."""

    number: Callable[[str], Code]
    """An attribute of the node as Python: a constant's name where the spec used one."""
    numbers: Callable[[str], tuple[Code, ...]]
    """An attribute that is a list."""
    operand_types: tuple[TensorType, ...]
    result_types: tuple[TensorType, ...]
    model_dtype: Callable[[], Code]
    """An expression for the dtype the model runs in."""
    size: Callable[[Dim], Code]
    """An expression for a symbolic size."""
    sizes: Callable[[Sequence[Dim]], tuple[Code, ...]]
    """Expressions for a new shape of the same elements."""
    helper: Callable[[str], None]
    """Notes that a helper of the templates is used."""
    attend: Text
    """The attention function under a mask."""
    unmasked: Text
    """The attention function without one."""
    extras: tuple[str, ...]
    """What both take besides q, k, v and the mask."""


_FUNCTIONS = {"silu": "F.silu", "relu": "F.relu", "softplus": "F.softplus"}
_METHODS = {"sigmoid": "sigmoid", "tanh": "tanh", "exp": "exp", "square": "square", "sqrt": "sqrt"}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_WITH_NUMBER = {"add_scalar": "+", "mul_scalar": "*", "div_scalar": "/"}


def lower(node: Node, args: Sequence[Code], at: Lowering) -> Code:
    """The expression for ``node``. Raises LlamagenError (LG741) for what PyTorch cannot express."""
    op, attrs = node.op, node.attrs
    if op in _OPERATORS:
        return Binary(_OPERATORS[op], args[0], args[1])
    if op in _WITH_NUMBER:
        return _with_number(op, a_float(attrs, "value"), args[0], at)
    if op in _FUNCTIONS:
        return call(_FUNCTIONS[op], args[0])
    if op in _METHODS:
        return call(f"torch.{_METHODS[op]}", args[0])
    match op:
        case "neg":
            return Negative(args[0])
        case "relu2":
            return method(call("F.relu", args[0]), "square")
        case "gelu":
            how = a_str(attrs, "approximate")
            extra = {} if how == "none" else {"approximate": literal(how)}
            return call("F.gelu", args[0], **extra)
        case "softcap":
            at.helper("softcap")
            return call("softcap", args[0], at.number("cap"))
        case "clamp":
            bounds = {"min": attrs["low"], "max": attrs["high"]}
            given = {
                k: at.number({"min": "low", "max": "high"}[k])
                for k, v in bounds.items()
                if v is not None
            }
            return method(args[0], "clamp", **given) if given else args[0]
        case "rms_normalize":
            at.helper("rms_normalize")
            return call("rms_normalize", args[0], at.number("eps"))
        case "float32":
            return method(args[0], "float")
        case "model_dtype":
            return method(args[0], "to", at.model_dtype())
        case "softmax":
            return call("F.softmax", args[0], dim=literal(a_int(attrs, "axis")))
        case "topk":
            return method(args[0], "topk", at.number("k"))
        case "gather":
            return method(args[0], "gather", literal(-1), args[1])
        case "sum" | "mean":
            return method(args[0], op, literal(a_int(attrs, "axis")), keepdim=literal(True))
        case "split_heads":
            at.helper("split_heads")
            return call("split_heads", args[0], at.size(at.result_types[0].shape[-1]))
        case "repeat_heads":
            return method(
                args[0], "expand", literal(-1), at.number("heads"), literal(-1), literal(-1)
            )
        case "merge_heads":
            at.helper("merge_heads")
            return call("merge_heads", args[0])
        case "split":
            return method(
                args[0], "split", Tuple(at.numbers("sizes")), dim=literal(a_int(attrs, "axis"))
            )
        case "concat":
            return call("torch.cat", Tuple(tuple(args)), dim=literal(a_int(attrs, "axis")))
        case "reshape":
            return method(args[0], "reshape", *at.sizes(parse_dims(attrs)))
        case "expand":
            return method(args[0], "expand", *(at.size(d) for d in parse_dims(attrs)))
        case "replace_rows":
            at.helper("replace_rows")
            return call("replace_rows", *args, at.number("id"))
        case "permute":
            return method(args[0], "permute", *(literal(a) for a in a_ints(attrs, "axes")))
        case "slice":
            return _slice(args[0], node, at)
        case "rotate":
            half = a_str(attrs, "layout") == "half"
            function = "rotate" if half else "rotate_interleaved"
            at.helper(function)
            if at.operand_types[1].shape[-1] * 2 != at.operand_types[0].shape[-1]:
                at.helper(f"{function}_partial")
            return call(function, args[0], args[1])
        case "attention":
            return _attention(node, args, at)
        case "linear":
            operand = args[0]
            if at.operand_types[0].dtype is DType.FLOAT32:
                operand = method(operand, "to", at.model_dtype())
            return call(_part(node), operand)
        case "pad":
            return _pad(args[0], node, at)
        case "embedding" | "rms_norm" | "layer_norm" | "experts" | "conv2d":
            return call(_part(node), *args)
        case "parameter":
            return Text(_part(node))
        case _:
            message = f"`{op}` has no PyTorch lowering"
            raise LlamagenError.of("LG741", message, node.span)


def _part(node: Node) -> str:
    assert node.part is not None, node.op
    return f"self.{node.part}"


def _with_number(op: str, value: float, x: Code, at: Lowering) -> Code:
    if op == "add_scalar" and isinstance(x, Negative):
        return Binary("-", at.number("value"), x.operand)
    if op == "add_scalar" and value < 0:
        return Binary("-", x, literal(-value))
    return Binary(_WITH_NUMBER[op], x, at.number("value"))


def _pad(x: Code, node: Node, at: Lowering) -> Code:
    """``F.pad`` counts pairs of widths from the last dimension on."""
    rank = len(at.operand_types[0].shape)
    later = rank - 1 - a_int(node.attrs, "axis") % rank
    widths = (*[literal(0)] * (2 * later), at.number("before"), at.number("after"))
    return call("F.pad", x, Tuple(widths))


def _slice(x: Code, node: Node, at: Lowering) -> Code:
    rank = len(at.operand_types[0].shape)
    axis, start = a_int(node.attrs, "axis") % rank, at.number("start")
    begin, end = "" if a_int(node.attrs, "start") == 0 else flat(start), flat(at.number("stop"))
    simple = all(isinstance(e, Text) for e in (start, at.number("stop")))
    colon = ":" if simple else " :" if not begin else " : "
    bounds = f"{begin}{colon}{end}" if simple or begin else f": {end}"
    return Indexed(x, f"..., {bounds}" if axis == rank - 1 else f"{':, ' * axis}{bounds}")


def _attention(node: Node, args: Sequence[Code], at: Lowering) -> Code:
    given: list[Code] = list(args[:3])
    function = at.attend
    if len(args) > 3:
        given.append(args[3])
    else:
        function = at.unmasked
        at.helper(function.text)
        given += [literal(None)] if function.text == "eager" else []
    for name in at.extras:
        given.append(Keyword(name, _extra(name, node, args, at)))
    return call(function.text, *given)


def _extra(name: str, node: Node, args: Sequence[Code], at: Lowering) -> Code:
    match name:
        case "scale" if node.attrs["scale"] is None:
            return Binary("**", at.size(at.operand_types[0].shape[-1]), literal(-0.5))
        case "scale":
            return at.number("scale")
        case "cap":
            return at.number("softcap")
        case "sinks":
            return args[4] if len(args) > 4 else literal(None)
        case _:
            if node.attrs.get("alibi") is not True:
                return literal(None)
            at.helper("alibi_slopes")
            heads = at.operand_types[0].shape[1].value
            return call("alibi_slopes", literal(heads))


def shape_of(x: Code, axis: int) -> Code:
    return Indexed(Attribute(x, "shape"), str(axis))
