"""What a row of the op table is: shapes and cost, traits, and its meaning in numpy, PyTorch and ONNX.

A row is all there is of an op. Whoever needs to know something of an op asks its row for a trait, never for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum, StrEnum
from math import gcd, prod
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from llamagen.ops.code import Call, Code, Shared, call
from llamagen.ops.dims import Dim, S
from llamagen.ops.lazy import np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import ModuleSite, PreludeSite, TorchSite


class DType(StrEnum):
    """``MODEL`` is the dtype the model is run in (float32, float16 or bfloat16); the others are fixed."""

    MODEL = "model"
    FLOAT32 = "float32"
    INT64 = "int64"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class TensorType:
    dtype: DType
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


AttrValue: TypeAlias = "int | float | bool | str | tuple[int, ...] | tuple[float, ...] | None"
Attrs: TypeAlias = Mapping[str, AttrValue]

InitKind: TypeAlias = Literal["matrix", "embedding", "norm", "bias", "gate"]
INIT_KINDS: Mapping[str, InitKind] = {
    "matrix": "matrix",
    "embedding": "embedding",
    "norm": "norm",
    "bias": "bias",
    "gate": "gate",
}
"""What a parameter is for; decides the unit-scale random values of tests, nothing else."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight of a part. ``name`` is the last component of the role path; shape is all ints."""

    name: str
    shape: tuple[int, ...]
    kind: InitKind

    @property
    def count(self) -> int:
        return prod(self.shape)


class ShapeError(Exception):
    """Operands or attributes that an op cannot take. The message is a sentence; the caller adds the place."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A value of which each of several ranks has an equal part along ``axis``, in order.

    ``units`` pieces of it stay whole: how many ranks there are must divide them. With 0 units every piece is the same,
    and there are as many as are wanted (one head for all).
    """

    axis: int
    units: int


class NeedsWhole(Exception):
    """An op cannot compute a rank's part of its result from a rank's parts of its operands. The message is why."""


class NeedsCut(Exception):
    """It could if ``operand``, which is whole, were cut along ``axis`` too."""

    def __init__(self, operand: int, axis: int) -> None:
        super().__init__("joins a cut value and a whole one")
        self.operand, self.axis = operand, axis


class Precision(StrEnum):
    """In which dtype an op computes, for a model run in float16 or bfloat16."""

    MODEL = "computed in the dtype of its operands"
    FLOAT32_INSIDE = "computed in float32, result cast back to the operand's dtype"
    FLOAT32_RESULT = "computed in float32, result stays float32"
    EXACT = "moves, selects or compares values; no arithmetic on them"


class Tokens(Enum):
    """Whether the result for a token depends on other tokens."""

    ALONE = "on that token alone"
    ALONG = "on that token alone, unless the axis is that of the tokens"
    MIXED = "on others too, or there are no tokens"


class Positive(Enum):
    """When a result is surely above 0."""

    ALWAYS = "for every operand"
    KEPT = "the first result, if the first operand is"
    OF_ALL = "if all operands are"
    BY_NUMBER = "if the operand and the attribute `value` are"


class State(Enum):
    """What an op hands to later calls or other graphs, or takes from them."""

    SLOT = "appends to a slot of the key/value cache"
    FIXED = "keeps a state whose size no token adds to"
    OWN_SLOT = "the same inside one operator, in the buffers that the caller gives it"
    WRITTEN = "writes keys and values for another graph"
    READ = "reads keys and values that another graph wrote: its results are inputs"


class Role(Enum):
    """What an op is in a model, as far as somebody asks. Several ops may have one role."""

    EMBEDDING = "rows of a table, by ids"
    LINEAR = "a product with a weight [out, in]"
    NORM = "a norm with a gain or a bias"
    BARE_NORM = "a norm without weights"
    PARAMETER = "a weight as it is"
    EXPERTS = "chosen experts"
    CHOICE = "chooses experts"
    ATTENTION = "queries see keys"
    MASK = "which keys a query sees, by `window` and `chunk`"
    RECURRENCE = "a state of matrices that tokens write to and read"
    ROTATION = "turns pairs by a table of angles; an author writes `rope`"
    ROPE_TABLE = "angles of positions"
    TEMPERATURE = "grows with the position"
    SPLIT = "cuts a dimension"
    BOUND = "keeps values within `low` and `high`"
    PLACEHOLDERS = "puts rows where ids stand for them"
    CHOSEN_ROWS = "picks rows of its first operand"
    PACKING = "real tokens first"


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


