"""Rotary positions. A kind of rope is one row of `ROPE_KINDS`: what a spec says of it, and its frequencies three times.

The reference computes a kind from its paper's formula in float64. ONNX and PyTorch compute in the float32 steps that
checkpoints were trained and are served with: at a position of 100,000 a frequency that differs in its last bit turns
the pair by 0.006 radians more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.ops.code import Code, Fixed, Shared, Stay, Text, call
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import ir, np, torch
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    AttrValue,
    DType,
    Op,
    Operands,
    Precision,
    Role,
    TensorType,
    Tokens,
    Types,
    a_bool,
    a_float,
    a_int,
    a_str,
    cut_beside,
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


Context: TypeAlias = Callable[[], int]
"""Asks a spec for its `max_positions`; then its graph depends on it."""

MAX_TABLE = 2**16
"""Widest rotation: backends keep a number for each pair in the model itself."""


@dataclass(frozen=True, slots=True)
class RopeAttr:
    """A property of a kind of rope, numbers above 0: a field of the spec's `rope`, an attribute of `rope_table`."""

    name: str
    type: Literal["float", "int", "bool", "floats"]
    doc: str
    absent: AttrValue
    """What `rope_table` has for kinds that have no such property."""
    default: float | bool | None = None
    """What a spec of the kind may leave out; none is required, unless it is ``optional``."""
    optional: bool = False
    """A spec may leave it out, and then it has no value there."""
    only: Literal["spec", "table"] | None = None
    """Where it is: what a spec has only to compute others from, or what the table has only, computed from others."""
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
    """The same in steps of float32, from the plain frequencies and the wavelengths without 2 pi, theta^(2i/dim).

    Of a kind with ``of_call``, those of a call within the original context."""
    torch: Callable[..., Tensor] | None
    """The same for generated files, which get its statements: from the plain frequencies, the positions and attributes
    by name.

    None where they cannot have it."""
    torch_numbers: Callable[[Attrs], Mapping[str, float]] = lambda _: {}
    """What `torch` takes besides attributes."""
    of_call: Callable[[Builder, Attrs, ir.Value], ir.Value] | None = None
    """The frequencies float32[dim / 2] in an ONNX graph, from the last position of a call, int64[]: of kinds that have
    others for a longer call. Keys that are cached keep the turns that they got."""
    follows: Callable[[Attrs, Context], Attrs] = lambda _, __: {}
    """Attributes of the table that follow from what a spec says of the kind, or of its context."""
    impossible: Callable[[Attrs], str] = lambda _: ""
    """What is wrong between the numbers of a spec, if something is."""

    def attrs_of(self, rope: Attrs, context: Context) -> Attrs:
        """Attributes of `rope_table`, but its width. Raises what ``context`` does."""
        stated: dict[str, AttrValue] = {n: v for n, v in rope.items() if v is not None}
        stated.update(self.follows(stated, context))
        names = {"theta", *(attr.name for attr in self.attrs if attr.only != "spec")}
        return {n: v for n, v in stated.items() if n in names} | {"scaling": self.name}


FACTOR = RopeAttr("factor", "float", "by how much the context is extended", absent=1.0)
ATTENTION_FACTOR = RopeAttr(
    "attention_factor", "float", "multiplies both tables", absent=1.0, optional=True
)
ORIGINAL = RopeAttr(
    "original_max_positions",
    "int",
    "the context before extension",
    absent=8192,
    key="original_max_position_embeddings",
)


def _llama3_impossible(rope: Attrs) -> str:
    low, high = a_float(rope, "low_freq_factor"), a_float(rope, "high_freq_factor")
    if low <= high:
        return ""
    return f"low_freq_factor {low!r} is above high_freq_factor {high!r}: no frequency is between"


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


def _plain_torch(frequency: Tensor, position_ids: Tensor) -> Tensor:
    return frequency


def _linear_torch(frequency: Tensor, position_ids: Tensor, *, factor: float) -> Tensor:
    return frequency / factor


