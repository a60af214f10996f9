"""A model as nested boxes in the order of execution, equal layers folded: what pictures are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llamagen.analysis.diff.equations import equations, option_values
from llamagen.analysis.diff.judge import Diff
from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.numbers import collapse
from llamagen.ir.graph import MAIN, Block, BlockPart, Graph, OpPart, StackPart, join
from llamagen.units import count_short


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a model. ``parameters`` are those of one instance, everything inside included."""

    path: str
    """Collapsed role path: ``model.layers.*.mlp``."""
    title: str
    lines: tuple[str, ...]
    parameters: int
    times: int
    inside: tuple[Box, ...]


def towers(graphs: Mapping[str, Graph]) -> tuple[Box, ...]:
    """A box for each graph, those beside the text model with their names.

    What a further graph has in common with an earlier one is drawn once, and named there.
    """
    drawn: set[Box] = set()
    found: list[Box] = []
    for name, graph in graphs.items():
        box = tower(graph, name)
        found.append(_once(box, drawn))
        drawn.update(_all(box))
    return tuple(found)


def _once(box: Box, drawn: set[Box]) -> Box:
    if box in drawn and box.inside:
        return replace(box, lines=("as in the text model",), inside=())
    return replace(box, inside=tuple(_once(inner, drawn) for inner in box.inside))


def _all(box: Box) -> Iterator[Box]:
    yield box
    for inner in box.inside:
        yield from _all(inner)


def tower(graph: Graph, name: str = MAIN) -> Box:
    """The root block as a box. Repeated layers appear once with ``times``; a repeating pattern is one box."""
    title = graph.spec_id if name == MAIN else f"{graph.spec_id} {name}"
    return _block(graph, graph.root_block, "", title, 1)


def _block(graph: Graph, block: Block, path: str, title: str, times: int) -> Box:
    inside = tuple(_parts(graph, block, path))
    lines = tuple(e.text for e in equations(graph, block))
    total = sum(b.parameters * b.times for b in inside)
    return Box(collapse(path)[0], title, lines, total, times, inside)


def _parts(graph: Graph, block: Block, path: str) -> Iterator[Box]:
    for part in block.parts.values():
        here = join(path, part.name)
        match part:
            case OpPart():
                yield _leaf(part, here)
            case BlockPart(name=name, block=below):
                inner = graph.blocks[below]
                yield _block(graph, inner, here, _title(name, inner), 1)
            case StackPart(blocks=names):
                yield from _stack(graph, part.name, names, here)


def _stack(graph: Graph, name: str, names: Sequence[str], here: str) -> Iterator[Box]:
    for start, pattern, times in runs(names):
        boxes: list[Box] = []
        for offset, below, repeated in _equal(pattern):
            block = graph.blocks[below]
            title = _title(f"{name}.{start + offset}" if times == 1 else name, block)
            boxes.append(_block(graph, block, join(here, str(start + offset)), title, repeated))
        if len(boxes) == 1:
            only = boxes[0]
            yield Box(
                only.path, only.title, only.lines, only.parameters, only.times * times, only.inside
            )
        else:
            total = sum(b.parameters * b.times for b in boxes)
            title = f"{name}: {len(pattern)} layers in turn"
            yield Box(collapse(f"{here}.{start}")[0], title, (), total, times, tuple(boxes))


def _equal(names: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    start = 0
    for i in range(1, len(names) + 1):
        if i == len(names) or names[i] != names[start]:
            yield start, names[start], i - start
            start = i


def runs(names: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...], int]]:
    """(first index, pattern, times): the shortest pattern that repeats over all of ``names``, else runs of equals."""
    n = len(names)
    for size in range(1, n + 1):
        if n % size == 0 and tuple(names) == tuple(names[:size]) * (n // size):
            if size < n or n == 1:
                yield 0, tuple(names[:size]), n // size
                return
            break
    for start, name, times in _equal(names):
        yield start, (name,), times


def _leaf(part: OpPart, path: str) -> Box:
    shapes = ", ".join("×".join(map(str, p.shape)) for p in part.parameters)
    words = [part.op, shapes, f"weight of {part.tied_to}" if part.tied_to is not None else ""]
    line = " ".join(word for word in words if word)
    count = sum(p.count for p in part.parameters)
    return Box(collapse(path)[0], part.name, (line,), count, 1, ())


def _title(name: str, block: Block) -> str:
    options = option_values(block)
    return f"{name}: {block.definition}({options})" if options else f"{name}: {block.definition}"


def tower_text(box: Box) -> str:
    """Indented lines, ``×32`` where a box repeats."""
    return "".join(f"{line}\n" for line in _text(box, 0))


def _text(box: Box, depth: int) -> Iterator[str]:
    pad = "  " * depth
    times = f" ×{box.times}" if box.times > 1 else ""
    count = f"  {count_short(box.parameters)}" if box.parameters else ""
    if box.inside:
        yield f"{pad}{box.title}{times}{count}"
        yield from (f"{pad}  | {line}" for line in box.lines)
        for inner in box.inside:
            yield from _text(inner, depth + 1)
    else:
        yield f"{pad}{box.title}{times}  {box.lines[0]}{count}"


def changed_paths(result: Diff) -> Mapping[str, Verdict]:
    """Collapsed path of every box that a diff touches -> its worst verdict."""
    worst: dict[str, Verdict] = {}
    for change in result.changes:
        if change.kind not in ("parameter", "equation", "setting", "block"):
            continue
        verdict = max((change.verdict(s) for s in Surface), key=lambda v: v.rank)
        path = change.path.split(":", 1)[0].rpartition("/")[2]
        if change.kind == "parameter":
            path = path.removesuffix(".weight").removesuffix(".bias")
        if change.kind == "setting":
            path = path.rsplit(".", 1)[0]
        if verdict.rank > worst.get(path, Verdict.SAME).rank:
            worst[path] = verdict
    return worst
