"""Matrices packed by AWQ, GPTQ and compressed-tensors, decoded: (code - zero point) * scale, in float32.

Where groups are whole blocks of 32 inputs, the same numbers stay packed, in the blocks of GGUF or with zero points.

Sources: AutoGPTQ nn_modules/qlinear/qlinear_cuda_old.py (`pack`, `forward`), GPTQModel for the second format, whose
zero points are stored as they are; AutoAWQ modules/linear/gemm.py (`WQLinear_GEMM.from_linear`); compressed-tensors
compressors/pack_quantized (dense int32 words along the inputs, codes plus 2^(bits - 1)) and naive_quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

from llamagen.diagnostics import Diagnostic, LlamagenError, quoted
from llamagen.weights.safetensors import TensorEntry, shape_text
from llamagen.weights.tensors import WITH_POINTS, Region, Shape, Tensor, stored, whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llamagen.weights.tensors import Bits

Kind = Literal["gptq", "gptq_v2", "awq", "words", "bytes"]
"""``words`` are compressed-tensors' int32, ``bytes`` its int8; its float8 is as everywhere."""

_FLOATS = ("F32", "F16", "BF16")
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: the output that each nibble of a word is of, the lowest first."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [outputs, inputs] and the stored tensors that it is made of."""

    kind: Kind
    bits: int
    shape: Shape
    codes: TensorEntry
    scales: TensorEntry
    zeros: TensorEntry | None
    groups: TensorEntry | None
    """The group of each input; without it groups are runs of equal length."""

    @property
    def signed(self) -> bool:
        """Whether codes and zero points are read as numbers around 0."""
        return self.kind in ("words", "bytes")

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        parts = (self.codes, self.scales, self.zeros, self.groups)
        return tuple(part for part in parts if part is not None)


def packed_by(config: Mapping[str, object], name: str) -> tuple[Kind | None, int]:
    """The format that a `quantization_config` says, and bits. Raises LG627 for one that is not read.

    None for one whose tensors say themselves what they are.
    """
    method = config.get("quant_method", "compressed-tensors" if "config_groups" in config else None)
    bits = config.get("bits", 4)
    match method:
        case "gptq" if bits in (2, 4, 8):
            version = config.get("checkpoint_format", "gptq")
            if version in ("gptq", "gptq_v2"):
                return ("gptq_v2" if version == "gptq_v2" else "gptq"), int(str(bits))
            method = f"gptq in the format {version}"
        case "awq" if bits == 4:
            if str(config.get("version", "gemm")).lower() == "gemm":
                return "awq", 4
            method = f"awq in the version {config.get('version')}"
        case "gptq" | "awq":
            method = f"{method} with {bits} bits"
        case "compressed-tensors":
            groups = config.get("config_groups")
            weights = [
                of.get("weights") for of in (groups.values() if isinstance(groups, dict) else ())
                if isinstance(of, dict)
            ]  # fmt: skip
            stated = [w.get("num_bits") for w in weights if isinstance(w, dict)]
            widths = {bits for bits in stated if isinstance(bits, int)}
            form = str(config.get("format"))
            if form == "pack-quantized" and len(widths) == 1 and widths <= {2, 4, 8}:
                return "words", next(iter(widths))
            if form in (
                "int-quantized",
                "float-quantized",
                "naive-quantized",
                "dense",
            ) and widths <= {8}:
                return "bytes", 8
            method = f"compressed-tensors in the format {form} with {sorted(map(str, widths))} bits"
        case "fbgemm_fp8":
            return None, 8
        case _:
            method = str(method)
    help = "take the checkpoint before quantisation, or a GGUF of the model"
    message = f"the weights of {quoted(name)} are packed by {str(method)[:80]}, which is not read"
    raise LlamagenError.of("LG627", message, help=help)


