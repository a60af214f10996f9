"""A block's nodes as equations people can read and compare: temporaries inlined, names as the author chose them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from llamagen.diagnostics import Span
from llamagen.ir.graph import Block, Graph, Node
from llamagen.ops.op import Attrs, Role
from llamagen.ops.rope import ROPE_KINDS
from llamagen.spec.expr import Binary, ListExpr, Name, Static, unparse, unparse_static
from llamagen.spec.expr import names as names_in
from llamagen.spec.schema import Hyperparameters

_ADDITIVE: Final = frozenset({"+", "-"})
COMMUTATIVE: Final = frozenset({"+", "*"})


@dataclass(frozen=True, slots=True)
class Equation:
    """One line of a block, with the place it comes from. The last one begins with ``return``."""

    text: str
    span: Span | None


def equations(graph: Graph, block: Block) -> tuple[Equation, ...]:
    """The block's equations in order; options are resolved, so no condition is left in them."""
    return tuple(_Writer(graph, block).lines())


Names: TypeAlias = Mapping[str, str]
"""Name of a part -> the name it is written by."""
Fused: TypeAlias = Mapping[str, tuple[str, ...]]
"""Name of a linear part whose result is split -> names that its pieces have as parts of their own."""


def keys(graph: Graph, block: Block, names: Names) -> tuple[str, ...]:
    """``equations`` as they are compared: parts by ``names``, operands of ``+`` and ``*`` in alphabetic order."""
    return tuple(e.text for e in _Writer(graph, block, names=names).lines())


def meaning(
    graph: Graph, block: Block, names: Names, fused: Fused | None = None, *, rounded: bool = True
) -> tuple[str, ...]:
    """What a block returns, as hashes: equal for blocks that compute the same numbers by whatever names.

    Operands of ``+`` and ``*`` have no order. Parts are told by ``names``; those named in ``fused`` are their pieces,
    so a block that has these apart means the same. Without ``rounded`` sums and products of several are the same in
    any order, which is true but for rounding. Static arguments are compared as settings and are none of it.
    """
    return _Meaning(graph, block, names, fused or {}, rounded).results()


def option_values(block: Block) -> str:
    """``kind=chunked`` of a specialised block; empty for one without options."""
    return ", ".join(f"{name}={_quoted(value)}" for name, value in block.options.items())


def _quoted(value: Static) -> str:
    """A text that is not a plain word is quoted: it must not look like the rest of the line, or end it."""
    plain = not isinstance(value, str) or re.fullmatch(r"[\w.-]+", value, re.ASCII)
    return unparse_static(value) if plain else json.dumps(value)


class _Writer:
    def __init__(self, graph: Graph, block: Block, *, names: Names | None = None) -> None:
        self.names = names
        """Where equations are compared."""
        self.block = block
        self.prelude = {r: node for node in graph.prelude for r in node.results}
        self.uses = Counter(o for node in block.nodes for o in node.operands)
        self.uses.update(block.outputs)
        self.text: dict[str, str] = {}
        self.loose: set[str] = set()
        """Values whose text is a sum, which needs brackets inside a product."""

    def lines(self) -> list[Equation]:
        lines: list[Equation] = []
        for node in self.block.nodes:
            text, loose = self.expression(node)
            single = len(node.results) == 1
            value = self.block.values.get(node.results[0])
            named = value is not None and value.named
            if single and not named and self.uses[node.results[0]] == 1:
                self.text[node.results[0]] = text
                if loose:
                    self.loose.add(node.results[0])
                continue
            targets = ", ".join(self.target(r) for r in node.results)
            lines.append(Equation(f"{targets} = {text}", node.span))
        results = ", ".join(self.operand(o) for o in self.block.outputs)
        last = self.block.nodes[-1].span if self.block.nodes else self.block.span
        return [*lines, Equation(f"return {results}", last)]

    def target(self, value: str) -> str:
        return self.operand(value) if self.uses[value] else "_"

    def operand(self, value: str) -> str:
        if value in self.text:
            return self.text[value]
        if value.startswith("@"):
            source = self.prelude.get(value[1:])
            if source is None:
                return value[1:]
            arguments = self.arguments(source)
            return f"{source.op}({', '.join(arguments)})" if arguments else source.op
        # The builder numbers a name that is assigned twice: `k`, `k.1`.
        name = value.split(".", 1)[0]
        return name.replace("%", "v")

    def tight(self, value: str) -> str:
        text = self.operand(value)
        return f"({text})" if value in self.loose else text

    def expression(self, node: Node) -> tuple[str, bool]:
        sign, row = node.row.symbol, node.row
        if sign and len(node.operands) == 2:
            left, right = node.operands
            loose = sign in _ADDITIVE
            first = self.operand(left) if loose else self.tight(left)
            second = self.operand(right) if sign == "+" else self.tight(right)
            if self.names is not None and sign in COMMUTATIVE:
                first, second = sorted((first, second))
            return f"{first} {sign} {second}", loose
        if sign and "value" in node.attrs:
            operand = node.operands[0]
            loose = sign in _ADDITIVE
            left = self.operand(operand) if loose else self.tight(operand)
            return f"{left} {sign} {unparse_static(node.attrs['value'])}", loose
        if sign:
            return f"{sign}{self.tight(node.operands[0])}", False
        if row.role is Role.PARAMETER and node.part is not None:
            return self.part(node.part), False
        name = self.part(node.part) if node.part is not None else node.op
        operands = [self.operand(o) for o in node.operands]
        rotates = row.role is Role.ROTATION
        if rotates:
            name, operands = "rope", [operands[0], *self.rope(node)]
        if row.control:
            operands = [o for o, raw in zip(operands, node.operands, strict=True) if raw[0] != "@"]
        arguments = self.arguments(node) if node.part is None and not rotates else []
        return f"{name}({', '.join([*operands, *arguments])})", False

    def part(self, name: str) -> str:
        return self.names.get(name, name) if self.names is not None else name

    def rope(self, node: Node) -> list[str]:
        """The table's constants and the layout, as far as they are not those of plain RoPE."""
        table = self.prelude.get(node.operands[1].removeprefix("@"))
        if table is None or self.names is not None:
            return []
        if table.row.role is not Role.ROPE_TABLE:
            return [self.operand(node.operands[1]), *self.arguments(node)]
        scaling = str(table.attrs["scaling"])
        shown = {n: v for n, v in table.attrs.items() if n in _rope_names(scaling)}
        if scaling == "default":
            del shown["scaling"]
        return [*(f"{n}={_quoted(v)}" for n, v in shown.items()), *self.arguments(node)]

    def arguments(self, node: Node) -> list[str]:
        """Static arguments that are not the op's defaults; ``keys`` have none, they are compared as settings."""
        if self.names is not None:
            return []
        return [
            text if spec.name in _POSITIONAL else f"{spec.name}={text}"
            for spec in node.row.attrs
            if spec.required or node.attrs.get(spec.name) != spec.default
            for text in [_argument(node, spec.name)]
        ]


