"""One op as a model of its own: emitted, checked, run by ONNX Runtime, and compared with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from llamagen.emit.onnx.data import attach_arrays, serialize
from llamagen.emit.onnx.emit import OnnxModel, emit_onnx
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.options import ExportOptions
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Block, Graph, Node, OpPart, Value
from llamagen.ir.reference import evaluate
from llamagen.ops.dims import Dim
from llamagen.ops.op import AttrValue, DType, TensorType
from llamagen.ops.table import OPS

Array = npt.NDArray[Any]

SIZES = {"B": 2, "S": 3, "P": 4}


def model(*shape: int | str) -> TensorType:
    return TensorType(DType.MODEL, tuple(map(Dim.of, shape)))


def float32(*shape: int | str) -> TensorType:
    return TensorType(DType.FLOAT32, tuple(map(Dim.of, shape)))


def int64(*shape: int | str) -> TensorType:
    return TensorType(DType.INT64, tuple(map(Dim.of, shape)))


def boolean(*shape: int | str) -> TensorType:
    return TensorType(DType.BOOL, tuple(map(Dim.of, shape)))


def one_op(op: str, operands: Sequence[TensorType], attrs: Mapping[str, AttrValue]) -> Graph:
    """A graph whose root block applies ``op`` once; inputs ``x0``, ``x1``, ..., outputs ``y0``, ..."""
    row = OPS[op]
    full = {a.name: a.default for a in row.attrs} | dict(attrs)
    inputs = tuple(Value(f"x{i}", t) for i, t in enumerate(operands))
    results = tuple(Value(f"r{i}", t) for i, t in enumerate(row.shape(operands, full)))
    part = OpPart("part", op, full, row.parameters(full)) if row.is_part else None
    node = Node(
        op,
        tuple(v.id for v in inputs),
        tuple(v.id for v in results),
        full,
        part.name if part else None,
    )
    block = Block(
        name="Root",
        definition="Root",
        options={},
        inputs=inputs,
        parts={part.name: part} if part else {},
        values={v.id: v for v in (*inputs, *results)},
        nodes=(node,),
        outputs=tuple(v.id for v in results),
        context=(),
    )
    names = tuple(f"y{i}" for i in range(len(results)))
    return Graph("test/one_op", "0" * 16, inputs, (), {}, {"Root": block}, "Root", names)


def session(emitted: OnnxModel) -> ort.InferenceSession:
    """The model on the CPU, after the full check and strict shape inference."""
    data = serialize(emitted)
    proto = onnx.load_model_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def feed(inputs: Sequence[Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """``arrays`` in the types that the session asks for."""
    types = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int64)": np.int64,
        "tensor(bool)": np.bool_,
    }
    return {i.name: np.ascontiguousarray(arrays[i.name].astype(types[i.type])) for i in inputs}


@dataclass(frozen=True)
class Compared:
    """Results of ONNX Runtime and of the reference, one array an output."""

    onnx: tuple[Array, ...]
    reference: tuple[Array, ...]

    def errors(self) -> tuple[float, float]:
        """Largest and root-mean-square difference over the standard deviation, worst output first."""
        worst = (0.0, 0.0)
        for got, want in zip(self.onnx, self.reference, strict=True):
            assert got.shape == want.shape
            if want.dtype != np.float64:
                assert np.array_equal(got, want)
                continue
            infinite = np.isinf(want)
            assert np.array_equal(got[infinite], want[infinite])
            got, want = got[~infinite], want[~infinite]
            assert np.isfinite(got).all()
            difference = np.abs(got.astype(np.float64) - want)
            scale = want.std() if want.std() > 0 else 1.0
            rms = float(np.sqrt((difference**2).mean()) / scale)
            worst = max(worst, (float(difference.max() / scale), rms))
        return worst


def compare(
    op: str,
    operands: Sequence[TensorType],
    arrays: Sequence[Array],
    dtype: OnnxDType = "float32",
    weights: Mapping[str, Array] | None = None,
    **attrs: Any,
) -> Compared:
    """Run ``op`` on ``arrays`` both ways. Operands and weights are first rounded to what the dtype can hold."""
    graph = one_op(op, operands, attrs)
    emitted = emit_onnx(graph, ExportOptions(dtype=dtype))
    given = dict(weights or random_weights(graph))
    stored = {name: rounded(a, dtype) for name, a in given.items()}
    attach_arrays(emitted, stored.__getitem__)
    inputs = {
        f"x{i}": rounded(a, dtype) if t.dtype is DType.MODEL else a
        for i, (a, t) in enumerate(zip(arrays, operands, strict=True))
    }
    flat = flatten(graph)
    rng = np.random.default_rng(3)
    past = [rounded(rng.standard_normal(concrete(s.found)), dtype) for s in flat.slots]
    states = dict(zip((s.past for s in flat.slots), past, strict=True))
    running = session(emitted)
    found = running.run(None, feed(running.get_inputs(), inputs | states))
    ids = np.zeros((SIZES["B"], SIZES["S"]), np.int64)
    every = np.ones((SIZES["B"], SIZES["P"] + SIZES["S"]), np.int64)
    reference = evaluate(flat, stored, ids, every, past=past or None, inputs=inputs)
    return Compared(tuple(found), (*reference.outputs, *reference.present))


def rounded(array: Array, dtype: OnnxDType) -> Array:
    """``array`` with values that ``dtype`` can hold, in a type that numpy computes with."""
    import ml_dtypes

    if array.dtype.kind != "f":
        return array
    kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    return array.astype(kinds[dtype]).astype(np.float64)


def random_weights(graph: Graph, seed: int = 7) -> dict[str, Array]:
    """Unit-scale weights: matrices keep the variance of what they multiply, norms are near one, biases live."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for name, p in graph.parameters.items():
        values = rng.standard_normal(p.shape)
        match p.kind:
            case "matrix":
                values = values / np.sqrt(p.shape[-1])
            case "norm":
                values = 1 + 0.3 * values
            case "embedding" | "bias" | "gate":
                pass
        found[name] = values.astype(np.float32)
    return found


def concrete(t: TensorType) -> tuple[int, ...]:
    return tuple(d.evaluate(SIZES) for d in t.shape)


def normal(t: TensorType, seed: int = 3, scale: float = 1.0) -> Array:
    values: Array = np.random.default_rng(seed).standard_normal(concrete(t)) * scale
    return values.astype(np.float32).astype(np.float64)
