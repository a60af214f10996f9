"""Blocks as classes: constructors that make the parts, forwards close to how the spec wrote the equations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from functools import reduce

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.names import docstring_text, local, part_name
from llamagen.emit.torch.plan import Plan, last_nodes, taken_from
from llamagen.emit.torch.site import ModuleSite, TorchSite
from llamagen.ir.flatten import carried, collected
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
from llamagen.ops.dims import Dim, S
from llamagen.ops.op import DType, State, TensorType, keep_of

MAX_PERIOD = 8


class Body:
    """Statements of one block."""

    def __init__(self, block: Block, plan: Plan) -> None:
        self.block = block
        self.plan = plan
        self.lines: list[str] = []
        self.depth = 2
        self.left = Counter(o for n in block.nodes for o in n.operands) + Counter(block.outputs)
        self.variables: dict[str, str] = {}
        self.codes: dict[str, Code] = {}
        self.lists: dict[tuple[str, ...], str] = {}
        """Collected states -> the list that holds them."""
        self.taken = {*plan.arguments.get(block.name, ()), *plan.constants.order}
        for value in block.inputs:
            self.codes[value.id] = Text(self.name(value))

    def bind_graph_inputs(self) -> None:
        """The root's inputs are the graph's; they are variables of their own names."""
        for value in self.block.inputs:
            name = self.plan.variables.get(value.id, value.id)
            self.variables[value.id] = name
            self.codes[value.id] = Text(name)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.variables[v.id] for v in self.block.inputs)

    def name(
        self, value: Value | None, otherwise: str = "x", others: Set[str] = frozenset()
    ) -> str:
        """A variable for ``value``: the author's name, reused when the older value of that name is done with."""
        wanted = value.id.split(".")[0] if value is not None and value.named else otherwise
        busy = {v for k, v in self.variables.items() if self.left[k] > 0}
        chosen = local(wanted, self.taken | busy | others)
        if value is not None:
            self.variables[value.id] = chosen
        return chosen

    def read(self, operand: str) -> Code:
        self.left[operand] -= 1
        if operand.startswith("@"):
            return Text(self.plan.variables[operand[1:]])
        return self.codes[operand]

    def run_all(self) -> None:
        """The nodes of the block; those of a head for the last ``logits_to_keep`` tokens."""
        nodes, last = self.block.nodes, tuple[Node, ...]()
        if self.block.name == self.plan.head:
            last = last_nodes(self.plan.graph, self.block)
        self.run(n for n in nodes if n not in last)
        for value in taken_from(self.block, last) if last else ():
            if not isinstance(self.codes[value], Text):
                code = self.codes[value]
                self.codes[value] = Text(self.name(self.block.values[value]))
                self.lines += self.put(f"{flat(self.codes[value])} = ", code)
            kept = self.last_tokens(self.codes[value], self.type(value))
            if self.left[value] == 1:
                self.codes[value] = kept
            else:
                self.lines += self.put(f"{flat(self.codes[value])} = ", kept)
        self.run(last)

    def last_tokens(self, code: Code, type_: TensorType) -> Code:
        return Indexed(code, f"{':, ' * type_.shape.index(S)}-logits_to_keep:")

    def run(self, nodes: Iterable[Node]) -> None:
        whole, waiting = self.plan.whole, list[Node]()
        keeps = whole and any(n.row.state is State.WRITTEN for n in self.block.nodes)
        of_images = {f"@{whole.handed}"} if whole and keeps and self.depth == 2 else set[str]()
        for node in nodes:
            if whole and node.row.state is State.WRITTEN:
                self.keep(node, waiting)
            elif of_images & set(node.operands):
                waiting.append(node)
                of_images.update(node.results)
            elif node.row.control and isinstance(self.part(node), StackPart):
                self.stack(node)
            elif node.row.state is State.WRITTEN:
                self.write(node)
            elif node.row.state is State.SLOT:
                self.append(node)
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
        args = [self.read(o) for o in node.operands]
        return call(f"self.{node.part}", *args, *self.plan.taken_by(getattr(part, "block", "")))

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
        """``for layer in self.layers: x = layer(x, ...)``; the carried variables keep their names."""
        part = self.part(node)
        assert isinstance(part, StackPart)
        count = carried(node)
        given = [self.read(o) for o in node.operands]

        def words(codes: Sequence[Code]) -> set[str]:
            return {word for code in codes for word in re.findall(r"\w+", flat(code))}

        for i, code in enumerate(given[count:], count):  # once, of what is carried into the loop
            if not isinstance(code, Text):
                given[i] = Text(self.name(None, "y", words(given)))
                self.lines += self.put(f"{flat(given[i])} = ", code)
        variables: list[str] = []
        for i in reversed(range(count)):  # the first last: others are often computed from it
            id = node.results[i]
            result, start = self.block.values[id], flat(given[i])
            later = {*words([*given[:i], *given[count:]]), *variables}
            if result.named and not id.startswith("_"):
                variable = self.name(result, "x", later)
            elif start in self.variables.values() and start not in later and self.free(start):
                variable = self.variables[result.id] = start
            else:
                variable = self.variables[result.id] = self.name(None, "x", later)
            if start != variable:
                self.lines.append(statement(f"{variable} = ", given[i], 2))
            self.codes[id] = Text(variable)
            variables.insert(0, variable)
        taken = self.plan.taken_by(part.blocks[0])
        step = call("layer", *map(Text, variables), *given[count:], *taken)
        if len(node.results) > count:
            self.collect(node, part, variables[0], step)
            return
        self.lines.append(f"        for layer in self.{part.name}:")
        self.lines.append(statement(f"{', '.join(variables)} = ", step, 3))

    def collect(self, node: Node, part: StackPart, variable: str, step: Code) -> None:
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
        self.lines.append(f"        for i, layer in enumerate(self.{part.name}):")
        if before.items:
            self.lines.append(f"            if i in {flat(before, 1)}:")
            self.lines.append(f"                {name}.append({variable})")
        self.lines.append(statement(f"{variable} = ", step, 3))
        if len(part.blocks) in ranks:
            self.lines.append(f"        {name}.append({variable})")

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

    def keep(self, node: Node, of_images: Sequence[Node]) -> None:
        """``k, v = cache.cross[self]``, or in a call with images what ``of_images`` compute."""
        self.lines.append(f"        if {self.plan.handed} is not None:")
        self.depth = 3
        self.run(of_images)
        names = ", ".join(self.named(node))
        self.depth = 2
        self.lines += [
            "            if cache is not None:",
            f"                cache.cross[self] = {names}",
            "        else:",
            f"            {names} = cache.cross[self]",
        ]

    def named(self, node: Node) -> list[str]:
        """Variables for the operands of ``node``, which are its results."""
        codes, names = [self.read(o) for o in node.operands], list[str]()
        for i, result in enumerate(node.results):
            later = {word for code in codes[i + 1 :] for word in re.findall(r"\w+", flat(code))}
            names.append(self.name(self.block.values[result], "y", later))
            if names[i] != flat(codes[i]):
                self.lines += self.put(f"{names[i]} = ", codes[i])
            self.codes[result] = Text(names[i])
        return names

    def append(self, node: Node) -> None:
        """``k, v = cache.append(k, v)``, if there is a cache; else its results are its operands."""
        names = self.named(node)
        keep = self.plan.kept(keep_of(node.attrs))
        method, more = "append", [Text(keep)] if keep else []
        if self.plan.config:
            method, more = "update", [Text("self.layer_idx")]
        self.lines.append("        if cache is not None:")
        appended = call(f"cache.{method}", *map(Text, names), *more)
        self.lines += self.put(f"    {', '.join(names)} = ", appended)

    def free(self, variable: str) -> bool:
        return all(self.left[k] <= 0 for k, v in self.variables.items() if v == variable)

    def assign(self, node: Node, code: Code) -> None:
        """A value the author named gets a statement; others stay part of the expression around them."""
        if len(node.results) == 1:
            (result,) = node.results
            value = self.block.values[result]
            # states are in the order of the nodes, whatever Python evaluates first in an expression
            if self.left[result] == 1 and not value.named and node.row.state is not State.FIXED:
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
        return self.plan.graph.type_of(self.block, operand)

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
        known = self.at_hand(dim)
        if known is not None:
            return known
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
        """A new shape; -1 is the one size that nothing at hand has, else the first number for heads or tokens."""
        far = [i for i, d in enumerate(dims) if not d.is_static and self.at_hand(d) is None]
        if not far and (S in dims or all(d.is_static for d in dims)):  # a rank may have a part
            far = [i for i, d in enumerate(dims) if d.is_static and d.value > 1][:1]
        if len(far) != 1:
            return tuple(map(self.size, dims))
        return tuple(literal(-1) if i == far[0] else self.size(d) for i, d in enumerate(dims))


