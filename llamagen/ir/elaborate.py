"""From a resolved spec to its typed graphs: blocks specialised for their options and operand types.

``_Model`` is one graph under construction, ``_Body`` the body of one block of it. A body reads its equations one by
one; calling a part that is a block elaborates that block first, for the options and operand types of the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

from llamagen.diagnostics import Diagnostic, LlamagenError, Related, Span, did_you_mean
from llamagen.ir.flatten import crossing
from llamagen.ir.graph import (
    MAIN,
    Block,
    BlockPart,
    Graph,
    Node,
    OpPart,
    Part,
    StackPart,
    Value,
    names_read,
)
from llamagen.ir.verify import verify
from llamagen.ops.activations import ACTIVATIONS
from llamagen.ops.dims import RUN_TIME, B, Dim, S, T
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    AttrValue,
    DType,
    Op,
    Parameter,
    Role,
    ShapeError,
    TensorType,
)
from llamagen.ops.rope import ROPE_KINDS
from llamagen.ops.table import OPS
from llamagen.spec.checks import expression_error, scope_of
from llamagen.spec.expr import (
    FUNCTIONS,
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
    Static,
    Unary,
    UnknownName,
    evaluate,
    is_true,
    parse,
    parse_statements,
    unparse_static,
)
from llamagen.spec.expr import names as names_in
from llamagen.spec.resolve import Branch, ResolvedSpec
from llamagen.spec.schema import MAX_LAYERS

MAX_BLOCK_DEPTH = 16
MAX_SPECIALISATIONS = 256
MAX_EQUATIONS = 400
MAX_WORD = 24
"""Letters of an option's value that a block's name takes up; names that become equal are numbered."""

GRAPH_INPUTS: Mapping[str, TensorType] = {
    "input_ids": TensorType(DType.INT64, (B, S)),
    "positions": TensorType(DType.INT64, (B, S)),
    "attention_mask": TensorType(DType.INT64, (B, T)),
}
"""Tensors that every block may read. ``positions`` are true positions: padding is not counted."""

AMBIENT = ("positions", "attention_mask")
"""Graph-level tensors that every equation may name, beside the inputs that a graph declares."""

LETTERS: Mapping[str, str] = {
    "D": "hidden_size",
    "N": "num_heads",
    "K": "num_kv_heads",
    "H": "head_dim",
    "F": "intermediate_size",
    "E": "num_experts",
    "V": "vocab_size",
}
"""Names of sizes that are hyperparameters, in shapes and as axes."""


def build(resolved: ResolvedSpec) -> Graph:
    """The verified graph of a spec's text model. Raises LlamagenError with every finding, each at its YAML line."""
    if MAIN not in resolved.graphs:
        model = _Model(resolved)
        graph = model.run()
        if not resolved.spec.graphs:
            model.raise_unused(graph.names_read)
        resolved.graphs[MAIN] = graph
    return resolved.graphs[MAIN]


def build_all(resolved: ResolvedSpec) -> dict[str, Graph]:
    """Every graph of a spec by name, ``model`` (the text model) first; just that one for most specs.

    Raises LlamagenError as ``build`` does, and LG407 when graphs do not fit together: a hand-over with two shapes,
    or a weight that two graphs have in two shapes.
    """
    graphs = {MAIN: build(resolved)}
    beside = resolved.spec.graphs
    if beside and not beside.keys() <= resolved.graphs.keys():
        graphs |= {name: _Model(resolved, name).run() for name in beside}
        _Model(resolved).raise_unused(names_read(graphs))
        clash = _clash(graphs)
        if clash is not None:
            raise LlamagenError.of("LG407", clash, span=resolved.place("graphs"))
        resolved.graphs.update(graphs)
    return dict(resolved.graphs)


def _clash(graphs: Mapping[str, Graph]) -> str | None:
    handed: dict[str, tuple[str, TensorType]] = {}
    weights: dict[str, tuple[str, Parameter]] = {}
    writes = {name: crossing(graph, "write") for name, graph in graphs.items()}
    written = {n for names in writes.values() for n in names}
    for name, graph in graphs.items():
        if not graph.outputs and not writes[name]:
            return f"graph `{name}` gives nothing: no output, and nothing that another graph reads"
        read = crossing(graph, "read")
        missing = [n for n in read if n not in written]
        if missing:
            return f"graph `{name}` reads `{missing[0]}`, which no graph writes"
        handed_over = (*writes[name].items(), *read.items())
        for value, type_ in (*graph.outputs, *((v.id, v.type) for v in graph.inputs), *handed_over):
            other, known = handed.setdefault(value, (name, type_))
            if known != type_:
                return f"`{value}` is {known} in graph `{other}` and {type_} in `{name}`"
        for path, parameter in graph.parameters.items():
            other, same = weights.setdefault(path, (name, parameter))
            if same != parameter:
                return f"weight `{path}` differs in graphs `{other}` and `{name}`"
    return None