Real: TypeAlias = "NDArray[np.float64]"
Ints: TypeAlias = "NDArray[np.int64]"
Array: TypeAlias = "NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]"


@dataclass(frozen=True, slots=True)
class Operands:
    """What the numpy formula of an op is given for one application.

    ``sizes`` are the values of ``B``, ``S`` and ``P``. ``stored`` gives a parameter by its local
    name, in the dtype it is kept in. ``float32_angles`` rounds what a rotation is computed from.
    """

    tensors: Sequence[Array]
    attrs: Attrs
    sizes: Mapping[str, int]
    stored: Callable[[str], NDArray[np.generic]]
    float32_angles: bool = False
    single: bool = False
    """Computed in float32: where a mean over many tokens is wanted, soon."""
    states: Sequence[Array] = ()
    """What this call finds of what the op carries."""

    def real(self, i: int = 0) -> Real:
        array = self.tensors[i]
        assert array.dtype == (np.float32 if self.single else np.float64), array.dtype
        return cast("Real", array)

    def ints(self, i: int = 0) -> Ints:
        array = self.tensors[i]
        assert array.dtype == np.int64, array.dtype
        return array.astype(np.int64, copy=False)

    def weight(self, name: str) -> Real:
        return self.widened(self.stored(name)[...])

    def widened(self, stored: NDArray[np.generic]) -> Real:
        return cast("Real", np.asarray(stored, dtype=np.float32 if self.single else np.float64))

    def number(self, name: str) -> float:
        return a_float(self.attrs, name)

    def whole(self, name: str) -> int:
        return a_int(self.attrs, name)

    def text(self, name: str) -> str:
        return a_str(self.attrs, name)

    def number_or_none(self, name: str) -> float | None:
        return None if self.attrs[name] is None else a_float(self.attrs, name)


Types: TypeAlias = Sequence[TensorType]
ShapeRule: TypeAlias = Callable[[Types, Attrs], tuple[TensorType, ...]]
Cuts: TypeAlias = "Sequence[Cut | None]"
"""How operands or results are cut, in their order; none is whole."""
CutRule: TypeAlias = Callable[[Cuts, Types, Types, Attrs], Cuts]
ParameterRule: TypeAlias = Callable[[Attrs], tuple[Parameter, ...]]
StateRule: TypeAlias = "Callable[[Types, Attrs], tuple[Carried, ...]]"
FlopRule: TypeAlias = Callable[[Types, Types, Attrs], Dim]
Formula: TypeAlias = Callable[[Operands], "tuple[Array, ...]"]
TorchText: TypeAlias = "Callable[[TorchSite, Sequence[Code]], Code]"
Values: TypeAlias = "tuple[ir.Value, ...]"
Lowering: TypeAlias = "Callable[[Builder, Site, Values], Values]"


@dataclass(frozen=True, slots=True)
class Carried:
    """A state of an op: a call finds it as the call before left it, the first one as zeros."""

    name: str
    found: TensorType
    left: TensorType
    """At most: a bounded cache drops tokens."""


def no_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    """Ops without a matrix product count nothing, as torch.utils.flop_counter does."""
    return Dim.of(0)


def no_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    return ()