def class_text(plan: Plan, block: Block) -> str:
    """The class of ``block``, without its name."""
    attend = block.name in plan.attending
    arguments = plan.attention_arguments if attend else {}
    parameters = [f"{name}: {type_}" for name, type_ in arguments.items()]
    init = init_lines(plan, block, ", ".join(plan.attention_arguments))
    body = Body(block, plan)
    inputs = [f"{name}: Tensor" for name in body.input_names]
    types = plan.types(block.name)
    context = [f"{name}: {types[name]}" for name in plan.arguments[block.name]]
    context += ["**kwargs: object"] if plan.config and attend else []
    count = len(block.outputs)
    results = "Tensor" if count == 1 else f"tuple[{', '.join(['Tensor'] * count)}]"
    lines = [f"({'GradientCheckpointingLayer' if block.name in plan.layers else 'nn.Module'}):"]
    if block.doc:
        lines.append(f'{INDENT}"""{docstring_text(block.doc)}"""')
    if init or attend:
        lines += [f"    def __init__({', '.join(['self', *parameters])}) -> None:"]
        lines += ["        super().__init__()"]
        lines += _attention_lines(plan, block) if block.name in plan.directly_attending else []
        lines += [*init, ""]
    if start := start_lines(plan, block):
        lines[-1:] = ["        self.reset_parameters()", "", *start, ""]
    lines.append(f"    def forward({', '.join(['self', *inputs, *context])}) -> {results}:")
    if plan.whole is not None and block.name in plan.whole.skipped:
        of_image = next(name for name in plan.arguments[block.name] if name in plan.beside)
        lines += [f"        if {of_image} is None:  # there is no image"]
        lines += [f"            return {body.input_names[0]}"]
    if plan.config and block.name in plan.directly_attending:
        named = "self.config._attn_implementation, of_eager"
        lines += [f"        attend = ALL_ATTENTION_FUNCTIONS.get_interface({named})"]
    body.run_all()
    lines += [*body.lines, *body.put("return ", body.results())]
    return "\n".join(lines)


