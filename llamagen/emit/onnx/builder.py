"""Builds an ONNX graph node by node: unique names, known dtypes, shared constants and casts.

One builder per (sub)graph; a subgraph's builder shares names, constants and shape vectors with the root's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llamagen.emit.onnx.initializers import Encoding, StorageDType
from llamagen.emit.onnx.profile import (
    CONTRIB,
    CONTRIB_DOMAIN,
    MOVES,
    OnnxDType,
    Profile,
    has_input,
)
from llamagen.ops.dims import Dim, P, kept_of
from llamagen.ops.op import Attrs, DType, TensorType

Attribute: TypeAlias = "int | float | str | Sequence[int] | ir.TensorProtocol | ir.Graph | None"
"""None leaves the attribute out."""

ELEMENTS: Mapping[StorageDType, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
}

NUMPY_TYPES: Mapping[ir.DataType, npt.DTypeLike] = {
    ir.DataType.DOUBLE: np.float64,
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.UINT8: np.uint8,
    ir.DataType.INT8: np.int8,
}


def numpy_type(dtype: ir.DataType) -> npt.DTypeLike:
    """The numpy type of a model's element type."""
    return NUMPY_TYPES[dtype]


# those of optimum and of onnxruntime-genai's builder; transformers.js gives `batch_size` its value, and 0 to the others
DIM_NAMES: Mapping[str, str] = {
    "B": "batch_size",
    "S": "sequence_length",
    "P": "past_sequence_length",
    "P + S": "total_sequence_length",
    "I": "images",
}


def onnx_shape(dims: Sequence[Dim]) -> ir.Shape:
    """Fixed sizes as ints, ``B``, ``S``, pasts and totals under their ONNX names, other sizes by their formula."""
    return ir.Shape([d.value if d.is_static else dim_name(d) for d in dims])


def dim_name(dim: Dim) -> str:
    """``P8191`` is ``past_sequence_length_8191``, ``4100*I`` is ``4100*images``."""
    text = str(dim)
    keep = kept_of(text.removesuffix(" + S"))
    if keep is not None:
        return f"{DIM_NAMES['P + S' if text.endswith('+ S') else 'P']}_{keep}"
    if text in DIM_NAMES or len(dim.terms) > 1:
        return DIM_NAMES.get(text, text)
    (names, coefficient), *_ = dim.terms
    factors = [str(coefficient)] if coefficient != 1 else []
    return "*".join((*factors, *(DIM_NAMES.get(n, n) for n in names)))