def _llama3_torch(
    frequency: Tensor,
    position_ids: Tensor,
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
    """arXiv 2309.00071, section 3.2; bounds in units of the pair index, rounded outward unless a model says not."""
    dim, theta, length = o.whole("dim"), o.number("theta"), o.whole("original_max_positions")

    def pair_with(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low, high = pair_with(o.number("beta_fast")), pair_with(o.number("beta_slow"))
    if a_bool(o.attrs, "truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if high == low else high
    ramp: Real = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return f / o.number("factor") * ramp + f * (1.0 - ramp)


def _yarn_ramp(attrs: Attrs) -> tuple[float, float]:
    """The first pair that is not kept, and over how many the blend runs."""
    dim, theta = a_int(attrs, "dim"), a_float(attrs, "theta")
    original = a_int(attrs, "original_max_positions")

    def pair_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_with(a_float(attrs, "beta_fast")), pair_with(a_float(attrs, "beta_slow"))
    if a_bool(attrs, "truncate"):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    return first, float(last - first) or 0.001


def _yarn_float32(attrs: Attrs, plain: Floats, wavelengths: Floats) -> Floats:
    """Frequencies above ``beta_fast`` rotations in the original context kept, below ``beta_slow`` divided."""
    first, width = _yarn_ramp(attrs)
    steps = (np.arange(len(plain), dtype=np.float32) - np.float32(first)) / np.float32(width)
    kept = np.float32(1) - np.clip(steps, 0, 1).astype(np.float32)
    divided = np.float32(1.0) / (np.float32(a_float(attrs, "factor")) * wavelengths)
    result: Floats = divided * (np.float32(1) - kept) + plain * kept
    return result


def _yarn_torch(
    frequency: Tensor,
    position_ids: Tensor,
    *,
    factor: float,
    ramp_start: float,
    ramp_width: float,
) -> Tensor:
    # Frequencies that turn often are kept, those that turn seldom divided (arXiv 2309.00071).
    index = torch.arange(len(frequency), dtype=torch.float32, device=frequency.device)
    divide = ((index - ramp_start) / ramp_width).clamp(0, 1)
    return frequency / factor * divide + frequency * (1 - divide)


def _yarn_follows(rope: Attrs, _: Context) -> Attrs:
    """Section 3.4 of the paper; with both weights as DeepSeek's models, of which one also scales scores."""
    if "attention_factor" in rope:
        return {}
    longer = math.log(max(a_float(rope, "factor"), 1.0))
    if "mscale" in rope and "mscale_all_dim" in rope:
        over, under = a_float(rope, "mscale"), a_float(rope, "mscale_all_dim")
        return {"attention_factor": (0.1 * over * longer + 1) / (0.1 * under * longer + 1)}
    return {"attention_factor": 0.1 * longer + 1}


def _yarn_impossible(rope: Attrs) -> str:
    fast, slow = a_float(rope, "beta_fast"), a_float(rope, "beta_slow")
    if a_float(rope, "theta") <= 1:
        return "theta is not above 1: no frequency is lower than another"
    return "" if fast >= slow else f"beta_fast {fast!r} is below beta_slow {slow!r}"


# Kinds whose frequencies are those of the call: a longer one turns all its tokens otherwise


def _dynamic_exact(o: Operands, f: Real) -> Real:
    """theta (s n / L - (s - 1))^(d / (d - 2)) in place of theta, n the longest row so far, at least L."""
    dim, factor, length = o.whole("dim"), o.number("factor"), o.whole("original_max_positions")
    reached = max(int(o.ints().max()) + 1, length)
    base = o.number("theta") * (factor * reached / length - (factor - 1)) ** (dim / (dim - 2))
    return np.array([base ** (-2.0 * i / dim) for i in range(dim // 2)])


def _dynamic_torch(
    frequency: Tensor, position_ids: Tensor, *, factor: float, original_max_positions: int
) -> Tensor:
    # The base grows with what is beyond the original context, so that the last pair is divided by `growth`.
    beyond = (position_ids.max() + 1 - original_max_positions).clamp(min=0)
    growth = 1 + factor * beyond / original_max_positions
    pair = torch.arange(len(frequency), dtype=torch.float32, device=frequency.device)
    return frequency * growth ** (-pair / (len(frequency) - 1))


def _dynamic_onnx(b: Builder, attrs: Attrs, last: ir.Value) -> ir.Value:
    """In float64, as it is only dim / 2 numbers: powers in float32 differ between libraries."""
    pairs, length = a_int(attrs, "dim") // 2, a_int(attrs, "original_max_positions")
    plain = np.float64(a_float(attrs, "theta")) ** (-np.arange(pairs) / pairs)
    beyond = b.to(
        b.op("Max", b.op("Sub", last, b.whole(length - 1)), b.whole(0)), ir.DataType.DOUBLE
    )
    times = b.op("Mul", beyond, b.number(a_float(attrs, "factor") / length, ir.DataType.DOUBLE))
    growth = b.op("Add", times, b.number(1.0, ir.DataType.DOUBLE))
    steps = b.constant(f"{b.scope}/steps", -np.arange(pairs) / (pairs - 1))
    grown = b.op("Pow", growth, steps)
    return b.to(b.op("Mul", grown, b.constant(f"{b.scope}/plain", plain)), b.FLOAT)


def _longrope_follows(rope: Attrs, context: Context) -> Attrs:
    """arXiv 2402.13753; the factor is that of the contexts where a model states none."""
    if "attention_factor" in rope:
        return {}
    original = a_int(rope, "original_max_positions")
    factor = a_float(rope, "factor") if "factor" in rope else context() / original
    if factor <= 1 or original == 1:
        return {"attention_factor": 1.0}
    return {"attention_factor": math.sqrt(1 + math.log(factor) / math.log(original))}


def _longrope_factors(attrs: Attrs, name: str) -> Floats:
    factors = attrs[name]
    assert isinstance(factors, tuple)
    return np.array(factors, dtype=np.float32)


def _longrope_exact(o: Operands, f: Real) -> Real:
    beyond = int(o.ints().max()) >= o.whole("original_max_positions")
    factors = o.attrs["long_factor" if beyond else "short_factor"]
    assert isinstance(factors, tuple)
    return np.array([one / factor for one, factor in zip(f, factors, strict=True)])


def _longrope_float32(attrs: Attrs, _: Floats, wavelengths: Floats) -> Floats:
    one: Floats = np.float32(1) / (_longrope_factors(attrs, "short_factor") * wavelengths)
    return one


def _longrope_torch(
    frequency: Tensor,
    position_ids: Tensor,
    *,
    short_factor: tuple[float, ...],
    long_factor: tuple[float, ...],
    original_max_positions: int,
) -> Tensor:
    # Every pair has a factor of its own, and another one in a call that leaves the original context.
    beyond = position_ids.max() >= original_max_positions
    short = torch.tensor(short_factor, dtype=torch.float32, device=frequency.device)
    long = torch.tensor(long_factor, dtype=torch.float32, device=frequency.device)
    return frequency / torch.where(beyond, long, short)


def _longrope_onnx(b: Builder, attrs: Attrs, last: ir.Value) -> ir.Value:
    within = inverse_frequencies(attrs)
    longer = inverse_frequencies({**attrs, "short_factor": attrs["long_factor"]})
    inside = b.op("Less", last, b.whole(a_int(attrs, "original_max_positions")), dtype=b.BOOL)
    short = b.constant(f"{b.scope}/short_inv_freq", within)
    long = b.constant(f"{b.scope}/long_inv_freq", longer)
    return b.op("Where", inside, short, long, dtype=b.FLOAT)


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
            impossible=_llama3_impossible,
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
                    "truncate",
                    "bool",
                    "whether the pairs between which frequencies blend are whole",
                    True,
                    True,
                ),
                ATTENTION_FACTOR,
                RopeAttr("mscale", "float", "", None, optional=True, only="spec"),
                RopeAttr("mscale_all_dim", "float", "", None, optional=True, only="spec"),
            ),
            exact=_yarn_exact,
            float32=_yarn_float32,
            torch=_yarn_torch,
            torch_numbers=lambda attrs: dict(
                zip(("ramp_start", "ramp_width"), _yarn_ramp(attrs), strict=True)
            ),
            follows=_yarn_follows,
            impossible=_yarn_impossible,
        ),
        RopeKind(
            "dynamic",
            "NTK-aware scaling: the base grows with the longest row of a call, once that is beyond `max_positions`.",
            (FACTOR, replace(ORIGINAL, only="table")),
            exact=_dynamic_exact,
            float32=lambda attrs, plain, _: plain,
            torch=_dynamic_torch,
            of_call=_dynamic_onnx,
            follows=lambda _, context: {"original_max_positions": context()},
        ),
        RopeKind(
            "longrope",
            "LongRoPE, arXiv 2402.13753: a factor a pair, by whether a call leaves the original context. "
            "`attention_factor` is sqrt(1 + ln(factor) / ln(original)) unless a model says otherwise.",
            (
                RopeAttr("short_factor", "floats", "divisors of frequencies in short calls", ()),
                RopeAttr("long_factor", "floats", "divisors of frequencies in longer calls", ()),
                ORIGINAL,
                RopeAttr("factor", "float", "", None, optional=True, only="spec"),
                ATTENTION_FACTOR,
            ),
            exact=_longrope_exact,
            float32=_longrope_float32,
            torch=_longrope_torch,
            of_call=_longrope_onnx,
            follows=_longrope_follows,
        ),
    )
}


def rope_attrs(kinds: Mapping[str, RopeKind]) -> tuple[AttrSpec, ...]:
    """The attributes of a table that may be of each of ``kinds``."""
    users: dict[str, list[str]] = {}
    attrs: dict[str, RopeAttr] = {}
    for kind in kinds.values():
        for attr in kind.attrs:
            if attr.only != "spec":
                users.setdefault(attr.name, []).append(kind.name)
                attrs.setdefault(attr.name, attr)
    return (
        AttrSpec("theta", "float", "base of the frequencies", required=True),
        AttrSpec("scaling", "str", "kind of scaling", default="default", choices=tuple(kinds)),
        *(
            AttrSpec(name, attr.type, f"{', '.join(users[name])}: {attr.doc}", default=attr.absent)
            for name, attr in attrs.items()
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
    kind = ROPE_KINDS[a_str(attrs, "scaling")]
    frequencies = kind.float32(attrs, plain, wavelengths)
    if not np.isfinite(frequencies).all():
        message = (
            f"rope kind `{kind.name}` gives frequencies of a width of {dim} that are no numbers"
        )
        raise LlamagenError.of("LG420", message, help="weights and files are not to blame")
    return frequencies


def _rope_table_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (positions,) = types
    dim = a_int(attrs, "dim")
    need(dim > 0 and dim % 2 == 0, f"rope rotates pairs, so its width must be even, not {dim}")
    need(dim <= MAX_TABLE, f"rope rotates at most {MAX_TABLE} features, not {dim}")
    need(dim > 2 or attrs["scaling"] != "dynamic", "a dynamic rope needs two pairs or more")
    if attrs["scaling"] == "longrope":
        for name in ("short_factor", "long_factor"):
            factors = attrs[name]
            assert isinstance(factors, tuple)
            message = f"{name} has {len(factors)} numbers, rope rotates {dim // 2} pairs"
            need(len(factors) == dim // 2, message)
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
    kind = ROPE_KINDS[a_str(site.attrs, "scaling")]
    if kind.of_call is None:
        frequencies = b.constant(f"{b.scope}/inv_freq", inverse_frequencies(site.attrs))
    else:
        frequencies = kind.of_call(b, site.attrs, b.op("ReduceMax", x[0], keepdims=0))
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
        cut=lambda cuts, operands, results, attrs: cut_beside(cuts[:1], operands, results, {}),
        role=Role.ROTATION,
        numpy=_rotate_numpy,
        torch=_rotate_torch,
        onnx=_rotate_onnx,
    ),
)
