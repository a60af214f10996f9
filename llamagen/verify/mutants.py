"""What `verify` would catch in THIS folder: its graph made wrong in one place after the other, and looked at again.

A mutant is the graph with one number, one operand or one operator changed to the smallest thing that is wrong: whole
numbers by one, others to the nearest published rival or by 1 %, operators to their usual rival. Of nodes that differ by
the number of their layer alone the last is taken. A mutant is caught when the tables that are read back are not the
spec's, when the graph cannot be evaluated any more, or when exact logits differ; what survives is printed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import graph_path
from llamagen.emit.onnx.session import provider_of
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import MAIN
from llamagen.verify.exact import Constants, ExactGraph, exact_model, read_back
from llamagen.verify.folder import PROMPT_TOKENS, CaseProgress, plans_of, silent, subject_of
from llamagen.verify.limits import EXACT, difference
from llamagen.verify.scenarios import FloatArray, Scenario, Values
from llamagen.verify.witnesses import ReferenceWitness

MOST = 200
"""Mutants that are tried; of more a sample is."""

EPSILONS = (1e-5, 1e-6, 1e-12)
"""Of norms, as published: of Llama 2 and later, of Llama 1, of BERT."""
_RIVALS = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Div",
    "And": "Or",
    "Or": "And",
    "Max": "Min",
    "Min": "Max",
    "Sin": "Cos",
    "Cos": "Sin",
    "LessOrEqual": "Less",
    "Less": "LessOrEqual",
    "Sigmoid": "Tanh",
    "Tanh": "Sigmoid",
    "ReduceSum": "ReduceMean",
    "ReduceMean": "ReduceSum",
    "Relu": "Sigmoid",
    "Exp": "Softplus",
    "Softplus": "Exp",
    "Not": "Identity",
    "Neg": "Identity",
    "Log": "Identity",
    "RMSNormalization": "LayerNormalization",
}
_SWAPPED = {
    "Sub": (0, 1),
    "Div": (0, 1),
    "Concat": (0, 1),
    "RotaryEmbedding": (1, 2),
    "Where": (1, 2),
}
"""Operators whose operands can be taken for each other."""
_SKIPPED = frozenset(
    {"to", "stash_type", "softmax_precision", "bits", "block_size", "accuracy_level"}
)
"""Attributes about the dtype in which something is stored or computed, which exact arithmetic has no meaning for."""

_FLAGS = frozenset(
    {
        *("transA", "transB", "keepdims", "do_rotary", "rotary_interleaved", "interleaved"),
        *("largest", "sorted", "normalize_routing_weights", "select_last_index"),
    }
)
"""Attributes that are 0 or 1."""

Change = Callable[[onnx.GraphProto], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    place: str
    what: str
    change: Change

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass(frozen=True, slots=True)
class Mutation:
    """What became of the mutants of a folder."""

    possible: int
    tried: int
    caught: tuple[tuple[str, int], ...]
    """By what, and how many."""
    survivors: tuple[str, ...]

    @property
    def killed(self) -> int:
        return self.tried - len(self.survivors)


def mutate(
    folder: Path, *, most: int = MOST, seed: int = 0, progress: CaseProgress = silent
) -> Mutation:
    """Try the mutants of the text graph of ``folder``. Raises as ``verify_folder`` does."""
    subject = subject_of(folder, provider_of("cpu"))
    for name in subject.adapters[:1]:  # without one nothing shows what is beside weights
        subject = subject.with_adapter(name)
    graph = subject.graphs[MAIN]
    flat, dtype = flatten(graph), subject.stored.dtype
    model, stored = exact_model(graph_path(folder))
    weights = {**stored, **subject.given}
    text = next(plans_of(subject, PROMPT_TOKENS, 4, seed)).cases
    cases = _chosen(text, subject.says("positions") or "")
    reference = ReferenceWitness.of_graph(graph, subject.stored.read)
    expected = {case.name: case.ending(case.logits(reference)) for case in cases}

    def caught(edited: onnx.ModelProto) -> str:
        return _caught(edited, weights, flat, dtype, cases, expected)

    if how := caught(model):
        message = f"the folder as it is differs already ({how})"
        raise LlamagenError.of("LG777", message, help="`llamagen verify` says where")
    mutants = list(mutants_of(model.graph))
    tried = mutants
    if len(mutants) > most:
        tried = random.Random(seed).sample(mutants, most)
    counts: dict[str, int] = {}
    survivors: list[str] = []
    for i, mutant in enumerate(tried):
        edited = onnx.ModelProto()
        edited.CopyFrom(model)
        mutant.change(edited.graph)
        how = caught(edited)
        if how:
            counts[how] = counts.get(how, 0) + 1
        else:
            survivors.append(str(mutant))
        progress(i + 1, len(tried), str(mutant))
    return Mutation(len(mutants), len(tried), tuple(sorted(counts.items())), tuple(survivors))


def _chosen(cases: Sequence[Scenario], positions: str) -> list[Scenario]:
    """A padded batch that is cut anywhere, halves that are far apart where positions are given, and what is around
    the limits."""
    names = ("rows cut anywhere", "far apart") if positions == "given" else ("rows cut anywhere",)
    return [case for case in cases if case.name in names or case.before]


def _caught(
    model: onnx.ModelProto,
    weights: Values,
    flat: FlatGraph,
    dtype: str,
    cases: Sequence[Scenario],
    expected: dict[str, FloatArray],
) -> str:
    """By what; nothing when everything is equal."""
    try:
        with np.errstate(all="ignore"):
            graph = ExactGraph.of_model(model, weights, "model")
            tables: Sequence[Constants] = read_back(graph, flat, dtype)  # type: ignore[arg-type]
            if any(not table.farthest <= table.allowed for table in tables):
                return "a table read back"
            for case in cases:
                found = case.given(graph)
                if found.shape != expected[case.name].shape:
                    return "a graph that cannot be evaluated"
                if not difference(found, expected[case.name]).within(EXACT):
                    return case.name
    except (LlamagenError, ValueError, IndexError, KeyError, TypeError):
        return "a graph that cannot be evaluated"
    return ""


# What can be wrong


def mutants_of(graph: onnx.GraphProto) -> Iterator[Mutant]:
    """In the order of the nodes. Nodes of subgraphs too; those that repeat layer by layer once."""
    constants = {t.name: t for t in graph.initializer}
    last: dict[str, NodeProto] = {_layerless(n.name): n for n in _nodes(graph)}
    seen: set[tuple[str, str, str]] = set()
    for place, node in last.items():
        for mutant in (
            *_attributes(place, node),
            *_numbers(place, node, constants),
            *_operands(place, node, graph),
        ):
            # shapes and axes come up in every layer in the same way: once an operator, and number
            key = (node.op_type, mutant.what, "" if _common(node) else place)
            if key not in seen:
                seen.add(key)
                yield mutant


def _layerless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=/|\.|$)|_\d+$", "*", name)


def _common(node: NodeProto) -> bool:
    return node.op_type in (
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Shape",
        "Concat",
        "Gemm",
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _edit(name: str, change: Callable[[NodeProto], None]) -> Change:
    def edit(graph: onnx.GraphProto) -> None:
        for node in _nodes(graph):
            if node.name == name:
                change(node)

    return edit


def _attributes(place: str, node: NodeProto) -> Iterator[Mutant]:
    for attribute in node.attribute:
        name = attribute.name
        if name in _SKIPPED:
            continue
        if attribute.type == AttributeProto.INT:
            flag = name in _FLAGS
            for value in (1 - attribute.i,) if flag else (attribute.i - 1, attribute.i + 1):
                yield Mutant(
                    place,
                    f"{name} {attribute.i} becomes {value}",
                    _edit(node.name, partial(_set, name=name, value=value)),
                )
        elif attribute.type == AttributeProto.FLOAT:
            value = rival(name, attribute.f)
            yield Mutant(
                place,
                f"{name} {attribute.f:g} becomes {value:g}",
                _edit(node.name, partial(_set, name=name, value=value)),
            )
        elif attribute.type == AttributeProto.INTS and len(attribute.ints) > 1:
            swapped = [*attribute.ints[:-2], attribute.ints[-1], attribute.ints[-2]]
            yield Mutant(
                place,
                f"{name} ends in {swapped[-2:]}",
                _edit(node.name, partial(_set, name=name, value=swapped)),
            )
    if node.op_type == "GroupQueryAttention":
        given = {a.name for a in node.attribute}
        for name, value in (("local_window_size", 8), ("softcap", 50.0), ("scale", 0.1)):
            if name not in given:
                yield Mutant(
                    place,
                    f"{name} becomes {value:g}",
                    _edit(node.name, partial(_set, name=name, value=value)),
                )


def rival(name: str, value: float) -> float:
    """The nearest published epsilon that is another one; else 1 % more."""
    if name == "epsilon":
        others = [e for e in EPSILONS if abs(e - value) > 1e-3 * value]
        return min(others, key=lambda e: abs(np.log(e / value)))
    return 1.01 * value or 0.01


def _set(node: NodeProto, name: str, value: object) -> None:
    for attribute in list(node.attribute):
        if attribute.name == name:
            node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _numbers(place: str, node: NodeProto, constants: dict[str, TensorProto]) -> Iterator[Mutant]:
    """Constants among the operands, each changed for this node alone."""
    for i, name in enumerate(node.input):
        tensor = constants.get(name)
        if tensor is None:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size == 0 or values.dtype == np.bool_:
            continue
        whole = np.issubdtype(values.dtype, np.integer)
        number = values.reshape(-1)[-1]
        others = (int(number) - 1, int(number) + 1) if whole else (rival("", float(number)),)
        for other in others:
            changed = values.copy()
            changed.reshape(-1)[-1] = other
            of = "" if values.size == 1 else f" at the end of {values.size}"
            yield Mutant(
                place,
                f"operand {i}, {float(number):.6g}{of}, becomes {float(other):.6g}",
                _with_constant(node.name, i, changed),
            )


def _with_constant(node: str, operand: int, values: NDArray[np.generic]) -> Change:
    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(values, "/mutant"))
        _edit(node, partial(_read, operand=operand, name="/mutant"))(graph)

    return edit


def _operands(place: str, node: NodeProto, graph: onnx.GraphProto) -> Iterator[Mutant]:
    kind, name = node.op_type, node.name
    if kind in _RIVALS and not (kind == "RMSNormalization" and len(node.input) != 2):
        other = _RIVALS[kind]
        yield Mutant(place, f"{kind} becomes {other}", _edit(name, lambda n: _become(n, other)))
    if kind in _SWAPPED:
        i, j = _SWAPPED[kind]
        if len(node.input) > j and node.input[i] != node.input[j]:
            yield Mutant(
                place, f"operands {i} and {j} exchanged", _edit(name, lambda n: _swap(n, i, j))
            )
    if kind == "Attention":
        masks = {n.input[3] for n in graph.node if n.op_type == kind and len(n.input) > 3}
        for other in sorted(masks - {node.input[3] if len(node.input) > 3 else ""}):
            yield Mutant(
                place,
                f"mask becomes {other}",
                _edit(name, partial(_read, operand=3, name=other)),
            )
    if kind in ("Mul", "Add", "RotaryEmbedding"):
        yield Mutant(place, f"{kind} left out", _edit(name, _bypass))


def _become(node: NodeProto, kind: str) -> None:
    node.op_type = kind
    kept = 1 if kind in ("Identity", "Sigmoid", "Tanh") else len(node.input)
    del node.input[kept:]
    known = {"axis", "epsilon", "stash_type", "keepdims"} if kind not in ("Identity",) else set()
    for attribute in list(node.attribute):
        if attribute.name not in known:
            node.attribute.remove(attribute)


def _read(node: NodeProto, operand: int, name: str) -> None:
    node.input[operand] = name


def _swap(node: NodeProto, i: int, j: int) -> None:
    node.input[i], node.input[j] = node.input[j], node.input[i]


def _bypass(node: NodeProto) -> None:
    node.op_type = "Identity"
    del node.input[1:]
    del node.attribute[:]
