"""The history of the family at one look: every release, what was new in it, and what is often said wrongly about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from llamagen.analysis.records import Record
from llamagen.analysis.sources import WideClaim, claims
from llamagen.analysis.tables import static_text
from llamagen.ops.op import Role
from llamagen.ops.table import OPS
from llamagen.spec.expr import Static
from llamagen.units import count_short


@dataclass(frozen=True, slots=True)
class Release:
    """The models of one generation."""

    generation: str
    date: str
    ids: tuple[str, ...]
    sizes: tuple[str, ...]
    """Parameters, and those a token uses where that is not all."""
    architecture: str
    context: str
    """Tokens that its publisher promises."""
    techniques: tuple[str, ...]
    """What no earlier release had."""
    claims: tuple[tuple[int, WideClaim], ...]
    """Wide-spread claims about it, by number of spec/claims.yaml."""


def releases(family: Sequence[Record]) -> tuple[Release, ...]:
    """One of each generation of released models of the main line, by date."""
    generations: dict[str, list[Record]] = {}
    for record in family:
        generations.setdefault(static_text(record["generation"]), []).append(record)
    seen: set[str] = set()
    found: list[Release] = []
    for generation, unsorted in generations.items():
        records = sorted(unsorted, key=_count)
        traits = dict.fromkeys(text for record in records for text in _traits(record))
        new = tuple(text for text in traits if text not in seen)
        seen.update(traits)
        about = tuple((int(n), one) for n, one in claims().items() if generation in one.about)
        found.append(
            Release(
                generation,
                min(static_text(r["released"]) for r in records),
                tuple(r.id for r in records),
                tuple(dict.fromkeys(map(_size, records))),
                ", ".join(dict.fromkeys(map(_kind, records))),
                _range([r["context"] for r in records]),
                new,
                about,
            )
        )
    return tuple(found)


def _count(record: Record) -> int:
    params = record["params"]
    return params if isinstance(params, int) else 0


def _size(record: Record) -> str:
    active = record["active_params"]
    text = count_short(_count(record))
    chosen = record["num_experts"] is not None and isinstance(active, int)
    return f"{text} ({count_short(active)} active)" if chosen and isinstance(active, int) else text


def _kind(record: Record) -> str:
    dense = "dense" if record["num_experts"] is None else "mixture of experts"
    return f"{dense} with images" if record["vision_params"] else dense


def _range(values: Sequence[Static]) -> str:
    numbers = sorted({v for v in values if isinstance(v, int)})
    return (
        " to ".join(f"{n:,}" for n in dict.fromkeys((numbers[0], numbers[-1]))) if numbers else ""
    )


_TRAITS: tuple[tuple[str, Callable[[Record], Static]], ...] = (
    ("RMSNorm before every block", lambda r: r["norm"] == "rms_norm"),
    ("SwiGLU", lambda r: r["hidden_act"] == "silu"),
    ("rotary positions (RoPE)", lambda r: r["rope_kind"] is not None),
    ("grouped-query attention (GQA)", lambda r: r["attention"] == "GQA"),
    ("a tiktoken tokenizer", lambda r: r["tokenizer"] == "tiktoken"),
    ("the head tied to the embedding", lambda r: r["tie_embeddings"] is True),
    ("mixture of experts", lambda r: bool(r["moe_layers"])),
    ("attention within chunks", lambda r: r["attention_chunk_size"] is not None),
    ("global layers without positions (NoPE)", lambda r: bool(r["nope_layers"])),
    ("a temperature of queries", lambda r: r["attention_temperature_scale"] is not None),
    ("QK norm", lambda r: r["qk_norm"] is True),
)


def _traits(record: Record) -> Iterator[str]:
    yield from (name for name, has in _TRAITS if has(record))
    if isinstance(vocabulary := record["vocab_size"], int):
        yield f"a vocabulary of {vocabulary:,}"
    if record["rope_kind"] not in (None, "default"):
        yield f"RoPE scaled by {record['rope_kind']} (factor {record['rope_factor']})"
    if record["vision_params"]:
        ops = record.architecture.ops if record.architecture is not None else ()
        fused = any(OPS[op].role is Role.PLACEHOLDERS for op in ops)
        yield f"images by {'early fusion' if fused else 'cross-attention'}"


def text(found: Sequence[Release]) -> str:
    """A paragraph a release; a claim about several stands with the first of them."""
    said: set[int] = set()
    return "".join(f"{line}\n" for one in found for line in _lines(one, said)).removeprefix("\n")


def _lines(one: Release, said: set[int]) -> Iterator[str]:
    yield ""
    yield f"LLaMA {one.generation}  {one.date}"
    yield f"  sizes         {', '.join(one.sizes)}"
    yield f"  architecture  {one.architecture}"
    yield f"  context       {one.context} tokens"
    yield f"  new           {'; '.join(one.techniques) or 'nothing in the architecture'}"
    for number, claim in one.claims:
        if number in said:
            continue
        said.add(number)
        yield f"  often said    {number}. {claim.claim}"
        yield f"    {claim.verdict:<11} {' '.join(claim.fact.split())} [{'; '.join(claim.sources)}]"


def json_text(found: Sequence[Release]) -> str:
    """A list of releases; claims with number, verdict, fact, sources and a command."""
    documents = [
        asdict(one) | {"claims": [{"number": n} | c.model_dump() for n, c in one.claims]}
        for one in found
    ]
    return json.dumps({"version": 1, "releases": documents}, indent=2, ensure_ascii=False) + "\n"
