"""Which weights are quantised, and how: projections, experts, the head and the embedding are chosen apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from llamagen.analysis.rewrites import ExpertCodes
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.manifest import QuantizationRecord
from llamagen.emit.onnx.initializer import (
    BlockEncoding,
    ChannelEncoding,
    Encoding,
    ExpertEncoding,
)
from llamagen.emit.onnx.profile import Profile
from llamagen.emit.quantize_options import QuantizeOptions
from llamagen.ir.flatten import FlatGraph, FlatNode
from llamagen.ops.op import Role, a_str

Scheme: TypeAlias = Literal["none", "int4", "int8", "w8a8"]
TableScheme: TypeAlias = Literal["none", "int4", "int8"]

CPU_PROVIDER = "CPUExecutionProvider"

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 4)

_ROUTING_HOPS = 4


@dataclass(frozen=True, slots=True)
class Quantization:
    """The encodings of the kinds of weights; None leaves them in the model's dtype."""

    linear: Encoding | None
    head: Encoding | None
    embedding: BlockEncoding | None
    tied: BlockEncoding | None
    """Of a table that is both embedding and head."""
    experts: BlockEncoding | None

    def record(self, options: QuantizeOptions) -> QuantizationRecord | None:
        """For the manifest; None when nothing is quantised."""
        if self == NO_QUANTIZATION:
            return None
        return QuantizationRecord(
            linear=_scheme(self.linear),
            head=_scheme(self.head),
            embedding=_scheme(self.embedding),
            tied=_scheme(self.tied),
            experts=_scheme(self.experts),
            block_size=options.block_size,
            symmetric=not options.asymmetric,
            accuracy_level=options.accuracy_level,
        )


def _scheme(encoding: Encoding | None) -> Scheme:
    match encoding:
        case None:
            return "none"
        case ChannelEncoding():
            return "w8a8"
        case BlockEncoding(bits=bits) | ExpertEncoding(blocks=BlockEncoding(bits=bits)):
            return "int4" if bits == 4 else "int8"


NO_QUANTIZATION = Quantization(None, None, None, None, None)


def quantization_of(options: QuantizeOptions) -> Quantization:
    """Raises LG707 for a scheme, LG708 for a block size or an accuracy level, LG709 for what does not go together."""
    if options.block_size not in BLOCK_SIZES:
        raise _no_number("a block of {} weights", options.block_size, BLOCK_SIZES)
    if options.accuracy_level not in ACCURACY_LEVELS:
        raise _no_number("an accuracy level of {}", options.accuracy_level, ACCURACY_LEVELS)
    linear = _named(options.scheme, get_args(Scheme))
    head = linear if options.head is None else _named(options.head, get_args(Scheme))
    # A table is read row by row, so that scales by channel are of no use to it.
    shared = _without_channels(head)
    embedding = _named(options.embedding or "none", get_args(TableScheme))
    if options.embedding is not None:
        shared = embedding
    experts = _named(options.experts or _without_channels(linear), get_args(TableScheme))
    return Quantization(
        _encoding(linear, options),
        _encoding(head, options),
        _table(embedding, options),
        _table(shared, options),
        _table(experts, options),
    )


def _without_channels(scheme: str) -> str:
    """What stands for ``scheme`` where there is no operator for scales by channel: 8 bits in blocks."""
    return "int8" if scheme == "w8a8" else scheme


def expert_codes(chosen: Quantization) -> ExpertCodes | None:
    """What rules of a profile may ask about quantised experts."""
    match chosen.experts:
        case None:
            return None
        case BlockEncoding(bits=bits, block=block, accuracy_level=level):
            return ExpertCodes(bits, block, level)


def fits_provider(chosen: Quantization, profile: Profile) -> Quantization:
    """``chosen``, if the provider of ``profile`` has its kernels. Raises LG707."""
    channels = ChannelEncoding() in (chosen.linear, chosen.head)
    if channels and profile.provider != CPU_PROVIDER:
        raise LlamagenError.of(
            "LG707",
            f"w8a8 is computed by a kernel that only the CPU has; the profile is {profile.name}",
            help="use int8 or int4, or the profile ort-cpu",
        )
    return chosen


