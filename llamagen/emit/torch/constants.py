"""Numbers of a graph as the spec wrote them: ``NUM_HEADS * HEAD_DIM`` instead of 2048."""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.emit.torch.names import constant_name
from llamagen.ops.code import Binary, Code, Negative, Text, flat, literal
from llamagen.ops.op import AttrValue
from llamagen.spec.expr import Binary as BinaryExpr
from llamagen.spec.expr import Expr, ExpressionError, ListExpr, Literal_, Name, Unary, evaluate

_OPERATORS = ("+", "-", "*", "/", "//", "%", "**")


class Constants:
    """Module constants of one generated file: those that were printed, by name."""

    def __init__(self, scalars: Mapping[str, int | float | bool | str]) -> None:
        self.scalars = {
            name: value
            for name, value in scalars.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.order = [constant_name(name) for name in self.scalars]
        self.used: dict[str, int | float] = {}

    def code(self, value: AttrValue, source: Expr | None) -> Code:
        """The source expression over constants if it means exactly ``value``, else the literal."""
        if source is not None and not isinstance(source, Literal_) and self._means(source, value):
            code = self._expression(source)
            if code is not None:
                return code
        assert not isinstance(value, tuple)
        return literal(value)

    def codes(self, values: AttrValue, source: Expr | None) -> tuple[Code, ...]:
        """Each of a list of numbers, with its own source if the spec wrote a list."""
        assert isinstance(values, tuple)
        sources: tuple[Expr | None, ...] = (None,) * len(values)
        if isinstance(source, ListExpr) and len(source.items) == len(values):
            sources = source.items
        return tuple(self.code(v, s) for v, s in zip(values, sources, strict=True))

    def number_like(self, value: int | float, name: str, define: str = "") -> str:
        """The hyperparameter ``name`` if it has this value; else a constant ``define``, or the literal."""
        if self.scalars.get(name) == value:
            return flat(self.code(value, Name(name)))
        return self.define(define, value).text if define else literal(value).text

    def one_below(self, value: int, *names: str) -> str:
        """``value`` as the first of the hyperparameters ``names`` that is one more, less one; else the literal."""
        name = next((n for n in names if self.scalars.get(n) == value + 1), None)
        if name is None:
            return literal(value).text
        return f"{self.number_like(value + 1, name)} - 1"

    def define(self, name: str, value: int | float) -> Text:
        """A constant that the graph has no scalar for, such as ``ROPE_THETA``."""
        reserved = dict(zip(self.order, self.scalars.values(), strict=True))
        n, chosen = 1, name
        while {**reserved, **self.used}.get(chosen, value) != value:
            n += 1
            chosen = f"{name}_{n}"
        self.used[chosen] = value
        return Text(chosen)

    def lines(self) -> tuple[tuple[str, str], ...]:
        """(name, literal) in the spec's order, then those that were defined."""
        rank = {name: i for i, name in enumerate(self.order)}
        names = sorted(self.used, key=lambda n: rank.get(n, len(rank)))
        return tuple((n, literal(self.used[n]).text) for n in names)

    def _means(self, source: Expr, value: AttrValue) -> bool:
        try:
            found = evaluate(source, self.scalars)
        except ExpressionError:
            return False
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        return found == value and (isinstance(found, int) == isinstance(value, int) or found == 0)

    def _expression(self, source: Expr) -> Code | None:
        match source:
            case Name(id=id):
                name = constant_name(id)
                self.used[name] = self.scalars[id]
                return Text(name)
            case Literal_(value=int() | float() as value):
                return literal(value)
            case Unary(op="-", operand=operand):
                inner = self._expression(operand)
                return Negative(inner) if inner is not None else None
            case BinaryExpr(op=op, left=left, right=right) if op in _OPERATORS:
                a, b = self._expression(left), self._expression(right)
                return Binary(op, a, b) if a is not None and b is not None else None
            case _:
                return None


def kept_text(constants: Constants, keep: int) -> str:
    """How many tokens a bounded slot keeps: one less than the window or the chunk that bounds it."""
    return constants.one_below(keep, "sliding_window", "attention_chunk_size")
