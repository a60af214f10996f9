"""Reads the canonical text of a graph back: what ``llamagen.ir.text.render`` writes leaves nothing out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, Part, StackPart, Value
from llamagen.ops.dims import Dim
from llamagen.ops.op import INIT_KINDS, Attrs, AttrValue, DType, Parameter, TensorType

_VALUE = r"(%?[\w.]+): (\w+)\[([^\]]*)\]"
_CALL = re.compile(r"(?:(\w+):)?(\w+)\(([^)]*)\)(?: (\{.*\}))?$")
_BLOCK = re.compile(r"block (\w+)\((.*)\) (\{.*\}) of (\w+)(?: reads (.*))?$")
_OP_PART = re.compile(r"(\w+) (\{.*\}) \((.*)\)(?: tied to (\S+))?$")
_PARAMETER = re.compile(r"(\w+|\.): (\w+)\[([^\]]*)\]")


def parse(text: str) -> Graph:
    """The graph of a canonical text. Raises ValueError for another."""
    return _Reader(text).graph()


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0

    def next(self) -> str:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if line:
                return line
        raise ValueError("the text ends too early")

    def graph(self) -> Graph:
        spec_id = json.loads(_after(self.next(), "graph "))
        digest = _after(self.next(), "digest ")
        inputs: list[Value] = []
        prelude: list[Node] = []
        prelude_values: dict[str, Value] = {}
        blocks: dict[str, Block] = {}
        while True:
            line = self.next()
            if line.startswith("input "):
                inputs.extend(_values(_after(line, "input ")))
            elif line.startswith("prelude "):
                node, made = _node(_after(line, "prelude "), {})
                prelude.append(node)
                prelude_values.update({v.id: v for v in made})
            elif line.startswith("block "):
                block = self.block(line)
                blocks[block.name] = block
            else:
                break
        root, outputs = _after(line, "root ").split(" -> ")
        return Graph(
            spec_id,
            digest,
            tuple(_all_named(inputs)),
            tuple(prelude),
            {v.id: v for v in _all_named(prelude_values.values())},
            blocks,
            root,
            tuple(outputs.split(", ")) if outputs != "nothing" else (),
        )

    def block(self, line: str) -> Block:
        match = _BLOCK.match(line)
        if match is None:
            raise ValueError(f"not a block: {line}")
        name, inputs, options, definition, reads = match.groups()
        given = _values(inputs)
        values = {v.id: v for v in given}
        parts: dict[str, Part] = {}
        nodes: list[Node] = []
        while not (line := self.next()).startswith("  return "):
            if line.startswith("  part "):
                part_name, text = _after(line, "  part ").split(" = ", 1)
                parts[part_name] = _read_part(part_name, text)
            else:
                node, made = _node(line.strip(), parts)
                nodes.append(node)
                values.update({v.id: v for v in made})
        outputs = tuple(_after(line, "  return ").split(", "))
        context = tuple(reads.split(", ")) if reads else ()
        return Block(
            name,
            definition,
            _read_attrs(options),
            given,
            parts,
            values,
            tuple(nodes),
            outputs,
            context,
        )


def _all_named(values: Iterable[Value]) -> list[Value]:
    return [Value(v.id, v.type, named=True) for v in values]


def _after(line: str, start: str) -> str:
    if not line.startswith(start):
        raise ValueError(f"expected {start.strip()!r}, found {line!r}")
    return line[len(start) :]


def _values(text: str) -> tuple[Value, ...]:
    return tuple(
        Value(id, _type(dtype, shape), named=not id.startswith("%"))
        for id, dtype, shape in re.findall(_VALUE, text)
    )


def _type(dtype: str, shape: str) -> TensorType:
    sizes = [s for s in shape.split(", ") if s]
    return TensorType(DType(dtype), tuple(Dim.of(int(s) if s.isdigit() else s) for s in sizes))


def _read_attrs(text: str | None) -> dict[str, AttrValue]:
    if not text:
        return {}
    loaded: dict[str, AttrValue | list[int] | list[float]] = json.loads(text)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in loaded.items()}


def _node(text: str, parts: dict[str, Part]) -> tuple[Node, Sequence[Value]]:
    results, call = text.split(" = ", 1)
    made = _values(results)
    match = _CALL.match(call)
    if match is None:
        raise ValueError(f"not an op: {call}")
    part, op, operands, attrs = match.groups()
    given = tuple(operands.split(", ")) if operands else ()
    owner = parts.get(part) if part else None
    own: Attrs = owner.attrs if isinstance(owner, OpPart) else _read_attrs(attrs)
    return Node(op, given, tuple(v.id for v in made), own, part), made


def _read_part(name: str, text: str) -> Part:
    match = _OP_PART.match(text)
    if match is not None:
        op, attrs, parameters, tied = match.groups()
        own = tuple(_parameters(parameters))
        return OpPart(name, op, _read_attrs(attrs), own, tied)
    if text.startswith("stack "):
        runs = [run.split(" x ") for run in _after(text, "stack ").split(" + ")]
        return StackPart(name, tuple(block for count, block in runs for _ in range(int(count))))
    return BlockPart(name, text)


def _parameters(text: str) -> Iterator[Parameter]:
    for name, kind, shape in _PARAMETER.findall(text):
        sizes = tuple(int(s) for s in shape.split(", ") if s)
        yield Parameter("" if name == "." else name, sizes, INIT_KINDS[kind])
