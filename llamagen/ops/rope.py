"""Rotary positions. A kind of rope is one row of `ROPE_KINDS`: what a spec says of it, and its frequencies three times.

The reference computes a kind from its paper's formula in float64. ONNX and PyTorch compute in the float32 steps that
checkpoints were trained and are served with: at a position of 100,000 a frequency that differs in its last bit turns
the pair by 0.006 radians more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.ops.code import Code, Fixed, Shared, Stay, Text, call
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import ir, np, torch
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    DType,
    Op,
    Operands,
    Precision,
    Role,
    TensorType,
    Tokens,
    Types,
    a_float,
    a_int,
    a_str,
    int_attr,
    need,
    need_rank,
    need_real,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import PreludeSite, TorchSite
    from llamagen.ops.op import Array, Real, Values

    Floats: TypeAlias = NDArray[np.float32]


MAX_TABLE = 2**16
"""Widest rotation: backends keep a number for each pair in the model itself."""


@dataclass(frozen=True, slots=True)
class RopeAttr:
    """A property of a kind of rope, above 0: a field of the spec's `rope`, an attribute of `rope_table`."""

    name: str
    type: Literal["float", "int"]
    doc: str
    absent: float
    """What `rope_table` has for kinds that have no such property."""
    default: float | None = None
    """What a spec of the kind may leave out; none is required."""
    key: str = ""
    """Its name in `rope_scaling` of a config.json, if it is another one."""


@dataclass(frozen=True, slots=True)
class RopeKind:
    """One way to scale the frequencies theta^(-2i/dim). `name` is also the `rope_type` of a config.json."""

    name: str
    doc: str
    attrs: tuple[RopeAttr, ...]
    exact: Callable[[Operands, Real], Real]
    """The scaled frequencies in float64 from the plain ones [dim / 2], radians a position."""
    float32: Callable[[Attrs, Floats, Floats], Floats]
    """The same in steps of float32, from the plain frequencies and the wavelengths without 2 pi, theta^(2i/dim)."""
    torch: Callable[..., Tensor] | None
    """The same for generated files, which get its statements: from the plain frequencies, and attributes by name.

    None where they cannot have it."""
    torch_numbers: Callable[[Attrs], Mapping[str, float]] = lambda _: {}
    """What `torch` takes besides attributes."""


FACTOR = RopeAttr("factor", "float", "by how much the context is extended", absent=1.0)
ORIGINAL = RopeAttr(
    "original_max_positions",
    "int",
    "the context before extension",
    absent=8192,
    key="original_max_position_embeddings",
)


def _llama3_exact(o: Operands, f: float) -> float:
    """Wavelengths above L/low stretched by ``factor``, below L/high kept, else mixed: facts 4.3."""
    low, high, factor = (
        o.number("low_freq_factor"),
        o.number("high_freq_factor"),
        o.number("factor"),
    )
    rotations = o.whole("original_max_positions") * f / (2.0 * math.pi)
    if rotations > high:
        return f
    if rotations < low:
        return f / factor
    if low == high:  # exactly on the cut: neither side claims it; Llama 4 Scout has low == high
        return f
    s = (rotations - low) / (high - low)
    return (1.0 - s) * f / factor + s * f


def _llama3_float32(attrs: Attrs, plain: Floats, _: Floats) -> Floats:
    """Long wavelengths divided by ``factor``, short ones kept, a linear blend in the frequency between."""
    factor = np.float32(a_float(attrs, "factor"))
    low, high = a_float(attrs, "low_freq_factor"), a_float(attrs, "high_freq_factor")
    original = a_int(attrs, "original_max_positions")
    # Quotients of a number and a tensor are reciprocals times the number, as PyTorch computes them.
    wavelength = (np.float32(1) / plain) * np.float32(2 * math.pi)
    scaled = np.where(wavelength > np.float32(original / low), plain / factor, plain)
    if low == high:  # Llama 4 Scout: a hard cut, nothing is blended
        return scaled
    rotations = (np.float32(1) / wavelength) * np.float32(original)
    blend = (rotations - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - blend) * plain / factor + blend * plain
    between = (wavelength >= np.float32(original / high)) & (
        wavelength <= np.float32(original / low)
    )
    return np.where(between, blended, scaled)