def no_states(operands: Types, attrs: Attrs) -> tuple[Carried, ...]:
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
    tokens: Tokens
    _: KW_ONLY
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
    fused: bool = False
    """Put in by the rules of a profile; no graph of a spec has it, so it has an ONNX lowering only."""
    control: bool = False
    """Runs other blocks: not an op, but a node of a graph may be one."""
    result_names: tuple[str, ...] = ()
    """Names of the results of a hoisted op in the prelude; the op's own name without."""
    cite: str = ""

    role: Role | None = None
    state: State | None = None
    carries: StateRule = no_states
    """Its states. Formula and lowering get what the call finds, and give what it leaves after the results."""
    elementwise: bool = False
    """Each value of the result is computed from the values at its place."""
    cut: CutRule | None = None
    """How the results are cut if the operands are, some of them at least; none needs them whole, unless each value
    comes from its place. Raises NeedsWhole or NeedsCut."""
    positive: Positive | None = None
    symbol: str = ""
    """How an author writes it: the operator between two operands, or an operand and the attribute ``value``, or
    before one."""

    numpy: Formula | None = None
    """From the formula of the row, in float64, independent of the backends; none for what the interpreter does."""
    torch: TorchText | None = None
    """The expression of a call in a forward."""
    torch_module: Callable[[ModuleSite], Call] | None = None
    """The expression that makes the module of a part."""
    torch_start: Callable[[ModuleSite], Call] | None = None
    """The call that gives a part its first values, where its module does not."""
    torch_prelude: Callable[[PreludeSite], Shared] | None = None
    """What is computed once a forward pass."""
    onnx: Lowering | None = None

    def cut_results(self, cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
        """How ``results`` are cut when ``operands`` are as ``cuts``. Raises NeedsWhole or NeedsCut."""
        rule = self.cut or (cut_elementwise if self.elementwise else None)
        if rule is not None:
            return rule(cuts, operands, results, attrs)
        if any(cut is not None for cut in cuts):
            raise NeedsWhole("needs whole values")
        return (None,) * len(results)

    def on_each_token(self, operands: Types, results: Types, attrs: Attrs) -> bool:
        """Whether the result for each new token needs no other token, so that some of them can be left out."""
        if not any(S in t.shape for t in operands):
            return all(S not in t.shape for t in results)
        match self.tokens:
            case Tokens.ALONE:
                return True
            case Tokens.ALONG:
                return all(t.shape[a_int(attrs, "axis")] != S for t in operands)
            case Tokens.MIXED:
                return False


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


def same_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    need_real(types[0], "the operand")
    return (types[0],)


def int_attr(name: str, doc: str) -> AttrSpec:
    """A whole number that must be given."""
    return AttrSpec(name, "int", doc, required=True)


def axis_attr() -> AttrSpec:
    return AttrSpec("axis", "int", "which dimension; negative counts from the end", default=-1)


def part_text(at: TorchSite, x: Sequence[Code]) -> Code:
    """The call of a part's module."""
    assert at.part is not None
    return call(f"self.{at.part}", *x)


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
        why = "shapes {} and {} do not fit together ({} and {})"
        if len(a.shape) != len(b.shape) and one in (*a.shape, *b.shape):
            why += (
                "; a sum, mean, max or min keeps its axis with size 1, and `reshape` takes it away"
            )
        need(fits, why, a, b, x, y)
        shape.append(y if x == one else x)
    return tuple(shape)


def cut_elementwise(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    """Along one axis of the result; what has one value there may be whole."""
    rank = len(results[0].shape)
    here = [(cut, cut.axis - len(t.shape)) for cut, t in zip(cuts, operands, strict=True) if cut]
    if not here:
        return (None,)
    axis = here[0][1]
    if any(other != axis for _, other in here):
        raise NeedsWhole("joins values that are cut along different axes")
    units = gcd(*(cut.units for cut, _ in here))
    for i, (cut, t) in enumerate(zip(cuts, operands, strict=True)):
        if cut is None and len(t.shape) >= -axis and t.shape[axis] != Dim.of(1):
            if units == 0:
                return (None,)
            raise NeedsCut(i, axis + len(t.shape))
    return (Cut(axis + rank, units),)


def cut_beside(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    """Along every axis of the operand but that of the op: the last, where it has no other."""
    (cut,) = cuts
    if cut is not None and cut.axis == a_int({"axis": -1, **attrs}, "axis") % len(
        operands[0].shape
    ):
        raise NeedsWhole("needs whole values")
    return (cut,) * len(results)


def elements(shape: Sequence[Dim]) -> Dim:
    total = Dim.of(1)
    for size in shape:
        total = total * size
    return total


def parse_dims(attrs: Attrs) -> tuple[Dim, ...]:
    """The ``shape`` of a reshape; it is kept as text such as ``B, S, 32, 128``."""
    text = attrs["shape"]
    assert isinstance(text, str)
    return tuple(Dim.of(int(d) if d.strip().isdigit() else d.strip()) for d in text.split(","))


def parameter(name: str, shape: tuple[int, ...], kind: InitKind) -> Parameter:
    need(all(size > 0 for size in shape), f"a parameter of shape {list(shape)} has a size below 1")
    return Parameter(name, shape, kind)
