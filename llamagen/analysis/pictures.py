"""Pictures of models: towers of nested boxes as text and SVG, Mermaid, JSON for Model Explorer, curves of the cache.

SVG has no scripts and no external resources; every text is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate, chain, groupby
from math import ceil, floor, log2
from textwrap import wrap

from llamagen.analysis.diff.equations import equations, option_values
from llamagen.analysis.diff.judge import Diff, Surface, Verdict
from llamagen.analysis.numbers import CacheReport, cache_of, collapse
from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import FlatNode, flatten
from llamagen.ir.graph import (
    MAIN,
    Block,
    BlockPart,
    Graph,
    Node,
    OpPart,
    StackPart,
    join,
)
from llamagen.ops.op import Parameter, State, TensorType
from llamagen.units import bytes_short, count_short

# towers


@dataclass(frozen=True, slots=True)
class Flow:
    """How what is inside a box hangs together: rows from top to bottom, each a box by its number or the name of an op
    in which several come together. A wire leads from row to row; -1 is what the box is given, and the number of rows
    what it returns."""

    rows: tuple[int | str, ...] = ()
    wires: tuple[tuple[int, int], ...] = ()


NO_FLOW = Flow()


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
    """In the order in which they run."""
    flow: Flow = NO_FLOW


def towers(graphs: Mapping[str, Graph]) -> tuple[Box, ...]:
    """A box for each graph, those beside the text model with their names.

    What a further graph has in common with an earlier one is drawn once, and named there.
    """
    drawn: set[Box] = set()
    boxes: list[Box] = []
    for name, graph in graphs.items():
        box = tower(graph, name)
        boxes.append(_once(box, drawn))
        drawn.update(_all(box))
    return tuple(boxes)


def _once(box: Box, drawn: set[Box]) -> Box:
    if box in drawn and box.inside:
        return replace(box, lines=("as in the text model",), inside=(), flow=NO_FLOW)
    return replace(box, inside=tuple(_once(inner, drawn) for inner in box.inside))


def _all(box: Box) -> Iterator[Box]:
    yield box
    for inner in box.inside:
        yield from _all(inner)


def tower(graph: Graph, name: str = MAIN) -> Box:
    """The root block as a box. Repeated layers appear once with ``times``; a repeating pattern is one box."""
    title = graph.spec_id if name == MAIN else f"{graph.spec_id} {name}"
    return _box(graph, graph.root_block, "", title, 1)


def _box(graph: Graph, block: Block, path: str, title: str, times: int) -> Box:
    of_parts = {name: tuple(_parts(graph, block, path, name)) for name in _in_order(block)}
    flow = _flow_of(block, {name: len(boxes) for name, boxes in of_parts.items()})
    inside = tuple(box for boxes in of_parts.values() for box in boxes)
    lines = tuple(e.text for e in equations(graph, block))
    total = sum(b.parameters * b.times for b in inside)
    return Box(collapse(path)[0], title, lines, total, times, inside, flow)


def _in_order(block: Block) -> Iterator[str]:
    """Parts as they are first run; then those that nothing runs by itself."""
    run = (node.part for node in block.nodes if node.part in block.parts)
    yield from dict.fromkeys((*filter(None, run), *block.parts))


def _flow_of(block: Block, counts: Mapping[str, int]) -> Flow:
    """``counts`` says of how many boxes, one after the other, a part is."""
    rows: list[int | str] = []
    wires: dict[tuple[int, int], None] = {}
    first = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
    ends: dict[str, tuple[int, int]] = {}
    known = {value.id: frozenset({-1}) for value in block.inputs}
    for node in block.nodes:
        sources = [known[o] for o in node.operands if known.get(o)]
        into = frozenset[int]().union(*sources)
        if node.part is not None and counts.get(node.part):
            if node.part not in ends:
                begin, count = len(rows), counts[node.part]
                rows += range(first[node.part], first[node.part] + count)
                wires |= dict.fromkeys((n, n + 1) for n in range(begin, len(rows) - 1))
                ends[node.part] = begin, len(rows) - 1
            begin, end = ends[node.part]
            wires |= dict.fromkeys((source, begin) for source in sorted(into))
            out = frozenset({end})
        elif len(set(sources)) > 1:
            wires |= dict.fromkeys((source, len(rows)) for source in sorted(into))
            out = frozenset({len(rows)})
            rows.append(_SIGNS.get(node.row.symbol, node.row.symbol) or node.op)
        else:
            out = into
        known |= dict.fromkeys(node.results, out)
    into = frozenset[int]().union(*(known.get(o, ()) for o in block.outputs))
    wires |= dict.fromkeys((source, len(rows)) for source in sorted(into))
    return Flow(tuple(rows), tuple(wires))


def _parts(graph: Graph, block: Block, path: str, name: str) -> Iterator[Box]:
    part, here = block.parts[name], join(path, name)
    match part:
        case OpPart():
            yield _leaf(part, here)
        case BlockPart(block=below):
            inner = graph.blocks[below]
            yield _box(graph, inner, here, _title(name, inner), 1)
        case StackPart(blocks=names):
            yield from _stack(graph, name, names, here)


def _stack(graph: Graph, name: str, names: Sequence[str], here: str) -> Iterator[Box]:
    for start, pattern, times in runs(names):
        boxes: list[Box] = []
        for offset, below, repeated in _equal(pattern):
            block = graph.blocks[below]
            title = _title(f"{name}.{start + offset}" if times == 1 else name, block)
            boxes.append(_box(graph, block, join(here, str(start + offset)), title, repeated))
        if len(boxes) == 1:
            only = boxes[0]
            yield replace(only, times=only.times * times)
        else:
            total = sum(b.parameters * b.times for b in boxes)
            title = f"{name}: {len(pattern)} layers in turn"
            flow = Flow(tuple(range(len(boxes))), tuple((i - 1, i) for i in range(len(boxes) + 1)))
            at = collapse(f"{here}.{start}")[0]
            yield Box(at, title, (), total, times, tuple(boxes), flow)


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
    return "".join(f"{line}\n" for line in _text_lines(box, 0))


def _text_lines(box: Box, depth: int) -> Iterator[str]:
    pad = "  " * depth
    times = f" ×{box.times}" if box.times > 1 else ""
    count = f"  {count_short(box.parameters)}" if box.parameters else ""
    if box.inside:
        yield f"{pad}{box.title}{times}{count}"
        yield from (f"{pad}  | {line}" for line in box.lines)
        for inner in box.inside:
            yield from _text_lines(inner, depth + 1)
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


# SVG

_PAD = 10
_LINE = 16
_CHAR = 7.2
_GAP = 12
_MIN = 260.0
_WIDEST = 84
"""Characters of an equation; what is longer goes on in a further line."""
_LANE = 12
_SIGN = 20
_WIRE = "#44506a"
_SIGNS = {"*": "×", "/": "÷"}

_FILL = ("#ffffff", "#f3f6fb", "#e7edf7", "#dbe4f2", "#d0dbee")
_CHANGED: Mapping[Verdict, str] = {
    Verdict.BREAKING: "#f6c9cd",
    Verdict.CONVERTIBLE: "#f7e3b5",
    Verdict.GROWS: "#e2d8f3",
    Verdict.COMPATIBLE: "#cfe9d6",
}


@dataclass(frozen=True, slots=True)
class _Placed:
    box: Box
    lines: tuple[str, ...]
    width: float
    height: float
    inside: tuple[_Placed, ...]
    lanes: Mapping[tuple[int, int], int]
    """Of wires that pass a row: how far right they run."""

    @property
    def margin(self) -> float:
        """On the right, for those wires."""
        return _LANE * (max(self.lanes.values()) + 1) if self.lanes else 0.0


def _place(box: Box) -> _Placed:
    inside = tuple(_place(b) for b in box.inside)
    folded = (
        wrap(line, _WIDEST, subsequent_indent="\u00a0\u00a0\u00a0\u00a0") for line in box.lines
    )
    lines = (_head(box), *chain.from_iterable(folded))
    gap = len(_count(box)) + 3
    text = max(len(lines[0]) + gap, *map(len, lines)) * _CHAR + 2 * _PAD
    lanes = _lanes(box.flow)
    margin = _LANE * (max(lanes.values()) + 1) if lanes else 0.0
    width = max([text, _MIN, *(p.width + 2 * _PAD + margin for p in inside)])
    rows = [inside[row].height if isinstance(row, int) else _SIGN for row in box.flow.rows]
    height = 2 * _PAD + len(lines) * _LINE + sum(row + _GAP for row in rows) + _GAP * bool(rows)
    return _Placed(box, lines, width, height, inside, lanes)


def _lanes(flow: Flow) -> dict[tuple[int, int], int]:
    """Wires that pass a row, the shortest nearest; two that run side by side have two lanes."""
    found: dict[tuple[int, int], int] = {}
    for wire in sorted((w for w in flow.wires if w[1] - w[0] != 1), key=lambda w: w[1] - w[0]):
        start, end = sorted(wire)
        beside = {n for (a, b), n in found.items() if min(a, b) < end and start < max(a, b)}
        found[wire] = next(n for n in range(len(found) + 1) if n not in beside)
    return found


def _head(box: Box) -> str:
    return f"{box.title} ×{box.times}" if box.times > 1 else box.title


def _count(box: Box) -> str:
    """Parameters of one instance, for the right end of the first line."""
    return count_short(box.parameters) if box.parameters else ""


def _draw(
    placed: _Placed, x: float, y: float, width: float, depth: int, marks: Mapping[str, Verdict]
) -> list[str]:
    verdict = marks.get(placed.box.path)
    plain = _FILL[min(depth, len(_FILL) - 1)]
    fill = _CHANGED.get(verdict, plain) if verdict is not None else plain
    path = escape(placed.box.path, quote=True)
    frame = (
        f'<g data-path="{path}"><rect x="{x:g}" y="{y:g}" width="{width:g}" '
        f'height="{placed.height:g}" rx="4" fill="{fill}" stroke="#5b6b8c"/></g>'
    )
    shapes = [frame]
    at = y + _PAD + 12
    for i, line in enumerate(placed.lines):
        weight = ' font-weight="bold"' if i == 0 else ""
        shapes.append(f'<text x="{x + _PAD:g}" y="{at:g}"{weight}>{escape(line)}</text>')
        if i == 0 and (count := _count(placed.box)):
            right = f'x="{x + width - _PAD:g}" y="{at:g}" text-anchor="end" fill="#44506a"'
            shapes.append(f"<text {right}>{escape(count)}</text>")
        at += _LINE
    shapes += _rows(placed, x + _PAD, at - 12, width - 2 * _PAD, depth, marks)
    return shapes


def _rows(
    placed: _Placed, x: float, top: float, width: float, depth: int, marks: Mapping[str, Verdict]
) -> Iterator[str]:
    """What is inside a box, and the wires between."""
    inner = width - placed.margin
    middle, right = x + inner / 2, x + inner
    spans = [(top, top)]
    """From where to where a row goes, top to bottom, those of the box's input and result too."""
    at = top + _GAP
    for row in placed.box.flow.rows:
        if isinstance(row, int):
            box = placed.inside[row]
            yield from _draw(box, x, at, inner, depth + 1, marks)
            spans.append((at, at + box.height))
        else:
            half = max(_SIGN, len(row) * _CHAR + _PAD) / 2
            yield (
                f'<rect x="{middle - half:g}" y="{at:g}" width="{2 * half:g}" height="{_SIGN}" rx="{_SIGN / 2:g}" '
                f'fill="#ffffff" stroke="{_WIRE}"/><text x="{middle:g}" y="{at + 14:g}" text-anchor="middle">'
                f"{escape(row)}</text>"
            )
            spans.append((at, at + _SIGN))
        at = spans[-1][1] + _GAP
    spans.append((at, at))
    for wire in placed.box.flow.wires:
        (start, begin), (end, finish) = spans[wire[0] + 1], spans[wire[1] + 1]
        if wire not in placed.lanes:
            yield _wire(f"M{middle:g} {begin:g}V{end:g}", middle, end, down=True)
            continue
        lane = right + _LANE * (placed.lanes[wire] + 0.6)
        last = wire[1] == len(placed.box.flow.rows)
        out = start if wire[0] < 0 else (start + begin) / 2 + 3
        into = finish if last else (end + finish) / 2 - 3
        edge = {True: middle, False: right}
        leave, arrive = edge[wire[0] < 0], edge[last]
        for number, of_row in ((wire[0], "leave"), (wire[1], "arrive")):
            rows = placed.box.flow.rows
            if 0 <= number < len(rows) and isinstance(sign := rows[number], str):
                side = middle + max(_SIGN, len(sign) * _CHAR + _PAD) / 2
                leave, arrive = (side, arrive) if of_row == "leave" else (leave, side)
        path = f"M{leave:g} {out:g}H{lane:g}V{into:g}H{arrive:g}"
        yield _wire(path, arrive, into, down=False)


