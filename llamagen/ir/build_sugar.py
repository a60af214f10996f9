"""Spellings that stand for other ops: ``rope``, ``attention`` with its mask, ``activation``, operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from llamagen.diagnostics import did_you_mean
from llamagen.ir.attrs import Given, bind
from llamagen.ir.build_body import Body
from llamagen.ir.build_terms import AMBIENT, Constant, Listed, Several, Tensor, Term, number
from llamagen.ops.activations import ACTIVATIONS
from llamagen.ops.op import DType
from llamagen.ops.table import OPS
from llamagen.spec.evaluate import Static
from llamagen.spec.expr import Binary, Call, Expr, ExpressionError, Name


class Reader(Protocol):
    """Who reads the expressions of a block: what a spelling needs of it."""

    @property
    def body(self) -> Body: ...

    def tensor(self, expr: Expr) -> Tensor: ...

    def term(self, expr: Expr) -> Term: ...

    def static(self, expr: Expr) -> Static: ...

    def given(self, term: Term, expr: Expr) -> Given: ...


_PAIRS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_SCALARS = {"+": "add_scalar", "-": "add_scalar", "*": "mul_scalar", "/": "div_scalar"}


def rope(block: Reader, expr: Call) -> Term:
    """``rope(x, positions, config)``: a table in the prelude, a rotation here."""
    if len(expr.arguments) != 3 or expr.keywords:
        raise ExpressionError("write `rope(x, positions, rope)`", expr.extent)
    x, positions = block.tensor(expr.arguments[0]), block.tensor(expr.arguments[1])
    config = block.static(expr.arguments[2])
    if not isinstance(config, Mapping) or "theta" not in config:
        message = "the third argument is a rope hyperparameter"
        raise ExpressionError(message, expr.arguments[2].extent)
    if len(x.type.shape) != 4 or x.type.dtype is not DType.MODEL:
        message = f"rope needs [B, heads, S, head_dim], it is {x.type}; split heads first"
        raise ExpressionError(message, expr.arguments[0].extent)
    given = {k: v for k, v in config.items() if k not in ("kind", "layout", "partial")}
    size, partial = x.type.shape[-1].value, config["partial"]
    assert isinstance(partial, float | int)
    named: dict[str, Given] = {k: (v, expr.arguments[2]) for k, v in given.items()}
    named["scaling"] = (config["kind"], expr.arguments[2])
    named["dim"] = (int(size * partial), expr.arguments[2])
    attrs, _ = bind(OPS["rope_table"], [], named, expr.extent)
    label = expr.arguments[2]
    suffix = label.id.removeprefix("rope") if isinstance(label, Name) else ""
    names = (f"cos{suffix}", f"sin{suffix}")
    if not positions.id.startswith("@"):
        raise ExpressionError("the second argument is `positions`", expr.arguments[1].extent)
    tables = block.body.hoist(OPS["rope_table"], [positions], attrs, names, expr.extent)
    layout = config["layout"]
    assert isinstance(layout, str)
    operands = [x, *tables]
    return block.body.apply(OPS["rotate"], operands, {"layout": layout}, expr.extent)


def grid_rope(block: Reader, expr: Call) -> Term:
    """``grid_rope(x, rows, columns, theta, extra)``: a table of a grid in the prelude, a rotation of pairs here."""
    if not expr.arguments:
        raise ExpressionError("write `grid_rope(x, rows, columns, theta, extra)`", expr.extent)
    x = block.tensor(expr.arguments[0])
    if len(x.type.shape) != 4 or x.type.dtype is not DType.MODEL:
        message = f"grid_rope needs [I, heads, places, head_dim], it is {x.type}"
        raise ExpressionError(message, expr.arguments[0].extent)
    row = OPS["grid_rope_table"]
    positional = [(block.static(a), a) for a in expr.arguments[1:]]
    named: dict[str, Given] = {k: (block.static(a), a) for k, a in expr.keywords}
    named["dim"] = (x.type.shape[-1].value, expr)
    attrs, _ = bind(row, positional, named, expr.extent)
    tables = block.body.hoist(row, [], attrs, ("grid_cos", "grid_sin"), expr.extent)
    return block.body.apply(OPS["rotate"], [x, *tables], {"layout": "interleaved"}, expr.extent)


def attention(block: Reader, expr: Call) -> Term:
    """``attention(q, k, v, mask='causal', window=, chunk=, scale=, softcap=, alibi=, sinks=t)``.

    The causal mask is in the prelude; ``sinks`` is a tensor, and ``mask`` may be one.
    """
    operands = [block.tensor(a) for a in expr.arguments]
    keywords = dict(expr.keywords)
    mask = keywords.pop("mask", None)
    limits: dict[str, Given] = {
        k: (block.static(keywords.pop(k)), expr) for k in ("window", "chunk") if k in keywords
    }
    given = block.term(mask) if mask is not None else Constant(None)
    kind = given.value if isinstance(given, Constant) else None
    if kind not in (None, "causal", "none") or isinstance(given, Several | Listed):
        assert mask is not None
        raise ExpressionError("mask is 'causal', 'none' or a tensor of truth values", mask.extent)
    if len(operands) != 3:
        raise ExpressionError("write `attention(q, k, v, mask='causal')`", expr.extent)
    sinks = keywords.pop("sinks", None)
    if sinks is not None and kind != "causal":
        raise ExpressionError("sinks need mask='causal'", sinks.extent)
    known = [*("mask", "window", "chunk", "sinks"), *(a.name for a in OPS["attention"].attrs)]
    for key, value in keywords.items():
        if key not in known:
            near = did_you_mean(key, known)
            help = f"did you mean `{near}`?" if near else f"it takes: {', '.join(known)}"
            raise ExpressionError(f"`attention` has no argument `{key}`", value.extent, help)
    named = {k: block.given(block.term(a), a) for k, a in keywords.items()}
    attrs, sources = bind(OPS["attention"], [], named, expr.extent)
    if kind == "causal":
        limit, _ = bind(OPS["causal_mask"], [], limits, expr.extent)
        level = [Tensor(f"@{n}", block.body.site.level_type(n)) for n in AMBIENT]
        name = "mask" + "".join(f"_{k}" for k in ("window", "chunk") if limit[k] is not None)
        operands += block.body.hoist(OPS["causal_mask"], level, limit, (name,), expr.extent)
        if sinks is not None:
            operands.append(block.tensor(sinks))
    elif limits:
        raise ExpressionError("window and chunk need mask='causal'", expr.extent)
    elif isinstance(given, Tensor):
        operands.append(given)
    return block.body.apply(OPS["attention"], operands, attrs, expr.extent, sources)


def activation(block: Reader, expr: Call) -> Term:
    """``activation(x, hidden_act)``: the op whose name is a hyperparameter."""
    if len(expr.arguments) != 2 or expr.keywords:
        raise ExpressionError("write `activation(x, hidden_act)`", expr.extent)
    x, name = block.tensor(expr.arguments[0]), block.static(expr.arguments[1])
    known = ACTIVATIONS.get(name) if isinstance(name, str) else None
    if known is None:
        message = f"`{name}` is no activation: {', '.join(ACTIVATIONS)}"
        raise ExpressionError(message, expr.arguments[1].extent)
    return block.body.apply(OPS[known.op or known.name], [x], known.attrs, expr.extent)


def arithmetic(block: Reader, op: str, left: Term, right: Term, expr: Binary) -> Term:
    match left, right:
        case Constant(), Constant():
            return Constant(block.static(expr))
        case Tensor(), Tensor():
            row = OPS[_PAIRS[op]]
            return block.body.apply(row, [left, right], {}, expr.extent)
        case Tensor(), Constant(value=value):
            factor = number(value, expr.right)
            name = _SCALARS[op]
            if op == "/" and factor == 0:
                raise ExpressionError("division by zero", expr.right.extent)
            attrs = {"value": -factor if op == "-" else factor}
            sources = {} if op == "-" else {"value": expr.right}
            return block.body.apply(OPS[name], [left], attrs, expr.extent, sources)
        case Constant(value=value), Tensor():
            factor = number(value, expr.left)
            if op == "/":
                raise ExpressionError("a number divided by a tensor is not an op", expr.extent)
            if op == "-":
                right = block.body.apply(OPS["neg"], [right], {}, expr.extent)
                assert isinstance(right, Tensor)
            name = "mul_scalar" if op == "*" else "add_scalar"
            sources = {"value": expr.left}
            return block.body.apply(OPS[name], [right], {"value": factor}, expr.extent, sources)
        case _:
            raise ExpressionError("an op with several results: name them first", expr.extent)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How an author writes what is not a row of the op table, for ``llamagen explain``."""

    signature: str
    doc: str