def _attention_lines(plan: Plan, block: Block) -> list[str]:
    """What a block keeps for its attention; in a file for transformers, under the names that implementations read."""
    if not plan.config:
        return ["        self.attend = attend"]
    (node,) = (n for b, n in plan.attentions if b is block)
    q, k = (block.values[o].type.shape for o in node.operands[:2])
    site = TorchSite(Body(block, plan), node)
    scale = node.attrs["scale"]
    usual = Binary("**", site.size(q[-1]), literal(-0.5))
    return [
        "        self.config, self.layer_idx = config, layer_idx",
        statement("self.scaling = ", usual if scale is None else site.number("scale"), 2),
        f"        self.num_key_value_groups = {q[1].value // k[1].value}",
    ]


def init_lines(plan: Plan, block: Block, attend: str) -> list[str]:
    """``self.q_proj = nn.Linear(...)`` for every part, in the spec's order."""
    lines: list[str] = []
    for part in block.parts.values():
        name = part_name(part.name, part.span)
        match part:
            case StackPart():
                lines += _stack_lines(plan, part, attend)
                continue
            case BlockPart():
                arguments = [Text(attend)] if part.block in plan.attending else []
                module = call(plan.names[part.block], *arguments)
            case OpPart(row=row):
                if row.torch_module is None:
                    message = f"part `{part.name}` is `{part.op}`, which has no PyTorch module"
                    raise LlamagenError.of("LG741", message, part.span)
                module = row.torch_module(ModuleSite(plan, part))
        lines.append(statement(f"self.{name} = ", module, 2))
    heads = plan.alibi_heads(block)
    if heads is not None:  # an attribute, so that a rank with some of the heads can take theirs
        count = plan.constants.number_like(heads, "num_heads")
        lines.append(f"        self.slopes = alibi_slopes({count})")
    return lines


def start_lines(plan: Plan, block: Block) -> list[str]:
    """The method that gives the block's own parameters their first values; nothing if it has none."""
    starts = [
        statement("", part.row.torch_start(ModuleSite(plan, part)), 2)
        for part in block.parts.values()
        if isinstance(part, OpPart) and part.row.torch_start is not None
    ]
    return ["    def reset_parameters(self) -> None:", *starts] if starts else []


def _stack_lines(plan: Plan, part: StackPart, attend: str) -> list[str]:
    count = flat(plan.constants.code(len(part.blocks), part.count_source))
    arguments = attend.replace("layer_idx", "i") if part.blocks[0] in plan.attending else ""
    kinds = [plan.names[b] for b in part.blocks]
    periods = range(1, len(kinds) + 1)
    period = next(p for p in periods if all(k == kinds[i % p] for i, k in enumerate(kinds)))
    lines, kind, i = [], kinds[0], "i" if plan.config else "_"
    if period > 1:
        names = kinds if period > MAX_PERIOD else kinds[:period]
        lines = [f"        kinds = ({', '.join(names)})"]
        kind, i = f"kinds[{'i' if period > MAX_PERIOD else f'i % {period}'}]", "i"
    layers = f"[{kind}({arguments}) for {i} in range({count})]"
    return [*lines, f"        self.{part.name} = nn.ModuleList({layers})"]
