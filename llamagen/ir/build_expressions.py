"""Expressions of block equations: each is a static value or a typed tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamagen.diagnostics import did_you_mean
from llamagen.ir.attrs import Given, bind
from llamagen.ir.build_body import Body
from llamagen.ir.build_parts import PartDeclaration
from llamagen.ir.build_site import RecordingScope
from llamagen.ir.build_sugar import SUGAR, arithmetic
from llamagen.ir.build_terms import Broken, Constant, Listed, Several, Tensor, Term, size
from llamagen.ir.graph import BlockPart, OpPart, StackPart
from llamagen.ops.op import DType, Op, Role, TensorType
from llamagen.ops.table import OPS
from llamagen.spec.evaluate import FUNCTIONS, Static, UnknownName, evaluate, is_true
from llamagen.spec.expr import (
    Binary,
    Call,
    Conditional,
    Expr,
    ExpressionError,
    Extent,
    ListExpr,
    Literal_,
    Name,
    Unary,
)


class Expressions:
    """What the names of a block stand for, and so what its expressions are worth."""

    def __init__(
        self, body: Body, scope: RecordingScope, declarations: Mapping[str, PartDeclaration]
    ) -> None:
        self.body = body
        self.scope = scope
        self.declarations = declarations
        self.names: dict[str, Term | None] = {}
        self.read: set[str] = set()

    def tensor(self, expr: Expr) -> Tensor:
        term = self.term(expr)
        match term:
            case Tensor():
                return term
            case Constant():
                raise ExpressionError("needs a tensor here, found a number or text", expr.extent)
            case Listed(items=items):
                message = f"is a list of {len(items)} tensors: `concat` makes one of them"
                raise ExpressionError(message, expr.extent)
            case Several(items=items):
                raise ExpressionError(f"has {len(items)} results: name them first", expr.extent)

    def term(self, expr: Expr) -> Term:
        match expr:
            case Literal_(value=value):
                return Constant(value)
            case Name():
                return self.name(expr)
            case Call(function=Name()):
                return self.call(expr)
            case Binary(op=("+" | "-" | "*" | "/") as op, left=left, right=right):
                return arithmetic(self, op, self.term(left), self.term(right), expr)
            case Unary(op="-", operand=operand):
                term = self.term(operand)
                if isinstance(term, Tensor):
                    return self.body.apply(OPS["neg"], [term], {}, expr.extent)
                return Constant(evaluate(expr, self.scope))
            case Conditional(then=then, test=test, otherwise=otherwise):
                return self.term(then if is_true(self.static(test), test) else otherwise)
            case ListExpr(items=items):
                return Constant(tuple(self.size(item) for item in items))
            case _:
                return Constant(self.static(expr))

    def size(self, item: Expr) -> Static:
        """An item of a list: B, S, T and I stay names there, for shapes."""
        return size(item, self.static, self.scope)

    def static(self, expr: Expr) -> Static:
        local = {n: t.value for n, t in self.names.items() if isinstance(t, Constant)}
        self.read |= local.keys()
        try:
            return evaluate(expr, _Layered(local, self.scope))
        except UnknownName as error:
            if error.name in self.names or error.name in self.declarations:
                if error.name in self.names and self.names[error.name] is None:
                    raise Broken from None
                message = (
                    f"`{error.name}` is a tensor; only numbers known in advance can stand here"
                )
                raise ExpressionError(message, error.extent) from None
            raise

    def name(self, expr: Name) -> Term:
        if expr.id in self.names:
            self.read.add(expr.id)
            term = self.names[expr.id]
            if term is None:
                raise Broken
            return term
        if expr.id in self.body.site.everywhere:
            return Tensor(f"@{expr.id}", self.body.site.level_type(expr.id))
        if expr.id in self.declarations:
            declaration = self.declarations[expr.id]
            if declaration.broken:
                raise Broken
            if declaration.op is not None and declaration.op.row.role is Role.PARAMETER:
                return self.call_op_part(declaration.op, [], expr.extent)
            message = f"`{expr.id}` is a part: call it, as in `{expr.id}(x)`"
            raise ExpressionError(message, expr.extent)
        if expr.id in self.scope:
            return Constant(self.scope[expr.id])
        raise UnknownName(expr.id, expr.extent)

    def call(self, expr: Call) -> Term:
        assert isinstance(expr.function, Name)
        function = expr.function.id
        if function in self.declarations:
            return self.call_part(self.declarations[function], expr)
        if function in SUGAR:
            return SUGAR[function](self, expr)
        if function in OPS:
            return self.call_op(OPS[function], expr)
        if function in FUNCTIONS:
            return Constant(self.static(expr))
        known = [*self.declarations, *(o for o in OPS if not OPS[o].internal), *SUGAR]
        hint = did_you_mean(function, known)
        help = (
            f"did you mean `{hint}`?" if hint else "functions are the ops of `llamagen explain ops`"
        )
        raise ExpressionError(f"there is no part or op `{function}`", expr.function.extent, help)

    def call_part(self, declaration: PartDeclaration, expr: Call) -> Term:
        if declaration.broken:
            for argument in expr.arguments:
                self.term(argument)
            raise Broken
        if expr.keywords:
            message = "a part is called with tensors; options belong to its declaration"
            raise ExpressionError(message, expr.keywords[0][1].extent)
        operands = [self.tensor(a) for a in expr.arguments]
        if declaration.op is not None:
            return self.call_op_part(declaration.op, operands, expr.extent)
        types = [o.type for o in operands]
        if declaration.block is not None:
            name, options = declaration.block
            self.check_count(name, types, expr)
            made = self.body.site.specialise(name, options, types)
            if made is None:
                return self.assume_kept(operands)
            self.body.add_part(BlockPart(declaration.name, made.key, declaration.span), expr.extent)
            self.body.context |= made.context
            return self.body.emit("call", operands, made.outputs, {}, expr.extent, declaration.name)
        keys: list[str] = []
        for name, options in declaration.layers:
            self.check_count(name, types, expr)
            made = self.body.site.specialise(name, options, types)
            if made is None:
                return self.assume_kept(operands)
            if made.outputs != (types[0],):
                found = ", ".join(map(str, made.outputs))
                message = f"layer {len(keys)} of `{declaration.name}` turns {types[0]} into {found}"
                raise ExpressionError(f"{message}: a stack must keep its type", expr.extent)
            keys.append(made.key)
            self.body.context |= made.context
        stack = StackPart(declaration.name, tuple(keys), declaration.span, declaration.count_source)
        self.body.add_part(stack, expr.extent)
        return self.stacked(declaration, operands, expr.extent)

    def stacked(
        self, declaration: PartDeclaration, operands: Sequence[Tensor], extent: Extent
    ) -> Term:
        """The carried tensor after the last layer; with ``collect`` also a list of those states."""
        collected = declaration.collect
        if collected is None:
            return self.body.emit(
                "stack", operands, [operands[0].type], {}, extent, declaration.name
            )
        types = [operands[0].type] * (1 + len(collected))
        attrs = {"collect": collected}
        made = self.body.emit("stack", operands, types, attrs, extent, declaration.name)
        assert isinstance(made, Several)
        first, *states = (t for t in made.items if isinstance(t, Tensor))
        return Several((first, Listed(tuple(states))))

    def assume_kept(self, operands: Sequence[Tensor]) -> Tensor:
        """Result of a broken block, so that the equations after it are still checked: most keep their type."""
        if not operands or operands[0].type.dtype is not DType.MODEL:
            raise Broken
        return operands[0]

    def check_count(self, block: str, types: Sequence[TensorType], expr: Call) -> None:
        inputs = self.body.site.spec.blocks[block].inputs
        if len(types) != len(inputs):
            message = f"block `{block}` takes {len(inputs)} tensors ({', '.join(inputs)})"
            raise ExpressionError(f"{message}, here are {len(types)}", expr.extent)

    def call_op_part(self, part: OpPart, operands: Sequence[Tensor], extent: Extent) -> Term:
        self.body.add_part(part, extent)
        op = OPS[part.op]
        self.check_operands(op, operands, extent, part.name)
        results = self.body.shape(op, operands, part.attrs, extent)
        return self.body.emit(op.name, operands, results, part.attrs, extent, part.name)

    def call_op(self, op: Op, expr: Call) -> Term:
        if op.internal or op.is_part:
            how = "declare it under `parts` and call the part" if op.is_part else "use its operator"
            raise ExpressionError(f"`{op.name}` cannot be called here: {how}", expr.extent)
        terms = [(self.term(a), a) for a in expr.arguments]
        operands: list[Tensor] = []
        while terms:
            first = terms[0][0]
            if isinstance(first, Tensor):
                operands.append(first)
            elif isinstance(first, Listed) and op.variadic:
                operands.extend(first.items)
            else:
                break
            terms.pop(0)
        positional = [self.given(term, a) for term, a in terms]
        named = {k: self.given(self.term(a), a) for k, a in expr.keywords}
        attrs, sources = bind(op, positional, named, expr.extent)
        self.check_operands(op, operands, expr.extent, op.name)
        return self.body.apply(op, operands, attrs, expr.extent, sources)

    def given(self, term: Term, expr: Expr) -> Given:
        if not isinstance(term, Constant):
            raise ExpressionError("tensors come before static arguments", expr.extent)
        return term.value, expr

    def check_operands(self, op: Op, operands: Sequence[Tensor], extent: Extent, name: str) -> None:
        least = len(op.operands)
        most = least + len(op.optional_operands)
        if len(operands) < least or (len(operands) > most and not op.variadic):
            takes = ", ".join((*op.operands, *op.optional_operands)) or "no tensors"
            message = f"`{name}` takes {takes}; here {_are(len(operands))}"
            raise ExpressionError(message, extent)


class _Layered(dict[str, Static]):
    """Local numbers first, then the block's scope (read through, so that reads are recorded)."""

    def __init__(self, local: Mapping[str, Static], outer: RecordingScope) -> None:
        super().__init__(local)
        self.outer = outer

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.outer

    def __missing__(self, name: str) -> Static:
        return self.outer[name]


def _are(count: int) -> str:
    return {0: "are none", 1: "is 1"}.get(count, f"are {count}")
