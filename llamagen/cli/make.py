"""Commands that write text: canonical YAML, the schema, generated code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from llamagen import api
from llamagen.cli import console
from llamagen.cli.exit_codes import FINDINGS, INVALID
from llamagen.cli.progress import case_progress
from llamagen.cli.read import Cache, Family, Form, known_ids
from llamagen.diagnostics.render import to_json
from llamagen.emit.options import Target
from llamagen.resources import data_text
from llamagen.spec.families import FAMILY
from llamagen.writing import require_kin, write_changed

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="YAML files or folders of them.")]


def fmt(
    files: Files,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if a file is not canonical.")
    ] = False,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Put right first what `check` refuses and names one fix for."
        ),
    ] = False,
    form: Form = "text",
) -> None:
    """Write specs in canonical form, comments kept."""
    report = api.fmt(files, write=not check, upgrade=upgrade)
    if form == "json":
        from llamagen.analysis.documents import FmtDocument

        found = to_json(report.findings, Path.cwd())
        changed = [str(path) for path in report.changed]
        document = json.dumps({**found, "changed": changed, "written": not check})
        console.out(FmtDocument.model_validate_json(document).json_text())
    else:
        for one in report.upgrades:
            console.line(f"{one.place}: `{one.before}` is `{one.after}` [{one.code}]")
        for path in report.changed:
            console.line(f"{'would change' if check else 'changed'} {path}")
        console.diagnostics(report.findings)
    if report.failed:
        raise typer.Exit(INVALID)
    if check and report.changed:
        raise typer.Exit(FINDINGS)


def schema(
    command: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMMAND]",
            help="Of what this command prints with --format json; of spec files by default.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write to this file instead of stdout."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 if the shipped schema is out of date.")
    ] = False,
) -> None:
    """Print the JSON schema of spec files, for completion and hovers in editors, or of what a command prints."""
    if check:
        name = "schema.json" if command is None else f"{command}.schema.json"
        if data_text("spec", name) != api.schema_text(command):
            words = " ".join(filter(None, ("llamagen schema", command, f"--to spec/{name}")))
            console.note(f"spec/{name} is out of date: run `{words}`")
            raise typer.Exit(FINDINGS)
    elif to is None:
        console.out(api.schema_text(command))
    else:
        console.line(f"{'wrote' if api.write_schema(to, command) else 'unchanged'} {to}")


def generate(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID",
            help="Ids or YAML files; every model by default.",
            autocompletion=known_ids,
        ),
    ] = None,
    target: Annotated[
        list[Target] | None, typer.Option("--target", help="What to write; everything by default.")
    ] = None,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="Root of the folders, one a model.")
    ] = Path("generated"),
    cache: Cache = "full",
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Write nothing; exit 1 with a diff if something is not fresh."
        ),
    ] = False,
) -> None:
    """Write generated/<id>/: PyTorch code, ONNX graph, configs and canonical texts; only what changed."""
    if check:
        stale = api.generate_check(ids or (), target or (), to, cache=cache)
        for text in stale:
            console.out(text)
        if stale:
            console.note(f"{len(stale)} generated files are not fresh: run `llamagen generate`")
            raise typer.Exit(FINDINGS)
        console.line(f"{to}: fresh")
        return
    for outcome in api.generate(ids or (), target or (), to, cache=cache):
        if outcome.shares is not None:
            console.line(f"{outcome.id}: wired as {outcome.shares}")
            continue
        words = f"{len(outcome.written)} written, {len(outcome.unchanged)} unchanged"
        console.line(f"{outcome.id}: {words} in {outcome.folder}")


def new(
    like: Annotated[
        str,
        typer.Option(
            "--like",
            metavar="ID|FILE",
            help="An id, a config.json or params.json, or a checkpoint folder.",
            autocompletion=known_ids,
        ),
    ],
    id: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="ID", help="Of the spec; made from what it is like by default."
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write the spec here instead of stdout."),
    ] = None,
) -> None:
    """Begin a spec of your own: what differs from a known model, or the nearest wiring and what is left to write."""
    if to is not None:
        require_kin(to, lambda text: re.search(r"^spec: \d", text, re.M) is not None, "a spec")
    begun = api.new(like, id)
    for line in (f"extends {begun.base}", *begun.todo):
        console.note(line)
    if to is None:
        console.out(begun.text)
    else:
        source = Path(like)
        reads = list(source.iterdir()) if source.is_dir() else [source]
        written, _ = write_changed(to.parent, {to.name: begun.text}, reads)
        console.line(f"{'wrote' if written else 'unchanged'} {to}")


def site(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that appears whole.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="Only this model; may repeat.")
    ] = None,
    family: Family = FAMILY,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that an earlier site wrote.")
    ] = False,
) -> None:
    """Write the atlas of the family: static files that open in a browser from disk, without a network."""
    with case_progress("comparing models", "pairs") as progress:
        api.site(out, only=only or (), family=family, overwrite=overwrite, progress=progress)
    console.line(f"{out}: open {out / 'index.html'}")