class _Meaning:
    """Values of a block as hashes of what they are computed from."""

    def __init__(
        self, graph: Graph, block: Block, names: Names, fused: Fused, rounded: bool
    ) -> None:
        self.producers = {r: node for node in block.nodes for r in node.results}
        self.prelude = {r: node for node in graph.prelude for r in node.results}
        self.inputs = {value.id: i for i, value in enumerate(block.inputs)}
        self.block = block
        self.names = names
        self.fused = fused
        self.rounded = rounded
        self.known: dict[str, str] = {}

    def results(self) -> tuple[str, ...]:
        kept = (node for node in self.block.nodes if node.row.state is not None)
        return tuple(map(self.of, [*self.block.outputs, *(n.results[0] for n in kept)]))

    def of(self, value: str) -> str:
        if value not in self.known:
            text = self.text(value)
            self.known[value] = hashlib.sha256(text.encode()).hexdigest()
        return self.known[value]

    def text(self, value: str) -> str:
        if value.startswith("@"):
            source = self.prelude.get(value[1:])
            return value if source is None else f"@{source.op}"
        if value not in self.producers:
            return f"input {self.inputs[value]}"
        node = self.producers[value]
        result = node.results.index(value)
        fused = self.producers.get(node.operands[0]) if node.row.role is Role.SPLIT else None
        if fused is not None and fused.part is not None and fused.part in self.fused:
            return self.applied(self.fused[fused.part][result], fused.operands, 0)
        sign = node.row.symbol
        if sign in COMMUTATIVE and len(node.operands) == 2:
            terms = sorted(map(self.of, self.terms(node, sign)))
            return f"{sign} {' '.join(terms)}"
        name = self.names.get(node.part, node.part) if node.part is not None else node.op
        extra = f" {unparse_static(node.attrs['value'])}" if sign and "value" in node.attrs else ""
        operands = node.operands
        if node.row.control:  # what a block below reads of the graph is its own matter
            operands = tuple(o for o in operands if o[0] != "@")
        return self.applied(f"{sign or name}{extra}", operands, result)

    def applied(self, name: str, operands: Sequence[str], result: int) -> str:
        return f"{name}({' '.join(map(self.of, operands))}) {result}"

    def terms(self, node: Node, sign: str) -> Iterator[str]:
        """Operands; without rounding those of a sum of sums."""
        for operand in node.operands:
            below = None if self.rounded else self.producers.get(operand)
            if below is not None and below.row.symbol == sign and len(below.operands) == 2:
                yield from self.terms(below, sign)
            else:
                yield operand


_POSITIONAL: Final = frozenset({"heads", "sizes", "shape", "axes"})


def _argument(node: Node, name: str) -> str:
    """The number; a size as its author wrote it, if that says the same for every block: in hyperparameters."""
    source = node.sources.get(name)
    if source is not None and name in SIZES and isinstance(source, Name | Binary | ListExpr):
        used = {n.id for n in names_in(source)}
        if used and used <= Hyperparameters.model_fields.keys():
            return unparse(source)
    return _quoted(node.attrs.get(name))


def settings(graph: Graph, node: Node, attrs: Attrs) -> dict[str, str]:
    """What an op computes with besides its operands: constants and switches, without any size.

    The rope table's and the mask's settings are shown at the ops that use them.
    """
    prelude = {f"@{r}": source for source in graph.prelude for r in source.results}
    shown = {name: unparse_static(v) for name, v in attrs.items() if name not in SIZES}
    for operand in node.operands:
        if operand in prelude:
            source = prelude[operand]
            kept = {n: v for n, v in source.attrs.items() if n not in SIZES}
            if source.row.role is Role.ROPE_TABLE:
                kept = {n: v for n, v in kept.items() if n in _rope_names(str(kept["scaling"]))}
            shown.update({name: unparse_static(value) for name, value in kept.items()})
    return shown


SIZES: Final = frozenset(
    {
        "features", "rows", "in_features", "out_features", "num_experts", "intermediate", "heads",
        "dim", "shape", "sizes", "stop", "bias", "tied_to", "kind",
    }
)  # fmt: skip
"""Attributes that make shapes and weights; all others are what an op computes with."""


def _rope_names(scaling: str) -> frozenset[str]:
    return frozenset({"theta", "scaling", *(a.name for a in ROPE_KINDS[scaling].attrs)})