def _named(name: str, known: tuple[str, ...]) -> str:
    if name in known:
        return name
    near = did_you_mean(name, known)
    raise LlamagenError.of(
        "LG707",
        f"weights cannot be quantised as {name!r}; known: {', '.join(known)}",
        help=f"did you mean {near}?" if near else None,
    )


def _no_number(what: str, number: int, known: tuple[int, ...]) -> LlamagenError:
    return LlamagenError.of(
        "LG708", f"{what.format(number)} is not possible; known: {', '.join(map(str, known))}"
    )


def _encoding(scheme: str, options: QuantizeOptions) -> Encoding | None:
    return ChannelEncoding() if scheme == "w8a8" else _table(scheme, options)


def _table(scheme: str, options: QuantizeOptions) -> BlockEncoding | None:
    match scheme:
        case "int4" | "int8":
            return BlockEncoding(
                4 if scheme == "int4" else 8,
                options.block_size,
                not options.asymmetric,
                options.accuracy_level,
            )
        case _:
            return None


def encodings(
    flat: FlatGraph, shapes: Mapping[str, tuple[int, ...]], chosen: Quantization
) -> Mapping[str, Encoding]:
    """Weight name -> encoding: the choice applied to a graph.

    Routers stay exact: a small weight decides which expert runs.
    Raises LG709 for an embedding whose rows are not whole blocks.
    """
    readers: dict[str, list[FlatNode]] = defaultdict(list)
    for node in flat.nodes:
        for operand in node.operands:
            readers[operand].append(node)
    linear = {n.parameters["weight"]: n for n in flat.nodes if n.row.role is Role.LINEAR}
    tables = {n.parameters["weight"] for n in flat.nodes if n.row.role is Role.EMBEDDING}
    heads = _heads(flat)
    found: dict[str, Encoding] = {}
    for name, node in linear.items():
        if name in tables:
            choice: Encoding | None = chosen.tied
        elif name in heads:
            choice = chosen.head
        else:
            choice = None if _routes(node, readers) else chosen.linear
        if choice is not None:
            found[name] = choice
    for name in tables - set(linear):
        if chosen.embedding is not None:
            found[name] = chosen.embedding
    if chosen.experts is not None:
        for node in flat.nodes:
            if node.row.role is Role.EXPERTS:
                found |= _experts(node, chosen.experts)
    for name in tables & set(found):
        _whole_blocks(name, shapes[name], found[name])
    return found


def _experts(node: FlatNode, blocks: BlockEncoding) -> dict[str, Encoding]:
    transposed = a_str(node.attrs, "layout") == "in_out"
    return {
        name: ExpertEncoding(blocks, transposed, paired=local == "gate_up_proj")
        for local, name in node.parameters.items()
    }


def _heads(flat: FlatGraph) -> set[str]:
    """Weights of the linear ops whose results, perhaps capped or scaled, are outputs."""
    makers = {r: n for n in flat.nodes for r in n.results}
    found: set[str] = set()
    for output in flat.outputs:
        node = makers.get(output)
        while node is not None and (len(node.operands) == 1 or node.row.role is Role.CHOSEN_ROWS):
            if node.row.role is Role.LINEAR:
                break
            node = makers.get(node.operands[0])
        if node is not None and node.row.role is Role.LINEAR:
            found.add(node.parameters["weight"])
    return found


def _routes(node: FlatNode, readers: Mapping[str, list[FlatNode]]) -> bool:
    """Whether an op that picks experts reads the result."""
    reached = [node]
    for _ in range(_ROUTING_HOPS):
        reached = [reader for one in reached for r in one.results for reader in readers.get(r, ())]
        if any(reader.row.role is Role.CHOICE for reader in reached):
            return True
        reached = [reader for reader in reached if reader.row.role is not Role.LINEAR]
    return False


def _whole_blocks(name: str, shape: tuple[int, ...], encoding: Encoding) -> None:
    assert isinstance(encoding, BlockEncoding)
    if shape[1] % encoding.block:
        raise LlamagenError.of(
            "LG709",
            f"the rows of the embedding `{name}` have {shape[1]} features, which are no whole blocks of "
            f"{encoding.block}",
            help="choose another --block-size, or --quantize-embedding none",
        )
