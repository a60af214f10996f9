"""The weights of an ONNX model before they have data: names, shapes, codes, and the parameters they are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from pydantic import Field

from llamagen.analysis.rewrites import ExpertCodes
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import QuantizationRecord, SchemeName
from llamagen.emit.onnx.profile import CPU, WEBGPU, OnnxDType, Profile
from llamagen.emit.options import QuantizeOptions, one_of
from llamagen.ir.flatten import FlatGraph, FlatNode
from llamagen.ops.op import Role, State, a_str
from llamagen.spec.schema import Closed
from llamagen.weights.quantize import KEPT, Bits
from llamagen.weights.tensors import WITH_POINTS

StorageDType: TypeAlias = OnnxDType | Literal["uint8", "int8"]
"""Element type of a weight in its file."""

PartRole: TypeAlias = Literal[
    "codes", "scales", "zero_points", "minimums", "low_codes", "low_zero_points"
]

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 4)
_INTEGERS = 4
"""The accuracy level that rounds activations to int8."""

_ROUTING_HOPS = 4


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter of the checkpoint: its role path and shape."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a weight is quantised.

    ``blocks``: ``bits`` a weight and a scale for ``block`` weights of a row; MatMulNBits computes with it.
    ``channels``: int8 and a scale for each row, stored transposed; DynamicQuantizeMatMul quantises the activations too.
    ``experts``: blocks along the inputs of every expert, codes [E, outputs, bytes], however the parameter lies.
    """

    kind: Literal["blocks", "channels", "experts"]
    bits: Bits = 8
    block: int = 0
    symmetric: bool = True
    accuracy_level: int = 0
    """What MatMulNBits and QMoE multiply in: 0 their own choice, 1 float32, 4 activations as int8 by block."""
    transposed: bool = False
    """Of experts: the parameter is [E, inputs, outputs]."""
    paired: bool = False
    """Rows of the gate and of the linear half in turns, as QMoE reads them; in the parameter the gate comes first."""
    packing: str = ""
    """The type whose blocks these are, as they were: nothing is quantised."""
    halves: bool = False
    """Codes and zero points of 8 bits are stored as two of 4: the CPU multiplies 4 bits in float32 in a kernel of its
    own, but decodes a whole weight of 8 bits at every call, which takes 20 times as long."""

    @staticmethod
    def kept(packing: str, accuracy_level: int) -> Encoding:
        """Of blocks of GGUF that stay as they are."""
        symmetric = packing != WITH_POINTS
        return Encoding("blocks", KEPT[packing], 32, symmetric, accuracy_level, packing=packing)

    @property
    def stored_bits(self) -> Bits:
        """Of one number among the stored codes and zero points."""
        return 4 if self.halves else self.bits


@dataclass(frozen=True, slots=True)
class Part:
    """What an initializer holds of the quantised weight ``weight``."""

    weight: str
    role: PartRole
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight of the model: its name, its shape and its element type in the file.

    ``sources`` are the parameters it holds, by role path, joined along the first axis: one, under its own name, or
    the projections that a profile computes as one. A quantised weight is two or three initializers, one ``part`` each.
    """

    name: str
    shape: tuple[int, ...]
    dtype: StorageDType
    sources: tuple[Source, ...]
    part: Part | None = None

    @staticmethod
    def of(path: str, shape: tuple[int, ...], dtype: OnnxDType) -> Initializer:
        """The parameter ``path`` as it is."""
        return Initializer(path, shape, dtype, (Source(path, shape),))

    @staticmethod
    def joined(name: str, sources: Sequence[Source], dtype: OnnxDType) -> Initializer:
        """``sources``, alike but for their first sizes, as one tensor."""
        rows = sum(source.shape[0] for source in sources)
        return Initializer(name, (rows, *sources[0].shape[1:]), dtype, tuple(sources))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the bytes of one initializer lie: file name, offset and length in bytes."""

    initializer: Initializer
    location: str
    offset: int
    length: int