def _wire(path: str, x: float, y: float, *, down: bool) -> str:
    """A line, and the head of an arrow at its end."""
    head = (
        f"{x - 3:g},{y - 6:g} {x + 3:g},{y - 6:g}"
        if down
        else f"{x + 6:g},{y - 3:g} {x + 6:g},{y + 3:g}"
    )
    return f'<path d="{path}" fill="none" stroke="{_WIRE}"/><polygon points="{x:g},{y:g} {head}" fill="{_WIRE}"/>'


def tower_svg(boxes: Sequence[Box]) -> str:
    """Towers side by side, each executed from top to bottom."""
    return _page([(box, {}) for box in boxes], boxes[0].title)


def diff_svg(before: Sequence[Box], after: Sequence[Box], marks: Mapping[str, Verdict]) -> str:
    """The towers of both models; boxes that differ are red (breaking), yellow (convertible) or green."""
    both = [(box, marks) for box in (*before, *after)]
    return _page(both, f"{before[0].title} → {after[0].title}")


def _page(towers: Sequence[tuple[Box, Mapping[str, Verdict]]], title: str) -> str:
    placed = [(_place(box), marks) for box, marks in towers]
    width = sum(p.width for p, _ in placed) + _PAD * (len(placed) + 1)
    shapes = _legend({verdict for _, marks in towers for verdict in marks.values()})
    top = _PAD + (_LINE + _GAP if shapes else 0)
    height = max(p.height for p, _ in placed) + top + _PAD
    x: float = _PAD
    for one, marks in placed:
        shapes += _draw(one, x, top, one.width, 0, marks)
        x += one.width + _PAD
    return _svg(width, height, title, shapes)


