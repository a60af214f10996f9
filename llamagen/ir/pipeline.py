"""How the graphs of one model run together: what is run once for its images, and what for every piece of text.

It follows from the graphs alone. An output of one graph is the input of that name of another, and so are keys and
values for cross-attention. A graph that reads no
tokens (no ``S`` in its inputs) is run once for all images of a batch; the others are run at every call, the one that
gives the logits last. Text without images needs the graph ``model`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import crossing, flatten
from llamagen.ir.graph import MAIN, Graph
from llamagen.ops.op import Role

TOKEN_INPUTS = ("input_ids", "attention_mask", "positions")
"""What every call has, whatever the model."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A hand-over that tokens stand for: its next ``rows`` rows an item are used up by the next so many ``token``."""

    token: int
    rows: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """``once`` and ``steps`` are names of graphs, in the order they are run; the last step gives ``logits``."""

    once: tuple[str, ...]
    steps: tuple[str, ...]
    images: tuple[str, ...]
    """Inputs of ``once`` that no graph makes."""
    beside: tuple[str, ...]
    """Inputs of ``steps`` that no graph makes and that have one entry a token, ``[B, S, ...]``."""
    makes: Mapping[str, tuple[str, ...]]
    """Graph -> what it gives, ``logits`` included."""
    reads: Mapping[str, tuple[str, ...]]
    """Graph -> what it reads."""
    placeholders: Mapping[str, Placeholder] = field(default_factory=dict)
    """Hand-overs that are used up; any other is read whole at every call."""

    @property
    def graphs(self) -> tuple[str, ...]:
        return (*self.once, *self.steps)


def pipeline_of(graphs: Mapping[str, Graph]) -> Pipeline | None:
    """How images go through ``graphs``; None for a model of text. Raises LG407 when nothing comes of them."""
    beside_text = {name: graph for name, graph in graphs.items() if name != MAIN}
    if not beside_text:
        return None
    makes = {n: (*g.output_names, *crossing(g, "write")) for n, g in beside_text.items()}
    makers = {value: name for name, values in makes.items() for value in values}
    last = makers.get("logits")
    if last is None:
        span = next(iter(beside_text.values())).root_block.span
        raise LlamagenError.of("LG407", f"none of {_listed(beside_text)} gives `logits`", span)
    reads = {n: (*(v.id for v in g.inputs), *crossing(g, "read")) for n, g in beside_text.items()}
    order = _ordered(reads, makers, last)
    once = tuple(name for name in order if not reads_tokens(beside_text[name]))
    steps = tuple(name for name in order if name not in once)
    outside = {
        value.id: value.type
        for name in order
        for value in beside_text[name].inputs
        if value.id not in makers and value.id not in TOKEN_INPUTS
    }
    first = {v.id for name in once for v in beside_text[name].inputs}
    return Pipeline(
        once,
        steps,
        images=tuple(name for name in outside if name in first),
        beside=tuple(name for name in outside if name not in first),
        makes={name: makes[name] for name in order},
        reads={name: reads[name] for name in order},
        placeholders={name: p for step in steps for name, p in _placeholders(beside_text[step])},
    )


def _ordered(
    reads: Mapping[str, Iterable[str]], makers: Mapping[str, str], last: str
) -> tuple[str, ...]:
    """What ``last`` needs, makers before readers. Raises LG407 for graphs that wait for each other."""
    done: dict[str, None] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " and ".join(f"`{n}`" for n in above[above.index(name) :])
            raise LlamagenError.of("LG407", f"{circle} wait for each other")
        for value in reads[name]:
            if value in makers and makers[value] not in done:
                visit(makers[value], (*above, name))
        done[name] = None

    visit(last, ())
    return tuple(done)


def reads_tokens(graph: Graph) -> bool:
    """Whether a graph is run for every piece of text; one that is not sees images alone."""
    return any("S" in dim.symbols for value in graph.inputs for dim in value.type.shape)


def _placeholders(graph: Graph) -> Iterable[tuple[str, Placeholder]]:
    if not any(n.row.role is Role.PLACEHOLDERS for b in graph.blocks.values() for n in b.nodes):
        return
    flat = flatten(graph)
    for node in flat.nodes:
        if node.row.role is Role.PLACEHOLDERS and node.operands[1] in flat.inputs:
            name, token = node.operands[1], node.attrs["id"]
            assert isinstance(token, int)
            rows = 1
            for dim in flat.types[name].shape[1:-1]:
                rows *= dim.value
            yield name, Placeholder(token, rows)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
