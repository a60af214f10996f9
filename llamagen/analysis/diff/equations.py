"""A block's nodes as equations people can read and compare: temporaries inlined, names as the author chose them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from llamagen.diagnostics import Span
from llamagen.ir.graph import Block, Graph, Node
from llamagen.ops.op import Attrs, Role
from llamagen.ops.rope import ROPE_KINDS
from llamagen.spec.expr import Binary, ListExpr, Name, Static, names, unparse, unparse_static
from llamagen.spec.schema import Hyperparameters

_ADDITIVE: Final = frozenset({"+", "-"})


@dataclass(frozen=True, slots=True)
class Equation:
    """One line of a block, with the place it comes from. The last one begins with ``return``."""

    text: str
    span: Span | None


def equations(graph: Graph, block: Block) -> tuple[Equation, ...]:
    """The block's equations in order; options are resolved, so no condition is left in them."""
    return tuple(_Writer(graph, block, keep_names=True).lines())


Fused: TypeAlias = Mapping[str, tuple[str, ...]]
"""Name of a linear part whose result is split -> names that its pieces have as parts of their own."""


def canonical(graph: Graph, block: Block, fused: Fused | None = None) -> tuple[str, ...]:
    """As ``equations`` without the author's names: equal for blocks that differ in names of values only.

    Parts named in ``fused`` are written as their pieces: a block that has these apart gives the same text.
    """
    return tuple(e.text for e in _Writer(graph, block, keep_names=False, fused=fused).lines())


def option_values(block: Block) -> str:
    """``kind=chunked`` of a specialised block; empty for one without options."""
    return ", ".join(f"{name}={_quoted(value)}" for name, value in block.options.items())


def _quoted(value: Static) -> str:
    """A text that is not a plain word is quoted: it must not look like the rest of the line, or end it."""
    plain = not isinstance(value, str) or re.fullmatch(r"[\w.-]+", value, re.ASCII)
    return unparse_static(value) if plain else json.dumps(value)


class _Writer:
    def __init__(
        self, graph: Graph, block: Block, *, keep_names: bool, fused: Fused | None = None
    ) -> None:
        self.fused = fused or {}
        self.producers = {r: node for node in block.nodes for r in node.results}
        self.block = block
        self.keep_names = keep_names
        self.numbers: dict[str, int] = {}
        self.prelude = {r: node for node in graph.prelude for r in node.results}
        self.uses = Counter(o for node in block.nodes for o in node.operands)
        self.uses.update(block.outputs)
        self.text: dict[str, str] = {}
        self.loose: set[str] = set()
        """Values whose text is a sum, which needs brackets inside a product."""

    def lines(self) -> list[Equation]:
        lines: list[Equation] = []
        for node in self.block.nodes:
            if node.part in self.fused:
                continue
            if (pieces := self.pieces(node)) is not None:
                for result, text in zip(node.results, pieces, strict=True):
                    if self.uses[result] == 1:
                        self.text[result] = text
                    else:
                        lines.append(Equation(f"{self.target(result)} = {text}", node.span))
                continue
            text, loose = self.expression(node)
            single = len(node.results) == 1
            value = self.block.values.get(node.results[0])
            named = self.keep_names and value is not None and value.named
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

    def pieces(self, node: Node) -> list[str] | None:
        """The results of a split of a fused part, as if each were a part; none for any other node."""
        source = self.producers.get(node.operands[0]) if node.row.role is Role.SPLIT else None
        if source is None or source.part is None or source.part not in self.fused:
            return None
        operands = ", ".join(self.operand(o) for o in source.operands)
        return [f"{name}({operands})" for name in self.fused[source.part]]

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
        if not self.keep_names:
            return f"v{self.numbers.setdefault(value, len(self.numbers))}"
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
            if sign in _ADDITIVE:
                after = self.tight(right) if sign == "-" else self.operand(right)
                return f"{self.operand(left)} {sign} {after}", True
            return f"{self.tight(left)} {sign} {self.tight(right)}", False
        if sign and "value" in node.attrs:
            operand = node.operands[0]
            loose = sign in _ADDITIVE
            left = self.operand(operand) if loose else self.tight(operand)
            return f"{left} {sign} {unparse_static(node.attrs['value'])}", loose
        if sign:
            return f"{sign}{self.tight(node.operands[0])}", False
        if row.role is Role.PARAMETER and node.part is not None:
            return node.part, False
        name = node.part if node.part is not None else node.op
        operands = [self.operand(o) for o in node.operands]
        rotates = row.role is Role.ROTATION
        if rotates:
            name, operands = "rope", [operands[0], *self.rope(node)]
        if row.control:
            operands = [o for o, raw in zip(operands, node.operands, strict=True) if raw[0] != "@"]
        arguments = self.arguments(node) if node.part is None and not rotates else []
        return f"{name}({', '.join([*operands, *arguments])})", False

    def rope(self, node: Node) -> list[str]:
        """The table's constants and the layout, as far as they are not those of plain RoPE."""
        table = self.prelude.get(node.operands[1].removeprefix("@"))
        if table is None or not self.keep_names:
            return []
        if table.row.role is not Role.ROPE_TABLE:
            return [self.operand(node.operands[1]), *self.arguments(node)]
        scaling = str(table.attrs["scaling"])
        shown = {n: v for n, v in table.attrs.items() if n in _rope_names(scaling)}
        if scaling == "default":
            del shown["scaling"]
        return [*(f"{n}={_quoted(v)}" for n, v in shown.items()), *self.arguments(node)]

    def arguments(self, node: Node) -> list[str]:
        """Static arguments that are not the op's defaults. They are compared as settings, so ``canonical`` has none."""
        if not self.keep_names:
            return []
        return [
            text if spec.name in _POSITIONAL else f"{spec.name}={text}"
            for spec in node.row.attrs
            if spec.required or node.attrs.get(spec.name) != spec.default
            for text in [_argument(node, spec.name)]
        ]


_POSITIONAL: Final = frozenset({"heads", "sizes", "shape", "axes"})


def _argument(node: Node, name: str) -> str:
    """The number; a size as its author wrote it, if that says the same for every block: in hyperparameters."""
    source = node.sources.get(name)
    if source is not None and name in SIZES and isinstance(source, Name | Binary | ListExpr):
        used = {n.id for n in names(source)}
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
        "dim", "shape", "sizes", "axes", "start", "stop", "bias", "tied_to", "kind",
    }
)  # fmt: skip
"""Attributes that make shapes and weights; all others are what an op computes with."""


def _rope_names(scaling: str) -> frozenset[str]:
    return frozenset({"theta", "scaling", *(a.name for a in ROPE_KINDS[scaling].attrs)})