# what an expression is worth while a block is built


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of this block by id, or a graph-level one as ``@name``."""

    id: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Constant:
    """A value known now."""

    value: Static


@dataclass(frozen=True, slots=True)
class Listed:
    """Tensors under one name: the states a stack collects. An op that joins any number takes them together."""

    items: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Several:
    """Results of an op with more than one."""

    items: tuple[Tensor | Listed, ...]


Term: TypeAlias = Tensor | Constant | Listed | Several


class _Broken(Exception):
    """An expression that uses a value whose equation already failed: nothing new to report."""


class _Scope(dict[str, Static]):
    """Static names. Which of the spec's were read is noted in ``read``, so that unused constants are found."""

    def __init__(
        self, values: Mapping[str, Static], read: set[str], own: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(values)
        self.read = read
        self.own = own
        """Names that are not the spec's: options of a block, numbers of its equations, the index of a layer."""

    def __getitem__(self, name: str) -> Static:
        if name not in self.own:
            self.read.add(name)
        return super().__getitem__(name)

    def with_names(self, more: Mapping[str, Static]) -> _Scope:
        return _Scope({**self, **more}, self.read, self.own | more.keys())


@dataclass(frozen=True, slots=True)
class _Specialised:
    """A block built for one set of options and operand types; ``key`` names it until names are given."""

    key: str
    outputs: tuple[TensorType, ...]
    context: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Declared:
    """What a part is, before it is called: an op, or blocks with options (one, or the layers of a stack)."""

    name: str
    span: Span | None = None
    op: OpPart | None = None
    blocks: tuple[tuple[str, Attrs], ...] = ()
    stack: bool = False
    count_source: Expr | None = None
    collect: tuple[int, ...] | None = None
    """Of a stack: the layers before which its state is a result too; the number of layers is the end."""

    @property
    def broken(self) -> bool:
        return self.op is None and not self.blocks


def _taken_away(resolved: ResolvedSpec) -> dict[str, Static]:
    """Hyperparameters that a base's equations may read and the spec states as null: no window, no bound."""
    written = resolved.find("hyperparameters")
    names = written.entries if isinstance(written, Branch) else ()
    nodes = {name: resolved.scalar("hyperparameters", name) for name in names}
    return {name: None for name, node in nodes.items() if node is not None and node.value is None}


class _Model:
    """One graph. Findings are collected, so that one run reports every broken block."""

    def __init__(self, resolved: ResolvedSpec, name: str | None = None) -> None:
        """``name`` is one of the spec's ``graphs``; the text model at ``root`` without."""
        self.resolved = resolved
        self.spec = resolved.spec
        self.name = name
        self.definition = resolved.spec.graphs[name] if name is not None else None
        self.scope = _Scope({**_taken_away(resolved), **scope_of(resolved.spec)}, set())
        self.findings: dict[Diagnostic, None] = {}
        self.done: dict[object, _Specialised | None] = {}
        self.unused: dict[str, dict[_Idle, Diagnostic | None]] = {}
        """Block -> name, part or input -> what to say of it, unless some specialisation uses it."""
        self.blocks: dict[str, Block] = {}
        self.open: list[str] = []
        self.prelude: dict[object, Node] = {}
        self.inputs: dict[str, TensorType] = dict(GRAPH_INPUTS)
        self.computed: dict[str, TensorType] = {}
        """Results of the prelude."""
        self.everywhere: tuple[str, ...] = AMBIENT
        """Graph inputs that every equation may name."""

    def run(self) -> Graph:
        spec = self.spec
        name = self.definition.root if self.definition is not None else spec.root
        if name is None:
            message = f"`{spec.id}` has no `root` block: its wiring is not known here"
            help = "a record without an architecture can be listed and shown, not built"
            raise LlamagenError.of("LG401", message, span=self.resolved.place("id"), help=help)
        if name not in spec.blocks:
            path = ("root",) if self.name is None else ("graphs", self.name, "root")
            place = self.resolved.place(*path)
            raise LlamagenError.of(
                "LG403",
                f"there is no block `{name}`",
                place,
                help=did_you_mean(name, spec.blocks, None),
            )
        self.declare_inputs()
        inputs = spec.blocks[name].inputs
        unknown = [i for i in inputs if i not in self.inputs]
        if unknown:
            message = f"the root block cannot have the input `{unknown[0]}`"
            help = f"a model's inputs are: {', '.join(self.inputs)}"
            place = self.resolved.place("blocks", name, "inputs")
            raise LlamagenError.of("LG402", message, span=place, help=help)
        root = self.specialise(name, {}, [self.inputs[i] for i in inputs])
        if not self.findings:
            idle = [
                entry for unused in self.unused.values() for entry in unused.items() if entry[1]
            ]
            computed = [entry for entry in idle if entry[0][0] == "name"]
            for _, one in computed or idle:  # parts are often idle because names are
                assert one is not None
                self.report(one)
        if self.findings:
            raise LlamagenError(*self.findings)
        assert root is not None, "a block that fails leaves a finding"
        graph = self.graph(root, inputs)
        verify(graph)
        if self.definition is None:
            self.require_outputs(graph)
        return graph

    def require_outputs(self, graph: Graph) -> None:
        """Raises LG408 for an output of the text model that is no number of its tokens or texts."""
        for name, type_ in graph.outputs:
            fits = type_.shape[:-1] in ((B, S), (B,)) and type_.shape[-1].is_static
            if not fits or type_.dtype in (DType.INT64, DType.BOOL):
                message = f"output `{name}` is {type_}: outputs are numbers [B, S, n] or [B, n]"
                help = "n for each token, or for each text after `last_token` or `mean_tokens`"
                place = self.resolved.place("outputs") or graph.root_block.span
                raise LlamagenError.of("LG408", message, span=place, help=help)

    def declare_inputs(self) -> None:
        """The shapes that the graph's definition gives to inputs of its own."""
        for name, text in (self.definition.inputs if self.definition else {}).items():
            try:
                self.inputs[name] = self.input_type(parse(text))
                self.everywhere = (*self.everywhere, name)
            except ExpressionError as error:
                node = self.resolved.scalar("graphs", self.name or "", "inputs", name)
                raise LlamagenError(expression_error("LG402", node, error, self.scope)) from None

    def input_type(self, expr: Expr) -> TensorType:
        """``[I, 3, 336, 336]`` in the model's dtype, or ``int64([B, I])``."""
        match expr:
            case ListExpr(items=items):
                return TensorType(DType.MODEL, tuple(map(self.input_size, items)))
            case Call(function=Name(id="int64"), arguments=(ListExpr(items=items),), keywords=()):
                return TensorType(DType.INT64, tuple(map(self.input_size, items)))
            case _:
                message = "a shape is a list such as `[I, 3, 336, 336]` or `int64([B, I])`"
                raise ExpressionError(message, expr.extent)

    def input_size(self, item: Expr) -> Dim:
        value = _size(item, lambda e: evaluate(e, self.scope))
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not whole and not (isinstance(value, str) and value):
            raise ExpressionError(f"a size is a whole number above 0, not {value}", item.extent)
        assert isinstance(value, int | str)
        return Dim.of(value)

    def specialise(
        self,
        name: str,
        options: Attrs,
        operands: Sequence[TensorType],
        inputs: tuple[str, ...] | None = None,
    ) -> _Specialised | None:
        """Build block ``name`` once for these options and operand types; None when it has findings.

        ``inputs`` name the operands where they are more than its own: those of other layers of a stack.
        """
        inputs = self.spec.blocks[name].inputs if inputs is None else inputs
        key = (name, tuple(sorted(options.items())), tuple(operands), inputs)
        place = self.resolved.place("blocks", name)
        if name in self.open or len(self.open) >= MAX_BLOCK_DEPTH:
            path = " -> ".join([*self.open, name])
            reason = "contains itself" if name in self.open else "is nested too deep"
            self.report(Diagnostic("LG404", "error", f"block `{name}` {reason}: {path}", place))
            return None
        if key in self.done:
            return self.done[key]
        if len(self.done) >= MAX_SPECIALISATIONS:
            message = f"more than {MAX_SPECIALISATIONS} different blocks"
            raise LlamagenError.of("LG405", message, span=place)
        self.open.append(name)
        self.done[key] = None
        number = len(self.done)
        before = len(self.findings)
        body = _Body(self, name, options, inputs)
        body.run(operands)
        self.open.pop()
        if len(self.findings) > before or not body.outputs:
            return None
        definition = self.spec.blocks[name]
        block = Block(
            name=f"#{number}",
            definition=name,
            options=dict(options),
            inputs=tuple(body.values[i] for i in inputs),
            parts=body.parts,
            values=body.values,
            nodes=tuple(body.nodes),
            outputs=tuple(body.outputs),
            context=(),
            span=place,
            doc=definition.doc,
        )
        self.blocks[block.name] = block
        outputs = tuple(block.values[o].type for o in block.outputs)
        self.done[key] = _Specialised(block.name, outputs, frozenset(body.context))
        return self.done[key]

    def level_type(self, name: str) -> TensorType:
        return self.inputs[name] if name in self.inputs else self.computed[name]

    def report(self, finding: Diagnostic) -> None:
        self.findings[finding] = None

    def raise_unused(self, read_by_blocks: Collection[str]) -> None:
        """Constants and patterns that neither blocks nor invariants read are typing mistakes (LG406)."""
        read = set(read_by_blocks)
        for text in self.spec.invariants.values():
            read |= {n.id for n in names_in(parse(text))}
        for section in ("constants", "patterns"):
            declared: Mapping[str, object] = getattr(self.spec, section)
            for name in declared:
                if name not in read:
                    help = did_you_mean(name, sorted(read), "remove it, or use it in an equation")
                    message = f"{section[:-1]} `{name}` is used by no block and no invariant"
                    place = self.resolved.place(section, name)
                    self.report(Diagnostic("LG406", "error", message, place, (), help))
        if self.findings:
            raise LlamagenError(*self.findings)

    def graph(self, root: _Specialised, root_inputs: Sequence[str]) -> Graph:
        names = _variant_names(self.blocks)
        order = [*self.inputs, *self.computed]
        contexts = {s.key: s.context for s in self.done.values() if s is not None}
        blocks: dict[str, Block] = {}
        for key in _callees_first(self.blocks, root.key):
            block = self.blocks[key]
            parts = {n: _renamed(p, names) for n, p in block.parts.items()}
            context = tuple(n for n in order if n in contexts[key])
            blocks[names[key]] = replace(block, name=names[key], parts=parts, context=context)
        used = {o.removeprefix("@") for node in self.prelude.values() for o in node.operands}
        used |= contexts[root.key] | set(root_inputs)
        scope = scope_of(self.spec)
        for name, record in tuple(scope.items()):
            if isinstance(record, Mapping):
                scope |= {f"{name}.{field}": value for field, value in record.items()}
        scalars = {
            name: value
            for name, value in scope.items()
            if isinstance(value, int | float | bool | str)
        }
        return Graph(
            spec_id=self.spec.id,
            digest=self.resolved.digest,
            inputs=tuple(Value(n, t, named=True) for n, t in self.inputs.items() if n in used),
            prelude=tuple(self.prelude.values()),
            prelude_values={n: Value(n, t, named=True) for n, t in self.computed.items()},
            blocks=blocks,
            root=names[root.key],
            output_names=(self.definition or self.spec).outputs,
            constants=scalars,
            names_read=frozenset(self.scope.read),
        )


def _renamed(part: Part, names: Mapping[str, str]) -> Part:
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
        for below in dict.fromkeys(blocks[key].below):
            visit(below)
        order[key] = None

    visit(root)
    return list(order)


def _variant_names(blocks: Mapping[str, Block]) -> dict[str, str]:
    """Key -> a unique readable name. A definition with one variant keeps its name; options tell others apart."""
    by_definition: dict[str, list[str]] = {}
    for key, block in blocks.items():
        by_definition.setdefault(block.definition, []).append(key)
    names: dict[str, str] = {}
    for definition, keys in by_definition.items():
        if len(keys) == 1:
            names[keys[0]] = definition
            continue
        options = {key: blocks[key].options for key in keys}
        differing = [o for o in options[keys[0]] if len({options[k][o] for k in keys}) > 1]
        for key in keys:
            words = "".join(_word(o, options[key][o]) for o in differing)
            name, n = words + definition, 1
            while name in names.values() or (name in by_definition and name != definition):
                n += 1
                name = f"{words}{definition}{n}"
            names[key] = name
    return names


def _word(option: str, value: AttrValue) -> str:
    match value:
        case None:
            return ""
        case bool():
            return _camel(option) if value else ""
        case str():
            word = _camel(value)[:MAX_WORD]
            return f"{_camel(option)}{word}" if word[:1].isdecimal() else word
        case int():
            return f"{_camel(option)}{value}".replace("-", "Minus")
        case _:
            return _camel(option)


_Kind: TypeAlias = Literal["name", "part", "input"]
_Idle: TypeAlias = tuple[_Kind, str]
"""What equations may leave unused: a name that they give, a part, an input of the block."""


def _camel(text: str) -> str:
    ascii_words = "".join(c if c.isascii() and c.isalnum() else " " for c in text).split()
    return "".join(w[0].upper() + w[1:] for w in ascii_words)


class _Body:
    """The body of one block: what its names stand for, and what its equations have made so far."""

    def __init__(self, model: _Model, block: str, options: Attrs, inputs: tuple[str, ...]) -> None:
        self.model = model
        self.inputs = inputs
        self.block = block
        self.definition = model.spec.blocks[block]
        self.text = model.resolved.scalar("blocks", block, "forward")
        self.scope = model.scope.with_names(options)
        self.declared = {part.name: part for part in self.declarations()}
        self.names: dict[str, Term | None] = {}
        """Inputs and results of equations; None for a name whose equation failed."""
        self.read: set[str] = set()
        self.assigned: dict[str, Extent] = {}
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.parts: dict[str, Part] = {}
        self.context: set[str] = set()
        self.outputs: list[str] = []

    # parts

    def declarations(self) -> Iterator[_Declared]:
        """The parts that no condition switched off; a declaration that is wrong is reported and stays broken."""
        for name, text in self.definition.parts.items():
            node = self.model.resolved.scalar("blocks", self.block, "parts", name)
            try:
                expr = _chosen(parse(text), self.scope)
                if not (isinstance(expr, Literal_) and expr.value is None):
                    yield self.declaration(name, expr, node.span if node is not None else None)
            except ExpressionError as error:
                self.model.report(expression_error("LG410", node, error, self.scope))
                yield _Declared(name)

    def declaration(self, name: str, expr: Expr, span: Span | None) -> _Declared:
        function, call = _head(expr)
        if function == "stack":
            return self.stack(name, call, span)
        if function in self.model.spec.blocks:
            return _Declared(name, span, blocks=(self.block_call(expr, self.scope),))
        if function in OPS and OPS[function].is_part:
            return _Declared(name, span, op=self.op_part(name, function, call, span))
        raise self.unknown_part(function, expr)

    def unknown_part(self, function: str, expr: Expr) -> ExpressionError:
        if function in OPS:
            message = f"`{function}` has no parameters: use it in the equations, not as a part"
            return ExpressionError(message, expr.extent)
        parts = [op.name for op in OPS.values() if op.is_part]
        known = [*self.model.spec.blocks, *parts, "stack"]
        help = did_you_mean(function, known, f"parts with parameters: {', '.join(parts)}")
        message = f"`{function}` is neither a block nor an op with parameters"
        return ExpressionError(message, expr.extent, help)

    def op_part(self, name: str, function: str, call: Call, span: Span | None) -> OpPart:
        op = OPS[function]
        positional: list[_Given] = [(evaluate(a, self.scope), a) for a in call.arguments]
        named: dict[str, _Given] = {k: (evaluate(a, self.scope), a) for k, a in call.keywords}
        if function == "parameter" and positional:
            sizes = tuple(value for value, _ in positional)
            flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple) else sizes
            positional = [(flat, call.arguments[0])]
        attrs, sources = _bind(op, positional, named, call.extent)
        tied = attrs.pop("tied_to", None)
        try:
            owned = op.parameters(attrs)
        except ShapeError as error:
            raise ExpressionError(str(error), call.extent) from None
        if tied is not None:
            owned = tuple(p for p in owned if p.name != "weight")
        assert tied is None or isinstance(tied, str)
        return OpPart(name, function, attrs, owned, tied, span, sources)

    def block_call(self, expr: Expr, scope: _Scope) -> tuple[str, Attrs]:
        """The block that a declaration names, and its options."""
        function, call = _head(expr)
        if function not in self.model.spec.blocks:
            raise self.unknown_part(function, expr)
        if call.arguments:
            message = f"options of `{function}` are given by name"
            raise ExpressionError(message, call.arguments[0].extent)
        known = self.model.spec.blocks[function].options
        options: dict[str, AttrValue] = dict(known)
        for key, argument in call.keywords:
            if key not in known:
                help = did_you_mean(key, known, f"declare it under `options` of {function}")
                raise ExpressionError(
                    f"block `{function}` has no option `{key}`", argument.extent, help
                )
            value = evaluate(argument, scope)
            if isinstance(value, tuple | Mapping):
                message = f"option `{key}` must be a single value; index the pattern, as in `kinds[layer]`"
                raise ExpressionError(message, argument.extent)
            options[key] = value
        return function, options

    def stack(self, name: str, call: Call, span: Span | None) -> _Declared:
        if len(call.arguments) != 2 or [k for k, _ in call.keywords] not in ([], ["collect"]):
            raise ExpressionError("write `stack(count, Block(...), collect=[...])`", call.extent)
        source, layer_source = call.arguments
        count = evaluate(source, self.scope)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_LAYERS:
            message = f"a stack has 1 to {MAX_LAYERS} layers, not {count}"
            raise ExpressionError(message, source.extent)
        layers: list[tuple[str, Attrs]] = []
        for layer in range(count):
            scope = self.scope.with_names({"layer": layer})
            layers.append(self.block_call(_chosen(layer_source, scope), scope))
        collect: tuple[int, ...] | None = None
        for _, expr in call.keywords:
            value = evaluate(expr, self.scope)
            items = value if isinstance(value, tuple) else (value,)
            collect = tuple(i for i in items if isinstance(i, int) and not isinstance(i, bool))
            if (
                not collect
                or len(collect) != len(items)
                or not all(0 <= i <= count for i in collect)
            ):
                message = f"`collect` is a list of layers from 0 to {count}, the end, not {value}"
                raise ExpressionError(message, expr.extent)
        return _Declared(name, span, None, tuple(layers), True, source, collect)

    # equations

    def run(self, types: Sequence[TensorType]) -> None:
        inputs = self.inputs
        try:
            statements = parse_statements(self.definition.forward)
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
                continue
            except ExpressionError as error:
                self.report(error)
            except _Broken:
                pass
            if isinstance(statement, Assign):
                self.names.update({target.id: None for target in statement.targets})
        if self.outputs and None not in self.names.values():
            self.find_unused()

    def find_unused(self) -> None:
        """What this specialisation does not use; it is a finding if no other one does."""
        unused = self.model.unused.setdefault(self.block, {})
        idle: dict[_Idle, Diagnostic] = {}
        for name, extent in self.assigned.items():
            if name not in self.read and name != "_":  # `_`: a result nobody wants
                error = ExpressionError(f"`{name}` is computed but never used", extent)
                idle["name", name] = self.finding(error)
        dead = bool(idle)
        for name in self.declared:
            if name not in self.parts:
                node = self.model.resolved.scalar("blocks", self.block, "parts", name)
                error = ExpressionError(f"part `{name}` is never called in `forward`", (0, 1))
                idle["part", name] = expression_error("LG413", node, error, {})
        for name in self.definition.inputs:
            if name not in self.read:
                error = ExpressionError(f"input `{name}` is never used", (0, 1))
                idle["input", name] = self.finding(error)
        kinds: Mapping[_Kind, Iterable[str]] = {
            "name": self.assigned,
            "part": self.declared,
            "input": self.inputs,
        }
        for one in ((kind, name) for kind, names in kinds.items() for name in names):
            unused[one] = unused.get(one, idle.get(one)) and idle.get(one)
        if dead:
            self.prune()

    def prune(self) -> None:
        """Leave out what only other specialisations of the block read, and the parts that it calls."""
        needed, kept = {*self.outputs}, list[Node]()
        for node in reversed(self.nodes):
            if (
                node.row.control
                or node.row.state is not None
                or not needed.isdisjoint(node.results)
            ):
                needed.update(node.operands)
                kept.insert(0, node)
        called = {node.part for node in kept}
        dropped = {r for node in self.nodes if node not in kept for r in node.results}
        self.nodes = kept
        self.values = {id: v for id, v in self.values.items() if id not in dropped}
        self.parts = {n: p for n, p in self.parts.items() if n in called}

    def report(self, error: ExpressionError) -> None:
        self.model.report(self.finding(error))

    def finding(self, error: ExpressionError) -> Diagnostic:
        """LG411, or LG412 for an unknown name. An equation is often inherited and right; what broke it is a part or a
        number of the spec that is built, so those are noted where another file wrote them.
        """
        known = dict.fromkeys(
            (*self.names, *self.declared, *self.scope, *self.model.everywhere, *OPS)
        )
        code = "LG412" if isinstance(error, UnknownName) else "LG411"
        finding = expression_error(code, self.text, error, known)
        resolved = self.model.resolved
        if self.text is not None and finding.span is not None:
            words = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", self.text.text[slice(*error.extent)]))
            parts = [(w, resolved.scalar("blocks", self.block, "parts", w)) for w in words]
            notes = [(f"`{w}` is declared here", n.span) for w, n in parts if n is not None]
            notes = [note for note in notes if note[1].file != finding.span.file][:3]
            place = resolved.place("id")
            if place is not None and place.file != finding.span.file:
                notes.append((f"found while building `{self.model.spec.id}`", place))
            related = (*finding.related, *(Related(*note) for note in notes))
            finding = replace(finding, related=related)
        return finding

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
            for what, names in (
                ("a part", self.declared),
                ("a hyperparameter, constant, pattern or option", self.scope),
                ("known everywhere", self.model.everywhere),
            ):
                if target.id in names:
                    message = f"`{target.id}` is {what}: choose another name"
                    raise ExpressionError(message, target.extent)
        items = term.items if isinstance(term, Several) else (term,)
        if len(items) != len(targets):
            message = f"{len(targets)} names for {len(items)} results"
            if len(targets) == 1:
                message = f"{len(items)} results need {len(items)} names, here is one"
            raise ExpressionError(message, statement.extent)
        for target, item in zip(targets, items, strict=True):
            self.bind(target, item)

    def bind(self, target: Name, term: Tensor | Constant | Listed) -> None:
        self.assigned[target.id] = target.extent
        self.read.discard(target.id)
        match term:
            case Tensor():
                term = self.renamed(term, target.id)
            case Listed(items=items):
                term = Listed(tuple(self.renamed(item, target.id) for item in items))
        self.names[target.id] = term

    def renamed(self, term: Tensor, name: str) -> Tensor:
        """Give a fresh result the author's name; ids stay unique when a name is bound again."""
        if not term.id.startswith("%"):
            return term
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

    # expressions

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
            case Several(items=results):
                raise ExpressionError(f"has {len(results)} results: name them first", expr.extent)

    def term(self, expr: Expr) -> Term:
        match expr:
            case Literal_(value=value):
                return Constant(value)
            case Name():
                return self.name(expr)
            case Call(function=Name()):
                return self.call(expr)
            case Binary(op=op, left=left, right=right) if op in _PAIRS and not self.known(expr):
                return self.arithmetic(op, self.term(left), self.term(right), expr)
            case Unary(op=op, operand=operand) if not self.known(expr):
                row = OPS["neg" if op == "-" else "logical_not"]
                return self.apply(row, [self.tensor(operand)], {}, expr.extent)
            case Conditional(then=then, test=test, otherwise=otherwise):
                return self.term(then if is_true(self.static(test), test) else otherwise)
            case ListExpr(items=items):
                return Constant(tuple(_size(i, self.sized, self.scope) for i in items))
            case _:
                return Constant(self.static(expr))

    def known(self, expr: Expr) -> bool:
        """Whether every name of ``expr`` stands for something known now, functions of the language included."""
        return all(
            isinstance(self.names[n.id], Constant)
            if n.id in self.names
            else n.id in self.scope or n.id in FUNCTIONS
            for n in names_in(expr)
        )

    def sized(self, expr: Expr) -> Static:
        """As ``static``, for one size of a shape: N is the number of heads."""
        letters = {k: self.scope[n] for k, n in LETTERS.items() if n in self.scope}
        free = {k: v for k, v in letters.items() if k not in self.names and k not in self.scope}
        return self.static(expr, free)

    def axis(self, expr: Expr, operand: Tensor) -> Static:
        """The number of an axis, which a name such as ``S`` or ``H`` stands for by its size."""
        if isinstance(expr, ListExpr):
            return tuple(self.axis(item, operand) for item in expr.items)
        name = expr.id if isinstance(expr, Name) else ""
        if name in self.names or name in self.scope or name not in {**RUN_TIME, **LETTERS}:
            return self.given(self.term(expr), expr)[0]
        size = RUN_TIME.get(name) or Dim.of(cast("int", self.sized(expr)))
        shape = operand.type.shape
        places = [i for i, one in enumerate(shape) if one == size]
        if len(places) != 1:
            what = f"axes {', '.join(map(str, places))} are" if places else "no axis is"
            message = f"{what} as large as {name} ({size}) in {operand.type}"
            help = f"write its number, 0 to {len(shape) - 1}"
            raise ExpressionError(message, expr.extent, help)
        return places[0]

    def static(self, expr: Expr, more: Mapping[str, Static] | None = None) -> Static:
        """The value of what must be known now: names of equations count if they stand for numbers."""
        local = {n: t.value for n, t in self.names.items() if isinstance(t, Constant)}
        local |= more or {}
        self.read |= local.keys()
        try:
            return evaluate(expr, self.scope.with_names(local) if local else self.scope)
        except UnknownName as error:
            if error.name in self.names and self.names[error.name] is None:
                raise _Broken from None
            if error.name in self.names or error.name in self.declared:
                message = (
                    f"`{error.name}` is a tensor; only numbers known in advance can stand here"
                )
                help = "`where(condition, a, b)` chooses by the values of tensors"
                raise ExpressionError(message, error.extent, help) from None
            raise

    def name(self, expr: Name) -> Term:
        if expr.id in self.names:
            self.read.add(expr.id)
            term = self.names[expr.id]
            if term is None:
                raise _Broken
            return term
        if expr.id in self.model.everywhere:
            return self.level(expr.id)
        if expr.id in self.declared:
            part = self.declared[expr.id]
            if part.broken:
                raise _Broken
            if part.op is not None and part.op.row.role is Role.PARAMETER:
                return self.call_op_part(part.op, [], expr.extent)
            message = f"`{expr.id}` is a part: call it, as in `{expr.id}(x)`"
            raise ExpressionError(message, expr.extent)
        if expr.id in self.scope:
            return Constant(self.scope[expr.id])
        raise UnknownName(expr.id, expr.extent)

    def level(self, name: str) -> Tensor:
        """A graph-level value."""
        return Tensor(f"@{name}", self.model.level_type(name))

    def call(self, expr: Call) -> Term:
        assert isinstance(expr.function, Name)
        function = expr.function.id
        if function in self.declared:
            return self.call_part(self.declared[function], expr)
        if function in FUNCTIONS and self.known(expr):
            return Constant(self.static(expr))
        if function in _SUGAR:
            return _SUGAR[function](self, expr)
        if function in OPS:
            return self.call_op(OPS[function], expr)
        if function in FUNCTIONS:
            return Constant(self.static(expr))
        known = [*self.declared, *(o for o in OPS if not OPS[o].internal), *_SUGAR, *FUNCTIONS]
        help = did_you_mean(function, known, "`llamagen explain ops` lists the ops")
        raise ExpressionError(f"there is no part or op `{function}`", expr.function.extent, help)

    def call_part(self, part: _Declared, expr: Call) -> Term:
        if part.broken:
            for argument in expr.arguments:
                self.term(argument)
            raise _Broken
        if expr.keywords:
            message = "a part is called with tensors; options belong to its declaration"
            raise ExpressionError(message, expr.keywords[0][1].extent)
        operands = [self.tensor(a) for a in expr.arguments]
        if part.op is not None:
            return self.call_op_part(part.op, operands, expr.extent)
        types = [o.type for o in operands]
        blocks: list[_Specialised] = []
        # a stack is called with what its widest layers take; each takes what its block names
        inputs = max((self.model.spec.blocks[n].inputs for n, _ in part.blocks), key=len)
        count = 1
        for name, options in part.blocks:
            if not {*self.model.spec.blocks[name].inputs} <= {*inputs}:
                inputs = self.model.spec.blocks[name].inputs
            if len(types) != len(inputs):
                message = f"block `{name}` takes {len(inputs)} tensors ({', '.join(inputs)})"
                raise ExpressionError(f"{message}, here are {len(types)}", expr.extent)
            block = self.model.specialise(name, options, types, inputs)
            if (
                block is None
            ):  # most keep their type, so that the equations after it are still checked
                if not operands or operands[0].type.dtype is not DType.MODEL:
                    raise _Broken
                return operands[0]
            count = count if blocks else len(block.outputs)
            if part.stack and block.outputs != tuple(types[:count]):
                results = ", ".join(map(str, block.outputs))
                carried = ", ".join(map(str, types[:count])) or "nothing"
                message = f"layer {len(blocks)} of `{part.name}` turns {carried} into {results}"
                raise ExpressionError(f"{message}: a stack must keep its types", expr.extent)
            blocks.append(block)
            self.context |= block.context
        keys = tuple(block.key for block in blocks)
        if not part.stack:
            self.add_part(BlockPart(part.name, keys[0], part.span), expr.extent)
            return self.emit("call", operands, blocks[0].outputs, {}, expr.extent, part.name)
        self.add_part(StackPart(part.name, keys, part.span, part.count_source), expr.extent)
        if part.collect is None:
            return self.emit("stack", operands, types[:count], {}, expr.extent, part.name)
        if count > 1:
            message = f"`collect` is for a stack that carries one tensor, this one carries {count}"
            raise ExpressionError(message, expr.extent)
        results_ = types[:1] * (1 + len(part.collect))
        attrs = {"collect": part.collect}
        term = self.emit("stack", operands, results_, attrs, expr.extent, part.name)
        assert isinstance(term, Several)
        first, *states = (t for t in term.items if isinstance(t, Tensor))
        return Several((first, Listed(tuple(states))))

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
        named = {k: self.argument(k, a, operands) for k, a in expr.keywords}
        attrs, sources = _bind(op, positional, named, expr.extent)
        self.check_operands(op, operands, expr.extent, op.name)
        return self.apply(op, operands, attrs, expr.extent, sources)

    def argument(self, name: str, expr: Expr, operands: Sequence[Tensor]) -> _Given:
        """A static argument by its name: axes may be named too."""
        if name in ("axis", "axes") and operands:
            return self.axis(expr, operands[0]), expr
        return self.given(self.term(expr), expr)

    def given(self, term: Term, expr: Expr) -> _Given:
        if not isinstance(term, Constant):
            raise ExpressionError("tensors come before static arguments", expr.extent)
        return term.value, expr

    def check_operands(self, op: Op, operands: Sequence[Tensor], extent: Extent, name: str) -> None:
        count, least = len(operands), len(op.operands)
        most = least + len(op.optional_operands)
        if count < least or (count > most and not op.variadic):
            takes = ", ".join((*op.operands, *op.optional_operands)) or "no tensors"
            here = {0: "are none", 1: "is 1"}.get(count, f"are {count}")
            raise ExpressionError(f"`{name}` takes {takes}; here {here}", extent)

    # values, nodes and parts

    def value(self, id: str, type_: TensorType, *, named: bool = False) -> Tensor:
        """A new value of the block."""
        self.values[id] = Value(id, type_, named)
        return Tensor(id, type_)

    def place(self, extent: Extent) -> Span | None:
        return self.text.slice_span(*extent) if self.text is not None else None

    def add_part(self, part: Part, extent: Extent) -> None:
        """Note a part at its first call. Raises ExpressionError for a call that wants another one."""
        if self.parts.setdefault(part.name, part) != part:
            message = f"part `{part.name}` is called with operands of different types"
            raise ExpressionError(message, extent)

    def emit(
        self,
        op: str,
        operands: Sequence[Tensor],
        results: Sequence[TensorType],
        attrs: Attrs,
        extent: Extent,
        part: str | None = None,
        sources: Mapping[str, Expr] | None = None,
    ) -> Term:
        """A node with results of its own names (``%n``), until ``renamed`` gives them the author's."""
        start = len(self.values)
        terms = tuple(self.value(f"%{start + i}", t) for i, t in enumerate(results))
        self.context |= {t.id[1:] for t in operands if t.id.startswith("@")}
        ids = tuple(t.id for t in operands)
        names = tuple(t.id for t in terms)
        place = self.place(extent)
        self.nodes.append(Node(op, ids, names, dict(attrs), part, place, dict(sources or {})))
        return _one_or_several(terms)

    def shape(
        self, op: Op, operands: Sequence[Tensor], attrs: Attrs, extent: Extent
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
        attrs: Attrs,
        extent: Extent,
        sources: Mapping[str, Expr] | None = None,
    ) -> Term:
        """The op on these operands: a node here, or in the prelude where it depends on nothing of the block."""
        if op.hoisted and all(o.id.startswith("@") for o in operands):
            names = op.result_names or (op.name,)
            return _one_or_several(self.hoist(op, operands, attrs, names, extent))
        results = self.shape(op, operands, attrs, extent)
        return self.emit(op.name, operands, results, attrs, extent, None, sources)

    def hoist(
        self,
        op: Op,
        operands: Sequence[Tensor],
        attrs: Attrs,
        names: tuple[str, ...],
        extent: Extent,
        use: str = "",
    ) -> tuple[Tensor, ...]:
        """The op on graph-level values, computed once for the whole model and each ``use`` in its prelude."""
        results = self.shape(op, operands, attrs, extent)
        model = self.model
        ids = tuple(o.id for o in operands)
        key = (op.name, ids, tuple(sorted(attrs.items())), use)
        if key not in model.prelude:
            taken = {*model.inputs, *model.computed}
            suffix, n = "", 1
            while any(name + suffix in taken for name in names):
                n += 1
                suffix = f"_{n}"
            fresh = tuple(name + suffix for name in names)
            model.prelude[key] = Node(op.name, ids, fresh, dict(attrs), None, self.place(extent))
            model.computed |= dict(zip(fresh, results, strict=True))
        return tuple(map(self.level, model.prelude[key].results))

    # spellings that stand for other ops

    def rope(self, expr: Call) -> Term:
        """``rope(x, positions, config)``: a table in the prelude, a rotation here."""
        if len(expr.arguments) != 3 or expr.keywords:
            raise ExpressionError("write `rope(x, positions, rope)`", expr.extent)
        first, second, label = expr.arguments
        x, positions, config = self.tensor(first), self.tensor(second), self.static(label)
        if not isinstance(config, Mapping) or "theta" not in config:
            raise ExpressionError("the third argument is a rope hyperparameter", label.extent)
        if len(x.type.shape) != 4 or x.type.dtype is not DType.MODEL:
            message = f"rope needs [B, heads, S, head_dim], it is {x.type}; split heads first"
            raise ExpressionError(message, first.extent)
        size, partial, layout = x.type.shape[-1].value, config["partial"], config["layout"]
        assert isinstance(partial, float | int) and isinstance(layout, str)
        kind = ROPE_KINDS[str(config["kind"])]

        def context() -> int:
            if "max_positions" in self.scope:
                length = self.scope["max_positions"]
                if isinstance(length, int):
                    return length
            message = f"the kind `{kind.name}` extends `max_positions`, which has no value"
            raise ExpressionError(message, label.extent)

        stated = cast("Attrs", config)
        named = {**kind.attrs_of(stated, context), "dim": int(size * partial)}
        table = OPS["rope_table"]
        attrs, _ = _bind(table, [], {k: (v, label) for k, v in named.items()}, expr.extent)
        suffix = label.id.removeprefix("rope") if isinstance(label, Name) else ""
        if not positions.id.startswith("@"):
            raise ExpressionError("the second argument is `positions`", second.extent)
        names = (f"cos{suffix}", f"sin{suffix}")
        tables = self.hoist(table, [positions], attrs, names, expr.extent, layout)
        return self.apply(OPS["rotate"], [x, *tables], {"layout": layout}, expr.extent)

    def grid_rope(self, expr: Call) -> Term:
        """``grid_rope(x, rows, columns, theta, extra)``: a table of a grid in the prelude, a rotation of pairs here."""
        if not expr.arguments:
            raise ExpressionError("write `grid_rope(x, rows, columns, theta, extra)`", expr.extent)
        x = self.tensor(expr.arguments[0])
        if len(x.type.shape) != 4 or x.type.dtype is not DType.MODEL:
            message = f"grid_rope needs [I, heads, places, head_dim], it is {x.type}"
            raise ExpressionError(message, expr.arguments[0].extent)
        table = OPS["grid_rope_table"]
        positional: list[_Given] = [(self.static(a), a) for a in expr.arguments[1:]]
        named: dict[str, _Given] = {k: (self.static(a), a) for k, a in expr.keywords}
        named["dim"] = (x.type.shape[-1].value, expr)
        attrs, _ = _bind(table, positional, named, expr.extent)
        tables = self.hoist(table, [], attrs, ("grid_cos", "grid_sin"), expr.extent)
        return self.apply(OPS["rotate"], [x, *tables], {"layout": "interleaved"}, expr.extent)

    def attention(self, expr: Call) -> Term:
        """``attention(q, k, v, mask='causal', window=, chunk=, scale=, softcap=, alibi=, sinks=t)``.

        The causal mask is in the prelude; ``sinks`` is a tensor, and ``mask`` may be one.
        """
        operands = [self.tensor(a) for a in expr.arguments]
        keywords = dict(expr.keywords)
        mask = keywords.pop("mask", None)
        limits: dict[str, _Given] = {
            k: (self.static(keywords.pop(k)), expr) for k in ("window", "chunk") if k in keywords
        }
        masked = self.term(mask) if mask is not None else Constant(None)
        kind = masked.value if isinstance(masked, Constant) else None
        if kind not in (None, "causal", "none") or isinstance(masked, Several | Listed):
            assert mask is not None
            message = "mask is 'causal', 'none' or a tensor of truth values"
            raise ExpressionError(message, mask.extent)
        if len(operands) != 3:
            raise ExpressionError("write `attention(q, k, v, mask='causal')`", expr.extent)
        sinks = keywords.pop("sinks", None)
        if sinks is not None and kind != "causal":
            raise ExpressionError("sinks need mask='causal'", sinks.extent)
        op = OPS["attention"]
        named = {k: self.given(self.term(a), a) for k, a in keywords.items()}
        also = ("mask", "window", "chunk", "sinks")
        attrs, sources = _bind(op, [], named, expr.extent, also)
        if kind == "causal":
            causal = OPS["causal_mask"]
            limit, _ = _bind(causal, [], limits, expr.extent)
            name = "mask" + "".join(f"_{k}" for k in ("window", "chunk") if limit[k] is not None)
            level = [self.level(n) for n in AMBIENT]
            operands += self.hoist(causal, level, limit, (name,), expr.extent)
            if sinks is not None:
                operands.append(self.tensor(sinks))
        elif limits:
            raise ExpressionError("window and chunk need mask='causal'", expr.extent)
        elif isinstance(masked, Tensor):
            operands.append(masked)
        elif (keys := operands[1].type.shape[2:3]) in ((S,), (T,)):  # of text, which may be padded
            which = "all" if keys == (T,) else "new"
            hidden: Attrs = {"window": None, "chunk": None, "padding": which}
            name = f"mask_padding_{which}"
            level = [self.level(n) for n in AMBIENT]
            operands += self.hoist(OPS["causal_mask"], level, hidden, (name,), expr.extent)
        return self.apply(op, operands, attrs, expr.extent, sources)

    def activation(self, expr: Call) -> Term:
        """``activation(x, hidden_act)``: the op whose name is a hyperparameter."""
        if len(expr.arguments) != 2 or expr.keywords:
            raise ExpressionError("write `activation(x, hidden_act)`", expr.extent)
        x, name = self.tensor(expr.arguments[0]), self.static(expr.arguments[1])
        known = ACTIVATIONS.get(name) if isinstance(name, str) else None
        if known is None:
            message = f"`{name}` is no activation: {', '.join(ACTIVATIONS)}"
            raise ExpressionError(message, expr.arguments[1].extent)
        return self.apply(OPS[known.op or known.name], [x], known.attrs, expr.extent)

    def where(self, expr: Call) -> Term:
        """``where(condition, a, b)``: either of the two may be a number."""
        if len(expr.arguments) != 3 or expr.keywords:
            raise ExpressionError("write `where(condition, a, b)`", expr.extent)
        condition = self.tensor(expr.arguments[0])
        operands, attrs = [condition], dict[str, AttrValue]()
        for name, argument in zip(("then", "otherwise"), expr.arguments[1:], strict=True):
            term = self.term(argument)
            attrs[name] = _number(term.value, argument) if isinstance(term, Constant) else None
            operands += [term] if isinstance(term, Tensor) else []
        return self.apply(OPS["where"], operands, attrs, expr.extent)

    def power(self, expr: Call) -> Term:
        """``pow(a, b)`` is ``a ** b``."""
        if len(expr.arguments) != 2 or expr.keywords:
            raise ExpressionError("write `pow(a, b)`", expr.extent)
        left, right = expr.arguments
        power = Binary("**", left, right, extent=expr.extent)
        return self.arithmetic("**", self.term(left), self.term(right), power)

    def extreme(self, expr: Call) -> Term:
        """``max(x, axis=...)`` along an axis; ``max(a, b)`` by place, of tensors and numbers."""
        assert isinstance(expr.function, Name)
        name = expr.function.id
        if len(expr.arguments) == 1:
            return self.call_op(OPS[name], expr)
        terms = [self.term(a) for a in expr.arguments]
        tensors = [t for t in terms if isinstance(t, Tensor)]
        if len(terms) != 2 or expr.keywords or not tensors:
            message = f"write `{name}(x, axis=...)` along an axis, or `{name}(a, b)` of two values"
            raise ExpressionError(message, expr.extent)
        if len(tensors) == 2:
            row = OPS["maximum" if name == "max" else "minimum"]
            return self.apply(row, tensors, {}, expr.extent)
        (bound,) = (a for t, a in zip(terms, expr.arguments, strict=True) if t not in tensors)
        side = "low" if name == "max" else "high"
        attrs, sources = _bind(
            OPS["clamp"], [], {side: self.given(self.term(bound), bound)}, expr.extent
        )
        return self.apply(OPS["clamp"], tensors, attrs, expr.extent, sources)

    def arithmetic(self, op: str, left: Term, right: Term, expr: Binary) -> Term:
        match left, right:
            case Tensor(), Tensor():
                return self.apply(OPS[_PAIRS[op]], [left, right], {}, expr.extent)
            case (Tensor(), Constant()) | (Constant(), Tensor()) if op not in _SCALARS:
                raise ExpressionError(f"`{op}` needs a tensor on either side", expr.extent)
            case Tensor(), Constant(value=value):
                number = _number(value, expr.right)
                if op == "/" and number == 0:
                    raise ExpressionError("division by zero", expr.right.extent)
                attrs = {"value": -number if op == "-" else number}
                sources = {} if op == "-" else {"value": expr.right}
                return self.apply(OPS[_SCALARS[op]], [left], attrs, expr.extent, sources)
            case Constant(value=value), Tensor():
                number = _number(value, expr.left)
                operand: Term = right
                if op == "**":
                    help = f"write `exp(x * log({number:g}))`" if number > 0 else None
                    message = "a number to the power of a tensor is not an op"
                    raise ExpressionError(message, expr.extent, help)
                if op in ("-", "/"):
                    inverse = OPS["neg" if op == "-" else "reciprocal"]
                    operand = self.apply(inverse, [right], {}, expr.extent)
                    op = "+" if op == "-" else "*"
                    if op == "*" and number == 1:
                        return operand
                assert isinstance(operand, Tensor)
                sources = {"value": expr.left}
                row = OPS[_SCALARS[_MIRRORED.get(op, op)]]
                return self.apply(row, [operand], {"value": number}, expr.extent, sources)
            case _:
                message = "an op with several results: name them first"
                raise ExpressionError(message, expr.extent)