_SUFFIXES: Mapping[Kind, tuple[str, str, str, str]] = {
    "gptq": ("qweight", "scales", "qzeros", "g_idx"),
    "gptq_v2": ("qweight", "scales", "qzeros", "g_idx"),
    "awq": ("qweight", "scales", "qzeros", "g_idx"),
    "words": ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx"),
    "bytes": ("weight", "weight_scale", "weight_zero_point", "weight_g_idx"),
}
_BESIDE = ("weight_shape", "input_scale", "input_zero_point")
"""Of compressed-tensors, beside a packed matrix: its shape, and how its kernels round activations."""


def find_packed(
    entries: Mapping[str, TensorEntry], kind: Kind, bits: int
) -> tuple[dict[str, Packed], set[str], list[Diagnostic]]:
    """Packed matrices by the names of their weights, the stored names that they take, and LG627 for what is none."""
    codes, scales, zeros, groups = _SUFFIXES[kind]
    found: dict[str, Packed] = {}
    taken: set[str] = set()
    findings: list[Diagnostic] = []
    for name, entry in entries.items():
        module, dot, last = name.rpartition(".")
        if last != codes or (kind == "bytes" and entry.dtype != "I8"):
            continue
        beside = {s: entries.get(f"{module}{dot}{s}") for s in (scales, zeros, groups, *_BESIDE)}
        packed = Packed(
            kind, bits, (), entry, beside[scales] or entry, beside[zeros], beside[groups]
        )
        shape = None if beside[scales] is None else _shape_of(packed)
        if shape is None:
            stored_as = f"{entry.dtype} {shape_text(entry.shape)}"
            message = f"{quoted(name)} ({stored_as}) and what lies beside it make no packed matrix"
            help = f"{kind} has {', '.join((codes, scales, zeros))} of shapes that fit each other"
            findings.append(Diagnostic("LG627", "error", message, help=help))
            continue
        found[f"{module}{dot}weight"] = replace(packed, shape=shape)
        taken |= {name, *(f"{module}{dot}{s}" for s, one in beside.items() if one is not None)}
    return found, taken, findings