@dataclass(frozen=True, slots=True)
class Site:
    """Where a lowering happens: one op application; the operands come beside it.

    ``parameters`` maps the local name (``weight``) to its initializer.

    ``operands`` are the types of the operands that are there; ``given`` has None for an absent one between others.
    ``states`` are what the call finds of what the op carries, in the dtype outside.
    """

    attrs: Attrs
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    parameters: Mapping[str, ir.Value]
    given: tuple[ir.Value | None, ...]
    states: tuple[ir.Value, ...] = ()

    def dims(self, operand: int = 0) -> tuple[Dim, ...]:
        return self.operands[operand].shape

    def axis(self) -> int:
        """The attribute ``axis``, counted from the front."""
        axis = self.attrs["axis"]
        assert isinstance(axis, int)
        return axis % len(self.operands[0].shape)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised weight, [N, K] or a stack of experts, in parts; operators of ONNX Runtime compute with the codes."""

    encoding: Encoding
    shape: tuple[int, ...]
    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    lows: ir.Value | None = None
    """[blocks, N], added to every weight of a block."""
    more: Quantized | None = None
    """Added to this one: the low halves of codes, where these are the high ones."""

    def product(self, b: Builder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """``x`` [..., K] times the weight, [..., N], in the model's dtype."""
        rows, columns = self.shape
        how = self.encoding
        if how.kind == "channels":
            # The operator takes float32 and has one scale for all tokens: each is divided by its largest input, so
            # that one with large inputs (the first of a text) does not leave a few steps to the others.
            x = b.to(x, b.FLOAT)
            key = f"shares of {x.name}"
            if key not in b.shared:
                with b.within(str(x.name).removesuffix(":0")):
                    largest = b.op("ReduceMax", b.op("Abs", x), b.ints([-1]), keepdims=1)
                    largest = b.op("Max", largest, b.number(2.0**-100, b.FLOAT))
                    b.shared[key], b.shared[f"largest of {key}"] = b.op("Div", x, largest), largest
            product = b.op("DynamicQuantizeMatMul", b.shared[key], self.codes, self.scales)
            product = b.op("Mul", product, b.shared[f"largest of {key}"])
            if bias is not None:
                product = b.op("Add", product, b.to(bias, b.FLOAT))
            return b.to(product, b.model)
        assert x.shape is not None
        rank, x = len(x.shape), b.to(x, b.model)
        product = b.op(
            "MatMulNBits",
            *(x, self.codes, self.scales),
            *(None if how.symmetric else self.zero_points, None, bias),
            K=columns,
            N=rows,
            bits=how.bits,
            block_size=how.block,
            accuracy_level=how.accuracy_level,
        )
        if self.more is not None:
            return b.op("Add", product, self.more.product(b, x, None))
        if self.lows is None:
            return product
        # a low is multiplied with every input of its block: with their sum
        key = f"sums of {how.block} of {x.name}"
        if key not in b.shared:
            sizes = [*[0] * (rank - 1), columns // how.block, how.block]
            b.shared[key] = b.op(
                "ReduceSum", b.op("Reshape", x, b.ints(sizes)), b.ints([-1]), keepdims=0
            )
        return b.op("Add", product, b.op("MatMul", b.shared[key], self.lows))

    def gather(self, b: Builder, ids: ir.Value, dims: Sequence[Dim]) -> ir.Value:
        """Rows [``dims``, K] of a table, dequantised, in the model's dtype.

        By operators of ONNX: ONNX Runtime's WebAssembly build has no GatherBlockQuantized.
        """
        how, columns = self.encoding, self.shape[1]
        size, blocks = Dim.of(how.block), Dim.of(columns // how.block)

        def rows(part: ir.Value) -> ir.Value:
            return b.op("Gather", part, ids, axis=0)

        def of_codes(part: ir.Value, want: Sequence[Dim]) -> ir.Value:
            """Codes as numbers; two of four bits share a byte, the first in the low half."""
            codes = rows(part)
            if how.bits == 8:
                return b.to(codes, b.model)
            halves = (np.arange(256)[:, None] >> np.array([0, 4])) & 15
            name = f"/constants/{b.model.name.lower()}_halves"
            table = b.constant(name, halves.astype(numpy_type(b.model)))
            both = b.op("Gather", table, b.to(codes, b.INT32), axis=0)
            return b.reshape(both, dims, want)

        def beside(of_blocks: ir.Value) -> ir.Value:
            """[..., blocks] as what each weight of a block meets."""
            return b.op("Unsqueeze", of_blocks, b.ints([-1]))

        middle = b.number(2.0 ** (how.bits - 1), b.model)
        if self.zero_points is not None:
            even = Dim.of(-(-blocks.value * how.bits // 8) * 8 // how.bits)
            points = of_codes(self.zero_points, (*dims, even))
            if even != blocks:
                points = b.op("Slice", points, *map(b.ints, ([0], [blocks.value], [-1])))
            middle = beside(points)
        numbers = of_codes(self.codes, (*dims, blocks, size))
        weights = b.op("Sub", numbers, middle)
        weights = b.op("Mul", weights, beside(rows(self.scales)))
        if self.lows is not None:
            lows = b.op("Transpose", self.lows, perm=[1, 0])
            weights = b.op("Add", weights, beside(rows(lows)))
        weights = b.reshape(weights, (*dims, blocks, size), (*dims, Dim.of(columns)))
        return (
            weights if self.more is None else b.op("Add", weights, self.more.gather(b, ids, dims))
        )


class Builder:
    """The nodes of one graph. ``scope`` is the path that prefixes the names of what is added."""

    FLOAT, INT64, INT32, BOOL = (
        ir.DataType.FLOAT,
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.BOOL,
    )

    def __init__(
        self,
        profile: Profile,
        dtype: OnnxDType,
        parent: Builder | None = None,
        max_context: int = 0,
        runtime: str = "",
    ) -> None:
        self.profile = profile
        self.dtype: OnnxDType = dtype
        self.max_context: int = parent.max_context if parent else max_context
        """Tokens that tables of positions must cover; a profile without such tables has no use for it."""
        self.runtime: str = parent.runtime if parent else runtime
        """Version of ONNX Runtime whose operators may be used."""
        self.scope: str = parent.scope if parent else ""
        self.nodes: list[ir.Node] = []
        self._parent = parent
        self._root: Builder = parent._root if parent else self
        self.shared: dict[str, ir.Value] = {}
        """Values that several lowerings make alike, by a key of theirs."""
        self.cache_scales: dict[str | None, ir.Value] = {}
        """By the name of a past that is in codes, float32[1, K, 1, H]."""
        self._used: dict[str, int] = parent._used if parent else {}
        self._constants: dict[tuple[str, bytes], ir.Value] = {}
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}
        self._stored: dict[int, ir.Value] = {}
        self._quantized: dict[int, Quantized] = {}
        self._flat: dict[int, ir.Value] = {}
        self._sizes: dict[str, ir.Value] = {}
        self._shapes: dict[tuple[Dim, ...], ir.Value] = {}
        self._widened = ELEMENTS[dtype] if dtype in profile.widened else None

    def has_input(self, operator: str, name: str) -> bool:
        """Whether the operators of ``runtime`` have this input."""
        return has_input(self.runtime, self.profile.provider, operator, name)

    @property
    def constants(self) -> tuple[ir.Value, ...]:
        """Initializers made here (shapes, scalars, frequencies), with their small data."""
        return tuple(self._root._constants.values())

    @property
    def model(self) -> ir.DataType:
        """Element type of the model's dtype."""
        return ELEMENTS[self.dtype]

    @property
    def io(self) -> ir.DataType:
        """Element type of logits and caches outside the graph."""
        return ELEMENTS[self.profile.io_dtypes[self.dtype]]

    def element(self, dtype: DType) -> ir.DataType:
        match dtype:
            case DType.MODEL:
                return self.model
            case DType.FLOAT32:
                return ir.DataType.FLOAT
            case DType.INT64:
                return ir.DataType.INT64
            case DType.BOOL:
                return ir.DataType.BOOL

    def name(self, wanted: str) -> str:
        """``wanted``, or with the first number that makes it unique in the whole model."""
        count = self._used.get(wanted, 0)
        self._used[wanted] = count + 1
        return wanted if count == 0 else self.name(f"{wanted}_{count}")

    def child(self) -> Builder:
        """A builder for a subgraph; it may read every value made so far."""
        return Builder(self.profile, self.dtype, self)

    def value(self, name: str, dtype: ir.DataType, shape: ir.Shape | None = None) -> ir.Value:
        """A value without a producer: a graph input or a parameter."""
        return ir.Value(name=self.name(name), type=ir.TensorType(dtype), shape=shape)

    @contextmanager
    def within(self, scope: str) -> Iterator[None]:
        """Names of what is added inside begin with ``scope``: for what the whole model shares."""
        before, self.scope = self.scope, scope
        yield
        self.scope = before

    # nodes

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """One node with one result, of ``dtype`` or else of the first input's."""
        return self._apply(kind, inputs, [dtype or _element(inputs[0])], attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        dtypes: Sequence[ir.DataType | None],
        **attributes: Attribute,
    ) -> tuple[ir.Value, ...]:
        """One node with a result of each of ``dtypes``; None leaves that result out."""
        return self._apply(kind, inputs, dtypes, attributes)

    def _apply(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        dtypes: Sequence[ir.DataType | None],
        attributes: Mapping[str, Attribute],
    ) -> tuple[ir.Value, ...]:
        narrow = self._narrow(kind)
        if narrow is None:
            return self._node(kind, inputs, dtypes, attributes)
        wide = [
            self.to(x, ir.DataType.FLOAT) if x is not None and _element(x) is narrow else x
            for x in inputs
        ]
        wider = [ir.DataType.FLOAT if d is narrow else d for d in dtypes]
        results = self._node(kind, wide, wider, attributes)
        wanted = (d for d in dtypes if d is not None)
        return tuple(self.to(r, d) for r, d in zip(results, wanted, strict=True))

    def to(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``x`` cast to ``dtype``; made once a value, and nothing at all when it has that dtype."""
        if _element(x) is dtype:
            return x
        key = (id(x), dtype)
        here: Builder | None = self
        while here is not None:
            if key in here._casts:
                return here._casts[key]
            here = here._parent
        # Named for the value, not for its first user: layers share the casts of tables and masks.
        with self.within(str(x.name).removesuffix(":0")):
            self._casts[key] = self._node("Cast", [x], [dtype], {"to": int(dtype)})[0]
        return self._casts[key]

    def loaded(self, stored: ir.Value) -> ir.Value:
        """A weight in the model's dtype; a cast, if it is stored in another one, that a runtime folds at load."""
        value = self.to(stored, self.model)
        self._root._stored[id(value)] = stored
        return value

    @property
    def scale_dtype(self) -> OnnxDType:
        """Of the scales of quantised experts: that of the operators that read them."""
        return "float32" if self._widened is not None else self.dtype

    def quantized(self, name: str, parts: Quantized) -> ir.Value:
        """Stands for a weight that is there in parts only; no node may read it."""
        value = self.value(name, self.model, ir.Shape(parts.shape))
        self._root._quantized[id(value)] = parts
        return value

    def parts(self, weight: ir.Value) -> Quantized | None:
        """The parts of a weight that is quantised."""
        return self._root._quantized.get(id(weight))

    def stored(self, weight: ir.Value) -> ir.Value:
        """The initializer behind ``loaded``, in its own dtype: for operators that read few of its rows."""
        return self._root._stored.get(id(weight), weight)

    def inside(self, x: ir.Value, dtype: DType) -> ir.Value:
        """``x``, a value in its dtype outside the graph, in the dtype that it has in the IR.

        A bfloat16 value is float32 outside with the same values, so that no operator needs the cast back.
        """
        cast = self.to(x, self.element(dtype))
        if cast is not x:
            self._casts[(id(cast), _element(x))] = x
        return cast

    def _narrow(self, kind: str) -> ir.DataType | None:
        """The element type that an operator cannot compute in: float32 takes its place."""
        if kind in self.profile.without_bfloat16:
            return ir.DataType.BFLOAT16
        return None if kind in MOVES else self._widened

    def _node(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        dtypes: Sequence[ir.DataType | None],
        attributes: Mapping[str, Attribute],
    ) -> tuple[ir.Value, ...]:
        name = self.name(f"{self.scope}/{kind}")
        outputs = [
            ir.Value(name="")
            if dtype is None
            else ir.Value(name=f"{name}:{i}", type=ir.TensorType(dtype))
            for i, dtype in enumerate(dtypes)
        ]
        while inputs and inputs[-1] is None:  # absent inputs at the end
            inputs = inputs[:-1]
        stated = {k: v for k, v in attributes.items() if v is not None}
        domain = CONTRIB_DOMAIN if kind in CONTRIB else ""
        node = ir.node(kind, inputs, stated, domain=domain, outputs=outputs, name=name)
        self.nodes.append(node)
        return tuple(v for v in outputs if v.name)

    def with_number(self, kind: str, x: ir.Value, number: float) -> ir.Value:
        """``x`` op ``number`` in the dtype of ``x``; in float32 when that dtype cannot hold the number."""
        dtype = _element(x)
        if dtype is not self.FLOAT and float(np.array(number, dtype.numpy())) != number:
            wide = self.op(kind, self.to(x, self.FLOAT), self.number(number, self.FLOAT))
            return self.to(wide, dtype)
        return self.op(kind, x, self.number(number, dtype))

    # constants

    def ints(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector."""
        text = ",".join(map(str, values))
        return self.constant(f"/constants/int64[{text}]", np.array(values, dtype=np.int64))

    def whole(self, value: int) -> ir.Value:
        """An int64 scalar."""
        return self.constant(f"/constants/int64({value})", np.array(value, dtype=np.int64))

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """A floating-point scalar, rounded to ``dtype``."""
        name = f"/constants/{dtype.name.lower()}({value!r})"
        return self.constant(name, np.array(value, dtype=numpy_type(dtype)))

    def ones(self, size: int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        name = f"/constants/{dtype.name.lower()}_ones[{size}]"
        return self.constant(name, np.ones(size, dtype=numpy_type(dtype)))

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A small initializer with its data in the model file; equal ones of a name are one."""
        key = (name, array.tobytes())
        constants = self._root._constants
        if key not in constants:
            unique = self.name(name)
            tensor = ir.Tensor(array, name=unique)
            constants[key] = ir.Value(
                name=unique,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(array.shape),
                const_value=tensor,
            )
        return constants[key]

    # shapes

    def give_sizes(self, sizes: Mapping[str, ir.Value]) -> None:
        """Set the int64[1] values of ``B``, ``S`` and ``P + S``, for shapes that are known at run time only."""
        self._root._sizes.update(sizes)

    def size(self, dim: Dim) -> ir.Value:
        """``dim`` as an int64[1] value."""
        if dim.is_static:
            return self.ints([dim.value])
        known = self._root._sizes
        text = str(dim)
        if text not in known:
            keep = kept_of(text)
            if text == "P":
                known[text] = self._root.op("Sub", known["P + S"], known["S"])
            elif keep is not None:
                known[text] = self._root.op("Min", self.size(P), self.ints([keep]))
            else:
                known[text] = self._root._polynomial(dim)
        return known[text]

    def _polynomial(self, dim: Dim) -> ir.Value:
        total: ir.Value | None = None
        for names, coefficient in dim.terms:
            term: ir.Value | None = (
                self.ints([coefficient]) if coefficient != 1 or not names else None
            )
            for name in names:
                factor = self.size(Dim.of(name))
                term = factor if term is None else self.op("Mul", term, factor)
            assert term is not None
            total = term if total is None else self.op("Add", total, term)
        assert total is not None
        return total

    def shape(self, dims: Sequence[Dim]) -> ir.Value:
        """``dims`` as an int64 vector; one node a distinct shape, none when all sizes are fixed."""
        key = tuple(dims)
        if all(d.is_static for d in key):
            return self.ints([d.value for d in key])
        root = self._root
        if key not in root._shapes:
            with root.within("/shapes"):
                parts = [self.size(d) for d in key]
                one = len(parts) == 1
                root._shapes[key] = parts[0] if one else root.op("Concat", *parts, axis=0)
        return root._shapes[key]

    def reshape(self, x: ir.Value, have: Sequence[Dim], want: Sequence[Dim]) -> ir.Value:
        """Row-major reshape. Sizes are constant where possible: 0 copies the operand's size, -1 is what remains."""
        if tuple(have) == tuple(want):
            return x
        sizes: list[int] = []
        open_sizes = 0
        for i, dim in enumerate(want):
            if dim.is_static:
                sizes.append(dim.value)
            elif i < len(have) and have[i] == dim:
                sizes.append(0)
            else:
                open_sizes += 1
                sizes.append(-1)
        return self.op("Reshape", x, self.ints(sizes) if open_sizes <= 1 else self.shape(want))

    def flat(self, x: ir.Value, dims: Sequence[Dim]) -> ir.Value:
        """``[..., D]`` as ``[n, D]``; made once a value."""
        if len(dims) == 2:
            return x
        if id(x) not in self._flat:
            self._flat[id(x)] = self.op("Reshape", x, self.ints([-1, dims[-1].value]))
        return self._flat[id(x)]


def _element(x: ir.Value | None) -> ir.DataType:
    assert x is not None and x.dtype is not None, x
    return x.dtype
