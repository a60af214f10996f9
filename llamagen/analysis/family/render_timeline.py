"""Timelines as text: one line a value and date, first appearances marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from llamagen.analysis.family.timeline import Timeline
from llamagen.analysis.rules import static_text


def text(found: Timeline) -> str:
    return "".join(f"{line}\n" for line in [*_lines(found), *_left_out(found)])


def _left_out(found: Timeline) -> Iterator[str]:
    """A filter that nobody typed must not hide models without a word."""
    if found.left_out:
        count = len(found.left_out)
        models = f"{count} dated model{'s' if count > 1 else ''}"
        yield f'left out by --where "{found.where}": {models} ({_groups(found.left_out)})'
        yield '  --where "true" shows them too'


def _groups(ids: Sequence[str]) -> str:
    """``llama/code 10, llama/guard 6``: how many in each folder."""
    folders = Counter(i.rsplit("/", 1)[0] for i in ids)
    return ", ".join(f"{name} {n}" for name, n in sorted(folders.items()))


def _lines(found: Timeline) -> Iterator[str]:
    if not found.steps:
        yield f"{found.path}: no release matches"
        return
    if found.constant:
        held = found.steps[0].held[0]
        yield f"{found.path}: {static_text(held.value)} in all {found.releases} releases, never changed"
        return
    yield f"{found.path}: {len(found.steps)} of {found.releases} release dates changed it"
    for step in found.steps:
        for i, held in enumerate(step.held):
            date = step.date if i == 0 else " " * len(step.date)
            mark = "first  " if held.first else "       "
            yield f"  {date}  {mark} {static_text(held.value)}  {_ids(held.ids)}"


def _ids(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:4])
    return shown if len(ids) <= 4 else f"{shown} and {len(ids) - 4} more"


def history_text(found: Sequence[Timeline]) -> str:
    """First appearances of every value, then what never changed."""
    lines: list[str] = []
    for one in found:
        if not one.constant:
            firsts = "; ".join(
                f"{date} {static_text(held.value)} ({held.ids[0]})" for date, held in one.firsts()
            )
            lines.append(f"{one.path}: {firsts}")
    still = [f"{t.path} = {static_text(t.steps[0].held[0].value)}" for t in found if t.constant]
    lines.append(f"never changed: {', '.join(still) if still else 'nothing'}")
    for one in found[:1]:
        lines.extend(_left_out(one))
    return "".join(f"{line}\n" for line in lines)