_COMPARISONS = {
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "not_equal",
}
_PAIRS: Mapping[str, str] = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "**": "pow",
    "@": "matmul",
    "and": "logical_and",
    "or": "logical_or",
    **_COMPARISONS,
}
"""Operators between two tensors, and their ops."""
_SCALARS: Mapping[str, str] = {
    "+": "add_scalar",
    "-": "add_scalar",
    "*": "mul_scalar",
    "/": "div_scalar",
    "**": "pow_scalar",
    **{sign: f"{op}_scalar" for sign, op in _COMPARISONS.items()},
}
"""Operators between a tensor and a number."""
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}

_SUGAR: Mapping[str, Callable[[_Body, Call], Term]] = {
    "rope": _Body.rope,
    "grid_rope": _Body.grid_rope,
    "attention": _Body.attention,
    "activation": _Body.activation,
    "where": _Body.where,
    "pow": _Body.power,
    "max": _Body.extreme,
    "min": _Body.extreme,
}


def _one_or_several(terms: tuple[Tensor, ...]) -> Term:
    return terms[0] if len(terms) == 1 else Several(terms)


def _chosen(expr: Expr, scope: _Scope) -> Expr:
    """``A if test else B`` is decided here: a part is one thing or the other."""
    while isinstance(expr, Conditional):
        holds = is_true(evaluate(expr.test, scope), expr.test)
        expr = expr.then if holds else expr.otherwise
    return expr


