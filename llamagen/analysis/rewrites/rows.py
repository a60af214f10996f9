"""Rewrites of the rows of tokens, [B, S]: real tokens to the front, and logits of the last real token alone.

The fused attention appends the real tokens of a chunk to each row's cache, one after the other, so it wants them at the
front; clients put padding on the left, on the right or between. Where all other ops treat tokens one by one, the order
is changed once as tokens enter and changed back as logits leave, and it costs nothing in the layers. Where some layers
keep their own attention, it is changed around each fused one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamagen.analysis.rewrites.fused import result_types
from llamagen.ir.dims import B, S
from llamagen.ir.flatten import FlatGraph, FlatNode
from llamagen.ir.graph import TensorType

PACKING = "pack-rows"
PACKING_AROUND = "pack-rows-around-attention"
LAST_ROW = "last-logits"
MASK = "attention_mask"

_TOKENWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "add_scalar", "mul_scalar", "div_scalar", "neg"),
        *("silu", "gelu", "relu", "relu2", "sigmoid", "tanh", "softplus", "exp", "square", "sqrt"),
        *("softcap", "clamp", "float32", "model_dtype", "rms_normalize", "rms_norm", "layer_norm"),
        *("embedding", "linear", "experts", "topk", "gather", "rotate", "rope_table"),
        *("attention_temperature", "split_heads", "merge_heads", "repeat_heads"),
        *(
            "GroupQueryAttention",
            "SkipSimplifiedLayerNormalization",
            "QuickGelu",
            "FusedMatMul",
            "MoE",
            "QMoE",
        ),
    }
)
"""Ops whose result for a token depends on that token alone (the fused attention sorts its rows itself)."""

_ALONG = frozenset({"softmax", "sum", "mean", "split", "concat", "slice"})
"""Ops that are so unless their axis is that of the tokens."""

_FIRST = frozenset(
    {"add_scalar", "mul_scalar", "div_scalar", "neg", "softcap", "clamp", "float32", "model_dtype"}
)
_ROWS_BEFORE = _FIRST | {"linear", "FusedMatMul", "rms_norm", "layer_norm", "tanh", "sigmoid"}
"""Ops between the last layer and the logits that may work on one row as well as on all."""


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
        if node.op != "GroupQueryAttention":
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
    if not any(S in t.shape for t in operands):
        return all(S not in types[r].shape for r in node.results)
    if node.op in _TOKENWISE:
        return True
    axis = node.attrs.get("axis")
    if node.op in _ALONG and isinstance(axis, int):
        return all(t.shape[axis] != S for t in operands)
    return False


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
        if node.op not in _ROWS_BEFORE or len(node.operands) != 1:
            break
        chain.append(makers[value])
        value = node.operands[0]
    types = dict(flat.types)
    name = f"{value}/{op}"
    attrs = {"packed": packed}
    (types[name],) = result_types(op, [types[value]], attrs)
    chosen = FlatNode(op, "", (value, MASK), (name,), attrs, {}, None)
    nodes = list(flat.nodes)
    for i in reversed(chain):
        operand = name if nodes[i].operands[0] == value else nodes[i].operands[0]
        nodes[i] = replace(nodes[i], operands=(operand,))
        (types[nodes[i].results[0]],) = result_types(nodes[i].op, [types[operand]], nodes[i].attrs)
    nodes.insert(makers[value] + 1 if value in makers else 0, chosen)
    outputs = _replaced(flat.outputs, output, flat.outputs[output] if chain else name)
    return replace(flat, nodes=tuple(nodes), types=types, outputs=outputs)


def _replaced(outputs: Sequence[str], index: int, value: str) -> tuple[str, ...]:
    return (*outputs[:index], value, *outputs[index + 1 :])