def _legend(verdicts: set[Verdict]) -> list[str]:
    """What the colours mean, those that occur."""
    shapes: list[str] = []
    x: float = _PAD
    for verdict, fill in _CHANGED.items():
        if verdict in verdicts:
            shapes.append(
                f'<rect x="{x:g}" y="{_PAD}" width="14" height="14" rx="3" fill="{fill}" stroke="#5b6b8c"/>'
                f'<text x="{x + 20:g}" y="{_PAD + 11}">{verdict.value}</text>'
            )
            x += 20 + (len(verdict.value) + 3) * _CHAR
    return shapes


def _svg(width: float, height: float, title: str, shapes: Sequence[str]) -> str:
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="ui-monospace, monospace" font-size="12" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one line, both coordinates positive ints, x ascending."""

    name: str
    points: tuple[tuple[int, int], ...]


_COLOURS = ("#1f5fa8", "#b3402a", "#2c7d4f", "#8a5fb0", "#a87a10", "#3d8f99", "#c04f8a", "#555f6e")
_DASHES = ("", "6 3", "2 3")


def plot_svg(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """Lines over a power-of-two grid on both axes; y is in bytes."""
    xs = [x for c in curves for x, _ in c.points]
    ys = [y for c in curves for _, y in c.points if y > 0]
    x0, x1 = floor(log2(min(xs))), ceil(log2(max(xs)))
    y0, y1 = floor(log2(min(ys))), ceil(log2(max(ys)))
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    left, top, wide, high = 90, 40, 560, 360

    def px(value: float) -> float:
        return left + (log2(value) - x0) / (x1 - x0) * wide

    def py(value: float) -> float:
        return top + high - (log2(value) - y0) / (y1 - y0) * high

    shapes = [f'<text x="{left}" y="22" font-weight="bold">{escape(title)}</text>']
    for k in range(x0, x1 + 1):
        label = f"{2**k // 1024}K" if k >= 10 else str(2**k)
        shapes.append(
            f'<line x1="{px(2**k):.1f}" y1="{top}" x2="{px(2**k):.1f}" y2="{top + high}" stroke="#e3e6ec"/>'
            f'<text x="{px(2**k):.1f}" y="{top + high + 18}" text-anchor="middle">{label}</text>'
        )
    for k in range(y0, y1 + 1, max(1, (y1 - y0) // 10)):
        shapes.append(
            f'<line x1="{left}" y1="{py(2**k):.1f}" x2="{left + wide}" y2="{py(2**k):.1f}" stroke="#e3e6ec"/>'
            f'<text x="{left - 6}" y="{py(2**k) + 4:.1f}" text-anchor="end">{escape(bytes_short(2**k))}</text>'
        )
    for i, curve in enumerate(curves):
        colour = _COLOURS[i % len(_COLOURS)]
        dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in curve.points if y > 0)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        y = top + 14 + i * _LINE
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{style}/>'
            f'<line x1="{left + wide + 14}" y1="{y - 4}" x2="{left + wide + 38}" y2="{y - 4}" '
            f'stroke="{colour}" stroke-width="2"{style}/>'
            f'<text x="{left + wide + 44}" y="{y}">{escape(curve.name)}</text>'
        )
    middle = left + wide / 2
    shapes.append(
        f'<text x="{middle:g}" y="{top + high + 40}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="16" y="{top + high / 2:g}" transform="rotate(-90 16 {top + high / 2:g})" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = max((len(c.name) for c in curves), default=0) * _CHAR + 60
    tall = max(top + high + 60, top + len(curves) * _LINE + 30)
    return _svg(left + wide + 20 + legend, tall, title, shapes)


# curves

CONTEXTS = tuple(2**k for k in range(10, 18))
"""1,024 to 131,072 tokens."""


def cache_curve(
    name: str, report: CacheReport, bytes_per_value: int = 2, contexts: Sequence[int] = CONTEXTS
) -> Curve:
    """Bytes of cache that later queries can still see, for one sequence."""
    return Curve(name, tuple((n, report.needed(n, bytes_per_value)) for n in contexts))


def cache_plot(
    caches: Iterable[tuple[str, CacheReport]],
    bytes_per_value: int = 2,
    contexts: Sequence[int] = CONTEXTS,
) -> str:
    """SVG of KV cache over context. Models whose curves coincide share a line. Raises LG901 without any model."""
    by_points: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name, report in caches:
        curve = cache_curve(name, report, bytes_per_value, contexts)
        if any(y for _, y in curve.points):
            by_points.setdefault(curve.points, []).append(name)
    if not by_points:
        raise LlamagenError.of("LG901", "there is no model with a cache to plot")
    curves = [
        Curve(names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", points)
        for points, names in sorted(by_points.items(), reverse=True)
    ]
    title = f"KV cache in sight of a later query, one sequence, {8 * bytes_per_value} bit"
    return plot_svg(title, "context (tokens)", "bytes", curves)


# Mermaid


def mermaid(graph: Graph) -> str:
    """Text that Mermaid draws; equal graphs give equal bytes."""
    lines = ["flowchart TD", f"  %% {graph.spec_id}"]
    for block in reversed(list(graph.blocks.values())):
        lines += _flow(block)
    for block in graph.blocks.values():
        lines += _contains(block)
    return "".join(f"{line}\n" for line in lines)


def _flow(block: Block) -> Iterator[str]:
    yield f'  subgraph {block.name}["{block.name}"]'
    ids: dict[str, str] = {}
    for value in block.inputs:
        type_ = str(value.type).replace('"', "#quot;")
        ids[value.id] = f"{block.name}_in_{value.id}"
        yield f'    {ids[value.id]}(["{value.id}: {type_}"])'
    edges: list[str] = []
    for index, node in enumerate(block.nodes):
        here = f"{block.name}_{index}"
        yield f'    {here}["{_label(block, node)}"]'
        for operand in node.operands:
            if operand.startswith("@"):
                source = f"{block.name}_at_{operand[1:]}"
                if operand not in ids:
                    ids[operand] = source
                    yield f'    {source}(["{operand[1:]}"])'
            edges.append(f"    {ids[operand]} --> {here}")
        for result in node.results:
            ids[result] = here
    yield from dict.fromkeys(edges)
    for output in block.outputs:
        yield f'    {ids[output]} --> {block.name}_out(["return"])'
    yield "  end"


def _label(block: Block, node: Node) -> str:
    match block.part_of(node):
        case None:
            return node.op
        case OpPart(name=name, op=op):
            return f"{name}: {op}"
        case BlockPart(name=name, block=below):
            return f"{name}: {below}"
        case StackPart(name=name, blocks=blocks):
            return f"{name}: {' + '.join(_repeated(pattern, n) for _, pattern, n in runs(blocks))}"


def _repeated(pattern: Sequence[str], times: int) -> str:
    """``32 x Layer``, or ``12 x (3 x Local + 1 x Global)`` for layers in turn."""
    if len(pattern) == 1:
        return f"{times} x {pattern[0]}"
    inner = " + ".join(f"{len(list(run))} x {below}" for below, run in groupby(pattern))
    return f"{times} x ({inner})"


def _contains(block: Block) -> Iterator[str]:
    for index, node in enumerate(block.nodes):
        if (part := block.part_of(node)) is not None:
            for name in dict.fromkeys(part.below):
                yield f"  {block.name}_{index} -.-> {name}"


# Model Explorer


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
    known, slots = graph.parameters, iter(cache_of(graph).layers)
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
            slot = next(slots)
            kept = slot.kept(sizes["P"] + sizes["S"])
            data["cache_values"] = str(sizes["B"] * slot.values_per_token * kept)
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


PIXELS = 2.0
"""Of a PNG for each unit of the drawing."""


def png(svg: str) -> bytes:
    """A drawing as PNG, twice as many pixels as it has units, on white. Raises LG901 without what draws it."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        help = "`pip install 'llamagen[png]'`, or take the SVG"
        raise LlamagenError.of("LG901", "a PNG needs resvg-py", help=help) from None
    return bytes(svg_to_bytes(svg_string=svg, zoom=PIXELS, background="#ffffff"))
