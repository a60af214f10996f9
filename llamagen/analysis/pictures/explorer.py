"""JSON for Model Explorer: the unrolled graph with namespaces, and parameters, FLOPs and cache as node data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from llamagen.ir.flatten import FlatNode, flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.ops.op import Parameter, State, TensorType, elements


def explorer_json(graphs: Mapping[str, Graph], sizes: Mapping[str, int]) -> str:
    """A graph collection, one node a line. ``sizes`` gives ``B``, ``S``, ``P`` and ``I`` for the FLOPs of each node."""
    label = next(iter(graphs.values())).spec_id
    drawn = ",\n".join(
        f'{{"id": {_json(name)}, "nodes": [\n'
        + ",\n".join(map(_json, _nodes(graph, sizes)))
        + "\n]}"
        for name, graph in graphs.items()
    )
    return f'{{"label": {_json(label)}, "graphs": [\n{drawn}\n]}}\n'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nodes(graph: Graph, sizes: Mapping[str, int]) -> list[dict[str, object]]:
    flat = flatten(graph)
    known = parameters(graph)
    ids: dict[str, tuple[str, int]] = {}
    """Value -> the node that makes it, and which of its results it is."""
    nodes: list[dict[str, object]] = []
    for name in flat.inputs:
        ids[name] = (f"input/{name}", 0)
        nodes.append(_node(f"input/{name}", name, "", {}, [], [flat.types[name]]))
    for i, node in enumerate(flat.nodes):
        here = f"{i}:{node.path}:{node.op}"
        operands = [flat.types[o] for o in node.operands]
        results = [flat.types[r] for r in node.results]
        flops = node.row.flops(operands, results, node.attrs).evaluate(sizes)
        data = {"op": node.op}
        if flops:
            data["flops"] = str(flops)
        data.update(_weights(node, known))
        if node.row.state is State.SLOT:
            past = {**sizes, "S": 0, "P": sizes["P"] + sizes["S"]}
            values = sum(elements(t.shape).evaluate(past) for t in results)
            data["cache_values"] = str(values)
        edges = [_edge(*ids[o], k) for k, o in enumerate(node.operands)]
        ids.update({result: (here, k) for k, result in enumerate(node.results)})
        label = node.path.rsplit(".", 1)[-1] if node.parameters else node.op
        space = node.path.rpartition(".")[0] if node.parameters else node.path
        nodes.append(_node(here, label, space.replace(".", "/"), data, edges, results))
    for k, name in enumerate(flat.outputs):
        edge = _edge(*ids[name], 0)
        nodes.append(_node(f"output/{k}", graph.output_names[k], "", {}, [edge], []))
    return nodes


def _edge(source: str, result: int, operand: int) -> dict[str, str]:
    return {
        "sourceNodeId": source,
        "sourceNodeOutputId": str(result),
        "targetNodeInputId": str(operand),
    }


def _weights(node: FlatNode, known: Mapping[str, Parameter]) -> dict[str, str]:
    """Parameters of a node; a tied weight is named, and counted where it is owned."""
    if not node.parameters:
        return {}
    owned = [p for p in node.parameters.values() if p.startswith(node.path)]
    count = sum(known[p].count for p in owned)
    return {"weights": ", ".join(node.parameters.values()), "parameters": str(count)}


def _node(
    id_: str,
    label: str,
    namespace: str,
    data: Mapping[str, str],
    edges: list[dict[str, str]],
    results: Sequence[TensorType],
) -> dict[str, object]:
    attrs = [{"key": key, "value": value} for key, value in data.items()]
    return {
        "id": id_,
        "label": label,
        "namespace": namespace,
        "attrs": attrs,
        "incomingEdges": edges,
        "outputsMetadata": [
            {"id": str(k), "attrs": [{"key": "shape", "value": str(type_)}]}
            for k, type_ in enumerate(results)
        ],
    }