def _plain_torch(frequency: Tensor) -> Tensor:
    return frequency


def _linear_torch(frequency: Tensor, *, factor: float) -> Tensor:
    return frequency / factor


def _llama3_torch(
    frequency: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_positions: int,
) -> Tensor:
    # Wavelengths past the original context are stretched, short ones kept, those between mixed.
    wavelength = 2 * math.pi / frequency
    keep = original_max_positions / wavelength - low_freq_factor
    keep = (keep / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return (1 - keep) * frequency / factor + keep * frequency


def _yarn_exact(o: Operands, f: Real) -> Real:
    """arXiv 2309.00071, section 3.2; bounds in units of the pair index, rounded outward."""
    dim, theta, length = o.whole("dim"), o.number("theta"), o.whole("original_max_positions")

    def pair_with(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low = max(math.floor(pair_with(o.number("beta_fast"))), 0)
    high: float = min(math.ceil(pair_with(o.number("beta_slow"))), dim - 1)
    high = high + 0.001 if high == low else high
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return f / o.number("factor") * ramp + f * (1.0 - ramp)


def _yarn_ramp(attrs: Attrs) -> tuple[int, float]:
    """The first pair that is not kept, and over how many the blend runs."""
    dim, theta = a_int(attrs, "dim"), a_float(attrs, "theta")
    original = a_int(attrs, "original_max_positions")

    def pair_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(a_float(attrs, "beta_fast"))), 0)
    last = min(math.ceil(pair_with(a_float(attrs, "beta_slow"))), dim - 1)
    return first, float(last - first) or 0.001


def _yarn_float32(attrs: Attrs, plain: Floats, wavelengths: Floats) -> Floats:
    """Frequencies above ``beta_fast`` rotations in the original context kept, below ``beta_slow`` divided."""
    first, width = _yarn_ramp(attrs)
    steps = (np.arange(len(plain), dtype=np.float32) - np.float32(first)) / np.float32(width)
    kept = np.float32(1) - np.clip(steps, 0, 1).astype(np.float32)
    divided = np.float32(1.0) / (np.float32(a_float(attrs, "factor")) * wavelengths)
    result: Floats = divided * (np.float32(1) - kept) + plain * kept
    return result


def _yarn_torch(frequency: Tensor, *, factor: float, ramp_start: int, ramp_width: float) -> Tensor:
    # Frequencies that turn often are kept, those that turn seldom divided (arXiv 2309.00071).
    index = torch.arange(len(frequency), dtype=torch.float32, device=frequency.device)
    divide = ((index - ramp_start) / ramp_width).clamp(0, 1)
    return frequency / factor * divide + frequency * (1 - divide)


ROPE_KINDS: Mapping[str, RopeKind] = {
    kind.name: kind
    for kind in (
        RopeKind(
            "default",
            "Plain rotary embedding, arXiv 2104.09864.",
            (),
            exact=lambda o, f: f,
            float32=lambda attrs, plain, _: plain,
            torch=_plain_torch,
        ),
        RopeKind(
            "linear",
            "Positions divided by `factor`.",
            (FACTOR,),
            exact=lambda o, f: f / o.number("factor"),
            float32=lambda attrs, plain, _: plain / np.float32(a_float(attrs, "factor")),
            torch=_linear_torch,
        ),
        RopeKind(
            "llama3",
            "Llama 3.1's frequency scaling: long wavelengths divided by `factor`, short ones kept, smooth between.",
            (
                FACTOR,
                RopeAttr(
                    "low_freq_factor", "float", "below original/low the frequency is divided", 1.0
                ),
                RopeAttr(
                    "high_freq_factor", "float", "above original/high the frequency is kept", 4.0
                ),
                ORIGINAL,
            ),
            exact=lambda o, f: np.array([_llama3_exact(o, x) for x in f]),
            float32=_llama3_float32,
            torch=_llama3_torch,
        ),
        RopeKind(
            "yarn",
            "YaRN, arXiv 2309.00071. `attention_factor` is 0.1 ln(factor) + 1 unless a model says otherwise.",
            (
                FACTOR,
                ORIGINAL,
                RopeAttr(
                    "beta_fast", "float", "rotations above which a frequency is kept", 32.0, 32.0
                ),
                RopeAttr("beta_slow", "float", "rotations below which it is divided", 1.0, 1.0),
                RopeAttr(
                    "attention_factor",
                    "float",
                    "multiplies both tables; default 1 for other kinds",
                    1.0,
                ),
            ),
            exact=_yarn_exact,
            float32=_yarn_float32,
            torch=_yarn_torch,
            torch_numbers=lambda attrs: dict(
                zip(("ramp_start", "ramp_width"), _yarn_ramp(attrs), strict=True)
            ),
        ),
    )
}


