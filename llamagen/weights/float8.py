"""Float8 checkpoints: which stored tensors are the scales of others.

Meta's FP8 releases (fbgemm: Llama-3.1-405B-Instruct-FP8) and transformers' `fbgemm_fp8` store a float8 tensor X beside
X_scale, the number that its values are multiplied with: [out, 1] for X [out, in]; for stacked experts [E, in, out] a
scale [E, 1, out], or [E, out, 1] for `down_proj`. Llama-4-Maverick-17B-128E-Instruct-FP8 (compressed-tensors) has every
expert by itself, [out, in] beside [out, 1]; spec/dialects/hub-llama4-experts.yaml stacks them. `input_scale_ub` bounds
activations of their kernels; it is no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from llamagen.diagnostics import Diagnostic
from llamagen.weights.problems import quoted, shape_text

if TYPE_CHECKING:
    from llamagen.weights.stored_tensor import StoredTensor

FLOAT8 = "F8_E4M3"
SCALE_SUFFIX = "_scale"
SCALE_DTYPES = ("F32", "BF16", "F16")
_NO_WEIGHT = ("input_scale_ub", "input_scale")
_HELP = "use the checkpoint before quantisation, in bfloat16, float16 or float32"


def paired(
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], list[Diagnostic]]:
    """The tensors with scales beside what they scale, in place of tensors of their own, and what does not fit (LG609).

    A checkpoint without float8 tensors is given back as it is.
    """
    scaled = [t for t in tensors.values() if t.dtype == FLOAT8]
    if not scaled:
        return dict(tensors), []
    found = dict(tensors)
    problems: list[Diagnostic] = []
    for tensor in scaled:
        scale = tensors.get(tensor.name + SCALE_SUFFIX)
        fits = None if scale is None else _swapped(tensor.shape, scale.shape)
        if scale is None or fits is None or scale.dtype not in SCALE_DTYPES:
            problems.append(_misfit(tensor, scale))
            continue
        found[tensor.name] = replace(tensor, scale=scale.pieces[0], swapped_scale=fits)
        del found[scale.name]
    names = [name for name in found if name.rsplit(".", 1)[-1] in _NO_WEIGHT]
    for name in names:
        del found[name]
    return found, problems


def _swapped(shape: tuple[int, ...], scale: tuple[int, ...]) -> bool | None:
    """Whether the last two dimensions of ``scale`` have to be exchanged; None if it does not fit."""
    match shape, scale:
        case (out, _), (rows, 1):
            return False if rows == out else None
        case (experts, _, out), (count, 1, columns):
            return False if (count, columns) == (experts, out) else None
        case (experts, _, out), (count, columns, 1):
            return True if (count, columns) == (experts, out) else None
        case _:
            return None


def _misfit(tensor: StoredTensor, scale: StoredTensor | None) -> Diagnostic:
    what = f"{quoted(tensor.name)} is {FLOAT8} {shape_text(tensor.shape)}"
    wanted = quoted(tensor.name + SCALE_SUFFIX)
    but = (
        f"there is no {wanted}"
        if scale is None
        else f"{wanted} is {scale.dtype} {shape_text(scale.shape)}, which is no scale for each of its outputs"
    )
    return Diagnostic("LG609", "error", f"{what}, but {but}", help=_HELP)
