"""Towers and plots as SVG text: no scripts, no external resources, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llamagen.analysis.diff.surfaces import Verdict
from llamagen.analysis.pictures.tower import Box
from llamagen.units import bytes_short, count_short

_PAD = 10
_LINE = 16
_CHAR = 7.2
_GAP = 8
_MIN = 260.0

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


def _place(box: Box) -> _Placed:
    inside = tuple(_place(b) for b in box.inside)
    lines = (_head(box), *box.lines)
    gap = len(_count(box)) + 3
    text = max(len(lines[0]) + gap, *map(len, lines)) * _CHAR + 2 * _PAD
    width = max([text, _MIN, *(p.width + 2 * _PAD for p in inside)])
    height = 2 * _PAD + len(lines) * _LINE + sum(p.height + _GAP for p in inside)
    return _Placed(box, lines, width, height, inside)


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
    top = at - 12 + _GAP
    for inner in placed.inside:
        shapes += _draw(inner, x + _PAD, top, width - 2 * _PAD, depth + 1, marks)
        top += inner.height + _GAP
    return shapes


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
    from math import ceil, floor, log2

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