def _head(expr: Expr) -> tuple[str, Call]:
    match expr:
        case Name(id=id, extent=extent):
            return id, Call(expr, (), (), extent=extent)
        case Call(function=Name(id=id)):
            return id, expr
        case _:
            message = "a part is `linear(...)`, a block's name, or `stack(count, Block(...))`"
            raise ExpressionError(message, expr.extent)


def _size(expr: Expr, static: Callable[[Expr], Static], shadowed: Container[str] = ()) -> Static:
    """One size of a shape: a value known now, or the text of a Dim such as ``4100*I``. Raises ExpressionError."""
    if not any(n.id in RUN_TIME and n.id not in shadowed for n in names_in(expr)):
        return static(expr)
    match expr:
        case Name(id=id):
            return str(RUN_TIME[id])
        case Binary(op="+" | "*" as op, left=left, right=right):
            a, b = (_dim(_size(e, static, shadowed), e) for e in (left, right))
            return str(a + b if op == "+" else a * b)
        case _:
            message = "sizes known at run time can be added and multiplied, nothing else"
            raise ExpressionError(message, expr.extent)


def _dim(value: Static, expr: Expr) -> Dim:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ExpressionError("a size is a whole number", expr.extent)
    return Dim.of(value)


def _number(value: Static, expr: Expr) -> float:
    """``value`` as the number in arithmetic with a tensor. Raises ExpressionError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError("arithmetic with a tensor needs a number here", expr.extent)
    if not _in_float32(value):
        raise ExpressionError(f"{value:g} is not {FLOAT32_WORDS}", expr.extent)
    return float(value)


# static arguments, checked against the row of an op

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
FLOAT32_WORDS = "a number that float32 holds: 0, or of a size from 1.2e-38 to 3.4e38"

_Given: TypeAlias = tuple[Static, Expr]
"""A static argument and the expression it came from."""


def _bind(
    op: Op,
    positional: Sequence[_Given],
    named: Mapping[str, _Given],
    extent: Extent,
    also: Sequence[str] = (),
) -> tuple[dict[str, AttrValue], dict[str, Expr]]:
    """Attributes of ``op`` by name, defaults filled in, and their expressions. Raises ExpressionError.

    ``also`` are arguments that a spelling takes beside them.
    """
    written = [a for a in op.attrs if not a.derived]
    known = [a.name for a in written]
    if len(positional) > len(written):
        first = positional[len(written)][1].extent
        takes = ", ".join(known) or "no static arguments"
        raise ExpressionError(f"too many arguments: `{op.name}` takes {takes}", first)
    bound: dict[str, _Given] = {a.name: g for a, g in zip(written, positional, strict=False)}
    for name, (value, expr) in named.items():
        if name not in known:
            every = [*also, *known]
            help = did_you_mean(name, every, f"it takes: {', '.join(every) or 'nothing'}")
            raise ExpressionError(f"`{op.name}` has no argument `{name}`", expr.extent, help)
        if name in bound:
            raise ExpressionError(f"`{name}` is given twice", expr.extent)
        bound[name] = (value, expr)
    attrs: dict[str, AttrValue] = {}
    for spec in written:
        if spec.name in bound:
            attrs[spec.name] = _convert(op, spec, *bound[spec.name])
        elif spec.required:
            raise ExpressionError(f"`{op.name}` needs `{spec.name}` ({spec.doc})", extent)
        else:
            attrs[spec.name] = spec.default
    return attrs, {name: expr for name, (_, expr) in bound.items()}


def _in_float32(value: float) -> bool:
    """Whether backends, which compute in float32, see the number, not an infinity or a zero."""
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def _convert(op: Op, spec: AttrSpec, value: Static, expr: Expr) -> AttrValue:
    """``value`` as the attribute's type. Raises ExpressionError when it is of another one."""

    def refuse(wish: str) -> ExpressionError:
        shown = f"the text {value!r}" if isinstance(value, str) else unparse_static(value)
        return ExpressionError(
            f"`{spec.name}` of `{op.name}` must be {wish}, it is {shown}", expr.extent
        )

    if value is None:
        if spec.optional:
            return None
        raise refuse("given")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    items = value if isinstance(value, tuple) else (value,)
    match spec.type:
        case "int" if isinstance(value, int) and number:
            return value
        case "float" if isinstance(value, int | float) and number:
            if not _in_float32(value):
                raise refuse(FLOAT32_WORDS)
            return float(value)
        case "bool" if isinstance(value, bool):
            return value
        case "str" if isinstance(value, str) and (not spec.choices or value in spec.choices):
            return value
        case "ints" if all(type(i) is int for i in items):
            return tuple(i for i in items if isinstance(i, int))
        case "floats" if isinstance(value, tuple) and all(type(i) in (int, float) for i in value):
            return tuple(float(i) for i in value if isinstance(i, int | float))
        case "dims" if (sizes := _dims(value)) is not None:
            return sizes
    raise refuse(f"one of {', '.join(spec.choices)}" if spec.choices else _WISHES[spec.type])


