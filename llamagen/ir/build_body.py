"""The body of a block while it is built: its values, nodes and parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamagen.ir.build_site import Site
from llamagen.ir.build_terms import Several, Tensor, Term
from llamagen.ir.graph import Node, Part, Value
from llamagen.ops.op import AttrValue, Op, ShapeError, TensorType
from llamagen.spec.expr import Expr, ExpressionError, Extent
from llamagen.spec.source_nodes import Scalar


class Body:
    """What the equations of a block have made so far; ``text`` is where they stand."""

    def __init__(self, site: Site, text: Scalar | None) -> None:
        self.site = site
        self.text = text
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.parts: dict[str, Part] = {}
        self.context: set[str] = set()

    def value(self, id: str, type_: TensorType, *, named: bool = False) -> Tensor:
        """A new value of the block."""
        self.values[id] = Value(id, type_, named)
        return Tensor(id, type_)

    def rename(self, term: Tensor, name: str) -> Tensor:
        """Give the last node's result the author's name; ids stay unique when a name is bound again."""
        fresh, n = name, 0
        while fresh in self.values:
            n += 1
            fresh = f"{name}.{n}"
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            if term.id in node.results:
                results = tuple(fresh if r == term.id else r for r in node.results)
                self.nodes[i] = replace(node, results=results)
                break
        del self.values[term.id]
        return self.value(fresh, term.type, named=True)

    def emit(
        self,
        op: str,
        operands: Sequence[Tensor],
        results: Sequence[TensorType],
        attrs: Mapping[str, AttrValue],
        extent: Extent,
        part: str | None = None,
        sources: Mapping[str, Expr] | None = None,
    ) -> Term:
        """A node with results of its own names (``%n``), until ``rename`` gives them the author's."""
        start = len(self.values)
        made = [self.value(f"%{start + i}", t) for i, t in enumerate(results)]
        span = self.text.slice_span(*extent) if self.text is not None else None
        self.context |= {t.id[1:] for t in operands if t.id.startswith("@")}
        ids = tuple(t.id for t in operands)
        done = tuple(m.id for m in made)
        self.nodes.append(Node(op, ids, done, dict(attrs), part, span, dict(sources or {})))
        return made[0] if len(made) == 1 else Several(tuple(made))

    def add_part(self, part: Part, extent: Extent) -> None:
        """Note a part at its first call. Raises ExpressionError for a call that wants another one."""
        if self.parts.get(part.name, part) != part:
            message = f"part `{part.name}` is called with operands of different types"
            raise ExpressionError(message, extent)
        self.parts[part.name] = part

    def shape(
        self, op: Op, operands: Sequence[Tensor], attrs: Mapping[str, AttrValue], extent: Extent
    ) -> tuple[TensorType, ...]:
        """Types of the op's results. Raises ExpressionError at ``extent``."""
        try:
            return op.shape([o.type for o in operands], attrs)
        except (ShapeError, ValueError) as error:
            raise ExpressionError(str(error), extent) from None

    def apply(
        self,
        op: Op,
        operands: Sequence[Tensor],
        attrs: Mapping[str, AttrValue],
        extent: Extent,
        sources: Mapping[str, Expr] | None = None,
    ) -> Term:
        """The op on these operands: a node here, or in the prelude where it depends on nothing of the block."""
        results = self.shape(op, operands, attrs, extent)
        if op.hoisted and all(o.id.startswith("@") for o in operands):
            made = self.hoist(op, operands, attrs, op.result_names or (op.name,), extent)
            return made[0] if len(made) == 1 else Several(made)
        return self.emit(op.name, operands, results, attrs, extent, None, sources)

    def hoist(
        self,
        op: Op,
        operands: Sequence[Tensor],
        attrs: Mapping[str, AttrValue],
        names: tuple[str, ...],
        extent: Extent,
    ) -> tuple[Tensor, ...]:
        """The op computed once for the whole model; its results are graph-level tensors."""
        self.shape(op, operands, attrs, extent)
        span = self.text.slice_span(*extent) if self.text is not None else None
        made = self.site.ambient(op.name, tuple(o.id for o in operands), attrs, names, span)
        return tuple(Tensor(f"@{n}", self.site.level_type(n)) for n in made)