def encoded(whole: Initializer, how: Encoding, scales: OnnxDType) -> tuple[Initializer, ...]:
    """The parts of ``whole`` [N, K], or [E, N, K] and [E, K, N] of experts, codes first; low halves
    always have zero points: theirs are no middle.
    """
    name, (*experts, rows, columns) = whole.name, whole.shape
    if how.transposed:
        rows, columns = columns, rows

    def part(role: PartRole, shape: tuple[int, ...], dtype: StorageDType) -> Initializer:
        about = Part(name, role, how)
        return Initializer(f"{name}_{role}", shape, dtype, whole.sources, about)

    if how.kind == "channels":
        return part("codes", (columns, rows), "int8"), part("scales", (rows,), "float32")
    bits = how.stored_bits
    blocks, size = -(-columns // how.block), how.block * bits // 8
    shape = (*experts, rows, blocks * size) if how.kind == "experts" else (rows, blocks, size)
    scales = "float16" if how.packing else scales
    parts = [part("codes", shape, "uint8"), part("scales", (*experts, rows, blocks), scales)]
    points = (*experts, rows, -(-blocks * bits // 8))
    if not how.symmetric:
        parts.append(part("zero_points", points, "uint8"))
    if how.packing == "Q4_1":
        parts.append(part("minimums", (rows, blocks), "float16"))
    if how.halves:
        parts.append(part("low_codes", shape, "uint8"))
        parts.append(part("low_zero_points", points, "uint8"))
    return tuple(parts)


class EncodingRecord(Closed):
    """weight[n, k] = (code - zero point) * scale, or code * scale + minimum where there are minimums: metadata of the
    codes, which `verify` and other readers go by."""

    kind: Literal["blocks", "channels", "experts"] = Field(
        description="A scale for each `block` weights of a row, or for a row; codes of channels are transposed. "
        "Experts: blocks of each expert's rows."
    )
    bits: Literal[4, 8]
    block: int | None
    scales: str = Field(description="Name of the tensor of scales.")
    zero_points: str | None = Field(
        description="Name of the tensor of zero points; null: 2^(bits - 1) for blocks, 0 for channels."
    )
    transposed: bool = Field(
        default=False, description="The parameter has [inputs, outputs] of each expert."
    )
    paired: bool = Field(
        default=False,
        description="Rows of the first and the second half of an expert's outputs in turns.",
    )
    minimums: str | None = Field(
        default=None, description="Name of the tensor of minimums of blocks; null: there are none."
    )
    low_codes: str | None = Field(
        default=None,
        description="Name of the tensor of the low halves of codes of 8 bits, which are packed as codes of 4 bits, "
        "as the high halves are; null: codes are whole.",
    )
    low_zero_points: str | None = Field(
        default=None, description="Name of the tensor of the low halves of zero points."
    )

    @staticmethod
    def of(codes: Part) -> EncodingRecord:
        how = codes.encoding
        return EncodingRecord(
            kind=how.kind,
            bits=how.bits,
            block=how.block or None,
            scales=f"{codes.weight}_scales",
            zero_points=None if how.symmetric else f"{codes.weight}_zero_points",
            transposed=how.transposed,
            paired=how.paired,
            minimums=f"{codes.weight}_minimums" if how.packing == "Q4_1" else None,
            low_codes=f"{codes.weight}_low_codes" if how.halves else None,
            low_zero_points=f"{codes.weight}_low_zero_points" if how.halves else None,
        )


# which weights are quantised, and how


def quantization_of(
    options: QuantizeOptions, profile: Profile, in_float32: bool = False
) -> QuantizationRecord:
    """What is to become of each kind of weights; products are ``in_float32`` unless another level was asked for.

    Raises LG707 for a scheme that does not exist or that the provider of ``profile`` cannot compute, LG708 for a block
    size or an accuracy level.
    """
    level = options.accuracy_level
    if level is None:  # at 4 the kernel for WebGPU is off by up to 0.9 of the logits' spread
        level = 1 if in_float32 or profile.provider == WEBGPU else 4
    for what, number, known in (
        ("a block of {} weights", options.block_size, BLOCK_SIZES),
        ("an accuracy level of {}", level, ACCURACY_LEVELS),
    ):
        if number not in known:
            message = f"{what.format(number)} is not possible; known: {', '.join(map(str, known))}"
            raise LlamagenError.of("LG708", message)
    every: tuple[SchemeName, ...] = get_args(SchemeName)
    # A table is read row by row, and experts by operators of their own: none has scales by channel.
    in_blocks = every[:-1]
    linear = _scheme(options.scheme or "none", every)
    # measured on a trained model (bench/README.md): what four bits cost the head, and what one scale for all inputs
    # costs the sensitive projections, is most of the whole loss
    head = _scheme(options.head or ("int8" if linear == "int4" else linear), every)
    embedding = _scheme(options.embedding or "none", in_blocks)
    careful: SchemeName = "int8" if linear in ("int4", "w8a8") else linear
    sensitive = _scheme(options.sensitive or careful, every)
    if "w8a8" in (linear, sensitive, head) and profile.provider != CPU:
        raise LlamagenError.of(
            "LG707",
            f"w8a8 is computed by a kernel that only the CPU has; the profile is {profile.name}",
            help="use int8 or int4, or the profile ort-cpu",
        )
    return QuantizationRecord(
        linear=linear,
        sensitive=sensitive,
        head=head,
        embedding=embedding,
        tied=embedding if options.embedding is not None else _in_blocks(head),
        experts=_scheme(options.experts or _in_blocks(linear), in_blocks),
        block_size=options.block_size,
        symmetric=not options.asymmetric,
        accuracy_level=level,
    )


def _scheme(name: str, known: tuple[SchemeName, ...]) -> SchemeName:
    message = f"weights cannot be quantised as {name!r}; known: {', '.join(known)}"
    return one_of(name, known, "LG707", message)


def _in_blocks(scheme: SchemeName) -> SchemeName:
    """What stands for ``scheme`` where there is no operator for scales by channel: 8 bits in blocks."""
    return "int8" if scheme == "w8a8" else scheme


def _encoding(scheme: SchemeName, chosen: QuantizationRecord) -> Encoding | None:
    match scheme:
        case "none":
            return None
        case "w8a8":
            return Encoding("channels")
        case _:
            size, level = chosen.block_size, chosen.accuracy_level
            return Encoding("blocks", 4 if scheme == "int4" else 8, size, chosen.symmetric, level)


def expert_codes(chosen: QuantizationRecord) -> ExpertCodes | None:
    """What rules of a profile may ask about quantised experts."""
    how = _encoding(chosen.experts, chosen)
    return None if how is None else ExpertCodes(how.bits, how.block, how.accuracy_level)


def encodings(
    flat: FlatGraph,
    shapes: Mapping[str, tuple[int, ...]],
    chosen: QuantizationRecord,
    kept: Mapping[str, str] = MappingProxyType({}),
    provider: str = CPU,
) -> Mapping[str, Encoding]:
    """Weight name -> encoding: the choice applied to a graph. ``kept`` stay as GGUF's types that they are packed in.

    Routers stay exact: a small weight decides which expert runs. Rows of a table are gathered block by block: where
    they are no whole blocks, its blocks are smaller. Raises LG709 where none fits.
    """
    readers: dict[str, list[FlatNode]] = defaultdict(list)
    for node in flat.nodes:
        for operand in node.operands:
            readers[operand].append(node)
    linear = {n.parameters["weight"]: n for n in flat.nodes if n.row.role is Role.LINEAR}
    tables = {n.parameters["weight"] for n in flat.nodes if n.row.role is Role.EMBEDDING}
    heads, sensitive = heads_of(flat), sensitive_of(flat, chosen.linear)
    schemes: dict[str, SchemeName] = dict.fromkeys(tables - set(linear), chosen.embedding)
    for name, node in linear.items():
        if name in tables:
            schemes[name] = chosen.tied
        elif name in heads:
            schemes[name] = chosen.head
        elif name in sensitive:
            schemes[name] = chosen.sensitive
        elif not _routes(node, readers):
            schemes[name] = chosen.linear
    applied = {n: how for n, scheme in schemes.items() if (how := _encoding(scheme, chosen))}
    for name in (tables | set(linear)) & set(kept):
        applied[name] = Encoding.kept(kept[name], chosen.accuracy_level)
    experts = _encoding(chosen.experts, chosen)
    for node in flat.nodes:
        if experts is not None and node.row.role is Role.EXPERTS:
            transposed = a_str(node.attrs, "layout") == "in_out"
            for local, name in node.parameters.items():
                paired = local == "gate_up_proj"
                applied[name] = replace(
                    experts, kind="experts", transposed=transposed, paired=paired
                )
    for name in tables & set(applied):
        fitting = [s for s in BLOCK_SIZES if s <= applied[name].block and shapes[name][1] % s == 0]
        if not fitting:
            raise LlamagenError.of(
                "LG709",
                f"the rows of the embedding `{name}` have {shapes[name][1]} features, which are no whole blocks of "
                f"{applied[name].block} or less",
                help="leave it as it is: --quantize-embedding none",
            )
        applied[name] = replace(applied[name], block=fitting[-1])
    for name, how in applied.items():
        floats = how.kind == "blocks" and how.accuracy_level != _INTEGERS
        if floats and how.bits == 8 and name in linear and provider == CPU:
            applied[name] = replace(how, halves=True)
    return applied


def sensitive_of(flat: FlatGraph, linear: SchemeName) -> set[str]:
    """Weights of projections that lose most where the others are ``linear``: down projections and what attention reads.

    A down projection multiplies what other projections of its layer make, element by element. With w8a8 those of every
    layer, and what reads attention: one scale serves all inputs of a token, and few of these are far larger than the
    others (arXiv 2208.07339, 2402.17762). With four bits those of the first, the last and every third layer; llama.cpp
    (Q4_K_M) and the builder of onnxruntime-genai (k_quant_mixed) choose layers alike. With w8a8 these layers have the
    makers of what goes down too, gate and up projections.
    """
    makers = {r: n for n in flat.nodes for r in n.results}
    paths = [layer.path for layer in flat.layers]
    last, every = len(paths) - 1, linear == "w8a8"
    thirds = {p for i, p in enumerate(paths) if i in (0, last) or i % 3 == 2}
    chosen = set(paths) if every else thirds

    def within(node: FlatNode) -> str | None:
        return next((p for p in paths if node.path.startswith(f"{p}.")), None)

    def of_projections(value: str, hop: int = 0) -> bool:
        node = makers.get(value)
        if node is None:
            return False
        if node.row.role is Role.LINEAR:
            return hop > 0
        through = node.row.elementwise or node.row.role is Role.SPLIT
        return through and all(of_projections(operand, hop + 1) for operand in node.operands)

    def attends(node: FlatNode) -> bool:
        return node.row.role is Role.ATTENTION or node.row.state is State.OWN_SLOT

    def read_by(node: FlatNode) -> Iterator[FlatNode]:
        """The nearest projections and attentions of the same layer."""
        behind, seen = list(node.operands), set[str]()
        while behind:
            value = behind.pop()
            maker = makers.get(value)
            if maker is None or value in seen or within(maker) != within(node):
                continue
            seen.add(value)
            if maker.row.role is Role.LINEAR or attends(maker):
                yield maker
            else:
                behind += maker.operands

    found: set[str] = set()
    for node in flat.nodes:
        if within(node) not in chosen:
            continue
        if attends(node):
            found |= {n.parameters["weight"] for n in read_by(node) if not attends(n)}
        elif node.row.role is Role.LINEAR:
            down = of_projections(node.operands[0])
            if down or (every and any(map(attends, read_by(node)))):
                found.add(node.parameters["weight"])
            if down and every and within(node) in thirds:
                found |= {n.parameters["weight"] for n in read_by(node) if not attends(n)}
    return found


def heads_of(flat: FlatGraph) -> set[str]:
    """Weights of the linear ops whose results, perhaps capped or scaled, are outputs."""
    makers = {r: n for n in flat.nodes for r in n.results}
    heads: set[str] = set()
    for output in flat.outputs:
        node = makers.get(output)
        while node is not None and (len(node.operands) == 1 or node.row.role is Role.CHOSEN_ROWS):
            if node.row.role is Role.LINEAR:
                break
            node = makers.get(node.operands[0])
        if node is not None and node.row.role is Role.LINEAR:
            heads.add(node.parameters["weight"])
    return heads


def _routes(node: FlatNode, readers: Mapping[str, list[FlatNode]]) -> bool:
    """Whether an op that picks experts reads the result."""
    reached = [node]
    for _ in range(_ROUTING_HOPS):
        reached = [reader for one in reached for r in one.results for reader in readers.get(r, ())]
        if any(reader.row.role is Role.CHOICE for reader in reached):
            return True
        reached = [reader for reader in reached if reader.row.role is not Role.LINEAR]
    return False
