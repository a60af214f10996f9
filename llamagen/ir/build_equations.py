"""Block equations to nodes: every expression is either a static value or a typed tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llamagen.diagnostics import did_you_mean
from llamagen.ir.attrs import Given, bind
from llamagen.ir.build_notes import with_notes
from llamagen.ir.build_site import RecordingScope, Site
from llamagen.ir.build_sugar import SUGAR, arithmetic
from llamagen.ir.build_terms import (
    Broken,
    Constant,
    Listed,
    Several,
    Tensor,
    Term,
    size,
)
from llamagen.ir.graph import (
    AttrValue,
    BlockPart,
    DType,
    Node,
    OpPart,
    Part,
    StackPart,
    TensorType,
    Value,
)
from llamagen.ir.ops import OPS
from llamagen.ir.optypes import Op, ShapeError
from llamagen.spec.evaluate import FUNCTIONS, Static, UnknownName, evaluate
from llamagen.spec.expr import (
    Assign,
    Binary,
    Call,
    Conditional,
    Expr,
    ExpressionError,
    Extent,
    ListExpr,
    Literal_,
    Name,
    Return,
    Unary,
    parse_statements,
)
from llamagen.spec.validate import expression_error

if TYPE_CHECKING:
    from llamagen.ir.build_parts import PartDeclaration
    from llamagen.spec.source_nodes import Scalar

MAX_EQUATIONS = 400


class Equations:
    """The body of one block under construction."""

    def __init__(
        self,
        builder: Site,
        block: str,
        scope: RecordingScope,
        declarations: Mapping[str, PartDeclaration],
    ) -> None:
        self.builder = builder
        self.block = block
        self.scope = scope
        self.declarations = declarations
        self.text: Scalar | None = builder.resolved.scalar("blocks", block, "forward")
        self.names: dict[str, Term | None] = {}
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.parts: dict[str, Part] = {}
        self.context: set[str] = set()
        self.outputs: list[str] = []
        self.read: set[str] = set()
        self.assigned: dict[str, Extent] = {}

    def run(self, inputs: Sequence[str], types: Sequence[TensorType], forward: str) -> None:
        try:
            statements = parse_statements(forward)
            if len(statements) > MAX_EQUATIONS:
                raise ExpressionError(f"a block may have {MAX_EQUATIONS} equations", (0, 1))
            if len(inputs) != len(types):
                message = f"block `{self.block}` takes {', '.join(inputs)}: {len(inputs)} inputs"
                raise ExpressionError(f"{message}, not {len(types)}", (0, 1))
        except ExpressionError as error:
            self.report(error)
            return
        for name, type_ in zip(inputs, types, strict=True):
            self.names[name] = self.value(name, type_, named=True)
        for statement in statements:
            try:
                self.statement(statement)
            except ExpressionError as error:
                self.report(error)
                self.poison(statement)
            except Broken:
                self.poison(statement)
        self.find_unused(inputs)

    def report(self, error: ExpressionError) -> None:
        known = dict.fromkeys(
            [*self.names, *self.declarations, *self.scope, *self.builder.everywhere, *OPS]
        )
        code = "LG412" if isinstance(error, UnknownName) else "LG411"
        found = expression_error(code, self.text, error, known)
        notes = with_notes(found, self.builder.resolved, self.block, error.extent)
        self.builder.report(notes)

    def poison(self, statement: Assign | Return) -> None:
        if isinstance(statement, Assign):
            self.names.update({t.id: None for t in statement.targets})

    def find_unused(self, inputs: Sequence[str]) -> None:
        if any(term is None for term in self.names.values()) or not self.outputs:
            return
        for name, extent in self.assigned.items():
            if name not in self.read and name != "_":  # `_`: a result nobody wants
                self.report(ExpressionError(f"`{name}` is computed but never used", extent))
        if self.builder.findings:
            return
        for name in self.declarations:
            if name not in self.parts:
                node = self.builder.resolved.scalar("blocks", self.block, "parts", name)
                error = ExpressionError(f"part `{name}` is never called in `forward`", (0, 1))
                self.builder.report(expression_error("LG413", node, error, {}))
        for name in inputs:
            if name not in self.read:
                self.report(ExpressionError(f"input `{name}` is never used", (0, 1)))

    def statement(self, statement: Assign | Return) -> None:
        if isinstance(statement, Return):
            terms = [self.tensor(value) for value in statement.values]
            if any(t.id.startswith("@") for t in terms):
                raise ExpressionError("a block returns values that it computes", statement.extent)
            self.outputs = [t.id for t in terms]
            return
        term = self.term(statement.value)
        targets = statement.targets
        for target in targets:
            self.check_target(target)
        if len(targets) == 1:
            if isinstance(term, Several):
                count = len(term.items)
                message = f"{count} results need {count} names, here is one"
                raise ExpressionError(message, statement.extent)
            self.bind(targets[0], term)
            return
        if not isinstance(term, Several) or len(term.items) != len(targets):
            count = len(term.items) if isinstance(term, Several) else 1
            raise ExpressionError(f"{len(targets)} names for {count} results", statement.extent)
        for target, item in zip(targets, term.items, strict=True):
            self.bind(target, item)

    def check_target(self, target: Name) -> None:
        clash = next(
            (
                what
                for what, names in (
                    ("a part", self.declarations),
                    ("a hyperparameter, constant, pattern or option", self.scope),
                    ("known everywhere", self.builder.everywhere),
                )
                if target.id in names
            ),
            None,
        )
        if clash:
            raise ExpressionError(f"`{target.id}` is {clash}: choose another name", target.extent)

    def bind(self, target: Name, term: Tensor | Constant | Listed) -> None:
        self.assigned[target.id] = target.extent
        self.read.discard(target.id)
        if isinstance(term, Tensor) and term.id.startswith("%"):
            term = self.rename(term, target.id)
        if isinstance(term, Listed):
            fresh = [t for t in term.items if t.id.startswith("%")]
            made = {t.id: self.rename(t, target.id) for t in fresh}
            term = Listed(tuple(made.get(t.id, t) for t in term.items))
        self.names[target.id] = term

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
                self.nodes[i] = Node(
                    node.op, node.operands, results, node.attrs, node.part, node.span, node.sources
                )
                break
        del self.values[term.id]
        return self.value(fresh, term.type, named=True)

    def value(self, id: str, type_: TensorType, *, named: bool = False) -> Tensor:
        self.values[id] = Value(id, type_, named)
        return Tensor(id, type_)

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
        start = len(self.values)
        made = [self.value(f"%{start + i}", t) for i, t in enumerate(results)]
        span = self.text.slice_span(*extent) if self.text is not None else None
        self.context |= {t.id[1:] for t in operands if t.id.startswith("@")}
        ids = tuple(t.id for t in operands)
        done = tuple(m.id for m in made)
        self.nodes.append(Node(op, ids, done, dict(attrs), part, span, dict(sources or {})))
        return made[0] if len(made) == 1 else Several(tuple(made))

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
                    return self.apply(OPS["neg"], [term], {}, expr.extent)
                return Constant(evaluate(expr, self.scope))
            case Conditional(then=then, test=test, otherwise=otherwise):
                return self.term(then if self.static(test) else otherwise)
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
        if expr.id in self.builder.everywhere:
            return Tensor(f"@{expr.id}", self.builder.level_type(expr.id))
        if expr.id in self.declarations:
            declaration = self.declarations[expr.id]
            if declaration.broken:
                raise Broken
            if declaration.op is not None and declaration.op.op == "parameter":
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
            made = self.builder.specialise(name, options, types)
            if made is None:
                return self.assume_kept(operands)
            self.add_part(BlockPart(declaration.name, made.key, declaration.span), expr.extent)
            self.context |= made.context
            return self.emit("call", operands, made.outputs, {}, expr.extent, declaration.name)
        keys: list[str] = []
        for name, options in declaration.layers:
            self.check_count(name, types, expr)
            made = self.builder.specialise(name, options, types)
            if made is None:
                return self.assume_kept(operands)
            if made.outputs != (types[0],):
                found = ", ".join(map(str, made.outputs))
                message = f"layer {len(keys)} of `{declaration.name}` turns {types[0]} into {found}"
                raise ExpressionError(f"{message}: a stack must keep its type", expr.extent)
            keys.append(made.key)
            self.context |= made.context
        stack = StackPart(declaration.name, tuple(keys), declaration.span, declaration.count_source)
        self.add_part(stack, expr.extent)
        return self.stacked(declaration, operands, expr.extent)

    def stacked(
        self, declaration: PartDeclaration, operands: Sequence[Tensor], extent: Extent
    ) -> Term:
        """The carried tensor after the last layer; with ``collect`` also a list of those states."""
        collected = declaration.collect
        if collected is None:
            return self.emit("stack", operands, [operands[0].type], {}, extent, declaration.name)
        types = [operands[0].type] * (1 + len(collected))
        attrs = {"collect": collected}
        made = self.emit("stack", operands, types, attrs, extent, declaration.name)
        assert isinstance(made, Several)
        first, *states = (t for t in made.items if isinstance(t, Tensor))
        return Several((first, Listed(tuple(states))))

    def assume_kept(self, operands: Sequence[Tensor]) -> Tensor:
        """Result of a broken block, so that the equations after it are still checked: most keep their type."""
        if not operands or operands[0].type.dtype is not DType.MODEL:
            raise Broken
        return operands[0]

    def check_count(self, block: str, types: Sequence[TensorType], expr: Call) -> None:
        inputs = self.builder.spec.blocks[block].inputs
        if len(types) != len(inputs):
            message = f"block `{block}` takes {len(inputs)} tensors ({', '.join(inputs)})"
            raise ExpressionError(f"{message}, here are {len(types)}", expr.extent)

    def add_part(self, part: Part, extent: Extent) -> None:
        if self.parts.get(part.name, part) != part:
            message = f"part `{part.name}` is called with operands of different types"
            raise ExpressionError(message, extent)
        self.parts[part.name] = part

    def call_op_part(self, part: OpPart, operands: Sequence[Tensor], extent: Extent) -> Term:
        self.add_part(part, extent)
        op = OPS[part.op]
        self.check_operands(op, operands, extent, part.name)
        results = self.shape(op, operands, part.attrs, extent)
        return self.emit(op.name, operands, results, part.attrs, extent, part.name)

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
        return self.apply(op, operands, attrs, expr.extent, sources)

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

    def shape(
        self, op: Op, operands: Sequence[Tensor], attrs: Mapping[str, AttrValue], extent: Extent
    ) -> tuple[TensorType, ...]:
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
        self.shape(op, operands, attrs, extent)
        span = self.text.slice_span(*extent) if self.text is not None else None
        made = self.builder.ambient(op.name, tuple(o.id for o in operands), attrs, names, span)
        return tuple(Tensor(f"@{n}", self.builder.level_type(n)) for n in made)


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
