"""Blocks as classes: constructors that make the parts, forwards close to how the spec wrote the equations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import reduce

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.names import docstring_text, local, part_name
from llamagen.emit.torch.plan import Cut, Plan, type_of
from llamagen.emit.torch.site import ModuleSite, TorchSite
from llamagen.ir.flatten import collected
from llamagen.ir.graph import Block, BlockPart, Node, OpPart, Part, StackPart, Value
from llamagen.ops.code import (
    INDENT,
    WIDTH,
    Attribute,
    Binary,
    Call,
    Code,
    Indexed,
    Text,
    Tuple,
    call,
    flat,
    literal,
    statement,
)
from llamagen.ops.dims import Dim
from llamagen.ops.op import DType, State, TensorType

MAX_PERIOD = 8


class Body:
    """Statements of one block. ``run`` may be called for consecutive pieces of its nodes."""

    def __init__(self, block: Block, plan: Plan) -> None:
        self.block = block
        self.plan = plan
        self.lines: list[str] = []
        self.depth = 2
        self.left = Counter(o for n in block.nodes for o in n.operands) + Counter(block.outputs)
        self.variables: dict[str, str] = {}
        self.codes: dict[str, Code] = {}
        self.inline: set[str] = set()
        self.lists: dict[tuple[str, ...], str] = {}
        """Collected states -> the list that holds them."""
        self.taken = {*plan.arguments.get(block.name, ()), *plan.constants.order}
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
            name = self.plan.variables.get(value.id, value.id)
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
            return Text(self.plan.variables[operand[1:]])
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
        return text(TorchSite(self, node), [self.read(o) for o in node.operands])

    def part(self, node: Node) -> Part:
        assert node.part is not None
        return self.block.parts[node.part]

    def call(self, node: Node) -> Code:
        part = self.part(node)
        assert not isinstance(part, StackPart)
        below = self.plan.arguments[getattr(part, "block", "")]
        args = [self.read(o) for o in node.operands]
        return call(f"self.{node.part}", *args, *(Text(a) for a in below))

    def put(self, prefix: str, code: Code, spare: str = "") -> list[str]:
        """A statement; a sum of calls or a chain of methods too long for a line is cut at its head, named ``spare``."""
        line = statement(prefix, code, self.depth)
        busy = {*self.taken, *self.variables.values(), prefix.partition(" ")[0]}
        name = spare or local("y", busy)
        match code:
            case _ if len(line) <= WIDTH:
                return [line]
            case Binary(op=op, left=Binary() | Call() as head, right=right):
                tail: Code = Binary(op, Text(name), right)
            case Call(receiver=Call() as head):
                tail = replace(code, receiver=Text(name))
            case _:
                return [line]
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
            self.lines.append(statement(f"{carried} = ", first, 2))
        below = self.plan.arguments[part.blocks[0]]
        step = call("layer", Text(carried), *others, *(Text(a) for a in below))
        self.codes[node.results[0]] = Text(carried)
        if len(node.results) > 1:
            self.collect(node, part, carried, step)
            return
        self.lines.append(f"        for layer in self.{part.name}.values():")
        self.lines.append(statement(f"{carried} = ", step, 3))

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
        self.lines.append(statement(f"{carried} = ", step, 3))
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
        self.lines.append(statement("", call("cross.append", Tuple(tuple(args))), self.depth))

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
        return type_of(self.plan.graph, self.block, operand)

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
            return Text(self.plan.constants.number_like(dim.value, "head_dim"))
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


def staged_forward(body: Body, cut: Cut) -> list[str]:
    """The statements of a block between the root and its layers."""
    carried = enter(body, cut)
    if not cut.after:
        return [*body.lines, f"        return {carried}"]
    there = f"self.{guard(cut.after)}"
    lines, code = leave(body, cut)
    short = f"        return {flat(code)} if {there} else {carried}"
    if not lines and len(short) <= WIDTH:
        return [*body.lines, short]
    early = [f"        if {there} is None:", f"            return {carried}"]
    return [*body.lines, *early, *lines, *body.put("return ", code)]


def enter(body: Body, cut: Cut) -> str:
    """Print everything up to and with the layers; the variable that carries their result."""
    if cut.before:
        _before(body, cut)
    result = cut.call.results[0]
    if isinstance(body.part(cut.call), StackPart):
        body.stack(cut.call)
    else:
        code = body.call(cut.call)
        name = body.name(body.block.values[result])
        body.lines += body.put(f"{name} = ", code)
        body.codes[result] = Text(name)
    return flat(body.codes[result])


def _before(body: Body, cut: Cut) -> None:
    """``x = self.embed_tokens(input_ids) if self.embed_tokens else input_ids``, or the same as an ``if``."""
    operand, given, there = cut.call.operands[0], body.input_names[0], f"self.{guard(cut.before)}"
    body.inline.add(operand)
    trial = body.fork()
    trial.run(cut.before)
    body.depth = 3 if trial.lines else 2
    body.run(cut.before)
    code = body.codes[operand]
    value = body.block.values[operand]
    name = body.variables[operand] = body.name(value if value.named else None)
    body.codes[operand] = Text(name)
    if trial.lines:
        made = [*body.lines, *body.put(f"{name} = ", code)]
        body.lines = [
            f"        if {there}:",
            *made,
            "        else:",
            f"            {name} = {given}",
        ]
    else:
        choice = Text(f"{flat(code)} if {there} else {given}")
        body.lines = [statement(f"{name} = ", choice, 2)]
    body.depth = 2


def leave(body: Body, cut: Cut) -> tuple[list[str], Code]:
    """Statements after the layers, and the expression of the result."""
    before, body.lines = body.lines, []
    body.inline.update(body.block.outputs)
    body.run(cut.after)
    lines, body.lines = body.lines, before
    return lines, body.results()


def guard(nodes: tuple[Node, ...]) -> str:
    """The part whose presence says that a stage has these nodes."""
    return next(n.part for n in nodes if n.part is not None)


def class_text(plan: Plan, block: Block) -> str:
    """The class of ``block``, without its name; blocks on the way to the layers can be built in part (stages)."""
    cut = plan.cuts.get(block.name)
    attend = block.name in plan.attending
    parameters = ["attend: Attend"] if attend else []
    if cut is not None:
        parameters += ["layers: Sequence[int]", "embed: bool", "head: bool"]
    init = init_lines(plan, block, "attend")
    body = Body(block, plan)
    inputs = [f"{name}: Tensor" for name in body.input_names]
    context = [f"{name}: {plan.types[name]}" for name in plan.arguments[block.name]]
    count = len(block.outputs)
    results = "Tensor" if count == 1 else f"tuple[{', '.join(['Tensor'] * count)}]"
    lines = ["(nn.Module):"]
    if block.doc:
        lines.append(f'{INDENT}"""{docstring_text(block.doc)}"""')
    if init or attend:
        lines += [f"    def __init__({', '.join(['self', *parameters])}) -> None:"]
        lines += ["        super().__init__()"]
        lines += ["        self.attend = attend"] if block.name in plan.directly_attending else []
        lines += [*init, ""]
    lines.append(f"    def forward({', '.join(['self', *inputs, *context])}) -> {results}:")
    if cut is not None:
        lines += staged_forward(body, cut)
    else:
        body.run(block.nodes)
        lines += [*body.lines, *body.put("return ", body.results())]
    return "\n".join(lines)


def init_lines(plan: Plan, block: Block, attend: str) -> list[str]:
    """``self.q_proj = nn.Linear(...)`` for every part, in the spec's order."""
    cut = plan.cuts.get(block.name)
    flags = {}
    if cut is not None:
        flags = {n.part: " if embed else None" for n in cut.before}
        flags |= {n.part: " if head else None" for n in cut.after}
    lines: list[str] = []
    for part in block.parts.values():
        name = part_name(part.name, part.span)
        if isinstance(part, StackPart):
            lines += _stack_lines(plan, part, attend, staged=cut is not None)
            continue
        made = _made(plan, part, attend, cut is not None and part.name == cut.call.part)
        lines.append(statement(f"self.{name} = ", made, 2) + flags.get(part.name, ""))
    return lines