_WISHES: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "ints": "a list of whole numbers",
    "floats": "a list of numbers",
    "dims": "a list of sizes such as [B, S, 128]",
}


def _dims(value: Static) -> str | None:
    """None for what is no list of sizes."""
    items = value if isinstance(value, tuple) else ()
    try:
        sizes = [
            str(Dim.of(i)) for i in items if isinstance(i, int | str) and not isinstance(i, bool)
        ]
    except ValueError:
        return None
    return ", ".join(sizes) if items and len(sizes) == len(items) else None


@dataclass(frozen=True, slots=True)
class Spelling:
    """How an author writes what is not a row of the op table, for ``llamagen explain``."""

    signature: str
    doc: str


SPELLINGS: Mapping[str, Spelling] = {
    "stack": Spelling(
        "stack(count, Block(option=...), collect=none)",
        "A part: `count` layers named 0, 1, ... run one after the other. The second argument is evaluated once a layer "
        "with `layer` as its index, so `Block(kind=kinds[layer])` reads a pattern and `A() if test else B()` chooses. "
        "What a layer returns goes into the next one, several values too (`x, k, v = layers(x, k, v)`); further "
        "operands are the same for all, and a layer whose block does not name one goes without. "
        "With `collect=[3, 7]` a call has a second result, the list of the states before layers 3 and 7 (`count`: the "
        "end), for `concat`.",
    ),
    "rope": Spelling(
        "rope(x, positions, rope)",
        "Rotary embedding of x [B, heads, S, head_dim]. The third argument is a rope hyperparameter (`rope` or "
        "`rope_local`): its kind, theta, layout and partial decide the table, which is computed once for all layers.",
    ),
    "attention": Spelling(
        "attention(q, k, v, mask='causal'|'none'|m, window=none, chunk=none, sinks=none, ...)",
        "`mask='causal'` hides later tokens and padding; `window=w` leaves the last w keys, itself included; `chunk=c` "
        "those in the same block of c true positions; with a tensor `mask=m` a query sees the keys where m is true; "
        "`sinks=t` adds one logit a head, t [heads], to the softmax. "
        "The other arguments are those of the op.",
    ),
    "where": Spelling(
        "where(condition, a, b)",
        "`a` where the condition holds, `b` where it does not, by place; either may be a number.",
    ),
    "max": Spelling(
        "max(x, axis=-1)",
        "The largest value along an axis; `max(a, b)` the larger of two by place, tensors or numbers. `min` likewise.",
    ),
    "activation": Spelling(
        "activation(x, hidden_act)",
        f"The activation a hyperparameter names: {', '.join(ACTIVATIONS)}.",
    ),
}
