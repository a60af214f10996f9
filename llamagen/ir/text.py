"""The canonical text of a graph: what golden files hold. It says everything: tests read it back (tests/graph_text.py).

One line a part and a node, block definitions once, equal layers as ``16 x DecoderLayer``::

    graph "llama/3.2/1b"
    digest 5d0c...
    input input_ids: int64[B, S]
    prelude cos: float32[B, S, 32], sin: float32[B, S, 32] = rope_table(@positions) {"dim": 64, ...}
    block DecoderLayer(x: model[B, S, 2048]) {} of DecoderLayer reads cos, sin, mask
      part mlp = SwiGLU
      %1: model[B, S, 2048] = input_layernorm:rms_norm(x)
      h: model[B, S, 2048] = add(x, %2)
      return %6
    root CausalLM -> logits
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import assert_never

from llamagen.ir.graph import Block, BlockPart, Graph, OpPart, Part, StackPart, Value
from llamagen.ops.op import Attrs
from llamagen.ops.table import STACK


def render(graph: Graph) -> str:
    """The canonical text; equal graphs give equal bytes."""
    return "".join(f"{line}\n" for line in _lines(graph))


def _lines(graph: Graph) -> Iterator[str]:
    yield f"graph {json.dumps(graph.spec_id)}"
    yield f"digest {graph.digest}"
    for value in graph.inputs:
        yield f"input {_value(value)}"
    for node in graph.prelude:
        results = ", ".join(_value(graph.prelude_values[r]) for r in node.results)
        yield f"prelude {results} = {node.op}({', '.join(node.operands)}) {_attrs(node.attrs)}"
    for block in graph.blocks.values():
        yield ""
        yield from _block(block)
    yield ""
    yield f"root {graph.root} -> {', '.join(graph.output_names) or 'nothing'}"


def _block(block: Block) -> Iterator[str]:
    inputs = ", ".join(map(_value, block.inputs))
    reads = f" reads {', '.join(block.context)}" if block.context else ""
    yield f"block {block.name}({inputs}) {_attrs(block.options)} of {block.definition}{reads}"
    for part in block.parts.values():
        yield f"  part {part.name} = {_part(part)}"
    for node in block.nodes:
        results = ", ".join(_value(block.values[r]) for r in node.results)
        owner = f"{node.part}:" if node.part is not None else ""
        own = node.part is None or node.op == STACK.name
        attrs = f" {_attrs(node.attrs)}" if own and node.attrs else ""
        yield f"  {results} = {owner}{node.op}({', '.join(node.operands)}){attrs}"
    yield f"  return {', '.join(block.outputs)}"


def _part(part: Part) -> str:
    match part:
        case OpPart(op=op, attrs=attrs, parameters=parameters, tied_to=tied):
            own = ", ".join(f"{p.name or '.'}: {p.kind}{list(p.shape)}" for p in parameters)
            return f"{op} {_attrs(attrs)} ({own})" + (f" tied to {tied}" if tied else "")
        case BlockPart(block=block):
            return block
        case StackPart(blocks=blocks):
            return "stack " + " + ".join(f"{len(list(g))} x {name}" for name, g in groupby(blocks))
        case _:
            assert_never(part)


def _value(value: Value) -> str:
    return f"{value.id}: {value.type}"


def _attrs(attrs: Attrs) -> str:
    return json.dumps({k: attrs[k] for k in attrs}, ensure_ascii=True)