def _shape_of(packed: Packed) -> Shape | None:
    """[outputs, inputs], if the tensors fit each other."""
    codes, scales, zeros, groups = packed.codes, packed.scales, packed.zeros, packed.groups
    per_word = 32 // packed.bits
    word = "I32"
    if len(codes.shape) != 2 or scales.dtype not in _FLOATS or 0 in codes.shape:
        return None
    rows, columns = codes.shape
    shape: Shape
    of_zeros: Shape
    match packed.kind:
        case "gptq" | "gptq_v2":
            shape, of_zeros = (columns, rows * per_word), (scales.shape[0], columns // per_word)
        case "awq":
            shape, of_zeros = (columns * per_word, rows), (scales.shape[0], columns)
        case "words":
            shape, of_zeros = (rows, columns * per_word), (-(-rows // per_word), scales.shape[-1])
        case "bytes":
            shape, of_zeros, word = (rows, columns), scales.shape, codes.dtype
    outputs, inputs = shape
    if packed.kind in ("words", "bytes"):
        flat = scales.shape in ((), (1,), (1, 1)) and packed.kind == "bytes"
        count = 1 if flat else scales.shape[-1]
        fits = flat or (len(scales.shape) == 2 and scales.shape[0] == outputs)
    else:
        count, fits = scales.shape[0], scales.shape == (scales.shape[0], outputs)
        fits = fits and zeros is not None
    if not fits or not count or codes.dtype != word or (groups is None and inputs % count):
        return None
    if zeros is not None and (zeros.shape != of_zeros or zeros.dtype != word):
        return None
    if groups is not None and (groups.shape != (inputs,) or groups.dtype not in ("I32", "I64")):
        return None
    return shape


def decoded(packed: Packed) -> Tensor:
    """[outputs, inputs] as float32. Reading raises LG627 for groups that do not exist."""

    def read(region: Region) -> Bits:
        import numpy as np

        (first, last), (start, stop) = region
        if first == last or start == stop:
            return np.empty((last - first, stop - start), np.uint32)
        codes = _codes(packed, region)
        scales, zeros = _scales(packed, (first, last)), _zeros(packed, (first, last))
        count = scales.shape[1]
        group = np.arange(start, stop) // (packed.shape[1] // count)
        if packed.groups is not None:
            of_inputs = stored(packed.groups).read(((start, stop),))
            group = of_inputs.view(f"<i{of_inputs.itemsize}")
            if group.size and not 0 <= group.min() <= group.max() < count:
                message = f"{quoted(packed.groups.name)} names groups that do not exist"
                raise LlamagenError.of(
                    "LG627", message, help="the checkpoint is damaged; fetch it again"
                )
        values = codes if zeros is None else codes - zeros[:, group]
        bits: Bits = np.ascontiguousarray(values * scales[:, group], np.float32).view(np.uint32)
        return bits

    packing = cache(partial(_packing, packed))
    blocks = _in_blocks(packed, packing)
    return Tensor(packed.shape, packed.entries, read, packed=blocks, packing=packing)


_PACKINGS = {4: "Q4_0", 8: "Q8_0"}
_BLOCK = 32


def _in_blocks(packed: Packed, packing: Callable[[], str]) -> Tensor | None:
    """The rows in blocks of 32 with the same codes and scales; None where these have no place there.

    A group is several blocks, each with its scale and its zero point.
    """
    outputs, inputs = packed.shape
    flat = len(packed.scales.shape) < 2 or packed.scales.shape == (1, 1)
    of_rows = (
        packed.scales.shape[-1] if packed.kind in ("words", "bytes") else packed.scales.shape[0]
    )
    count = 1 if flat else of_rows
    fits = inputs % count == 0 and inputs // count % _BLOCK == 0
    if packed.bits not in _PACKINGS or packed.scales.dtype != "F16" or not fits:
        return None

    def read(region: Region) -> Bits:
        import numpy as np

        (first, last), (start, stop) = region
        codes = _codes(packed, ((first, last), (0, inputs)))
        if not packed.signed:
            codes = codes - np.float32(1 << packed.bits - 1)
        blocks = codes.astype(np.int8).reshape(last - first, -1, _BLOCK)
        scales = _scales(packed, (first, last)).astype("<f2")
        scales = np.repeat(scales, blocks.shape[1] // scales.shape[1], axis=1)
        if packed.bits == 4:
            halves = (blocks + np.int8(8)).view(np.uint8)
            numbers = halves[..., :16] | halves[..., 16:] << np.uint8(4)
        else:
            numbers = blocks.view(np.uint8)
        heads = np.ascontiguousarray(scales)[..., None].view(np.uint8)
        if packing() == WITH_POINTS:
            points = _points(packed, (first, last)).astype(np.uint8)
            points = np.repeat(points, blocks.shape[1] // points.shape[1], axis=1)
            heads = np.concatenate([heads, points[..., None]], axis=-1)
        rows = np.concatenate([heads, numbers], axis=-1).reshape(last - first, -1)
        return np.ascontiguousarray(rows[:, start:stop])

    size = _BLOCK * packed.bits // 8  # and a scale, and a zero point at most
    return Tensor((outputs, inputs // _BLOCK * (size + 3)), packed.entries, read)


def _packing(packed: Packed) -> str:
    """The type of its blocks; none where inputs of a group lie apart, or a zero point has no place."""
    import numpy as np

    if packed.groups is not None:
        found = stored(packed.groups).read(((0, packed.shape[1]),))
        count = _scales(packed, (0, 1)).shape[1]
        runs = np.arange(packed.shape[1]) // (packed.shape[1] // count)
        if not (found.view(f"<i{found.itemsize}") == runs).all():
            return ""
    points = _points(packed, (0, packed.shape[0]))
    if (points == 1 << packed.bits - 1).all():
        return _PACKINGS[packed.bits]
    fits = packed.bits == 4 and points.min() >= 0 and points.max() < 16
    return WITH_POINTS if fits else ""


def _points(packed: Packed, rows: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Zero points of codes that begin at 0, [rows, groups]."""
    import numpy as np

    zeros, middle = _zeros(packed, rows), np.float32(1 << packed.bits - 1)
    if zeros is None:
        return np.full(_scales(packed, rows).shape, middle, np.float32)
    return zeros + middle if packed.signed else zeros


def _spread(words: Bits, bits: int) -> npt.NDArray[np.int32]:
    """[..., N] words as [..., N * 32 / bits] codes, the lowest bits first."""
    import numpy as np

    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return codes.reshape(*words.shape[:-1], -1).astype(np.int32)


def _codes(packed: Packed, region: Region) -> npt.NDArray[np.float32]:
    import numpy as np

    (first, last), (start, stop) = region
    source, per_word = stored(packed.codes), 32 // packed.bits
    codes: npt.NDArray[np.generic]
    match packed.kind:
        case "bytes":
            codes = source.read(region).view(np.int8)
        case "awq":
            low, high = first // per_word, -(-last // per_word)
            codes = _nibbles(source.read(((start, stop), (low, high))))
            codes = codes[:, first - low * per_word : last - low * per_word].T
        case "words":
            low, high = start // per_word, -(-stop // per_word)
            codes = _spread(source.read(((first, last), (low, high))), packed.bits)
            codes = codes[:, start - low * per_word : stop - low * per_word] - (
                1 << packed.bits - 1
            )
        case _:
            low, high = start // per_word, -(-stop // per_word)
            words = np.ascontiguousarray(source.read(((low, high), (first, last))).T)
            codes = _spread(words, packed.bits)[:, start - low * per_word : stop - low * per_word]
    return codes.astype(np.float32)


def _nibbles(words: Bits) -> npt.NDArray[np.int32]:
    """AWQ's order of eight in a word."""
    import numpy as np

    codes = _spread(words, 4).reshape(*words.shape, 8)
    return codes[..., np.argsort(_ORDER)].reshape(*words.shape[:-1], -1)


def _scales(packed: Packed, rows: tuple[int, int]) -> npt.NDArray[np.float32]:
    """[rows, groups]"""
    import numpy as np

    from llamagen.weights.values import NUMPY_TYPES

    scales = packed.scales
    dtype = next(one for one in NUMPY_TYPES if one == scales.dtype)
    if packed.kind in ("words", "bytes"):
        part = (
            (rows, (0, scales.shape[1]))
            if scales.shape[:1] == packed.shape[:1] and len(scales.shape) == 2
            else None
        )
        found = stored(scales).read(whole(scales.shape) if part is None else part)
        values = found.view(NUMPY_TYPES[dtype]).astype(np.float32)
        return (
            values
            if part is not None
            else np.broadcast_to(values.reshape(1, 1), (rows[1] - rows[0], 1))
        )
    found = np.ascontiguousarray(stored(scales).read(((0, scales.shape[0]), rows)).T)
    return found.view(NUMPY_TYPES[dtype]).astype(np.float32)


def _zeros(packed: Packed, rows: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    """[rows, groups]"""
    import numpy as np

    zeros, (first, last), per_word = packed.zeros, rows, 32 // packed.bits
    if zeros is None:
        return None
    if packed.kind == "bytes":
        found = stored(zeros).read(whole(zeros.shape)).view(np.int8).astype(np.float32)
        flat = found.reshape(1, 1) if found.size == 1 else found[first:last]
        return np.broadcast_to(flat, (last - first, flat.shape[1]))
    low, high = first // per_word, -(-last // per_word)
    inside = slice(first - low * per_word, last - low * per_word)
    if packed.kind == "words":
        words = np.ascontiguousarray(stored(zeros).read(((low, high), (0, zeros.shape[1]))).T)
        return (_spread(words, packed.bits)[:, inside].T - (1 << packed.bits - 1)).astype(
            np.float32
        )
    words = stored(zeros).read(((0, zeros.shape[0]), (low, high)))
    codes = _nibbles(words) if packed.kind == "awq" else _spread(words, packed.bits)
    if packed.kind == "gptq":  # stored minus one
        codes = (codes + 1) & ((1 << packed.bits) - 1)
    return codes[:, inside].T.astype(np.float32)
