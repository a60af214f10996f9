"""What a row of the op table is, and the shape arithmetic that rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from llamagen.ir.dims import Dim
from llamagen.ir.graph import Attrs, AttrValue, DType, InitKind, Parameter, TensorType


class ShapeError(Exception):
    """Operands or attributes that an op cannot take. The message is a sentence; the caller adds the place."""


class Precision(StrEnum):
    """In which dtype an op computes, for a model run in float16 or bfloat16."""

    MODEL = "computed in the dtype of its operands"
    FLOAT32_INSIDE = "computed in float32, result cast back to the operand's dtype"
    FLOAT32_RESULT = "computed in float32, result stays float32"
    EXACT = "moves, selects or compares values; no arithmetic on them"


AttrType: TypeAlias = Literal["int", "float", "bool", "str", "ints", "floats", "dims"]


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """A static argument of an op. ``default`` is used when it is not given; ``required`` ones have none."""

    name: str
    type: AttrType
    doc: str
    default: AttrValue = None
    required: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False
    """May be ``none``."""
    derived: bool = False
    """Set by a pass over the graph, never written in a spec; absent until then."""


Types: TypeAlias = Sequence[TensorType]
ShapeRule: TypeAlias = Callable[[Types, Attrs], tuple[TensorType, ...]]
ParameterRule: TypeAlias = Callable[[Attrs], tuple[Parameter, ...]]
FlopRule: TypeAlias = Callable[[Types, Types, Attrs], Dim]


def no_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    """Ops without a matrix product count nothing, as torch.utils.flop_counter does."""
    return Dim.of(0)


def no_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Op:
    """One row. ``operands`` names the tensor operands; ``optional_operands`` may be left out at the end."""

    name: str
    doc: str
    formula: str
    operands: tuple[str, ...]
    shape: ShapeRule
    precision: Precision
    attrs: tuple[AttrSpec, ...] = ()
    parameters: ParameterRule = no_parameters
    flops: FlopRule = no_flops
    optional_operands: tuple[str, ...] = ()
    variadic: bool = False
    """The last operand may repeat."""
    is_part: bool = False
    """Owns parameters: it is declared under ``parts`` and called by its part name."""
    hoisted: bool = False
    """Depends on graph inputs alone: computed once a forward pass, in the graph's prelude."""
    internal: bool = False
    """Made by the builder from another spelling; not called by that name in a spec."""
    result_names: tuple[str, ...] = ()
    """Names of the results of a hoisted op in the prelude; the op's own name without."""
    cite: str = ""

    def attr(self, name: str) -> AttrSpec | None:
        return next((a for a in self.attrs if a.name == name), None)


def keep_of(attrs: Attrs) -> int | None:
    """``keep`` of a cache or a mask: none before the pass that bounds caches, and for what it leaves whole."""
    value = attrs.get("keep")
    assert value is None or (isinstance(value, int) and value >= 0), value
    return value


def a_int(attrs: Attrs, name: str) -> int:
    value = attrs[name]
    assert isinstance(value, int) and not isinstance(value, bool), (name, value)
    return value


def a_float(attrs: Attrs, name: str) -> float:
    value = attrs[name]
    assert isinstance(value, int | float) and not isinstance(value, bool), (name, value)
    return float(value)


def a_str(attrs: Attrs, name: str) -> str:
    value = attrs[name]
    assert isinstance(value, str), (name, value)
    return value


def a_bool(attrs: Attrs, name: str) -> bool:
    value = attrs[name]
    assert isinstance(value, bool), (name, value)
    return value


def a_ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    assert isinstance(value, tuple), (name, value)
    return tuple(int(v) for v in value)


def need(condition: bool, message: str, *shown: object) -> None:
    """``shown`` fill the braces of ``message``, and only then: types take long to write out."""
    if not condition:
        raise ShapeError(message.format(*shown) if shown else message)


def need_rank(t: TensorType, rank: int, what: str) -> None:
    need(len(t.shape) == rank, "{} must have {} dimensions, it is {}", what, rank, t)


def need_real(t: TensorType, what: str) -> None:
    real = t.dtype in (DType.MODEL, DType.FLOAT32)
    need(real, "{} must be a floating-point tensor, it is {}", what, t)


def need_last(t: TensorType, size: int, what: str) -> None:
    fits = bool(t.shape) and t.shape[-1] == Dim.of(size)
    need(fits, "{} must end in {}, it is {}", what, size, t)


def axis_of(attrs: Attrs, rank: int) -> int:
    axis = a_int(attrs, "axis")
    need(-rank <= axis < rank, f"axis {axis} is outside a tensor of {rank} dimensions")
    return axis % rank


def result_dtype(*types: TensorType) -> DType:
    """float32 wins over the model's dtype, as in PyTorch's type promotion."""
    for t in types:
        need_real(t, "an operand of arithmetic")
    return DType.FLOAT32 if any(t.dtype is DType.FLOAT32 for t in types) else DType.MODEL


def broadcast(a: TensorType, b: TensorType) -> tuple[Dim, ...]:
    """numpy broadcasting over symbolic dims: sizes are equal, or one of them is 1."""
    rank = max(len(a.shape), len(b.shape))
    one = Dim.of(1)
    left = (one,) * (rank - len(a.shape)) + a.shape
    right = (one,) * (rank - len(b.shape)) + b.shape
    shape: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        fits = x == y or x == one or y == one
        need(fits, "shapes {} and {} do not fit together ({} and {})", a, b, x, y)
        shape.append(y if x == one else x)
    return tuple(shape)


def elements(shape: Sequence[Dim]) -> Dim:
    total = Dim.of(1)
    for size in shape:
        total = total * size
    return total


def parameter(name: str, shape: tuple[int, ...], kind: InitKind) -> Parameter:
    need(all(size > 0 for size in shape), f"a parameter of shape {list(shape)} has a size below 1")
    return Parameter(name, shape, kind)
