"""A diff as text, Markdown, HTML and GitHub annotations. Strings out, nothing printed."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator

from llamagen.analysis.diff.features import Kind
from llamagen.analysis.diff.judge import Change, Diff, Side, Surface, Verdict, diff_rules
from llamagen.analysis.diff.weights import DOC
from llamagen.diagnostics.markdown import cell, code
from llamagen.diagnostics.render import github_data, github_property
from llamagen.units import bytes_short, count_short


def headline(result: Diff) -> str:
    load = result.workload
    unwired = result.unwired or ""
    verb = "have" if " and " in unwired else "has"
    return (
        f"at {load.context} tokens, batch {load.batch}, weights in {load.weights.name}, "
        f"cache and activations in {8 * load.cache_bytes} bit"
        f"{f', on {result.device}' if result.device is not None else ''}"
        f"{f'; {result.ignored} changes ignored' if result.ignored else ''}"
        f"{f'; {unwired} {verb} no wiring recorded: only what is published is compared' if unwired else ''}"
    )


def verdict_text(result: Diff, surface: Surface) -> str:
    return result.verdict(surface).value if result.compared(surface) else "not compared"


def where(change: Change) -> str:
    """The path, with how often it occurs."""
    if change.times == 1:
        return change.path
    return f"{change.path} ×{change.times}"


_LONG = 160


def shown(side: Side) -> str:
    """Of a long text, such as the results that a publisher states, the start: `--format json` has the whole."""
    if side.text is None:
        return "none"
    return side.text if len(side.text) <= _LONG else f"{side.text[:_LONG]}..."


def arrow(change: Change) -> str:
    """``before → after``; sizes with their unit."""
    if change.kind is not Kind.NUMBER:
        ends = [shown(change.before), shown(change.after)]
    elif "_bytes" in change.path:
        ends = [_number(side, bytes_short, " B") for side in (change.before, change.after)]
    else:
        ends = [_number(side, count_short, "") for side in (change.before, change.after)]
    return " → ".join(ends)


def _number(side: Side, short: Callable[[int], str], unit: str) -> str:
    if side.text is None:
        return "none"
    number = int(side.text.replace(",", ""))
    return f"{number:,}{unit} ({short(number)})"


_CAUSES = 6
_NAMES = 12
"""More names of checkpoints and config.json are counted, not listed: another table is one change to a reader."""


def causes_text(change: Change) -> str:
    """The values that brought a change about; of many the first."""
    texts = [
        f"{cause.path.split('.', 1)[1]} {cause.before or 'none'} → {cause.after or 'none'}"
        + (f" [{cause.source}]" if cause.source else "")
        for cause in change.causes
    ]
    if len(texts) > _CAUSES:
        texts = [*texts[: _CAUSES - 1], f"and {len(texts) - _CAUSES + 1} more"]
    return "; ".join(texts)


def proof(change: Change) -> str:
    """Sources of both ends, where they are known."""
    ends = [s for s in (change.before.source, change.after.source) if s is not None]
    return f" [{'; '.join(dict.fromkeys(ends))}]" if ends else ""


def why(change: Change) -> str:
    """What brought a change about; of one that stands for itself, what proves it."""
    return causes_text(change) or proof(change).strip()


def consequence(change: Change, surface: Surface) -> str:
    """What the change means there, as far as ``before → after`` does not say it; empty where it says all."""
    worst = change.verdict(surface)
    effects = (e.text for e in change.effects if e.surface is surface and e.verdict is worst)
    text = next(effects, "")
    if text.endswith(shown(change.after)):
        return ""
    _, said, rest = text.partition(f"{shown(change.before)} → {shown(change.after)}")
    return rest.removeprefix(":").strip() if said else text


def effects_text(change: Change) -> str:
    """``weights breaking, interface breaking`` of one change."""
    worst = {e.surface: change.verdict(e.surface) for e in change.effects}
    return ", ".join(f"{s.value} {v.value}" for s, v in worst.items()) or "no effect by itself"


LINES = 60
"""What a text has if it is not asked for all."""


def text(result: Diff, surfaces: Iterable[Surface] = tuple(Surface), *, full: bool = False) -> str:
    """The summary, the surfaces, and the changes: as many as fit ``LINES``, or all with their places and causes."""
    chosen = tuple(surfaces)
    head = list(_head(result, chosen))
    sections = [
        (title, list(_section(result, changes, on, full)))
        for title, changes, on in _sections(result, chosen)
    ]
    tail = list(_conversions(result, full))
    tail = ["", *tail] if tail else []
    if not full:
        room = LINES - len(head) - len(tail) - 2 * len(sections)
        sections = _shortened(sections, room)
    lines = [*head]
    for title, section in sections:
        lines += ["", title, *section]
    return "".join(f"{line}\n" for line in [*lines, *tail])


def _head(result: Diff, surfaces: tuple[Surface, ...]) -> Iterator[str]:
    yield f"{result.before} → {result.after}"
    yield from (f"  {sentence}" for sentence in result.summary)
    yield ""
    yield headline(result)
    for surface in surfaces:
        changes = result.on(surface)
        verdict = verdict_text(result, surface)
        count = f"{len(changes)} change{'s' * (len(changes) > 1)}" if changes else ""
        yield f"{surface.value:<10} {verdict:<12}{count}".rstrip()


def _sections(
    result: Diff, surfaces: tuple[Surface, ...]
) -> Iterator[tuple[str, tuple[Change, ...], Surface | None]]:
    values = tuple(c for c in result.changes if c.kind == "value" and c.touches(surfaces))
    if values:
        yield "what the specs change", values, None
    for surface in surfaces:
        changes = tuple(c for c in result.on(surface) if c.kind != "value" or _own(c, surface))
        if changes:
            yield f"{surface.value}: {result.verdict(surface).value}", changes, surface


def _section(
    result: Diff, changes: tuple[Change, ...], surface: Surface | None, full: bool
) -> Iterator[str]:
    """Lines of values, or of what changes on a surface; the worst first where not all are shown."""
    if surface is None:
        for change in changes:
            yield f"  {change.rule} {where(change)}  {arrow(change)}{proof(change)}"
            if full:
                yield f"       {effects_text(change)}"
                yield from (f"       {place}" for place in _places(change))
        return
    named = [c for c in changes if c.kind is Kind.NAMING]
    many = len(named) > _NAMES
    shown = [c for c in changes if not (many and c.kind is Kind.NAMING)]
    if not full:
        shown.sort(key=lambda c: -c.verdict(surface).rank)
    for change in shown:
        layers = f" (layers {change.layers})" if change.layers and change.times > 1 else ""
        line = f"  {change.rule} {change.verdict(surface).value:<11} {where(change)}{layers}  {arrow(change)}"
        if full:
            yield f"{line}{proof(change) if not change.causes else ''}"
            if (meaning := consequence(change, surface)) != "":
                yield f"       {meaning}"
            if change.causes:
                yield f"       because {causes_text(change)}"
        else:
            names = dict.fromkeys(cause.path.split(".", 1)[1] for cause in change.causes)
            yield f"{line}{f'  because {_few(list(names))}' if names else ''}"
    if many:
        rule, verdict = named[0].rule, named[0].verdict(surface).value
        yield f"  {rule} {verdict:<11} {len(named)} entries of checkpoint and config; --format json lists them"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _shortened(sections: list[tuple[str, list[str]]], room: int) -> list[tuple[str, list[str]]]:
    """As many lines as there is room for, of every section some; what is left out is counted."""
    kept = dict.fromkeys(range(len(sections)), 0)
    while room > 0 and any(kept[i] < len(lines) for i, (_, lines) in enumerate(sections)):
        for i, (_, lines) in enumerate(sections):
            if room > 0 and kept[i] < len(lines):
                kept[i], room = kept[i] + 1, room - 1
    result = []
    for i, (title, lines) in enumerate(sections):
        left = len(lines) - kept[i]
        if left:
            kept[i] = max(kept[i] - 1, 0)
            left = len(lines) - kept[i]
        more = [f"  ... {left} more, with --full"] if left else []
        result.append((title, [*lines[: kept[i]], *more]))
    return result


def _conversions(result: Diff, full: bool) -> Iterator[str]:
    needed = result.transforms()
    if needed and not full:
        names = ", ".join(needed)
        if result.verdict(Surface.WEIGHTS) is Verdict.BREAKING:
            yield f"some weights are converted by {names}, others cannot be"
        else:
            yield f"weights are converted by {names} (`llamagen convert`)"
    elif needed:
        yield "conversions that exist"
        for transform in needed:
            yield f"  {transform.value}: {DOC[transform]}"


def _own(change: Change, surface: Surface) -> bool:
    """Whether a value acts on the surface itself; derived effects are shown where they happen."""
    rule = diff_rules()[change.rule]
    return rule.listed and surface in rule.effects


def _places(change: Change) -> Iterator[str]:
    ends = [str(s) for s in (change.before.place, change.after.place) if s is not None]
    if ends:
        yield " → ".join(dict.fromkeys(ends))


def markdown(result: Diff, surfaces: Iterable[Surface] = tuple(Surface)) -> str:
    lines = [f"# {cell(f'{result.before} → {result.after}')}", "", cell(headline(result)), ""]
    lines += [f"- {cell(sentence)}" for sentence in result.summary]
    lines += [""] * bool(result.summary)
    lines += ["| surface | verdict | changes |", "| --- | --- | ---: |"]
    chosen = tuple(surfaces)
    for surface in chosen:
        lines.append(
            f"| {surface.value} | {verdict_text(result, surface)} | {len(result.on(surface))} |"
        )
    for surface in chosen:
        changes = result.on(surface)
        if not changes:
            continue
        lines += ["", f"## {surface.value}: {result.verdict(surface).value}", ""]
        lines += [
            "| rule | verdict | where | before → after | consequence | why |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for c in changes:
            texts = (cell(arrow(c)), cell(consequence(c, surface)), cell(why(c)))
            cells = (c.rule, c.verdict(surface).value, code(where(c)), *texts)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top}code{font-size:.9em}.breaking{color:#b00020}"
    ".convertible{color:#8a5a00}.grows{color:#6a4a9c}.compatible{color:#1b6e3c}.same{color:#666}"
)


def _title(change: Change) -> str:
    """Where both sides are written, shown when a reader points at the path."""
    return "".join(f' title="{html.escape(place)}"' for place in _places(change))


def html_page(result: Diff, surfaces: Iterable[Surface] = tuple(Surface)) -> str:
    """One self-contained page; every text is escaped."""
    e = html.escape
    title = e(f"{result.before} → {result.after}")
    said = "".join(f"<li>{e(sentence)}</li>" for sentence in result.summary)
    body = [
        f"<h1>{title}</h1>",
        f"<ul>{said}</ul>" if said else "",
        f"<p>{e(headline(result))}</p>",
    ]
    for surface in surfaces:
        verdict = result.verdict(surface).value
        words = verdict_text(result, surface)
        body.append(f'<h2>{surface.value}: <span class="{verdict}">{words}</span></h2>')
        rows = [
            f'<tr><td>{e(c.rule)}</td><td class="{c.verdict(surface).value}">'
            f"{c.verdict(surface).value}</td><td><code{_title(c)}>{e(where(c))}</code></td>"
            f"<td>{e(arrow(c))}</td><td>{e(consequence(c, surface))}</td>"
            f"<td>{e(why(c))}</td></tr>"
            for c in result.on(surface)
        ]
        if rows:
            names = ("rule", "verdict", "where", "before → after", "consequence", "why")
            head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
            body.append(f"<table>{head}{''.join(rows)}</table>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


_LEVEL = {
    Verdict.BREAKING: "error",
    Verdict.CONVERTIBLE: "warning",
    Verdict.GROWS: "notice",
    Verdict.COMPATIBLE: "notice",
    Verdict.SAME: "notice",
}


def github(result: Diff, surfaces: Iterable[Surface] = tuple(Surface)) -> str:
    """Workflow commands that annotate the changed lines of the newer spec."""
    chosen = tuple(surfaces)
    lines: list[str] = []
    for c in result.changes:
        touched = [s for s in chosen if any(e.surface is s for e in c.effects)]
        at = c.after.place or c.before.place
        if not touched or at is None:
            continue
        worst = max((c.verdict(s) for s in touched), key=lambda v: v.rank)
        names = ", ".join(s.value for s in touched)
        title = github_property(f"{c.rule} {worst.value}: {names}")
        file = github_property(at.file)
        meaning = dict.fromkeys(m for s in touched if (m := consequence(c, s)))
        message = github_data("; ".join((f"{where(c)}: {arrow(c)}", *meaning)))
        place = f"file={file},line={at.line},col={at.col}"
        lines.append(f"::{_LEVEL[worst]} {place},title={title}::{message}\n")
    return "".join(lines)
