"""Forwards of blocks that a pipeline stage may have in part: before the layers, the layers, after them."""

from __future__ import annotations

from llamagen.emit.torch.body import Body
from llamagen.emit.torch.stages import Cut
from llamagen.ir.graph import Node, StackPart
from llamagen.ops.code import WIDTH, Code, Text, flat, statement


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
        body.lines = statement(f"{name} = ", choice, 2)
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