def rope_attrs(kinds: Mapping[str, RopeKind]) -> tuple[AttrSpec, ...]:
    """The attributes of a table that may be of each of ``kinds``."""
    users: dict[RopeAttr, list[str]] = {}
    for kind in kinds.values():
        for attr in kind.attrs:
            users.setdefault(attr, []).append(kind.name)
    return (
        AttrSpec("theta", "float", "base of the frequencies", required=True),
        AttrSpec("scaling", "str", "kind of scaling", default="default", choices=tuple(kinds)),
        *(
            AttrSpec(attr.name, attr.type, f"{', '.join(names)}: {attr.doc}", default=attr.absent)
            for attr, names in users.items()
        ),
    )


def frequencies(o: Operands) -> Real:
    """f_i = theta^(-2i/dim), scaled; radians a position, [dim / 2]."""
    dim, theta = o.whole("dim"), o.number("theta")
    f = np.array([theta ** (-2.0 * i / dim) for i in range(dim // 2)])
    return ROPE_KINDS[o.text("scaling")].exact(o, f)


def inverse_frequencies(attrs: Attrs) -> Floats:
    """``dim / 2`` frequencies in radians a token, in steps of float32, from the attributes of ``rope_table``."""
    dim, theta = a_int(attrs, "dim"), a_float(attrs, "theta")
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # The power is taken in float64 and rounded once: float32 powers differ between libraries.
    wavelengths = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1.0) / wavelengths
    return ROPE_KINDS[a_str(attrs, "scaling")].float32(attrs, plain, wavelengths)


def _rope_table_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (positions,) = types
    dim = a_int(attrs, "dim")
    need(dim > 0 and dim % 2 == 0, f"rope rotates pairs, so its width must be even, not {dim}")
    need(dim <= MAX_TABLE, f"rope rotates at most {MAX_TABLE} features, not {dim}")
    table = TensorType(DType.FLOAT32, (*positions.shape, Dim.of(dim // 2)))
    return (table, table)


def _rope_table_numpy(o: Operands) -> tuple[Array, ...]:
    positions, f = o.ints()[..., None].astype(np.float64), frequencies(o)
    if o.float32_angles:
        angles = (positions.astype(np.float32) * f.astype(np.float32)).astype(np.float64)
    else:
        angles = positions * f
    amplitude = o.number("attention_factor")
    return (amplitude * np.cos(angles), amplitude * np.sin(angles))


def _rope_table_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Tables of the positions at hand, not of all positions: nothing is baked, no context length is a limit."""
    frequencies = b.constant(f"{b.scope}/inv_freq", inverse_frequencies(site.attrs))
    positions = b.op("Unsqueeze", b.to(x[0], b.FLOAT), b.ints([-1]))
    angles = b.op("Mul", positions, frequencies)
    factor = a_float(site.attrs, "attention_factor")
    tables = (b.op("Cos", angles), b.op("Sin", angles))
    return tables if factor == 1 else tuple(b.with_number("Mul", t, factor) for t in tables)


def _rope_table_prelude(at: PreludeSite) -> Shared:
    variable = at.fresh(at.name_by_users("rope"))
    dim, kind = a_int(at.attrs, "dim"), ROPE_KINDS[a_str(at.attrs, "scaling")]
    if kind.torch is None:
        message = f"rope kind `{kind.name}` cannot be computed in PyTorch"
        raise LlamagenError.of("LG741", message, at.span)

    def named(name: str) -> Text:
        return Text(at.define(f"{variable.upper()}_{name.upper()}", name))

    half, partial = at.layout() == "half", at.partial(dim)
    fixed: dict[str, Fixed] = {"theta": named("theta"), "dtype": Stay.PRESENT if half else None}
    fixed["scaled"] = at.statements(kind.torch, named, kind.torch_numbers(at.attrs))
    fixed["dim"] = Text(at.like(dim, "head_dim", define=f"{variable.upper()}_DIM"))
    if a_float(at.attrs, "attention_factor") != 1.0:
        fixed["attention_factor"] = named("attention_factor")
    shape = ("R" if partial else "H") + ("" if half else " / 2")
    at.place("rope_table", f"{variable}_table", fixed, {"H / 2": shape})
    call = f"{variable}_table(position_ids{', self.dtype' if half else ''})"
    return Shared("rope", (variable,), "Rope", call)


def _grid_table_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    rows, columns, dim = (a_int(attrs, n) for n in ("rows", "columns", "dim"))
    extra = a_int(attrs, "extra")
    need(dim > 0 and dim % 4 == 0, f"a grid rotates two sets of pairs: {dim} is not 4 n features")
    need(rows > 0 and columns > 0 and extra >= 0, f"a grid of {rows} x {columns} and {extra}")
    places = Dim.of(rows * columns + extra)
    table = TensorType(DType.FLOAT32, (Dim.of(1), places, Dim.of(dim // 2)))
    return (table, table)


def _grid_rope_table_numpy(o: Operands) -> tuple[Array, ...]:
    """Place by place as the definition says, one pair after the other."""
    pairs, columns = o.whole("dim") // 2, o.whole("columns")
    places = o.whole("rows") * columns
    angles = np.zeros((1, places + o.whole("extra"), pairs))
    for place in range(places):
        row, column = divmod(place, columns)
        for i in range(pairs // 2):
            f = o.number("theta") ** (-2.0 * i / pairs)
            angles[0, place, i] = (column + 1) * f
            angles[0, place, pairs // 2 + i] = (row + 1) * f
    return (np.cos(angles), np.sin(angles))


def _grid_rope_table_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Sizes are known, so the table is: a constant of a few hundred rows."""
    rows, columns, extra = (a_int(site.attrs, n) for n in ("rows", "columns", "extra"))
    pairs = a_int(site.attrs, "dim") // 2
    theta = a_float(site.attrs, "theta")
    frequencies = theta ** (-2.0 * np.arange(pairs // 2, dtype=np.float64) / pairs)
    row, column = np.divmod(np.arange(rows * columns), columns)
    turned = np.concatenate([np.outer(column + 1, frequencies), np.outer(row + 1, frequencies)], 1)
    angles = np.concatenate([turned, np.zeros((extra, pairs))])[None]
    tables = (("cos", np.cos(angles)), ("sin", np.sin(angles)))
    return tuple(b.constant(f"{b.scope}/{name}", t.astype(np.float32)) for name, t in tables)


def _grid_rope_table_prelude(at: PreludeSite) -> Shared:
    variable, pairs = at.fresh("grid_rope"), a_int(at.attrs, "dim") // 2
    rows, columns, extra = (a_int(at.attrs, n) for n in ("rows", "columns", "extra"))
    words = {"L, H / 2": f"{rows * columns + extra}, {pairs}"}
    if extra:
        words["half with the row"] = "half with the row; what follows the grid does not turn"
    fixed: dict[str, Fixed] = {"pairs": pairs, "extra": extra}
    for name in ("rows", "columns", "theta"):
        fixed[name] = Text(at.define(f"{variable.upper()}_{name.upper()}", name))
    at.place("grid_rope_table", f"{variable}_table", fixed, words)
    return Shared("grid", (variable,), "Rope", f"{variable}_table({at.source}.device)")


def _rotate_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, cos, sin = types
    need_rank(x, 4, "the operand of rope")
    need_real(x, "the operand of rope")
    width = cos.shape[-1] * 2
    need(cos == sin, "the cosine and sine tables differ in shape")
    need(
        width.value <= x.shape[-1].value,
        f"rope rotates {width} of {x.shape[-1]} features: more than there are",
    )
    need(
        cos.shape[0] in (x.shape[0], Dim.of(1)) and x.shape[2] == cos.shape[1],
        f"rope needs [B, heads, S, head_dim] with the positions' B and S, it is {x}",
    )
    return (x,)


def _rotate_numpy(o: Operands) -> tuple[Array, ...]:
    x, cos, sin = o.real(0), o.real(1)[:, None], o.real(2)[:, None]
    half = cos.shape[-1]
    y = x.copy()
    if o.text("layout") == "half":
        first, second = slice(0, half), slice(half, 2 * half)
    else:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = x[..., first], x[..., second]
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return (y,)


def _rotate_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    """A table of cosines and sines is one variable."""
    half = a_str(at.attrs, "layout") == "half"
    return call("rotate" if half else "rotate_interleaved", x[0], x[1])


def _rotate_onnx(b: Builder, site: Site, x: Values) -> Values:
    head_dim, width = site.dims()[-1].value, 2 * site.dims(1)[-1].value
    interleaved = a_str(site.attrs, "layout") == "interleaved"
    dtype = b.element(site.results[0].dtype)
    inside = b.FLOAT if interleaved else dtype
    operands = [b.to(t, inside) for t in x]
    if site.dims(1)[0] != site.dims()[0]:  # one table for all rows
        shape = b.shape((site.dims()[0], *site.dims(1)[1:]))
        operands[1:] = [_repeated(b, t, shape) for t in operands[1:]]
    partial = width if width != head_dim else None
    rotated = b.op(
        "RotaryEmbedding", *operands, interleaved=int(interleaved), rotary_embedding_dim=partial
    )
    return (b.to(rotated, dtype),)


def _repeated(b: Builder, table: ir.Value, shape: ir.Value) -> ir.Value:
    key = f"repeated {id(table)} {id(shape)}"
    if key not in b.shared:
        with b.within(str(table.name)):
            b.shared[key] = b.op("Expand", table, shape)
    return b.shared[key]


ROPE_OPS: tuple[Op, ...] = (
    Op(
        "rope_table",
        "Cosines and sines of position times frequency; written ``rope(x, positions, rope)`` in a spec.",
        "cos, sin = cos(p f_i), sin(p f_i), f_i = theta^(-2i/dim) scaled as ``scaling`` says",
        ("positions",),
        _rope_table_shape,
        Precision.FLOAT32_RESULT,
        Tokens.ALONE,
        attrs=(
            int_attr("dim", "rotated width, even"),
            *rope_attrs(ROPE_KINDS),
        ),
        hoisted=True,
        internal=True,
        cite="arXiv 2104.09864; facts 4.2, 4.3; yarn: arXiv 2309.00071",
        role=Role.ROPE_TABLE,
        numpy=_rope_table_numpy,
        torch_prelude=_rope_table_prelude,
        onnx=_rope_table_onnx,
    ),
    Op(
        "grid_rope_table",
        "Angles of the places of a grid, row by row, and of ``extra`` places after it that are not turned: the first "
        "half of the pairs turns with the column, the second with the row, both counted from 1; written "
        "``grid_rope(x, rows, columns, theta, extra)`` in a spec.",
        "cos, sin = cos(a), sin(a), a = [(column + 1) f_i, (row + 1) f_i], f_i = theta^(-4i/dim)",
        (),
        _grid_table_shape,
        Precision.FLOAT32_RESULT,
        Tokens.MIXED,
        attrs=(
            int_attr("rows", "height of the grid"),
            int_attr("columns", "width of the grid"),
            AttrSpec("theta", "float", "base of the frequencies", required=True),
            AttrSpec("extra", "int", "places after the grid, such as a class token", default=0),
            int_attr("dim", "rotated width, a multiple of 4"),
        ),
        hoisted=True,
        internal=True,
        cite="facts 4.9",
        numpy=_grid_rope_table_numpy,
        torch_prelude=_grid_rope_table_prelude,
        onnx=_grid_rope_table_onnx,
    ),
    Op(
        "rotate",
        "Rotate the leading pairs of the last dimension; the rest passes. ``half`` pairs i with i + dim/2 and works "
        "with tables rounded to the operand's dtype (Hugging Face Llama), ``interleaved`` pairs 2i with 2i + 1 in "
        "float32 and casts back (Meta, Llama 4).",
        "(a, b) -> (a cos - b sin, b cos + a sin)",
        ("x", "cos", "sin"),
        _rotate_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(AttrSpec("layout", "str", "", default="half", choices=("half", "interleaved")),),
        internal=True,
        cite="facts 4.2",
        role=Role.ROTATION,
        numpy=_rotate_numpy,
        torch=_rotate_torch,
        onnx=_rotate_onnx,
    ),
)