def _made(plan: Plan, part: OpPart | BlockPart, attend: str, staged: bool) -> Code:
    if isinstance(part, OpPart):
        if part.row.torch_module is None:
            message = f"part `{part.name}` is `{part.op}`, which has no PyTorch module"
            raise LlamagenError.of("LG741", message, part.span)
        return part.row.torch_module(ModuleSite(plan, part))
    arguments = [Text(attend)] if part.block in plan.attending else []
    if staged:
        arguments += [Text("layers"), Text("embed"), Text("head")]
    return call(plan.names[part.block], *arguments)


def _stack_lines(plan: Plan, part: StackPart, attend: str, staged: bool) -> list[str]:
    count = flat(plan.constants.code(len(part.blocks), part.count_source))
    arguments = attend if part.blocks[0] in plan.attending else ""
    kinds = [plan.names[b] for b in part.blocks]
    periods = range(1, len(kinds) + 1)
    period = next(p for p in periods if all(k == kinds[i % p] for i, k in enumerate(kinds)))
    lines, kind = [], kinds[0]
    if period > MAX_PERIOD:
        lines, kind = [f"        kinds = ({', '.join(kinds)})"], "kinds[i]"
    elif period > 1:
        lines, kind = [f"        kinds = ({', '.join(kinds[:period])})"], f"kinds[i % {period}]"
    layers = "layers" if staged else f"range({count})"
    modules = f"{{str(i): {kind}({arguments}) for i in {layers}}}"
    return [*lines, f"        self.{part.name} = nn.ModuleDict({modules})"]
