"""Rewrites of the rows of tokens, [B, S]: real tokens to the front, and logits of the last real token alone.

The fused attention appends the real tokens of a chunk to each row's cache, one after the other, so it wants them at the
front; clients put padding on the left, on the right or between. Where all other ops treat tokens one by one, the order
is changed once as tokens enter and changed back as logits leave, and it costs nothing in the layers. Where some layers
keep their own attention, it is changed around each fused one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamagen.ir.flatten import FlatGraph, FlatNode
from llamagen.ops.dims import B, S
from llamagen.ops.op import State, TensorType, Tokens
from llamagen.ops.table import NODES

PACKING = "pack-rows"
PACKING_AROUND = "pack-rows-around-attention"
LAST_ROW = "last-logits"
MASK = "attention_mask"


def pack_rows(flat: FlatGraph) -> tuple[FlatGraph, str | None]:
    """The graph with its inputs [B, S, ...] packed at the entry, or the reason why it cannot be."""
    for node in flat.nodes:
        if not _tokenwise(node, flat.types):
            return (
                flat,
                f"`{node.op}` {f'at {node.path}' if node.path else 'for all layers'} mixes tokens",
            )
    packed: dict[str, str] = {}
    entry: list[FlatNode] = []
    types = dict(flat.types)
    for name in flat.inputs:
        shape = types[name].shape
        if S in shape and shape[:2] != (B, S):
            return flat, f"tokens are another dimension of `{name}`"
        if S in shape:
            packed[name] = f"{name}/packed"
            types[packed[name]] = types[name]
            entry.append(FlatNode("pack_rows", "", (name, MASK), (packed[name],), {}, {}, None))
    nodes = [replace(n, operands=tuple(packed.get(o, o) for o in n.operands)) for n in flat.nodes]
    used = {o for n in nodes for o in n.operands}
    entry = [n for n in entry if n.results[0] in used]
    return replace(flat, nodes=(*entry, *nodes), types=types), None


def pack_around(flat: FlatGraph) -> tuple[FlatGraph, int]:
    """Rows packed before every fused attention and unpacked behind it; how many attentions."""
    types = dict(flat.types)
    nodes: list[FlatNode] = []
    packed: dict[str, str] = {}
    count = 0
    for node in flat.nodes:
        if node.row.state is not State.OWN_SLOT:
            nodes.append(node)
            continue
        count += 1
        for operand in filter(None, node.operands[:3]):
            if operand not in packed:
                packed[operand] = f"{operand}/packed"
                types[packed[operand]] = types[operand]
                entry = (operand, MASK), (packed[operand],)
                nodes.append(FlatNode("pack_rows", node.path, *entry, {}, {}, None))
        given = tuple(packed.get(o, o) for o in node.operands[:3]) + node.operands[3:]
        result, *presents = node.results
        inside = f"{result}/packed"
        types[inside] = types[result]
        nodes.append(replace(node, operands=given, results=(inside, *presents)))
        nodes.append(FlatNode("unpack_rows", node.path, (inside, MASK), (result,), {}, {}, None))
    return replace(flat, nodes=tuple(nodes), types=types), count


def _tokenwise(node: FlatNode, types: Mapping[str, TensorType]) -> bool:
    operands = [types[o] for o in node.operands if o]
    return node.row.on_each_token(operands, [types[r] for r in node.results], node.attrs)


def chosen_rows(flat: FlatGraph, last: Sequence[bool], *, packed: bool) -> FlatGraph:
    """The last real row of outputs for which ``last`` says so, and all rows of the others where the client put them.

    The rows are chosen as early as possible: before the head, and before the norm where nothing else reads its operand.
    """
    for i, output in enumerate(flat.outputs):
        if (last[i] or packed) and S in flat.types[output].shape:
            flat = _at(flat, i, "last_row" if last[i] else "unpack_rows", packed)
    return flat


def _at(flat: FlatGraph, output: int, op: str, packed: bool) -> FlatGraph:
    makers = {r: i for i, n in enumerate(flat.nodes) for r in n.results}
    readers: dict[str, int] = {}
    for node in flat.nodes:
        for operand in node.operands:
            readers[operand] = readers.get(operand, 0) + 1
    value = flat.outputs[output]
    chain: list[int] = []
    while value in makers and readers.get(value, 0) + flat.outputs.count(value) == 1:
        node = flat.nodes[makers[value]]
        one = len(node.operands) == len(node.results) == 1
        if node.row.tokens is not Tokens.ALONE or not one:
            break
        chain.append(makers[value])
        value = node.operands[0]
    types = dict(flat.types)
    name = f"{value}/{op}"
    attrs = {"packed": packed}
    (types[name],) = NODES[op].shape([types[value]], attrs)
    chosen = FlatNode(op, "", (value, MASK), (name,), attrs, {}, None)
    nodes = list(flat.nodes)
    for i in reversed(chain):
        operand = name if nodes[i].operands[0] == value else nodes[i].operands[0]
        nodes[i] = replace(nodes[i], operands=(operand,))
        (types[nodes[i].results[0]],) = nodes[i].row.shape([types[operand]], nodes[i].attrs)
    nodes.insert(makers[value] + 1 if value in makers else 0, chosen)
    outputs = _replaced(flat.outputs, output, flat.outputs[output] if chain else name)
    return replace(flat, nodes=tuple(nodes), types=types, outputs=outputs)


def _replaced(outputs: Sequence[str], index: int, value: str) -> tuple[str, ...]:
    return (*outputs[:index], value, *outputs[index + 1 :])
