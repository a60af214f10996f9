"""What must hold of every graph, as a table of invariants. The builder runs it; tests run it on edited graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llamagen.diagnostics import Diagnostic, LlamagenError, Span
from llamagen.ir.graph import Graph, OpPart
from llamagen.ops.dims import B, S
from llamagen.ops.op import DType, ShapeError
from llamagen.ops.table import NODES

MAX_PARAMETERS = 2**53
MAX_INSTANCES = 200_000

Finding = tuple[str, Span | None]
Invariant = Callable[[Graph], Iterator[Finding]]


def _operands_defined(graph: Graph) -> Iterator[Finding]:
    for block in graph.blocks.values():
        known = {v.id for v in block.inputs}
        for node in block.nodes:
            for operand in node.operands:
                name = operand.removeprefix("@")
                if name not in (graph.level if operand.startswith("@") else known):
                    yield f"{block.name}: {node.op} reads `{operand}` before it exists", node.span
                if operand.startswith("@") and name not in block.context:
                    yield f"{block.name}: `{name}` is read but not in its context", node.span
            for result in node.results:
                if result in known:
                    yield f"{block.name}: `{result}` is defined twice", node.span
                known.add(result)
        for output in block.outputs:
            if output not in known:
                yield f"{block.name}: returns `{output}`, which does not exist", block.span


def _types_follow_the_table(graph: Graph) -> Iterator[Finding]:
    for block in graph.blocks.values():
        for node in block.nodes:
            if node.op not in NODES:
                yield f"{block.name}: `{node.op}` is not in the op table", node.span
                continue
            if node.row.control:
                continue
            try:
                expected = node.row.shape(graph.operand_types(block, node), node.attrs)
            except ShapeError as error:
                yield f"{block.name}: {error}", node.span
                continue
            if expected != tuple(block.values[r].type for r in node.results):
                yield (
                    f"{block.name}: results of {node.op} have other types than the table says",
                    node.span,
                )


def _calls_fit(graph: Graph) -> Iterator[Finding]:
    for block in graph.blocks.values():
        for node in block.nodes:
            if node.op not in NODES or not node.row.control:
                continue
            part = block.part_of(node)
            if part is None or isinstance(part, OpPart):
                yield f"{block.name}: calls `{node.part}`, which is not a block part", node.span
                continue
            for name in part.below:
                if name not in graph.blocks:
                    yield (
                        f"{block.name}: part `{node.part}` is an unknown block `{name}`",
                        node.span,
                    )
                elif len(graph.blocks[name].inputs) != len(node.operands):
                    yield (
                        f"{block.name}: `{node.part}` gets {len(node.operands)} operands",
                        node.span,
                    )


def _tied_weights_exist(graph: Graph) -> Iterator[Finding]:
    for path, part in graph.ties.items():
        want = next(p for p in part.row.parameters(part.attrs) if p.name == "weight").shape
        source = graph.parameters.get(part.tied_to or "")
        if source is None:
            yield f"`{path}` is tied to `{part.tied_to}`, which is not a parameter", part.span
        elif source.shape != want:
            message = f"`{path}` needs {list(want)}, `{part.tied_to}` is {list(source.shape)}"
            yield message, part.span


def _names_are_unique(graph: Graph) -> Iterator[Finding]:
    for block in graph.blocks.values():
        folded: dict[str, str] = {}
        for name in block.parts:
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                yield (
                    f"parts `{other}` and `{name}` of {block.name} differ in case only",
                    block.span,
                )


def _size_is_bounded(graph: Graph) -> Iterator[Finding]:
    """Counted from the definitions, which list those below first."""
    counts: dict[str, int] = {}
    for name, block in graph.blocks.items():
        own = (
            p for part in block.parts.values() if isinstance(part, OpPart) for p in part.parameters
        )
        counts[name] = sum(p.count for p in own) + sum(counts.get(b, 0) for b in block.below)
    total = counts[graph.root]
    if total > MAX_PARAMETERS:
        yield (
            f"the model has {total:,} parameters, more than {MAX_PARAMETERS:,}",
            graph.root_block.span,
        )


def _instances_are_bounded(graph: Graph) -> Iterator[Finding]:
    """Counted from the definitions: stacks inside stacks multiply, and must not be walked to be counted."""
    count: dict[str, int] = {}
    for name, block in graph.blocks.items():
        count[name] = 1 + sum(count.get(below, 1) for below in block.below)
    if count[graph.root] > MAX_INSTANCES:
        yield (
            f"the model has {count[graph.root]:,} blocks, more than {MAX_INSTANCES:,}",
            graph.root_block.span,
        )


def _one_output(graph: Graph) -> Iterator[Finding]:
    outputs = graph.root_block.outputs
    if graph.output_names and len(outputs) != len(graph.output_names):
        want = ", ".join(graph.output_names)
        yield (
            f"the root block returns {len(outputs)} values, and its `outputs` are: {want}",
            graph.root_block.span,
        )
    for name, type_ in graph.outputs:
        if name == "logits" and (type_.shape[:-1] != (B, S) or type_.dtype is DType.INT64):
            yield f"logits are numbers [B, S, n], not {type_}", graph.root_block.span


def _acyclic(graph: Graph) -> Iterator[Finding]:
    from llamagen.ir.algorithms import definition_cycle

    cycle = definition_cycle(graph)
    if cycle:
        yield f"blocks contain each other: {' -> '.join(cycle)}", graph.blocks[cycle[0]].span


def all_used(graph: Graph) -> Iterator[Finding]:
    """What no output depends on: `generate` refuses it, and `check` of a spec that is named says so."""
    from llamagen.ir.algorithms import unused
    from llamagen.ir.flatten import flatten

    idle = sorted(
        name for name in unused(flatten(graph)) if not name.rpartition("/")[2].startswith("_")
    )
    if idle:
        yield f"no output depends on: {', '.join(idle[:8])}", graph.root_block.span


STRUCTURE: tuple[tuple[str, Invariant], ...] = (
    ("every operand exists before it is read", _operands_defined),
    ("calls reach blocks with as many inputs", _calls_fit),
    ("the number of blocks is bounded", _instances_are_bounded),
)
"""Checked first: the others rely on them."""

MEANING: tuple[tuple[str, Invariant], ...] = (
    ("types follow the op table", _types_follow_the_table),
    ("tied weights exist and fit", _tied_weights_exist),
    ("part names are unique without case", _names_are_unique),
    ("the number of parameters is bounded", _size_is_bounded),
    ("the root returns the model's outputs", _one_output),
)

THOROUGH: tuple[tuple[str, Invariant], ...] = (
    ("blocks do not contain each other", _acyclic),
    ("every value reaches an output", all_used),
)
"""Checked by ``generate``, not by commands that only read: they need networkx."""


def findings(graph: Graph, *, thorough: bool = False) -> list[Diagnostic]:
    """Violations of the invariants; the first group that has any is reported alone, as later ones rely on it."""
    for group in (STRUCTURE, MEANING, THOROUGH if thorough else ()):
        diagnostics = [
            Diagnostic("LG420", "error", message, span)
            for _, invariant in group
            for message, span in invariant(graph)
        ]
        if diagnostics:
            return list(dict.fromkeys(diagnostics))
    return []


def verify(graph: Graph, *, thorough: bool = False) -> None:
    """Raises LlamagenError with every violated invariant."""
    diagnostics = findings(graph, thorough=thorough)
    if diagnostics:
        raise LlamagenError(*diagnostics)