SPELLINGS: Mapping[str, Spelling] = {
    "stack": Spelling(
        "stack(count, Block(option=...), collect=none)",
        "A part: `count` layers named 0, 1, ... run one after the other. The second argument is evaluated once a layer "
        "with `layer` as its index, so `Block(kind=kinds[layer])` reads a pattern and `A() if test else B()` chooses. "
        "With `collect=[3, 7]` a call has a second result, the list of the states before layers 3 and 7 (`count`: the "
        "end), for `concat`.",
    ),
    "rope": Spelling(
        "rope(x, positions, rope)",
        "Rotary embedding of x [B, heads, S, head_dim]. The third argument is a rope hyperparameter (`rope` or "
        "`rope_local`): its kind, theta, layout and partial decide the table, which is computed once for all layers.",
    ),
    "attention": Spelling(
        "attention(q, k, v, mask='causal'|'none'|m, window=none, chunk=none, sinks=none, ...)",
        "`mask='causal'` hides later tokens and padding; `window=w` leaves the last w keys, itself included; `chunk=c` "
        "those in the same block of c true positions; with a tensor `mask=m` a query sees the keys where m is true; "
        "`sinks=t` adds one logit a head, t [heads], to the softmax. "
        "The other arguments are those of the op.",
    ),
    "activation": Spelling(
        "activation(x, hidden_act)",
        f"The activation a hyperparameter names: {', '.join(ACTIVATIONS)}.",
    ),
}

SUGAR: Mapping[str, Callable[[Reader, Call], Term]] = {
    "rope": rope,
    "grid_rope": grid_rope,
    "attention": attention,
    "activation": activation,
}
