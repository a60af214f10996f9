"""``import``: a foreign configuration as a spec. It imports no runtime and no numpy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamagen.cli import console

if TYPE_CHECKING:
    from llamagen.emit.config.importing import Imported


def import_config(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="config.json, params.json, or a folder with one."),
    ],
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Of the spec; made from the path by default."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write the spec here instead of stdout."),
    ] = None,
) -> None:
    """Turn a config.json, params.json or checkpoint folder into a spec, and say which known model it is."""
    from llamagen import api_analysis as api
    from llamagen.writing import require_kin, write_changed

    if to is not None:
        require_kin(to, lambda text: re.search(r"^spec: \d", text, re.M) is not None, "a spec")
    made = api.import_config(source, id)
    _report(made)
    if to is None:
        console.out(made.text)
    else:
        reads = list(source.iterdir()) if source.is_dir() else [source]
        written, _ = write_changed(to.parent, {to.name: made.text}, reads)
        console.line(f"{'wrote' if written else 'unchanged'} {to}")


def _report(made: Imported) -> None:
    """What it is and what became of every key, for people: on stderr."""
    if made.exact:
        console.note(f"this is {', '.join(made.exact)}, value for value")
    elif made.alike:
        console.note(f"the architecture is that of {', '.join(made.alike)}")
    else:
        console.note(f"the nearest known model is {made.nearest.id}")
    for one in (*made.nearest.differences, *made.nearest.marks):
        console.note(f"  {one.key}: {one.here!r}, there {one.known!r}")
    console.note(f"{len(made.handled)} keys handled, {len(made.ignored)} ignored")
    for key, reason in made.ignored.items():
        console.note(f"  {key}: {reason}")
    if made.dropped:
        dropped = ", ".join(made.dropped)
        console.note(f"formulas of {made.nearest.id} that do not hold here: {dropped}")
    for text in made.notes:
        console.note(text)
