"""View-models of the generated classes: constructor and forward as finished lines."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.body import Body
from llamagen.emit.torch.names import docstring_text, part_name
from llamagen.emit.torch.plan import ModuleSite, Plan
from llamagen.emit.torch.staged import staged_forward
from llamagen.ir.graph import Block, BlockPart, OpPart, StackPart
from llamagen.ops.code import (
    Code,
    Text,
    Tuple,
    call,
    flat,
    signature,
    statement,
)

STAGE_PARAMETERS = ("layers: Sequence[int]", "embed: bool", "head: bool")
MAX_PERIOD = 8


@dataclass(frozen=True, slots=True)
class ClassView:
    """One ``nn.Module``; the lines are indented."""

    name: str
    doc: str | None
    has_init: bool
    init_signature: tuple[str, ...]
    attend: bool
    init: tuple[str, ...]
    forward_signature: tuple[str, ...]
    forward: tuple[str, ...]


def class_view(plan: Plan, block: Block) -> ClassView:
    """The class of ``block``; blocks on the way to the stack of layers can be built in part (stages)."""
    cut = plan.cuts.get(block.name)
    attend = block.name in plan.attending
    parameters = ["attend: Attend"] if attend else []
    if cut is not None:
        parameters += STAGE_PARAMETERS
    init = init_lines(plan, block, "attend")
    body = Body(block, plan.around)
    lines = staged_forward(body, cut) if cut is not None else _whole(body)
    inputs = [f"{name}: Tensor" for name in body_inputs(plan, block)]
    context = [f"{name}: {plan.types[name]}" for name in plan.arguments[block.name]]
    results = "Tensor" if len(block.outputs) == 1 else _tuple_type(len(block.outputs))
    return ClassView(
        name=plan.names[block.name],
        doc=docstring_text(block.doc) if block.doc else None,
        has_init=bool(init) or attend,
        init_signature=tuple(signature("__init__", ["self", *parameters], "None", 1)),
        attend=block.name in plan.attending_directly,
        init=tuple(init),
        forward_signature=tuple(signature("forward", ["self", *inputs, *context], results, 1)),
        forward=tuple(lines),
    )


def _tuple_type(count: int) -> str:
    return f"tuple[{', '.join(['Tensor'] * count)}]"


def body_inputs(plan: Plan, block: Block) -> tuple[str, ...]:
    return Body(block, plan.around).input_names


def _whole(body: Body) -> list[str]:
    body.run(body.block.nodes)
    return [*body.lines, *body.put("return ", body.results())]


def init_lines(plan: Plan, block: Block, attend: str) -> list[str]:
    """``self.q_proj = nn.Linear(...)`` for every part, in the spec's order."""
    cut = plan.cuts.get(block.name)
    flags = {}
    if cut is not None:
        flags = {n.part: "embed" for n in cut.before if n.part} | {
            n.part: "head" for n in cut.after if n.part
        }
    lines: list[str] = []
    for part in block.parts.values():
        name = part_name(part.name, part.span)
        if isinstance(part, StackPart):
            lines += _stack_lines(plan, part, attend, "layers" if cut is not None else None)
            continue
        made = _made(plan, part, attend, cut is not None and part.name == cut.call.part)
        prefix = f"self.{name} = "
        if name not in flags:
            lines += statement(prefix, made, 2)
            continue
        line = f"        {prefix}{flat(made)} if {flags[name]} else None"
        if len(line) <= 100:
            lines.append(line)
        else:
            lines += [
                f"        {prefix}(",
                f"            {flat(made)} if {flags[name]} else None",
                "        )",
            ]
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


def _stack_lines(plan: Plan, part: StackPart, attend: str, layers: str | None) -> list[str]:
    if layers is None:
        layers = f"range({flat(plan.constants.code(len(part.blocks), part.count_source))})"
    arguments = [Text(attend)] if part.blocks[0] in plan.attending else []
    kinds = [plan.names[b] for b in part.blocks]
    period = next(
        p for p in range(1, len(kinds) + 1) if all(k == kinds[i % p] for i, k in enumerate(kinds))
    )
    lines: list[str] = []
    if period == 1:
        made = call(kinds[0], *arguments)
    else:
        index = f"[i % {period}]" if period <= MAX_PERIOD else "[i]"
        several = Tuple(tuple(Text(k) for k in (kinds[:period] if period <= MAX_PERIOD else kinds)))
        lines += _tuple_lines("kinds = ", several)
        made = call(f"kinds{index}", *arguments)
    modules = f"{{str(i): {flat(made)} for i in {layers}}}"
    line = f"        self.{part.name} = nn.ModuleDict({modules})"
    if len(line) <= 100:
        return [*lines, line]
    return [
        *lines,
        f"        self.{part.name} = nn.ModuleDict(",
        f"            {modules}",
        "        )",
    ]


def _tuple_lines(prefix: str, items: Tuple) -> list[str]:
    line = f"        {prefix}({', '.join(flat(i) for i in items.items)})"
    if len(line) <= 100:
        return [line]
    return [f"        {prefix}(", *(f"            {flat(i)}," for i in items.items), "        )"]
