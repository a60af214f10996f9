"""The equations of a block as Python statements, close to how the spec wrote them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.constants import Constants, kept_text
from llamagen.emit.torch.names import local
from llamagen.emit.torch.site import TorchSite
from llamagen.ir.flatten import collected
from llamagen.ir.graph import Block, Graph, Node, Part, StackPart, Value
from llamagen.ops.code import (
    Attribute,
    Binary,
    Call,
    Code,
    Indexed,
    Text,
    Tuple,
    call,
    fits,
    flat,
    literal,
    statement,
)
from llamagen.ops.dims import Dim
from llamagen.ops.op import DType, State, TensorType, keep_of


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What holds for the whole file while a body is printed."""

    graph: Graph
    constants: Constants
    variables: Mapping[str, str]
    """Graph-level value -> Python variable."""
    arguments: Mapping[str, tuple[str, ...]]
    """Block -> context variables that its forward takes after its own inputs."""
    helper: Callable[[str], None]
    attend: str
    unmasked: str
    extras: tuple[str, ...]


class Body:
    """Statements of one block. ``run`` may be called for consecutive pieces of its nodes."""

    def __init__(self, block: Block, around: Surroundings) -> None:
        self.block = block
        self.around = around
        self.lines: list[str] = []
        self.depth = 2
        self.left = Counter(o for n in block.nodes for o in n.operands) + Counter(block.outputs)
        self.variables: dict[str, str] = {}
        self.codes: dict[str, Code] = {}
        self.inline: set[str] = set()
        self.lists: dict[tuple[str, ...], str] = {}
        """Collected states -> the list that holds them."""
        self.taken = {*around.arguments.get(block.name, ()), *around.constants.order}
        for value in block.inputs:
            self.codes[value.id] = Text(self.name(value))

    def fork(self) -> Body:
        """A copy to try nodes on."""
        other = copy(self)
        other.lines, other.left = list(self.lines), Counter(self.left)
        other.variables, other.codes = dict(self.variables), dict(self.codes)
        other.inline, other.lists = set(self.inline), dict(self.lists)
        return other

    def bind_graph_inputs(self) -> None:
        """The root's inputs are the graph's; they are variables of their own names."""
        for value in self.block.inputs:
            name = self.around.variables.get(value.id, value.id)
            self.variables[value.id] = name
            self.codes[value.id] = Text(name)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.variables[v.id] for v in self.block.inputs)

    def name(self, value: Value | None, otherwise: str = "x") -> str:
        """A variable for ``value``: the author's name, reused when the older value of that name is done with."""
        wanted = value.id.split(".")[0] if value is not None and value.named else otherwise
        busy = {v for k, v in self.variables.items() if self.left[k] > 0}
        chosen = local(wanted, self.taken | busy)
        if value is not None:
            self.variables[value.id] = chosen
        return chosen

    def read(self, operand: str) -> Code:
        self.left[operand] -= 1
        if operand.startswith("@"):
            return Text(self.around.variables[operand[1:]])
        return self.codes[operand]

    def run(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.row.control and isinstance(self.part(node), StackPart):
                self.stack(node)
            elif node.row.state is State.WRITTEN:
                self.write(node)
            else:
                self.assign(node, self.expression(node))

    def expression(self, node: Node) -> Code:
        if node.row.control:
            return self.call(node)
        text = node.row.torch
        if text is None:
            message = f"`{node.op}` has no PyTorch lowering"
            raise LlamagenError.of("LG741", message, node.span)
        args = [self.read(o) for o in node.operands]
        keep = keep_of(node.attrs)
        site = TorchSite(
            attrs=node.attrs,
            part=node.part,
            number=lambda name: self.around.constants.code(
                node.attrs[name], node.sources.get(name)
            ),
            numbers=lambda name: self.around.constants.codes(
                node.attrs[name], node.sources.get(name)
            ),
            operand_types=tuple(self.type(o) for o in node.operands),
            result_types=tuple(self.type(r) for r in node.results),
            model_dtype=self.model_dtype,
            size=self.size,
            sizes=self.sizes,
            helper=self.around.helper,
            kept=lambda: "" if keep is None else kept_text(self.around.constants, keep),
            attend=Text(self.around.attend),
            unmasked=Text(self.around.unmasked),
            extras=self.around.extras,
            states=self.lists.get(node.operands, "") if node.row.variadic else "",
        )
        return text(site, args)

    def part(self, node: Node) -> Part:
        assert node.part is not None
        return self.block.parts[node.part]

    def call(self, node: Node) -> Code:
        part = self.part(node)
        assert not isinstance(part, StackPart)
        below = self.around.arguments[getattr(part, "block", "")]
        args = [self.read(o) for o in node.operands]
        return call(f"self.{node.part}", *args, *(Text(a) for a in below))

    def put(self, prefix: str, code: Code, spare: str = "") -> list[str]:
        """A statement; a sum of calls or a chain of methods too long for a line is cut at its head, named ``spare``."""
        if fits(prefix, code, self.depth):
            return statement(prefix, code, self.depth)
        busy = {*self.taken, *self.variables.values(), prefix.partition(" ")[0]}
        name = spare or local("y", busy)
        match code:
            case Binary(op=op, left=Binary() | Call() as head, right=right):
                tail: Code = Binary(op, Text(name), right)
            case Call(receiver=Call() as head):
                tail = replace(code, receiver=Text(name))
            case _:
                return statement(prefix, code, self.depth)
        return [*self.put(f"{name} = ", head, name), *self.put(prefix, tail, name)]

    def stack(self, node: Node) -> None:
        """``for layer in self.layers.values(): x = layer(x, ...)``; the carried variable keeps its name."""
        part = self.part(node)
        assert isinstance(part, StackPart)
        first = self.read(node.operands[0])
        others = [self.read(o) for o in node.operands[1:]]
        result = self.block.values[node.results[0]]
        start = flat(first)
        if result.named:
            carried = self.name(result)
        elif start in self.variables.values() and self.free(start):
            carried = self.variables[result.id] = start
        else:
            carried = self.variables[result.id] = self.name(None)
        if start != carried:
            self.lines += statement(f"{carried} = ", first, 2)
        below = self.around.arguments[part.blocks[0]]
        step = call("layer", Text(carried), *others, *(Text(a) for a in below))
        self.codes[node.results[0]] = Text(carried)
        if len(node.results) > 1:
            self.collect(node, part, carried, step)
            return
        self.lines.append(f"        for layer in self.{part.name}.values():")
        self.lines += statement(f"{carried} = ", step, 3)

    def collect(self, node: Node, part: StackPart, carried: str, step: Code) -> None:
        """The loop, with a list of the states before some layers in the order of the layers."""
        layers, states = collected(node), node.results[1:]
        name = self.name(self.block.values[states[0]], "states")
        ranks = {layer: rank for rank, layer in enumerate(sorted(set(layers)))}
        for layer, result in zip(layers, states, strict=True):
            self.variables[result] = name
            self.codes[result] = Text(f"{name}[{ranks[layer]}]")
        if list(layers) == list(ranks):
            self.lists[states] = name
        before = Tuple(tuple(literal(layer) for layer in ranks if layer < len(part.blocks)))
        self.lines.append(f"        {name} = []")
        self.lines.append(f"        for i, layer in self.{part.name}.items():")
        if before.items:
            self.lines.append(f"            if int(i) in {flat(before, 1)}:")
            self.lines.append(f"                {name}.append({carried})")
        self.lines += statement(f"{carried} = ", step, 3)
        if len(part.blocks) in ranks:
            self.lines.append(f"        {name}.append({carried})")

    def write(self, node: Node) -> None:
        """``cross.append((k, v))``; its results are its operands."""
        args = [self.read(o) for o in node.operands]
        for i, result in enumerate(node.results):
            code = args[i]
            if self.left[result] > 0 and not isinstance(code, Text):
                name = self.name(self.block.values[result], "y")
                self.lines += self.put(f"{name} = ", code)
                code = args[i] = Text(name)
            if isinstance(code, Text):
                self.variables[result] = code.text
            self.codes[result] = code
        self.lines += statement("", call("cross.append", Tuple(tuple(args))), self.depth)

    def free(self, variable: str) -> bool:
        return all(self.left[k] <= 0 for k, v in self.variables.items() if v == variable)

    def assign(self, node: Node, code: Code) -> None:
        """A value the author named gets a statement; others stay part of the expression around them."""
        if len(node.results) == 1:
            (result,) = node.results
            value = self.block.values[result]
            if self.left[result] == 1 and (not value.named or result in self.inline):
                self.codes[result] = code
                return
            self.codes[result] = Text(self.name(value, "y"))
            self.lines += self.put(f"{flat(self.codes[result])} = ", code)
            return
        names: list[str] = []
        for result in node.results:
            used = self.left[result] > 0
            names.append(self.name(self.block.values[result], "y") if used else "_")
            self.codes[result] = Text(names[-1])
        self.lines += self.put(f"{', '.join(names)} = ", code)

    def results(self) -> Code:
        outputs = [self.read(o) for o in self.block.outputs]
        return outputs[0] if len(outputs) == 1 else Text(", ".join(flat(o) for o in outputs))

    def type(self, operand: str) -> TensorType:
        if not operand.startswith("@"):
            return self.block.values[operand].type
        graph, name = self.around.graph, operand[1:]
        if name in graph.prelude_values:
            return graph.prelude_values[name].type
        return next(v.type for v in graph.inputs if v.id == name)

    def latest(self) -> dict[str, TensorType]:
        """Variable -> type of the value it holds now."""
        return {name: self.block.values[id].type for id, name in self.variables.items()}

    def model_dtype(self) -> Code:
        """The dtype of a tensor at hand that is in the model's dtype."""
        for name, type_ in self.latest().items():
            if type_.dtype is DType.MODEL:
                return Attribute(Text(name), "dtype")
        message = (
            f"block `{self.block.name}` casts to the model's dtype but has no tensor of it at hand"
        )
        raise LlamagenError.of("LG741", message, self.block.span)

    def size(self, dim: Dim) -> Code:
        if dim.is_static:
            return Text(self.around.constants.number_like(dim.value, "head_dim"))
        found = self.at_hand(dim)
        if found is not None:
            return found
        if any(dim == Dim.of(name) for name in dim.symbols):
            message = f"block `{self.block.name}` needs the size {dim}, which nothing at hand has"
            raise LlamagenError.of("LG741", message, self.block.span)
        total: Code | None = None
        for names, coefficient in dim.terms:
            factors = [self.size(Dim.of(name)) for name in names]
            if coefficient != 1 or not factors:
                factors.append(literal(coefficient))
            term = reduce(lambda a, b: Binary("*", a, b), factors)
            total = term if total is None else Binary("+", total, term)
        assert total is not None, "a size that is not fixed has terms"
        return total

    def at_hand(self, dim: Dim) -> Code | None:
        """A variable that has this size."""
        for name, type_ in self.latest().items():
            if dim in type_.shape:
                return Indexed(Attribute(Text(name), "shape"), str(type_.shape.index(dim)))
        return None

    def sizes(self, dims: Sequence[Dim]) -> tuple[Code, ...]:
        """A new shape; the one size that nothing at hand has is -1."""
        far = [i for i, d in enumerate(dims) if not d.is_static and self.at_hand(d) is None]
        if len(far) != 1:
            return tuple(map(self.size, dims))
        return tuple(literal(-1) if i == far[0] else self.size(d) for i, d in enumerate(dims))
