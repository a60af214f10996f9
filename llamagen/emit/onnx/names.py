"""Names in a model: unique ones of values and nodes, and those of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from llamagen.ops.dims import Dim, kept_of

DIM_NAMES: Mapping[str, str] = {
    "B": "batch",
    "S": "sequence",
    "P": "past_sequence",
    "P + S": "total_sequence",
    "I": "images",
}


def onnx_shape(dims: Sequence[Dim]) -> ir.Shape:
    """Fixed sizes as ints, ``B``, ``S``, pasts and totals under their ONNX names, other sizes by their formula."""
    return ir.Shape([d.value if d.is_static else dim_name(d) for d in dims])


def dim_name(dim: Dim) -> str:
    """``P8191`` is ``past_sequence_8191``, ``P8191 + S`` is ``total_sequence_8191``, ``4100*I`` is ``4100*images``."""
    text = str(dim)
    keep = kept_of(text.removesuffix(" + S"))
    if keep is not None:
        return f"{DIM_NAMES['P + S' if text.endswith('+ S') else 'P']}_{keep}"
    if text in DIM_NAMES or len(dim.terms) > 1:
        return DIM_NAMES.get(text, text)
    (names, coefficient), *_ = dim.terms
    factors = [str(coefficient)] if coefficient != 1 else []
    return "*".join((*factors, *(DIM_NAMES.get(n, n) for n in names)))


class Names:
    """Makes names unique in the whole model, in the order they are asked for."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def unique(self, name: str) -> str:
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        return name if count == 0 else self.unique(f"{name}_{count}")
