"""From a resolved spec to the typed graph: block definitions specialised for their options and operand types."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from llamagen.diagnostics import Diagnostic, LlamagenError, Span, did_you_mean
from llamagen.ir.build_equations import Equations
from llamagen.ir.build_parts import PartDeclaration, declare
from llamagen.ir.build_site import RecordingScope, Specialised
from llamagen.ir.build_terms import AMBIENT, size
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart, Value
from llamagen.ir.naming import variant_names
from llamagen.ir.verify import verify
from llamagen.ops.dims import B, Dim, S, T
from llamagen.ops.op import Attrs, AttrValue, DType, TensorType
from llamagen.ops.table import OPS
from llamagen.spec.evaluate import evaluate
from llamagen.spec.expr import Call, Expr, ExpressionError, ListExpr, Name, parse
from llamagen.spec.expr import names as names_in
from llamagen.spec.resolved import ResolvedSpec
from llamagen.spec.scope import expression_error, scope_of

MAX_BLOCK_DEPTH = 16
MAX_SPECIALISATIONS = 256

GRAPH_INPUTS: Mapping[str, TensorType] = {
    "input_ids": TensorType(DType.INT64, (B, S)),
    "positions": TensorType(DType.INT64, (B, S)),
    "attention_mask": TensorType(DType.INT64, (B, T)),
}
"""Tensors that every block may read. ``positions`` are true positions: padding is not counted."""

_Key = tuple[str, tuple[tuple[str, AttrValue], ...], tuple[TensorType, ...]]


class Builder:
    """State of one build. Findings are collected, so that one run reports every broken block."""

    def __init__(self, resolved: ResolvedSpec, name: str | None = None) -> None:
        """``name`` is one of the spec's ``graphs``; the text model at ``root`` without."""
        self.resolved = resolved
        self.name = name
        self.spec = resolved.spec
        self.scope = RecordingScope(scope_of(resolved.spec))
        self.findings: dict[Diagnostic, None] = {}
        self.done: dict[_Key, Specialised | None] = {}
        self.blocks: dict[str, Block] = {}
        self.prelude: dict[tuple[object, ...], Node] = {}
        self.prelude_values: dict[str, Value] = {}
        self.open: list[str] = []
        definition = resolved.spec.graphs[name] if name is not None else None
        self.root = definition.root if definition is not None else resolved.spec.root
        self.outputs = definition.outputs if definition is not None else ("logits",)
        self.inputs: dict[str, TensorType] = dict(GRAPH_INPUTS)
        self.everywhere: tuple[str, ...] = AMBIENT
        """Graph inputs that every equation may name."""

    def run(self) -> Graph:
        spec, name = self.spec, self.root
        if name is None:
            message = f"`{spec.id}` has no `root` block: its wiring is not known here"
            help = "a record without an architecture can be listed and shown, not built"
            raise LlamagenError.of("LG401", message, span=self.resolved.place("id"), help=help)
        if name not in spec.blocks:
            raise LlamagenError(self.unknown_block(name))
        self.declare_inputs()
        definition = spec.blocks[name]
        unknown = [i for i in definition.inputs if i not in self.inputs]
        if unknown:
            message = f"the root block cannot have the input `{unknown[0]}`"
            help = f"a model's inputs are: {', '.join(self.inputs)}"
            place = self.resolved.place("blocks", name, "inputs")
            raise LlamagenError.of("LG402", message, span=place, help=help)
        root = self.specialise(name, {}, [self.inputs[i] for i in definition.inputs])
        if not spec.graphs:
            self.find_unused(self.scope.read)
        if self.findings:
            raise LlamagenError(*self.findings)
        assert root is not None, "a block that fails leaves a finding"
        graph = self.graph(root)
        verify(graph)
        return graph

    def declare_inputs(self) -> None:
        """The shapes that the graph's definition gives to inputs of its own."""
        if self.name is None:
            return
        for name, text in self.spec.graphs[self.name].inputs.items():
            path = ("graphs", self.name, "inputs", name)
            try:
                self.inputs[name] = self.input_type(parse(text))
                self.everywhere = (*self.everywhere, name)
            except ExpressionError as error:
                node = self.resolved.scalar(*path)
                raise LlamagenError(expression_error("LG402", node, error, self.scope)) from None

    def input_type(self, expr: Expr) -> TensorType:
        """``[I, 3, 336, 336]`` in the model's dtype, or ``int64([B, I])``."""
        match expr:
            case ListExpr(items=items):
                return TensorType(DType.MODEL, tuple(map(self.size, items)))
            case Call(function=Name(id="int64"), arguments=(ListExpr(items=items),), keywords=()):
                return TensorType(DType.INT64, tuple(map(self.size, items)))
            case _:
                message = "a shape is a list such as `[I, 3, 336, 336]` or `int64([B, I])`"
                raise ExpressionError(message, expr.extent)

    def size(self, item: Expr) -> Dim:
        value = size(item, lambda e: evaluate(e, self.scope))
        if isinstance(value, bool) or not isinstance(value, int | str) or value in (0, ""):
            raise ExpressionError(f"a size is a whole number above 0, not {value}", item.extent)
        if isinstance(value, int) and value < 1:
            raise ExpressionError(f"a size is a whole number above 0, not {value}", item.extent)
        return Dim.of(value)

    def unknown_block(self, name: str) -> Diagnostic:
        hint = did_you_mean(name, list(self.spec.blocks))
        help = f"did you mean `{hint}`?" if hint else None
        path = ("root",) if self.name is None else ("graphs", self.name, "root")
        place = self.resolved.place(*path)
        return Diagnostic("LG403", "error", f"there is no block `{name}`", place, (), help)

    def specialise(
        self, name: str, options: Mapping[str, AttrValue], operands: Sequence[TensorType]
    ) -> Specialised | None:
        """Build block ``name`` once for these options and operand types; None when it has findings."""
        key: _Key = (name, tuple(sorted(options.items())), tuple(operands))
        if name in self.open or len(self.open) >= MAX_BLOCK_DEPTH:
            path = " -> ".join([*self.open, name])
            reason = "contains itself" if name in self.open else "is nested too deep"
            place = self.resolved.place("blocks", name)
            self.report(Diagnostic("LG404", "error", f"block `{name}` {reason}: {path}", place))
            return None
        if key in self.done:
            return self.done[key]
        if len(self.done) >= MAX_SPECIALISATIONS:
            message = f"more than {MAX_SPECIALISATIONS} different blocks"
            raise LlamagenError.of("LG405", message, span=self.resolved.place("blocks", name))
        self.open.append(name)
        self.done[key] = None
        before = len(self.findings)
        block, context = self.block(name, options, operands, f"#{len(self.done)}")
        self.open.pop()
        if len(self.findings) > before or block is None:
            return None
        self.blocks[block.name] = block
        outputs = tuple(block.values[o].type for o in block.outputs)
        self.done[key] = Specialised(block.name, outputs, context)
        return self.done[key]

    def block(
        self, name: str, options: Attrs, operands: Sequence[TensorType], key: str
    ) -> tuple[Block | None, frozenset[str]]:
        definition = self.spec.blocks[name]
        scope = RecordingScope({**self.scope, **options})
        declarations = dict(self.declarations(name, scope))
        self.scope.read |= scope.read
        equations = Equations(self, name, scope, declarations)
        equations.run(definition.inputs, operands, definition.forward)
        self.scope.read |= scope.read
        if not equations.outputs:
            return None, frozenset()
        block = Block(
            name=key,
            definition=name,
            options=dict(options),
            inputs=tuple(equations.body.values[i] for i in definition.inputs),
            parts=equations.body.parts,
            values=equations.body.values,
            nodes=tuple(equations.body.nodes),
            outputs=tuple(equations.outputs),
            context=(),
            span=self.resolved.place("blocks", name),
            doc=definition.doc,
        )
        return block, frozenset(equations.body.context)

    def declarations(
        self, name: str, scope: RecordingScope
    ) -> Iterator[tuple[str, PartDeclaration]]:
        for part, text in self.spec.blocks[name].parts.items():
            node = self.resolved.scalar("blocks", name, "parts", part)
            found = declare(part, text, node, scope, self.spec.blocks)
            if isinstance(found, Diagnostic):
                self.report(found)
                yield part, PartDeclaration(part, broken=True)
            elif found is not None:
                yield part, found

    def ambient(
        self,
        op_name: str,
        operands: tuple[str, ...],
        attrs: Attrs,
        names: tuple[str, ...],
        span: Span | None,
    ) -> tuple[str, ...]:
        """Results of an op on graph-level values, computed once for the whole model; without ``@``."""
        key = (op_name, operands, tuple(sorted(attrs.items())))
        if key not in self.prelude:
            types = [self.level_type(o.removeprefix("@")) for o in operands]
            results = OPS[op_name].shape(types, attrs)
            taken = {*self.inputs, *self.prelude_values}
            suffix, n = "", 1
            while any(name + suffix in taken for name in names):
                n += 1
                suffix = f"_{n}"
            fresh = tuple(name + suffix for name in names)
            self.prelude[key] = Node(op_name, operands, fresh, dict(attrs), None, span)
            for name, type_ in zip(fresh, results, strict=True):
                self.prelude_values[name] = Value(name, type_, named=True)
        return self.prelude[key].results

    def level_type(self, name: str) -> TensorType:
        return self.inputs[name] if name in self.inputs else self.prelude_values[name].type

    def report(self, finding: Diagnostic) -> None:
        self.findings[finding] = None

    def find_unused(self, used: Collection[str]) -> None:
        """Constants and patterns that neither blocks (``used``) nor invariants read are typing mistakes."""
        read = set(used)
        for text in self.spec.invariants.values():
            try:
                read |= {n.id for n in names_in(parse(text))}
            except ExpressionError:
                continue
        if self.findings:
            return
        for section in ("constants", "patterns"):
            declared: Mapping[str, object] = getattr(self.spec, section)
            for name in declared:
                if name not in read:
                    hint = did_you_mean(name, sorted(read))
                    help = (
                        f"did you mean `{hint}`?" if hint else "remove it, or use it in an equation"
                    )
                    message = f"{section[:-1]} `{name}` is used by no block and no invariant"
                    place = self.resolved.place(section, name)
                    self.report(Diagnostic("LG406", "error", message, place, (), help))

    def graph(self, root: Specialised) -> Graph:
        names = variant_names(self.blocks)
        order = [*self.inputs, *self.prelude_values]
        contexts = {s.key: s.context for s in self.done.values() if s is not None}
        blocks: dict[str, Block] = {}
        for key in _callees_first(self.blocks, root.key):
            block = self.blocks[key]
            parts = {n: _renamed(p, names) for n, p in block.parts.items()}
            context = tuple(n for n in order if n in contexts[key])
            blocks[names[key]] = replace(block, name=names[key], parts=parts, context=context)
        used = {o.removeprefix("@") for node in self.prelude.values() for o in node.operands}
        used |= contexts[root.key] | set(self.spec.blocks[self.root or ""].inputs)
        inputs = [Value(n, t, named=True) for n, t in self.inputs.items() if n in used]
        constants = {
            name: value
            for name, value in scope_of(self.spec).items()
            if isinstance(value, int | float | bool | str)
        }
        return Graph(
            spec_id=self.spec.id,
            digest=self.resolved.digest,
            inputs=tuple(inputs),
            prelude=tuple(self.prelude.values()),
            prelude_values=dict(self.prelude_values),
            blocks=blocks,
            root=names[root.key],
            output_names=self.outputs,
            constants=constants,
        )


def _renamed(
    part: OpPart | BlockPart | StackPart, names: Mapping[str, str]
) -> OpPart | BlockPart | StackPart:
    match part:
        case BlockPart(block=key):
            return replace(part, block=names[key])
        case StackPart(blocks=keys):
            return replace(part, blocks=tuple(names[k] for k in keys))
        case OpPart():
            return part


def _callees_first(blocks: Mapping[str, Block], root: str) -> list[str]:
    """Keys reachable from ``root``, each after the blocks it calls (depth is bounded by the build)."""
    order: dict[str, None] = {}

    def visit(key: str) -> None:
        if key in order:
            return
        for part in blocks[key].parts.values():
            match part:
                case BlockPart(block=below):
                    visit(below)
                case StackPart(blocks=several):
                    for below in dict.fromkeys(several):
                        visit(below)
                case OpPart():
                    pass
        order[key] = None

    visit(root)
    return list(order)


def build(resolved: ResolvedSpec) -> Graph:
    """The verified graph of a spec's text model. Raises LlamagenError with every finding, each at its YAML line."""
    return Builder(resolved).run()
