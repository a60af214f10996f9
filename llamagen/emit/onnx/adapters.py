"""LoRA adapters beside a model: inputs of the graph, and the files that give them values at run time.

A projection of the weight W [out, in] becomes ``x W^T + (x A) B`` with the inputs ``NAME.lora_A`` [in, r] and
``NAME.lora_B`` [r, out]. They are initializers of rank 0 too, so that nothing is added where nobody gives them. One
file an adapter, in the format of ONNX Runtime (``.onnx_adapter``), has those that it changes; the factor of its
product is in B. Where a profile computes several projections as one, A has the columns of each side by side, and B the
rows of each in the columns of its results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.emit.onnx.builder import ELEMENTS, numpy_type
from llamagen.emit.onnx.initializers import Source
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.onnx.session import value_of
from llamagen.weights.adapter import LowRank
from llamagen.weights.tensors import whole
from llamagen.weights.values import read_part

if TYPE_CHECKING:
    from onnxruntime import OrtValue

_MOST = 2**31 - 2**20
"""Bytes of a file: its places are signed numbers of 32 bits (flatbuffers)."""
_VERSION = 1
"""Of the adapter and of the model, which the format asks for and nobody reads."""


def write_adapter(
    file: Path,
    adapted: Mapping[str, Sequence[Source]],
    dtype: OnnxDType,
    products: Mapping[str, LowRank],
) -> None:
    """What ``products``, by role path, give the inputs beside the weights ``adapted`` of a model in ``dtype``.

    Raises LG620 for NaN and infinity, LG621 for what the model's dtype cannot hold, LG622, LG657 beyond 2 GiB.
    """
    from onnxruntime import AdapterFormat

    values: dict[str, OrtValue] = {}
    total = 0
    for name, sources in adapted.items():
        own = [products[source.path] for source in sources if source.path in products]
        if not own:
            continue
        rank, width = sum(one.down.tensor.shape[0] for one in own), sources[0].shape[1]
        down = np.zeros((width, rank), np.float32)
        up = np.zeros((rank, sum(source.shape[0] for source in sources)), np.float32)
        row = column = 0
        for source in sources:
            if (one := products.get(source.path)) is not None:
                end = row + one.down.tensor.shape[0]
                down[:, row:end] = read_part(one.down, whole(one.down.tensor.shape)).T
                of_up = read_part(one.up, whole(one.up.tensor.shape)).T
                up[row:end, column : column + source.shape[0]] = of_up * np.float32(one.factor)
                row = end
            column += source.shape[0]
        for input, array in zip(inputs_of(name), (down, up), strict=True):
            with np.errstate(over="ignore"):
                stored = array.astype(numpy_type(ELEMENTS[dtype]))
            if not np.isfinite(stored.astype(np.float32)).all():
                message = f"{quoted(input)} has values that {dtype} cannot hold"
                raise LlamagenError.of("LG621", message, help="export with --dtype float32")
            total += stored.nbytes
            values[input] = value_of(np.ascontiguousarray(stored))
    if total > _MOST:
        message = (
            f"{quoted(file.stem)} takes {total:,} bytes, and a file of adapters holds {_MOST:,}"
        )
        raise LlamagenError.of("LG657", message, help="merge it: --adapter DIR")
    written = AdapterFormat()
    written.set_adapter_version(_VERSION)
    written.set_model_version(_VERSION)
    written.set_parameters(values)
    file.parent.mkdir(exist_ok=True)
    written.export_adapter(str(file))


def inputs_of(weight: str) -> tuple[str, str]:
    """The names of A and B beside a weight."""
    module = weight.removesuffix(".weight")
    return f"{module}.lora_A", f"{module}.lora_B"


def inputs_beside(weight: str, shape: tuple[int, ...], dtype: ir.DataType) -> tuple[ir.Value, ...]:
    """A and B of a weight [out, in], of rank 0 where nobody gives them."""
    # of its own: ONNX Runtime plans memory by names of dimensions
    rank = f"{weight.removesuffix('.weight').replace('+', '_')}.lora_rank"
    none = np.zeros((shape[1], 0)), np.zeros((0, shape[0]))
    dims: tuple[tuple[int | str, ...], ...] = ((shape[1], rank), (rank, shape[0]))
    return tuple(
        ir.Value(
            name=name,
            type=ir.TensorType(dtype),
            shape=ir.Shape(of),
            const_value=ir.Tensor(array.astype(numpy_type(dtype)), name=name),
        )
        for name, of, array in zip(inputs_of(weight), dims, none, strict=True)
    )
